"""RMSNorm in TileLang, alone or with the quantisation; imports tilelang."""

from functools import lru_cache
from typing import Any, NamedTuple

import tilelang.language as T
import torch

from ..arguments import Rows, flat, is_vectorisable
from ..compiled import compiled
from ..pdl import overlaps
from ..simt import (
    CHUNK,
    PASS_CONFIGS,
    any_float32,
    load_chunk,
    quantize_chunk,
    store_chunk,
    sum_over_lanes,
    tilelang_dtype,
    vector,
)

KEPT_BYTES = 128  # of a row in a thread's registers; of longer rows all is read twice, mostly from L2
# Chunks a thread up to which the weight is read before the sum: more would cost warps their registers.
AHEAD = 2
FEW_ROWS = 132  # as many as a full Hopper has SMs: the time is then that of one row, which wants many threads


class Shape(NamedTuple):
    """What a kernel is built for; lanes: threads a row, rows: rows a block."""

    K: int
    lanes: int
    rows: int
    resident: int  # blocks an SM that registers are left for
    dtype: str
    weight_dtype: str
    has_residual: bool
    quantise: bool
    aligned: bool  # every row, and the weight, starts at 16 bytes, and K fills vectors
    nested: bool  # rows lie in two strides
    early: bool  # starts while the kernel before it runs, see `pdl`


