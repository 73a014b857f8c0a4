"""The linear layers that engines build from a checkpoint's FP8 weights, and what they do not run as such."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .blocks import BLOCK, FP8, check_block_size, check_scale
from .checkpoint import Checkpoint, Tensor

Split = Literal["column", "row", "replicated"]

# How tensor parallelism splits each layer, in the order in which a model runs them.
_SPLITS: dict[str, Split] = {
    "fused_qkv_a_proj_with_mqa": "replicated",
    "q_a_proj": "replicated",
    "kv_a_proj_with_mqa": "replicated",
    "qkv_proj": "column",
    "q_proj": "column",
    "k_proj": "column",
    "v_proj": "column",
    "q_b_proj": "column",
    "kv_b_proj": "column",  # run in FP8 where attention is not absorbed: in prefill
    "o_proj": "row",
    "gate_up_proj": "column",
    "gate_proj": "column",
    "up_proj": "column",
    "down_proj": "row",
}
_MERGED = {
    "fused_qkv_a_proj_with_mqa": ("q_a_proj", "kv_a_proj_with_mqa"),
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
_QUERY_HEADS = ("q_proj", "q_b_proj", "kv_b_proj")
_KV_HEADS = ("k_proj", "v_proj")

_EXPERT = re.compile(r"^(?:(.*)\.)?experts\.(\d+)$")
_PLAIN_PARENTS = ("", "self_attn", "attn", "attention", "mlp", "feed_forward")
_LARGE = 512  # the smaller side of a weight in another dtype that is worth a word; routers have fewer rows
_NAMED_AT_MOST = 8


@dataclass(frozen=True, slots=True)
class Part:
    """The rows that one weight of the checkpoint gives to a layer; `heads`: what divides them, if any do."""

    name: str
    rows: int
    heads: Literal["query", "key-value"] | None = None


@dataclass(frozen=True, slots=True)
class Linear:
    """A layer as the engine runs it undivided: the rows of `parts` above each other, K columns."""

    name: str  # "qkv_proj", "shared_experts.down_proj"
    split: Split
    parts: tuple[Part, ...]
    K: int

    @property
    def N(self) -> int:
        return sum(part.rows for part in self.parts)


@dataclass(frozen=True, slots=True)
class Heads:
    """Numbers of attention heads; None where the config does not tell."""

    query: int | None
    key_value: int | None


@dataclass(frozen=True, slots=True)
class ModelLinears:
    linears: Mapping[Linear, str]  # each different layer -> a module that is one
    heads: Heads
    not_covered: tuple[str, ...]


def linears_of(checkpoint: Checkpoint) -> ModelLinears:
    """Merge the FP8 weights as engines do. ValueError where they are not quantised in blocks of 128 x 128."""
    check_block_size(checkpoint.config)
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)  # module -> name inside it -> weight
    others: list[tuple[str, Tensor]] = []
    odd = []
    for name, tensor in checkpoint.tensors.items():
        if tensor.dtype == FP8 and (len(tensor.shape) != 2 or not name.endswith(".weight")):
            odd.append(name)
        elif tensor.dtype == FP8:
            check_scale(name, tensor, checkpoint.tensors)
            module, _, leaf = name.removesuffix(".weight").rpartition(".")
            groups[module][leaf] = tensor
        elif name.endswith(".weight") and len(tensor.shape) == 2:
            others.append((name.removesuffix(".weight"), tensor))
    if not groups and not odd:
        dtypes = Counter(tensor.dtype for _, tensor in others)
        found = ", ".join(f"{count} {dtype}" for dtype, count in dtypes.most_common()) or "none"
        raise ValueError(
            f"the checkpoint has no FP8 ({FP8}) linear weight; its 2-D weights are: {found}. Take a model "
            f"that is quantised in FP8 with blocks of {BLOCK} x {BLOCK}, such as Qwen/Qwen3-4B-FP8"
        )
    other_dtypes = {name: tensor.dtype for name, tensor in others}
    heads = _heads(checkpoint.config)
    linears: dict[Linear, str] = {}
    experts: dict[Linear, str] = {}
    for module, weights in groups.items():
        into = experts if _EXPERT.match(module) else linears
        for linear in _merge(module, weights, heads, other_dtypes):
            into.setdefault(linear, module)
    notes = (
        *_about_experts(groups, experts),
        *_about_shared_experts(linears, experts),
        *_about_unknown(linears),
        *_about_odd(odd, checkpoint.tensors),
        *_about_other_dtypes(others),
    )
    return ModelLinears({linear: linears[linear] for linear in sorted(linears, key=_rank)}, heads, notes)


def _heads(config: Mapping[str, Any]) -> Heads:
    text = config.get("text_config") or config  # models that also see keep the language model's fields apart
    query = text.get("num_attention_heads")
    key_value = text.get("num_key_value_heads") or query
    return Heads(*(count if isinstance(count, int) and count > 0 else None for count in (query, key_value)))


def _merge(
    module: str, weights: Mapping[str, Tensor], heads: Heads, other_dtypes: Mapping[str, str]
) -> Iterable[Linear]:
    rest = dict(weights)
    for merged, leaves in _MERGED.items():
        present = [leaf for leaf in leaves if leaf in rest]
        for leaf in leaves:
            other = other_dtypes.get(f"{module}.{leaf}")
            if present and other:
                raise ValueError(
                    f"{module} has {present[0]} in {FP8} and {leaf} in {other}; engines merge them into "
                    f"{merged} and need one dtype. Take a checkpoint that quantises both or neither"
                )
        if len(present) == len(leaves):
            yield _linear(module, merged, {leaf: rest.pop(leaf) for leaf in leaves}, heads)
    for leaf, weight in rest.items():
        yield _linear(module, leaf, {leaf: weight}, heads)


def _linear(module: str, name: str, weights: Mapping[str, Tensor], heads: Heads) -> Linear:
    widths = {weight.shape[1] for weight in weights.values()}
    if len(widths) > 1:
        sizes = ", ".join(f"{leaf} {weight.shape}" for leaf, weight in weights.items())
        raise ValueError(
            f"{module}: {sizes} differ in K and cannot be merged into {name}; download them again"
        )
    parts = tuple(_part(leaf, weight.shape[0]) for leaf, weight in weights.items())
    if len(parts) == 1 and name in _MERGED:
        parts = _parts_of_fused(name, parts[0].rows, heads)
    return Linear(_label(module, name), _SPLITS.get(name, "replicated"), parts, widths.pop())


def _part(leaf: str, rows: int) -> Part:
    kind: Literal["query", "key-value"] | None = None
    if leaf in _QUERY_HEADS:
        kind = "query"
    elif leaf in _KV_HEADS:
        kind = "key-value"
    return Part(leaf, rows, kind)


def _parts_of_fused(name: str, rows: int, heads: Heads) -> tuple[Part, ...]:
    """The parts of a layer that the checkpoint holds merged already."""
    if name == "gate_up_proj" and rows % 2 == 0:
        return Part("gate_proj", rows // 2), Part("up_proj", rows // 2)
    if name == "qkv_proj" and heads.query and heads.key_value:
        head, left = divmod(rows, heads.query + 2 * heads.key_value)
        if not left:
            numbers = (heads.query, heads.key_value, heads.key_value)
            return tuple(_part(leaf, n * head) for leaf, n in zip(_MERGED[name], numbers, strict=True))
    # Their rows cannot be told apart, so that a rank's share is known for the whole alone.
    return (Part(name, rows, "query" if name == "qkv_proj" else None),)


def _label(module: str, name: str) -> str:
    """`name`, behind its parent's where that tells layers of one name apart."""
    parent = "experts" if _EXPERT.match(module) else module.rpartition(".")[2]
    return name if parent in _PLAIN_PARENTS or parent.isdigit() else f"{parent}.{name}"


