"""What one rank of tensor parallelism holds of a layer, by the engines' rules for block-quantized weights."""

from __future__ import annotations

from .blocks import BLOCK
from .layer import Heads, Linear, Part


def why_indivisible(linear: Linear, tp: int) -> str | None:
    """Why engines refuse this layer on `tp` ranks, as a clause with the sizes; None where they run it."""
    if linear.split == "row":
        unit = tp * BLOCK if linear.whole_blocks else tp
        if tp > 1 and linear.K % unit:
            wanted = f"a multiple of {BLOCK}" if linear.whole_blocks else "a whole number"
            return f"K = {linear.K} over {tp} ranks is {linear.K / tp:g} each, and not {wanted}"
        return None
    if linear.split == "replicated":
        ragged = [part for part in linear.parts[:-1] if part.rows % BLOCK]
        return f"{_ragged(ragged[0], ragged[0].rows)} in a merged layer" if ragged else None
    for part in linear.parts:
        whole_blocks = linear.whole_blocks and (tp > 1 or len(linear.parts) > 1)
        why = _why_part_indivisible(part, tp, whole_blocks=whole_blocks)
        if why is not None:
            return why
    return None


def shape_on_rank(linear: Linear, tp: int) -> tuple[int, int]:
    """(N, K) of one rank's share; for a layer of which `why_indivisible` has nothing to say."""
    if linear.split == "row":
        return linear.N, linear.K // tp
    if linear.split == "replicated":
        return linear.N, linear.K
    return sum(part.rows // _ways(part.heads, tp) for part in linear.parts), linear.K


def _ways(heads: Heads | None, tp: int) -> int:
    """Into how many different pieces the rows are cut: further ranks hold a copy of a head."""
    return min(tp, heads.count or tp) if heads and heads.copied else tp


def _why_part_indivisible(part: Part, tp: int, *, whole_blocks: bool) -> str | None:
    why = _why_heads_indivisible(part, part.heads, tp) if tp > 1 and part.heads else None
    if why is not None:
        return why
    ways = _ways(part.heads, tp)
    if part.rows % ways:
        return f"{part.name} has {part.rows} rows, which cannot be divided over {ways} ranks evenly"
    if whole_blocks and (part.rows // ways) % BLOCK:
        return _ragged(part, part.rows // ways)
    return None


def _why_heads_indivisible(part: Part, heads: Heads, tp: int) -> str | None:
    if heads.count is None:
        return f"{part.name} is divided by heads, and {heads.unknown}"
    copied = heads.copied and tp > heads.count
    if tp % heads.count if copied else heads.count % tp:
        verb = "be copied to" if copied else "be divided over"
        return f"its {heads.count} {heads.kind} cannot {verb} {tp} ranks evenly"
    if part.rows % heads.count:
        return f"{part.name} has {part.rows} rows, which are not {heads.count} {heads.kind} of one size"
    return None


def _ragged(part: Part, rows: int) -> str:
    cut = f" of its {part.rows} rows" if rows != part.rows else " rows"
    return f"{part.name} gives a rank {rows}{cut}, and not a multiple of {BLOCK}"