def build(shape: Shape) -> Any:
    """The PrimFunc: x, residual, weight, out, scale, all flat; then the number of rows, those of the inner
    dimension, for x, residual and out the outer and the inner stride in vectors, scale's strides, eps,
    offset.

    residual is x again where there is none; scale is any float32 tensor without `quantise`.
    """
    K, lanes, rows, resident, dtype, weight_dtype, has_residual, quantise, aligned, nested, early = shape
    chunks = -(-K // (lanes * CHUNK))
    kept = chunks if chunks * CHUNK * (4 if dtype == "float32" else 2) <= KEPT_BYTES else 1
    ahead = chunks <= AHEAD
    width, weight_width = vector(dtype, aligned), vector(weight_dtype, aligned)
    out_dtype, out_width = ("float8_e4m3", CHUNK) if quantise else (dtype, width)
    sizes = [T.dynamic(f"{name}_size", "int64") for name in ("x", "residual", "out", "scale")]

    @T.macro
    def load(x, at_x, residual, at_residual, column, values, at, added):
        """A chunk of what is normalised; with a residual, x is added to it first."""
        if has_residual:
            load_chunk(residual, at_residual, column, K, values, at, width)
            load_chunk(x, at_x, column, K, added, 0, width)
            for v in T.vectorized(CHUNK):
                values[at + v] = T.cast(
                    T.cast(values[at + v], "float32") + T.cast(added[v], "float32"), dtype
                )
        else:
            load_chunk(x, at_x, column, K, values, at, width)

    @T.prim_func
    def rmsnorm(
        x: T.Tensor((sizes[0],), dtype),
        residual: T.Tensor((sizes[1],), dtype),
        weight: T.Tensor((K,), weight_dtype),
        out: T.Tensor((sizes[2],), out_dtype),
        scale: T.Tensor((sizes[3],), "float32"),
        count: T.int32,
        inner: T.int32,
        x_outer: T.int64,
        x_inner: T.int64,
        residual_outer: T.int64,
        residual_inner: T.int64,
        out_outer: T.int64,
        out_inner: T.int64,
        scale_row: T.int64,
        scale_group: T.int64,
        eps: T.float32,
        offset: T.float32,
    ):
        with T.Kernel(T.ceildiv(count, rows), threads=(lanes, rows)) as block:
            T.annotate_min_blocks_per_sm(resident)
            lane, slot = T.get_thread_binding(0), T.get_thread_binding(1)
            values = T.alloc_local((kept * CHUNK,), dtype)
            added = T.alloc_local((CHUNK,), dtype)
            weights = T.alloc_local(((chunks if ahead else 1) * CHUNK,), weight_dtype)
            y = T.alloc_local((CHUNK,), "float32")
            results = T.alloc_local((CHUNK,), out_dtype)
            total = T.alloc_local((1,), "float32")
            group_scale = T.alloc_local((1,), "float32")
            partial = T.alloc_shared((rows, max(1, lanes // 32)), "float32")
            # Threads without a row do as the last row's, but store nothing: sums need all lanes of a warp.
            row = T.min(block * rows + slot, count - 1) if rows > 1 else block
            exists = block * rows + slot < count if rows > 1 else True
            o = T.cast(T.truncdiv(row, inner) if nested else row, "int64")
            i = T.cast(T.truncmod(row, inner) if nested else 0, "int64")
            at_x = (o * x_outer + i * x_inner) * width
            at_residual = (o * residual_outer + i * residual_inner) * width
            at_out = (o * out_outer + i * out_inner) * out_width
            if early:
                T.pdl_trigger()
                T.pdl_sync()
            total[0] = 0.0
            for c in T.unroll(chunks):
                at = (c % kept) * CHUNK
                column = (c * lanes + lane) * CHUNK
                load(x, at_x, residual, at_residual, column, values, at, added)
                if ahead:
                    load_chunk(weight, 0, column, K, weights, c * CHUNK, weight_width)
                for v in T.unroll(CHUNK):
                    total[0] += T.cast(values[at + v], "float32") * T.cast(values[at + v], "float32")
                if has_residual and exists:
                    store_chunk(residual, at_residual, column, K, values, at, width)
            sum_over_lanes(total, lanes, lane, slot, partial)
            total[0] = 1.0 / T.sqrt(total[0] / K + eps)
            for c in T.unroll(chunks):
                at = (c % kept) * CHUNK
                column = (c * lanes + lane) * CHUNK
                if kept < chunks:
                    if has_residual:
                        load_chunk(residual, at_residual, column, K, values, at, width)
                    else:
                        load_chunk(x, at_x, column, K, values, at, width)
                if not ahead:
                    load_chunk(weight, 0, column, K, weights, 0, weight_width)
                of_weight = c * CHUNK if ahead else 0
                for v in T.unroll(CHUNK):
                    y[v] = (
                        T.cast(values[at + v], "float32")
                        * total[0]
                        * (T.cast(weights[of_weight + v], "float32") + offset)
                    )
                if quantise:
                    quantize_chunk(y, results, group_scale, CHUNK)
                    if exists and lane % 16 == 0 and column < K:
                        scale[row * scale_row + column // 128 * scale_group] = group_scale[0]
                else:
                    for v in T.vectorized(CHUNK):
                        results[v] = T.cast(y[v], out_dtype)
                if exists:
                    store_chunk(out, at_out, column, K, results, 0, out_width)

    return rmsnorm


@lru_cache(maxsize=4096)
def lanes_and_rows(M: int, K: int, quantise: bool) -> tuple[int, int]:
    """Threads a row and rows a block.

    A thread has one chunk, up to rows of 1024 chunks; longer rows have few threads, so that others fit beside
    them. With many rows that are short and not quantised two chunks a thread are a little faster.
    """
    chunks = -(-K // CHUNK)
    each = -(-chunks // (1024 if M <= FEW_ROWS or chunks <= 1024 else 512))
    if M > FEW_ROWS and chunks <= 512 and not quantise:
        each = 2
    lanes = -(-chunks // each)
    if lanes <= 32:
        lanes = max(16 if quantise else 1, 1 << (lanes - 1).bit_length())
        return lanes, 128 // lanes
    return -(-lanes // 32) * 32, max(1, 128 // lanes)


def launch(
    x: Rows, residual: Rows | None, weight: torch.Tensor, out: Rows, eps: float, offset: float
) -> None:
    """As `ops.rmsnorm.reference.launch`."""
    aligned = is_vectorisable(16, x, residual or x, out) and weight.data_ptr() % 16 == 0
    _launch(x, residual, weight, out, None, eps, offset, aligned)


def launch_quant(
    x: Rows,
    residual: Rows | None,
    weight: torch.Tensor,
    q: torch.Tensor,
    scale: torch.Tensor,
    eps: float,
    offset: float,
) -> None:
    """As `ops.rmsnorm.reference.launch_quant`."""
    aligned = is_vectorisable(16, x, residual or x) and weight.data_ptr() % 16 == 0
    K = x.K
    out = Rows(q.view(x.tensor.shape), x.inner * K, K)
    _launch(x, residual, weight, out, scale, eps, offset, aligned)


def _launch(
    x: Rows,
    residual: Rows | None,
    weight: torch.Tensor,
    out: Rows,
    scale: torch.Tensor | None,
    eps: float,
    offset: float,
    aligned: bool,
) -> None:
    stream = residual or x
    quantise = scale is not None
    dtype, weight_dtype = tilelang_dtype(x.tensor), tilelang_dtype(weight)
    lanes, rows = lanes_and_rows(x.M, x.K, quantise)
    # A second row loads while the first waits at its barrier; left alone, the compiler takes registers for
    # one.
    resident = 2 if x.M > FEW_ROWS and lanes > 512 else 1
    nested, early = x.inner > 1, overlaps(x.tensor)
    shape = Shape(
        x.K,
        lanes,
        rows,
        resident,
        dtype,
        weight_dtype,
        residual is not None,
        quantise,
        aligned,
        nested,
        early,
    )
    kernel = compiled(build, shape, x.tensor.get_device(), PASS_CONFIGS)
    width = vector(dtype, aligned)
    out_width = CHUNK if quantise else width
    kernel(
        x.flat,
        stream.flat,
        weight,
        out.flat,
        flat(any_float32(x.tensor.device) if scale is None else scale),
        x.M,
        x.inner,
        *(stride // width for rows in (x, stream) for stride in rows[1:]),
        *(stride // out_width for stride in out[1:]),
        *(scale.stride() if scale is not None else (0, 0)),
        eps,
        offset,
    )
