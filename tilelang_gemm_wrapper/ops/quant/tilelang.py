"""Quantization in TileLang; imports tilelang."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import tilelang.language as T
import torch

from ...quantize import Rounding
from ..arguments import GROUP, Rows, dtype_name, flat, is_vectorisable
from ..compiled import compiled
from ..pdl import overlaps_on
from ..simt import (
    CHUNK,
    FAST_DIVISION,
    PASS_CONFIGS,
    load_chunk,
    quantize_chunk,
    quantize_chunk_as_sglang,
    store_chunk,
    vector,
)

_WITH_FAST_DIVISION = {**PASS_CONFIGS, **FAST_DIVISION}


class Tile(NamedTuple):
    """What a block takes."""

    width: int  # neighbouring values of a thread: 8 or 16
    chunks: int  # of `width` values, a thread
    threads: int


class Shape(NamedTuple):
    """What a kernel is built for."""

    K: int  # 0: whole groups that all follow one another in memory, so that one kernel serves every K
    width: int
    chunks: int
    threads: int
    dtype: str
    silu_mul: bool
    rounding: Rounding
    aligned: bool  # every row starts at 16 bytes, and K fills whole vectors
    nested: bool  # rows lie in two strides
    early: bool  # starts while the kernel before it runs, see `pdl`


def build(shape: Shape) -> Any:
    """The PrimFunc: x, q, scale, all flat; then the number of rows, those of the inner dimension, groups of a
    row, x's outer and inner stride in vectors and scale's strides.
    """
    K, width, chunks, threads, dtype, silu_mul, rounding, aligned, nested, early = shape
    lanes = GROUP // width
    step = vector(dtype, aligned)
    sizes = [T.dynamic(f"{name}_size", "int64") for name in ("x", "q", "scale")]

    @T.prim_func
    def quant(
        x: T.Tensor((sizes[0],), dtype),
        q: T.Tensor((sizes[1],), "float8_e4m3"),
        scale: T.Tensor((sizes[2],), "float32"),
        count: T.int32,
        inner: T.int32,
        groups: T.int32,
        x_outer: T.int64,
        x_inner: T.int64,
        scale_row: T.int64,
        scale_group: T.int64,
    ):
        with T.Kernel(T.ceildiv(count * groups * lanes, threads * chunks), threads=threads) as block:
            thread = T.get_thread_binding(0)
            values = T.alloc_local((chunks * width,), dtype)
            up = T.alloc_local((chunks * width,), dtype)
            y = T.alloc_local((width,), "float32")
            codes = T.alloc_local((width,), "float8_e4m3")
            group_scale = T.alloc_local((1,), "float32")
            per_row = -(-K // GROUP) * lanes if K else groups * lanes
            first = block * (threads * chunks) + thread
            last = count * per_row - 1
            if early:
                T.pdl_trigger()
                T.pdl_sync()
            for c in T.unroll(chunks):
                # Threads beyond the end do as the last one, but store nothing: groups need all their lanes.
                chunk = T.min(first + c * threads, last)
                for part in T.unroll(width // CHUNK):
                    at = c * width + part * CHUNK
                    if K == 0:
                        load_chunk(x, T.cast(chunk, "int64") * width, part * CHUNK, width, values, at, step)
                    else:
                        row, column = T.truncdiv(chunk, per_row), T.truncmod(chunk, per_row) * width
                        outer = T.cast(T.truncdiv(row, inner) if nested else row, "int64")
                        middle = T.cast(T.truncmod(row, inner) if nested else 0, "int64")
                        start = (outer * x_outer + middle * x_inner) * step
                        load_chunk(x, start, column + part * CHUNK, K, values, at, step)
                        if silu_mul:
                            load_chunk(x, start + K, column + part * CHUNK, K, up, at, step)
            for c in T.unroll(chunks):
                chunk = T.min(first + c * threads, last)
                row, column = T.truncdiv(chunk, per_row), T.truncmod(chunk, per_row) * width
                for v in T.unroll(width):
                    y[v] = T.cast(values[c * width + v], "float32")
                    if silu_mul:
                        y[v] = y[v] / (1.0 + T.__exp(-y[v])) * T.cast(up[c * width + v], "float32")
                if rounding == "sglang":
                    quantize_chunk_as_sglang(y, codes, group_scale, width)
                else:
                    quantize_chunk(y, codes, group_scale, width)
                if first + c * threads <= last:
                    if K % GROUP:
                        for part in T.unroll(width // CHUNK):
                            store_chunk(
                                q, T.cast(row, "int64") * K, column + part * CHUNK, K, codes, part * CHUNK, 1
                            )
                    else:
                        for v in T.vectorized(width):
                            q[T.cast(chunk, "int64") * width + v] = codes[v]
                    if column % GROUP == 0:
                        scale[row * scale_row + column // GROUP * scale_group] = group_scale[0]

    return quant


# Up to so many values, this tile: few values a thread while SMs would be idle otherwise, then fewer and wider
# blocks. `warmup` compiles every one of them.
TILES = ((3 << 16, Tile(8, 1, 128)), (3 << 20, Tile(16, 1, 128)), (math.inf, Tile(16, 1, 256)))
SILU_TILE = Tile(8, 1, 128)


def tile_of(M: int, K: int, silu_mul: bool) -> Tile:
    """The tile for M rows of K results."""
    return SILU_TILE if silu_mul else next(tile for bound, tile in TILES if bound >= M * K)


def launch(x: Rows, q: torch.Tensor, scale: torch.Tensor, silu_mul: bool, rounding: Rounding) -> None:
    """As `ops.quant.reference.launch`."""
    M, K = q.shape
    launch_tile(x, q, scale, silu_mul, rounding, tile_of(M, K, silu_mul))


def launch_contiguous(
    x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, memory: torch.Tensor, rounding: Rounding
) -> None:
    """As `ops.quant.reference.launch_contiguous`."""
    M, groups = scale.shape
    index = x.get_device()
    tile = tile_of(M, groups * GROUP, False)
    shape = _shape(0, tile, dtype_name(x), False, rounding, x.data_ptr() % 16 == 0, False, index)
    kernel = compiled(build, shape, index, pass_configs(rounding))
    kernel(x.view(-1), q.view(-1), memory, M, 1, groups, 0, 0, *scale.stride())


def launch_tile(
    x: Rows, q: torch.Tensor, scale: torch.Tensor, silu_mul: bool, rounding: Rounding, tile: Tile
) -> None:
    """`launch` with a tile of the caller's choice."""
    tensor, x_outer, x_inner = x
    inner, (M, K), index = tensor.shape[1], q.shape, q.get_device()
    follow = inner == 1 and x_outer == K and K % GROUP == 0 and not silu_mul
    shape = _shape(
        0 if follow else K,
        tile,
        dtype_name(tensor),
        silu_mul,
        rounding,
        is_vectorisable(16, x),
        inner > 1,
        index,
    )
    step = vector(shape.dtype, shape.aligned)
    compiled(build, shape, index, pass_configs(rounding))(
        x.flat,
        q.view(-1),
        flat(scale),
        M,
        inner,
        scale.shape[1],
        x_outer // step,
        x_inner // step,
        *scale.stride(),
    )


def warmup(index: int, rounding: Rounding) -> None:
    """As `ops.quant.warmup`."""
    for _, tile in TILES:
        shape = _shape(0, tile, "bfloat16", False, rounding, True, False, index)
        compiled(build, shape, index, pass_configs(rounding))


@lru_cache(maxsize=1024)
def _shape(
    K: int,
    tile: Tile,
    dtype: str,
    silu_mul: bool,
    rounding: Rounding,
    aligned: bool,
    nested: bool,
    index: int,
) -> Shape:
    return Shape(K, *tile, dtype, silu_mul, rounding, aligned, nested, overlaps_on(index))


def pass_configs(rounding: Rounding) -> dict[str, Any]:
    return _WITH_FAST_DIVISION if rounding == "sglang" else PASS_CONFIGS
