"""The parts that a layer's rows consist of, of a weight that is one projection or holds several merged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .checkpoint import Tensor
from .heads import HeadNumbers, Section, layer_of, match_heads, numbers_of, split_fused
from .layer import Heads, Part
from .roles import FUSED_GATE_UP, FUSED_QKV, INDEX, INDEX_KEY, KEY_VALUE, QUERY, role_of, towers_of

_NO_HEADS = "config.json has no num_attention_heads (a whole number) at any depth"
# Fields of state-space layers, under each name that they go by.
_MAMBA_HEADS = ("mamba_num_heads", "mamba_n_heads")
_MAMBA_HEAD_DIM = ("mamba_head_dim", "mamba_d_head")
_MAMBA_GROUPS = ("mamba_n_groups", "n_groups")
_MAMBA_STATE = ("mamba_d_state", "ssm_state_size")


@dataclass(frozen=True)
class Module:
    """The FP8 weights of one module, and what config.json says of the model that it belongs to."""

    path: str
    weights: Mapping[str, Tensor]  # leaf -> weight
    section: Section

    @property
    def leaves(self) -> frozenset[str]:
        return frozenset(self.weights)

    @cached_property
    def numbers(self) -> HeadNumbers:
        return numbers_of(self.section, layer_of(self.path))

    def heads(self, kind: str | None) -> Heads | None:
        """The heads of `kind` in this module."""
        if kind is None:
            return None
        if kind == INDEX_KEY:
            return Heads(kind, 1, copied=True)
        if kind == INDEX:
            count = self.numbers.index[0] if self.numbers.index else None
            return Heads(kind, count, copied=True, unknown="config.json has no number of index heads")
        query, key_value = self._query_and_key_value
        if kind == QUERY:
            return Heads(kind, query, unknown=self.why_no_heads)
        return Heads(kind, key_value, copied=True, unknown=self.why_no_heads)

    @property
    def why_no_heads(self) -> str:
        tower = ", ".join(towers_of(self.path))
        return f"config.json has no num_attention_heads for {tower}" if tower else _NO_HEADS

    def rows(self, *leaves: str) -> int | None:
        """The rows of the first of `leaves` that this module holds."""
        return next((self.weights[leaf].shape[0] for leaf in leaves if leaf in self.weights), None)

    @cached_property
    def _query_and_key_value(self) -> tuple[int | None, int | None]:
        if not self.numbers.query:
            return None, None
        fused = self.rows(*FUSED_QKV)
        parts = split_fused(self.numbers, fused) if fused else None
        if parts:
            return parts.query_heads, parts.key_value_heads
        queries = self.rows("wq", "q_proj", "query", "q", "q_b_proj", "wq_b")
        return match_heads(self.numbers, queries, self.rows("k_proj", "wk", "key", "k"))


_Splitter = Callable[[str, int, Module], tuple[Part, ...]]  # of (leaf, rows, module)


def parts_of(leaf: str, module: Module) -> tuple[Part, ...]:
    """The parts that the weight `leaf` of `module` gives to a layer."""
    rows = module.weights[leaf].shape[0]
    if leaf in _SPLITTERS:
        return _SPLITTERS[leaf](leaf, rows, module)
    role = role_of(module.path, leaf, module.leaves)
    heads = role.heads if role and role.split == "column" else None
    return (Part(leaf, rows, module.heads(heads)),)


def _fused_qkv(leaf: str, rows: int, module: Module) -> tuple[Part, ...]:
    role = role_of(module.path, leaf, module.leaves)
    if role is None or role.split != "column":
        return (Part(leaf, rows),)
    parts = split_fused(module.numbers, rows)
    if parts is None:
        known = f"no numbers of heads in config.json explain {rows} rows"
        unknown = known if module.numbers.query else module.why_no_heads
        return (Part(leaf, rows, Heads(QUERY, None, unknown=unknown)),)
    key_value = Heads(KEY_VALUE, parts.key_value_heads, copied=True)
    return (
        Part("q_proj", parts.query_rows, Heads(QUERY, parts.query_heads)),
        Part("k_proj", parts.key_rows, key_value),
        Part("v_proj", parts.value_rows, key_value),
    )


def _equally(*names: str, heads: str | None = None) -> _Splitter:
    def split(leaf: str, rows: int, module: Module) -> tuple[Part, ...]:
        each, left = divmod(rows, len(names))
        return (Part(leaf, rows),) if left else tuple(Part(name, each, module.heads(heads)) for name in names)

    return split


def _linear_attention(leaf: str, rows: int, module: Module) -> tuple[Part, ...]:
    """Of in_proj_qkv, in_proj_z or both in one: keys and queries have the same heads, values and z too."""
    keys = _linear_heads(module, "linear_num_key_heads")
    values = _linear_heads(module, "linear_num_value_heads")
    if leaf == "in_proj_z":
        return (Part("z", rows, values),)
    of_values = _value_rows(module)
    left = 0 if of_values is None else rows - of_values * (2 if leaf == "in_proj_qkvz" else 1)
    if of_values is None or left <= 0 or left % 2:
        return (Part(leaf, rows),)
    parts = (Part("q", left // 2, keys), Part("k", left // 2, keys), Part("v", of_values, values))
    return (*parts, Part("z", of_values, values)) if leaf == "in_proj_qkvz" else parts


def _linear_heads(module: Module, field: str) -> Heads | None:
    """The heads that `field` counts; None where it is absent: then blocks alone limit a division."""
    count = _count(module.section.fields, field)
    return Heads("heads of linear attention", count) if count else None


def _value_rows(module: Module) -> int | None:
    """The rows of a linear attention's values: those of z, and what its output projection reads."""
    rows = module.rows("in_proj_z")
    return module.weights["out_proj"].shape[1] if rows is None and "out_proj" in module.weights else rows


