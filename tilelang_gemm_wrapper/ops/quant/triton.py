"""Quantisation in Triton; imports triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..arguments import Rows
from ..pdl import triton_options

_FLOAT32_MAX = tl.constexpr(3.4028234663852886e38)
_FLOAT32_TINY = tl.constexpr(1.1754943508222875e-38)  # the smallest normal one
_FP8_MAX = tl.constexpr(448.0)


@triton.jit
def quantise(groups):
    """groups (R, 128) float32 -> quotients to store as e4m3 and scale (R,), by the rules of `quantize`."""
    magnitude = tl.abs(groups)
    finite = magnitude <= _FLOAT32_MAX  # false for NaN
    amax = tl.max(tl.where(finite, magnitude, 0.0), axis=1)
    scale = tl.maximum(tl.div_rn(amax, _FP8_MAX), _FLOAT32_TINY)
    scale = tl.where(amax > 0.0, scale, 1.0)
    # Quotients rounded as IEEE division rounds them, by Markstein's method: two corrections with the inverse,
    # rounded right, and the exact remainder. Groups so small that remainders would underflow are lifted
    # first. A quotient of -0 stays -0, one of infinity becomes NaN, and the conversion cuts off at 448.
    lift = tl.where(scale < 8.673617379884035e-19, 1.8446744073709552e19, 1.0)  # 2**-60, 2**64
    divisor = scale * lift
    inverse = tl.div_rn(1.0, divisor)[:, None]
    divisor, dividend = divisor[:, None], groups * lift[:, None]
    quotient = dividend * inverse
    quotient = tl.fma(tl.fma(quotient, divisor, -dividend), -inverse, quotient)
    quotient = tl.fma(tl.fma(quotient, divisor, -dividend), -inverse, quotient)
    return quotient, scale


@triton.jit(do_not_specialize=["groups"])
def quant_kernel(
    x,  # (M, K), with SILU_MUL (M, 2 K); row r starts at r // inner * outer_stride + r % inner * inner_stride
    q,  # (M, K) e4m3, contiguous
    scale,  # (M, K / 128) float32, any strides
    groups,  # M * K / 128
    inner,
    outer_stride,
    inner_stride,
    scale_stride_m,
    scale_stride_g,
    K: tl.constexpr,
    SILU_MUL: tl.constexpr,
    BLOCK: tl.constexpr,  # groups a program
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    group = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = group < groups
    lanes = tl.arange(0, 128)
    row = group // (K // 128)
    of_row = group % (K // 128)
    start = (
        (row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride + of_row * 128
    )
    if PDL:
        tl.extra.cuda.gdc_wait()
    source = x + start[:, None] + lanes[None, :]
    values = tl.load(source, mask=mask[:, None], other=0.0).to(tl.float32)
    if SILU_MUL:
        up = tl.load(source + K, mask=mask[:, None], other=0.0).to(tl.float32)
        values = tl.div_rn(values, 1.0 + tl.exp(-values)) * up
    codes, scales = quantise(values)
    tl.store(
        q + group.to(tl.int64)[:, None] * 128 + lanes[None, :],
        codes.to(q.dtype.element_ty),
        mask=mask[:, None],
    )
    tl.store(scale + row.to(tl.int64) * scale_stride_m + of_row * scale_stride_g, scales, mask=mask)


def launch(x: Rows, q: torch.Tensor, scale: torch.Tensor, silu_mul: bool) -> None:
    """As `ops.quant.reference.launch`."""
    groups = q.numel() // 128
    block = 16 if groups >= 16 * 1024 else 4
    with torch.cuda.device_of(q):  # Triton launches on the current device
        quant_kernel[(triton.cdiv(groups, block),)](
            x.tensor,
            q,
            scale,
            groups,
            x.inner,
            x.outer_stride,
            x.inner_stride,
            scale.stride(0),
            scale.stride(1),
            K=q.shape[1],
            SILU_MUL=silu_mul,
            BLOCK=block,
            num_warps=4,
            **triton_options(q),
        )
