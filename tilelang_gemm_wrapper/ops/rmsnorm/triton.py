"""RMSNorm in Triton, alone or with the quantisation; imports triton."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..arguments import Rows
from ..pdl import triton_options
from ..quant.triton import quantize

MAX_BLOCK = 16384  # columns of a row that stay in registers; longer rows are read twice, mostly from L2


@triton.jit
def _load(x, residual, at_x, at_residual, mask, HAS_RESIDUAL: tl.constexpr, UPDATE: tl.constexpr):
    """Values to normalise, float32. UPDATE: x is added to the residual; without it, it has been."""
    if HAS_RESIDUAL:
        values = tl.load(residual + at_residual, mask=mask, other=0.0)
        if UPDATE:
            added = values.to(tl.float32) + tl.load(x + at_x, mask=mask, other=0.0).to(tl.float32)
            values = added.to(values.dtype)
            tl.store(residual + at_residual, values, mask=mask)
    else:
        values = tl.load(x + at_x, mask=mask, other=0.0)
    return values.to(tl.float32)


@triton.jit
def _factor(squares, eps, K: tl.constexpr):
    return tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(squares, K * 1.0) + eps))


@triton.jit
def _store(values, factor, weight, columns, offset, out, at_out, mask):
    """values (ROWS, BLOCK) times factor (ROWS, 1) and the weight of columns (1, BLOCK)."""
    scaled = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32) + offset
    tl.store(out + at_out + columns, (values * factor * scaled).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _store_quantized(
    values, factor, weight, columns, offset, q, mask, scale, scale_stride_g, K: tl.constexpr
):
    """values (GROUPS, 128) of one row, columns alike; q and scale where the row's begin."""
    scaled = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32) + offset
    codes, scales = quantize(values * factor * scaled)
    tl.store(q + columns, codes.to(q.dtype.element_ty), mask=mask)
    group = tl.min(columns, axis=1) // 128
    tl.store(scale + group * scale_stride_g, scales, mask=group < K // 128)


@triton.jit(do_not_specialize=["M"])
def rmsnorm_kernel(
    x,  # M rows of K; row r starts at r // inner * x_outer + r % inner * x_inner, so for residual and out
    residual,
    weight,  # (K,)
    out,
    M,
    inner,
    x_outer,
    x_inner,
    residual_outer,
    residual_inner,
    out_outer,
    out_inner,
    eps,
    offset,
    K: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,  # a program
    BLOCK: tl.constexpr,  # columns at one time
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    outer, middle = row // inner, row % inner
    at_x = outer * x_outer + middle * x_inner
    at_residual = outer * residual_outer + middle * residual_inner
    at_out = outer * out_outer + middle * out_inner
    columns = tl.arange(0, BLOCK)[None, :]
    if PDL:
        tl.extra.cuda.gdc_wait()
    if K <= BLOCK:
        mask = (row < M) & (columns < K)
        values = _load(x, residual, at_x + columns, at_residual + columns, mask, HAS_RESIDUAL, True)
        factor = _factor(tl.sum(values * values, axis=1, keep_dims=True), eps, K)
        _store(values, factor, weight, columns, offset, out, at_out, mask)
    else:
        products = tl.zeros((ROWS, BLOCK), tl.float32)
        for start in range(0, K, BLOCK):
            part = start + columns
            mask = (row < M) & (part < K)
            values = _load(x, residual, at_x + part, at_residual + part, mask, HAS_RESIDUAL, True)
            products += values * values
        factor = _factor(tl.sum(products, axis=1, keep_dims=True), eps, K)
        for start in range(0, K, BLOCK):
            part = start + columns
            mask = (row < M) & (part < K)
            values = _load(x, residual, at_x + part, at_residual + part, mask, HAS_RESIDUAL, False)
            _store(values, factor, weight, part, offset, out, at_out, mask)


@triton.jit
def rmsnorm_quant_kernel(
    x,  # as of rmsnorm_kernel
    residual,
    weight,
    q,  # (M, K) e4m3, contiguous
    scale,  # (M, K / 128) float32, any strides
    inner,
    x_outer,
    x_inner,
    residual_outer,
    residual_inner,
    scale_stride_m,
    scale_stride_g,
    eps,
    offset,
    K: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    GROUPS: tl.constexpr,  # of 128 columns at one time
    PDL: tl.constexpr,
):
    """A row a program, as groups of 128: so a group lies in sixteen neighbouring threads."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    x += row // inner * x_outer + row % inner * x_inner
    residual += row // inner * residual_outer + row % inner * residual_inner
    q += row * K
    scale += row * scale_stride_m
    columns = tl.arange(0, GROUPS)[:, None] * 128 + tl.arange(0, 128)[None, :]
    if PDL:
        tl.extra.cuda.gdc_wait()
    if K <= GROUPS * 128:
        mask = columns < K
        values = _load(x, residual, columns, columns, mask, HAS_RESIDUAL, True)
        factor = _factor(tl.sum(values * values), eps, K)
        _store_quantized(values, factor, weight, columns, offset, q, mask, scale, scale_stride_g, K)
    else:
        products = tl.zeros((GROUPS, 128), tl.float32)
        for start in range(0, K, GROUPS * 128):
            part = start + columns
            values = _load(x, residual, part, part, part < K, HAS_RESIDUAL, True)
            products += values * values
        factor = _factor(tl.sum(products), eps, K)
        for start in range(0, K, GROUPS * 128):
            part = start + columns
            values = _load(x, residual, part, part, part < K, HAS_RESIDUAL, False)
            _store_quantized(values, factor, weight, part, offset, q, part < K, scale, scale_stride_g, K)


class Tile(NamedTuple):
    rows: int
    block: int
    num_warps: int


def tile_of(M: int, K: int) -> Tile:
    """What a program takes: whole rows, several where they are short and many, and 16 values a thread."""
    block = min(triton.next_power_of_2(K), MAX_BLOCK)
    rows = 1
    while rows * block < 2048 and rows * 256 < M:
        rows *= 2
    return Tile(rows, block, max(1, min(16, rows * block // 512)))


def quant_warps(M: int, K: int) -> int:
    """Eight values a thread for few rows; with many, fewer warps hide each other's barriers better."""
    block = min(triton.next_power_of_2(K), MAX_BLOCK)
    if M <= 256:
        return max(1, min(16, block // 256))
    return max(1, min(8, block // 512)) if block <= 4096 else 4


def launch(
    x: Rows, residual: Rows | None, weight: torch.Tensor, out: Rows, eps: float, offset: float
) -> None:
    """As `ops.rmsnorm.reference.launch`."""
    launch_tile(x, residual, weight, out, eps, offset, tile_of(x.M, x.K))


def launch_tile(
    x: Rows, residual: Rows | None, weight: torch.Tensor, out: Rows, eps: float, offset: float, tile: Tile
) -> None:
    stream = residual or x
    with torch.cuda.device_of(out.tensor):  # Triton launches on the current device
        rmsnorm_kernel[(triton.cdiv(x.M, tile.rows),)](
            x.tensor,
            stream.tensor,
            weight,
            out.tensor,
            x.M,
            x.inner,
            *(stride for rows in (x, stream, out) for stride in rows[1:]),
            eps,
            offset,
            K=x.K,
            HAS_RESIDUAL=residual is not None,
            ROWS=tile.rows,
            BLOCK=tile.block,
            num_warps=tile.num_warps,
            **triton_options(out.tensor),
        )


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
    launch_quant_warps(x, residual, weight, q, scale, eps, offset, quant_warps(x.M, x.K))


def launch_quant_warps(
    x: Rows,
    residual: Rows | None,
    weight: torch.Tensor,
    q: torch.Tensor,
    scale: torch.Tensor,
    eps: float,
    offset: float,
    num_warps: int,
) -> None:
    stream = residual or x
    with torch.cuda.device_of(q):  # Triton launches on the current device
        rmsnorm_quant_kernel[(x.M,)](
            x.tensor,
            stream.tensor,
            weight,
            q,
            scale,
            x.inner,
            *(stride for rows in (x, stream) for stride in rows[1:]),
            *scale.stride(),
            eps,
            offset,
            K=x.K,
            HAS_RESIDUAL=residual is not None,
            GROUPS=min(triton.next_power_of_2(x.K // 128), MAX_BLOCK // 128),
            num_warps=num_warps,
            **triton_options(q),
        )
