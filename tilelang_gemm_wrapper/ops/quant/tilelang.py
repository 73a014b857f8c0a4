"""Quantisation in TileLang; imports tilelang."""

from typing import Any, NamedTuple

import tilelang.language as T
import torch

from ..arguments import Rows, flat, is_vectorisable
from ..compiled import compiled
from ..pdl import overlaps
from ..simt import CHUNK, PASS_CONFIGS, load_chunk, quantise_chunk, store_chunk, tilelang_dtype, vector

THREADS = 128  # of a block, each with a chunk or more


class Shape(NamedTuple):
    """What a kernel is built for."""

    K: int
    chunks: int  # a thread
    dtype: str
    silu_mul: bool
    aligned: bool  # every row starts at 16 bytes
    nested: bool  # rows lie in two strides
    early: bool  # starts while the kernel before it runs, see `pdl`


def build(shape: Shape) -> Any:
    """The PrimFunc: x, q, scale, all flat; then the number of rows, those of the inner dimension, x's outer
    and inner stride in vectors and scale's strides.
    """
    K, chunks, dtype, silu_mul, aligned, nested, early = shape
    width = vector(dtype, aligned)
    sizes = [T.dynamic(f"{name}_size", "int64") for name in ("x", "q", "scale")]

    @T.prim_func
    def quant(
        x: T.Tensor((sizes[0],), dtype),
        q: T.Tensor((sizes[1],), "float8_e4m3"),
        scale: T.Tensor((sizes[2],), "float32"),
        count: T.int32,
        inner: T.int32,
        x_outer: T.int64,
        x_inner: T.int64,
        scale_row: T.int64,
        scale_group: T.int64,
    ):
        with T.Kernel(T.ceildiv(count * (K // CHUNK), THREADS * chunks), threads=THREADS) as block:
            thread = T.get_thread_binding(0)
            values = T.alloc_local((chunks * CHUNK,), dtype)
            up = T.alloc_local((chunks * CHUNK,), dtype)
            y = T.alloc_local((CHUNK,), "float32")
            codes = T.alloc_local((CHUNK,), "float8_e4m3")
            group_scale = T.alloc_local((1,), "float32")
            first = block * (THREADS * chunks) + thread
            last = count * (K // CHUNK) - 1
            if early:
                T.pdl_trigger()
                T.pdl_sync()
            for c in T.unroll(chunks):
                # Threads beyond the end do as the last one, but store nothing: groups need all their lanes.
                chunk = T.min(first + c * THREADS, last)
                row, column = T.truncdiv(chunk, K // CHUNK), T.truncmod(chunk, K // CHUNK) * CHUNK
                outer = T.cast(T.truncdiv(row, inner) if nested else row, "int64")
                middle = T.cast(T.truncmod(row, inner) if nested else 0, "int64")
                start = (outer * x_outer + middle * x_inner) * width
                load_chunk(x, start, column, K, values, c * CHUNK, width)
                if silu_mul:
                    load_chunk(x, start + K, column, K, up, c * CHUNK, width)
            for c in T.unroll(chunks):
                chunk = T.min(first + c * THREADS, last)
                row, column = T.truncdiv(chunk, K // CHUNK), T.truncmod(chunk, K // CHUNK) * CHUNK
                for v in T.unroll(CHUNK):
                    y[v] = T.cast(values[c * CHUNK + v], "float32")
                    if silu_mul:
                        y[v] = y[v] / (1.0 + T.__exp(-y[v])) * T.cast(up[c * CHUNK + v], "float32")
                quantise_chunk(y, codes, group_scale)
                if first + c * THREADS <= last:
                    store_chunk(q, T.cast(row, "int64") * K, column, K, codes, 0, CHUNK)
                    if column % 128 == 0:
                        scale[row * scale_row + column // 128 * scale_group] = group_scale[0]

    return quant


def launch(x: Rows, q: torch.Tensor, scale: torch.Tensor, silu_mul: bool) -> None:
    """As `ops.quant.reference.launch`."""
    M, K = q.shape
    aligned = is_vectorisable(16, x)
    dtype = tilelang_dtype(x.tensor)
    chunks = 1 if M * K <= 1 << 20 or silu_mul else 2
    shape = Shape(K, chunks, dtype, silu_mul, aligned, x.inner > 1, overlaps(q))
    kernel = compiled(build, shape, q.get_device(), PASS_CONFIGS)
    width = vector(dtype, aligned)
    kernel(
        x.flat, q.view(-1), flat(scale), M, x.inner, *(stride // width for stride in x[1:]), *scale.stride()
    )
