"""RMSNorm in Triton, alone or with the quantisation; imports triton."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ..arguments import Rows
from ..pdl import overlaps
from ..quant.triton import quantise

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
def _store(values, factor, weight, columns, in_row, mask, rows, out, at_out, scale, scale_stride_m,
           scale_stride_g, offset, QUANTISE: tl.constexpr):  # fmt: skip
    """values (ROWS, BLOCK) times factor (ROWS,) and weight, written as they are or quantised."""
    scaled = tl.load(weight + columns, mask=in_row, other=0.0).to(tl.float32) + offset
    y = values * factor[:, None] * scaled[None, :]
    if QUANTISE:
        ROWS: tl.constexpr = values.shape[0]
        GROUPS: tl.constexpr = values.shape[1] // 128
        codes, scales = quantise(tl.reshape(y, (ROWS * GROUPS, 128)))
        tl.store(out + at_out, tl.reshape(codes, values.shape).to(out.dtype.element_ty), mask=mask)
        group = tl.min(tl.reshape(columns, (GROUPS, 128)), axis=1) // 128
        at_scale = rows[:, None] * scale_stride_m + group[None, :] * scale_stride_g
        scale_mask = tl.max(tl.reshape(mask.to(tl.int32), (ROWS, GROUPS, 128)), axis=2) != 0
        tl.store(scale + at_scale, tl.reshape(scales, (ROWS, GROUPS)), mask=scale_mask)
    else:
        tl.store(out + at_out, y.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M"])
def rmsnorm_kernel(
    x,  # M rows of K; row r starts at r // inner * x_outer + r % inner * x_inner, so for residual and out
    residual,
    weight,  # (K,)
    out,  # as x, or (M, K) e4m3
    scale,  # (M, K / 128) float32, any strides
    M,
    inner,
    x_outer,
    x_inner,
    residual_outer,
    residual_inner,
    out_outer,
    out_inner,
    scale_stride_m,
    scale_stride_g,
    eps,
    offset,
    K: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    QUANTISE: tl.constexpr,
    ROWS: tl.constexpr,  # a program
    BLOCK: tl.constexpr,  # columns at one time
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    exists = rows < M
    outer, middle = rows // inner, rows % inner
    at_x = (outer * x_outer + middle * x_inner)[:, None]
    at_residual = (outer * residual_outer + middle * residual_inner)[:, None]
    at_out = (outer * out_outer + middle * out_inner)[:, None]
    columns = tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_wait()
    if K <= BLOCK:
        in_row = columns < K
        mask = exists[:, None] & in_row[None, :]
        part = columns[None, :]
        values = _load(x, residual, at_x + part, at_residual + part, mask, HAS_RESIDUAL, True)
        squares = tl.sum(values * values, axis=1)
        factor = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(squares, K * 1.0) + eps))
        _store(values, factor, weight, columns, in_row, mask, rows, out, at_out + part, scale, scale_stride_m,
               scale_stride_g, offset, QUANTISE)  # fmt: skip
    else:
        products = tl.zeros((ROWS, BLOCK), tl.float32)
        for start in range(0, K, BLOCK):
            in_row = start + columns < K
            mask = exists[:, None] & in_row[None, :]
            part = (start + columns)[None, :]
            values = _load(x, residual, at_x + part, at_residual + part, mask, HAS_RESIDUAL, True)
            products += values * values
        squares = tl.sum(products, axis=1)
        factor = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(squares, K * 1.0) + eps))
        for start in range(0, K, BLOCK):
            in_row = start + columns < K
            mask = exists[:, None] & in_row[None, :]
            part = (start + columns)[None, :]
            values = _load(x, residual, at_x + part, at_residual + part, mask, HAS_RESIDUAL, False)
            _store(values, factor, weight, start + columns, in_row, mask, rows, out, at_out + part, scale,
                   scale_stride_m, scale_stride_g, offset, QUANTISE)  # fmt: skip


class Tile(NamedTuple):
    rows: int
    block: int
    num_warps: int


def tile_of(M: int, K: int, sm_count: int = 132) -> Tile:
    """What a program takes: whole rows, several where they are short, and warps for 16 values a thread."""
    block = min(triton.next_power_of_2(K), MAX_BLOCK)
    rows = 1
    while rows * block < 2048 and rows * sm_count * 2 < M:
        rows *= 2
    values_a_thread = 16 if M > sm_count else 8
    return Tile(rows, block, max(1, min(16, rows * block // (32 * values_a_thread))))


def launch(
    x: Rows, residual: Rows | None, weight: torch.Tensor, out: Rows, eps: float, offset: float
) -> None:
    """As `ops.rmsnorm.reference.launch`."""
    strides = (out.outer_stride, out.inner_stride)
    _launch(x, residual, weight, out.tensor, strides, None, eps, offset, tile_of(x.count, x.K))


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
    M, K = q.shape
    tile = tile_of(M, K)
    tile = tile._replace(block=max(128, tile.block))
    _launch(x, residual, weight, q, (x.inner * K, K), scale, eps, offset, tile)


def _launch(
    x: Rows,
    residual: Rows | None,
    weight: torch.Tensor,
    out: torch.Tensor,
    out_strides: tuple[int, int],
    scale: torch.Tensor | None,
    eps: float,
    offset: float,
    tile: Tile,
) -> None:
    stream = residual or x
    pdl = overlaps(out)
    options: dict[str, Any] = {"launch_pdl": True} if pdl else {}
    with torch.cuda.device_of(out):  # Triton launches on the current device
        rmsnorm_kernel[(triton.cdiv(x.count, tile.rows),)](
            x.tensor,
            stream.tensor,
            weight,
            out,
            out if scale is None else scale,
            x.count,
            x.inner,
            x.outer_stride,
            x.inner_stride,
            stream.outer_stride,
            stream.inner_stride,
            *out_strides,
            *(scale.stride() if scale is not None else (0, 0)),
            eps,
            offset,
            K=x.K,
            HAS_RESIDUAL=residual is not None,
            QUANTISE=scale is not None,
            ROWS=tile.rows,
            BLOCK=tile.block,
            PDL=pdl,
            num_warps=tile.num_warps,
            **options,
        )