def _rank(linear: Linear) -> tuple[bool, int, str]:
    parent, _, leaf = linear.name.rpartition(".")
    order = list(_SPLITS)
    return bool(parent), order.index(leaf) if leaf in order else len(order), linear.name


def _about_experts(groups: Iterable[str], experts: Iterable[Linear]) -> Iterable[str]:
    layers = Counter(match[1] for match in map(_EXPERT.match, groups) if match)
    if not layers:
        return
    counts = set(layers.values())
    count = f"{counts.pop()} in each" if len(counts) == 1 else f"{layers.total()} in all"
    shapes = ", ".join(
        _sized(linear.name.rpartition(".")[2], linear.N, linear.K) for linear in sorted(experts, key=_rank)
    )
    yield f"routed experts ({count} of {len(layers)} layers), a grouped GEMM of its own: {shapes}, undivided"


def _about_shared_experts(linears: Iterable[Linear], experts: Mapping[Linear, str]) -> Iterable[str]:
    if experts and any(linear.name.startswith("shared_experts.") for linear in linears):
        yield "shared_experts, where the engine fuses them into the routed experts; listed as if it did not"


def _about_unknown(linears: Iterable[Linear]) -> Iterable[str]:
    names = sorted({linear.name for linear in linears if linear.name.rpartition(".")[2] not in _SPLITS})
    if names:
        yield f"how engines merge or divide {_list(names)}, unknown here; listed whole, as on each rank"


def _about_odd(names: list[str], tensors: Mapping[str, Tensor]) -> Iterable[str]:
    if names:
        example = _sized(names[0], *tensors[names[0]].shape)
        yield f"FP8 tensors that are no 2-D weight of a linear layer: {len(names)}, such as {example}"


def _about_other_dtypes(others: Iterable[tuple[str, Tensor]]) -> Iterable[str]:
    by_dtype: dict[str, dict[str, None]] = defaultdict(dict)
    for name, tensor in others:
        module, _, leaf = name.rpartition(".")
        if min(tensor.shape) >= _LARGE and "embed" not in name and leaf != "wte":
            by_dtype[tensor.dtype][_sized(_label(module, leaf), *tensor.shape)] = None
    for dtype, layers in by_dtype.items():
        yield f"kept in {dtype}: {_list(list(layers))}"


def _sized(name: str, *shape: int) -> str:
    return f"{name} ({', '.join(map(str, shape))})"


def _list(names: list[str]) -> str:
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
