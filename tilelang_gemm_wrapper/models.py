"""Well-known weight shapes (N, K): the public grid, and the linear layers of models served in FP8."""

from __future__ import annotations

from itertools import chain

# The grid on which the field compares FP8 block-scaled GEMMs: N -> its K.
_PUBLIC_K: dict[int, tuple[int, ...]] = {
    512: (1024, 2048),
    1024: (2048, 2560, 3584, 5120),
    2048: (1024, 2048, 6144),
    2560: (4096, 9216),
    3584: (1024,),
    4096: (1024, 2048, 2560),
    5120: (6144, 17408),
    6144: (1024, 2048, 5120),
    8192: (2560,),
    9216: (2560,),
    10240: (5120,),
    12288: (5120,),
    17408: (5120,),
}
PUBLIC_SHAPES: tuple[tuple[int, int], ...] = tuple((N, K) for N, ks in _PUBLIC_K.items() for K in ks)
PUBLIC_M: tuple[int, ...] = (
    *range(1, 9),
    *(12, 14, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048, 4096, 8192),
)

# (N, K) of each fused linear layer as an engine runs it on one GPU -> the layer's name.
QWEN3_4B_FP8: dict[tuple[int, int], str] = {
    (6144, 2560): "qkv_proj",
    (2560, 4096): "o_proj",
    (19456, 2560): "gate_up_proj",
    (2560, 9728): "down_proj",
}

MODELS: dict[str, dict[tuple[int, int], str]] = {"qwen3-4b": QWEN3_4B_FP8}


def shapes_of(name: str) -> tuple[tuple[int, int], ...]:
    """The (N, K) list behind a short name: "public", or a model of `MODELS`. ValueError for another name."""
    if name == "public":
        return PUBLIC_SHAPES
    if name in MODELS:
        return tuple(MODELS[name])
    raise ValueError(
        f"there is no shape list {name!r}: take one of {', '.join(shape_list_names())}, or give N and K"
    )


def shape_list_names() -> tuple[str, ...]:
    return tuple(chain(("public",), MODELS))
