"""What a release is: a model as its checkpoint names and sizes it, and the layers that SGLang 0.5.23 builds.

Nothing is written to disk: headers are all that the reader sees of a checkpoint. A few layers and experts
stand for all of a model's. What a rank runs is given for each layer by what is cut and what is copied:
`column`, `row` and `whole`. Several of the expectations were compared with the class that SGLang builds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tilelang_gemm_wrapper.model_shapes.checkpoint import Checkpoint, Tensor

Shapes = dict[str, tuple[int, ...]]
Cut = Callable[[int], tuple[int, int]]  # tp -> (N, K) of one rank
HALF_BLOCKS = "not a multiple of 128"
HEADS = "heads cannot be"


@dataclass(frozen=True)
class Release:
    config: Mapping[str, Any]
    fp8: Shapes  # name without ".weight" -> shape
    layers: tuple[Cut, ...]
    refused: Mapping[int, str] = field(default_factory=dict)  # tp -> words of the refusal
    bf16: Shapes = field(default_factory=dict)
    scale: str = "weight_scale_inv"
    scale_dtype: str = "F32"
    scale_rows: Mapping[str, int] = field(default_factory=dict)  # where it is not one for each 128 rows

    @property
    def checkpoint(self) -> Checkpoint:
        tensors = {f"{name}.weight": Tensor("BF16", shape) for name, shape in self.bf16.items()}
        for name, shape in self.fp8.items():
            *experts, rows, columns = shape
            blocks = (self.scale_rows.get(name, -(-rows // 128)), -(-columns // 128))
            tensors[f"{name}.weight"] = Tensor("F8_E4M3", shape)
            tensors[f"{name}.{self.scale}"] = Tensor(self.scale_dtype, (*experts, *blocks))
        return Checkpoint("headers", self.config, tensors)

    def on_rank(self, tp: int) -> set[tuple[int, int]]:
        return {layer(tp) for layer in self.layers}


def column(K: int, *rows: int, copied: Iterable[tuple[int, int]] = ()) -> Cut:
    """Rows divided over the ranks; `copied`: (rows, heads), divided over as many ranks as there are heads."""
    return lambda tp: (sum(n // tp for n in rows) + sum(n // min(tp, heads) for n, heads in copied), K)


def row(N: int, K: int) -> Cut:
    return lambda tp: (N, K // tp)


def whole(N: int, K: int) -> Cut:
    return lambda tp: (N, K)


def mlp(base: str, hidden: int, width: int, names: str = "gate_proj up_proj down_proj") -> Shapes:
    gate, up, down = names.split()
    return {
        f"{base}.{gate}": (width, hidden),
        f"{base}.{up}": (width, hidden),
        f"{base}.{down}": (hidden, width),
    }


def experts(base: str, hidden: int, width: int, names: str = "gate_proj up_proj down_proj") -> Shapes:
    one, two = (mlp(f"{base}.experts.{n}", hidden, width, names) for n in range(2))
    return one | two


def stacked(base: str, hidden: int, width: int) -> Shapes:
    return {name: (48, *shape) for name, shape in mlp(base, hidden, width).items()}  # type: ignore[misc]


def qkvo(
    base: str, hidden: int, queries: int, keys: int, values: int | None = None, out: int | None = None
) -> Shapes:
    return {
        f"{base}.q_proj": (queries, hidden),
        f"{base}.k_proj": (keys, hidden),
        f"{base}.v_proj": (values or keys, hidden),
        f"{base}.o_proj": (hidden, out or queries),
    }


def mla(base: str, hidden: int, heads: int, q_rank: int, qk: int, kv: int, v: int) -> Shapes:
    return {
        f"{base}.q_a_proj": (q_rank, hidden),
        f"{base}.kv_a_proj_with_mqa": (576, hidden),
        f"{base}.q_b_proj": (heads * qk, q_rank),
        f"{base}.kv_b_proj": (heads * kv, 512),
        f"{base}.o_proj": (hidden, heads * v),
    }


def mla_cuts(hidden: int, heads: int, q_rank: int, qk: int, kv: int, v: int) -> tuple[Cut, ...]:
    low_rank = whole(q_rank + 576, hidden)
    return low_rank, column(q_rank, heads * qk), column(512, heads * kv), row(hidden, heads * v)


def mlp_cuts(hidden: int, width: int) -> tuple[Cut, Cut]:
    return column(hidden, width, width), row(hidden, width)


def heads_config(heads: int, kv_heads: int, head_dim: int | None = None, **fields: Any) -> dict[str, Any]:
    counts = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, **fields}
    return counts if head_dim is None else {**counts, "head_dim": head_dim}
