"""What one rank of tensor parallelism holds of a layer, by the engines' rules for block-quantised weights."""

from __future__ import annotations

from .blocks import BLOCK
from .linears import Heads, Linear, Part


def why_indivisible(linear: Linear, heads: Heads, tp: int) -> str | None:
    """Why engines refuse this layer on `tp` ranks, as a clause with the sizes; None where they run it."""
    if linear.split == "row":
        if tp > 1 and linear.K % (tp * BLOCK):
            return f"K = {linear.K} over {tp} ranks is {linear.K / tp:g} each, and not a multiple of {BLOCK}"
        return None
    if linear.split == "replicated":
        ragged = [part for part in linear.parts[:-1] if part.rows % BLOCK]
        return f"{_ragged(ragged[0], ragged[0].rows)} in a merged layer" if ragged else None
    for part in linear.parts:
        why = _why_part_indivisible(part, heads, tp, merged=len(linear.parts) > 1)
        if why is not None:
            return why
    return None


def shape_on_rank(linear: Linear, heads: Heads, tp: int) -> tuple[int, int]:
    """(N, K) of one rank's share; for a layer of which `why_indivisible` has nothing to say."""
    if linear.split == "row":
        return linear.N, linear.K // tp
    if linear.split == "replicated":
        return linear.N, linear.K
    return sum(part.rows // _ways(part, heads, tp) for part in linear.parts), linear.K


def _ways(part: Part, heads: Heads, tp: int) -> int:
    """Into how many different pieces the rows are cut: further ranks hold a copy of a key-value head."""
    return min(tp, heads.key_value or tp) if part.heads == "key-value" else tp


def _why_part_indivisible(part: Part, heads: Heads, tp: int, *, merged: bool) -> str | None:
    if tp > 1 and part.heads:
        count = heads.query if part.heads == "query" else heads.key_value
        if count is None:
            return f"{part.name} is divided by heads, and config.json has no num_attention_heads"
        copied = part.heads == "key-value" and tp > count
        if tp % count if copied else count % tp:
            verb = "be copied to" if copied else "be divided over"
            return f"its {count} {part.heads} heads cannot {verb} {tp} ranks evenly"
        if part.rows % count:
            return f"{part.name} has {part.rows} rows, which are not {count} {part.heads} heads of one size"
    ways = _ways(part, heads, tp)
    if part.rows % ways:
        return f"{part.name} has {part.rows} rows, which cannot be divided over {ways} ranks evenly"
    if (tp > 1 or merged) and (part.rows // ways) % BLOCK:
        return _ragged(part, part.rows // ways)
    return None


def _ragged(part: Part, rows: int) -> str:
    cut = f" of its {part.rows} rows" if rows != part.rows else " rows"
    return f"{part.name} gives a rank {rows}{cut}, and not a multiple of {BLOCK}"