def _state_space(leaf: str, rows: int, module: Module) -> tuple[Part, ...]:
    """Of in_proj: gate, x, B, C and dt of a Mamba-2 layer, or B, C and x of a short convolution."""
    fields = module.section.fields
    heads, groups = _count(fields, *_MAMBA_HEADS), _count(fields, *_MAMBA_GROUPS)
    head_dim, state = _count(fields, *_MAMBA_HEAD_DIM), _count(fields, *_MAMBA_STATE)
    if heads and groups and head_dim and state:
        width, of_groups = heads * head_dim, groups * state
        if rows == 2 * (width + of_groups) + heads:
            by_head, by_group = Heads("state-space heads", heads), Heads("state-space groups", groups)
            wide = (Part("gate", width, by_head), Part("x", width, by_head))
            return (*wide, Part("B", of_groups, by_group), Part("C", of_groups, by_group), Part("dt", heads))
    columns = module.weights[leaf].shape[1]
    if rows == 3 * columns and module.path.rpartition(".")[2] == "conv":
        return tuple(Part(name, columns) for name in ("B", "C", "x"))
    return (
        Part(leaf, rows, Heads("state-space heads", None, unknown="config.json does not explain its rows")),
    )


def _count(fields: Mapping[str, Any], *names: str) -> int | None:
    return next((fields[name] for name in names if type(fields.get(name)) is int and fields[name] > 0), None)


_SPLITTERS: dict[str, _Splitter] = {
    **dict.fromkeys(FUSED_QKV, _fused_qkv),
    **dict.fromkeys(FUSED_GATE_UP, _equally("gate_proj", "up_proj")),
    **dict.fromkeys(("in_proj_qkvz", "in_proj_qkv", "in_proj_z"), _linear_attention),
    "in_proj_ba": _equally("b", "a"),
    "gqkv_proj": _equally("gate", "q_proj", "k_proj", "v_proj", heads=QUERY),
    "in_proj": _state_space,
}
