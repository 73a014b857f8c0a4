"""Quantization in Triton; imports triton."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ...quantize import SGLANG_LEAST_AMAX, Rounding
from ..arguments import Rows
from ..pdl import triton_options

_FLOAT32_MAX = tl.constexpr(3.4028234663852886e38)
_FLOAT32_TINY = tl.constexpr(1.1754943508222875e-38)  # the smallest normal one
_FP8_MAX = tl.constexpr(448.0)
_LEAST_AMAX = tl.constexpr(SGLANG_LEAST_AMAX)


@triton.jit
def quantize(groups):
    """groups (R, 128) float32 -> quotients to store as e4m3 and scale (R,), by the rules of `quantize`."""
    magnitude = tl.abs(groups)
    finite = magnitude <= _FLOAT32_MAX  # false for NaN
    amax = tl.max(tl.where(finite, magnitude, 0.0), axis=1)
    scale = tl.maximum(tl.div_rn(amax, _FP8_MAX), _FLOAT32_TINY)
    scale = tl.where(amax > 0.0, scale, 1.0)
    # The codes of IEEE division: a quotient corrected once by its exact remainder may still miss float32's
    # last bit, but beside no boundary between two codes: tried with every significand of a scale. Groups so
    # small that remainders would underflow are lifted first. A quotient of -0 stays -0, one of infinity
    # becomes NaN, and the conversion cuts off at 448.
    lift = tl.where(scale < 8.673617379884035e-19, 1.8446744073709552e19, 1.0)  # 2**-60, 2**64
    divisor = scale * lift
    inverse = tl.div_rn(1.0, divisor)[:, None]
    divisor, dividend = divisor[:, None], groups * lift[:, None]
    quotient = dividend * inverse
    return tl.fma(tl.fma(quotient, divisor, -dividend), -inverse, quotient), scale


@triton.jit
def quantize_as_sglang(groups):
    """As `quantize` by rounding "sglang": its division is the GPU's approximate one."""
    magnitude = tl.abs(groups)
    amax = tl.max(tl.where(magnitude >= 0.0, magnitude, 0.0), axis=1)  # false for NaN
    amax = tl.maximum(amax, _LEAST_AMAX)
    factor = tl.inline_asm_elementwise(
        "div.approx.ftz.f32 $0, $1, $2;",
        "=f,f,f",
        [tl.zeros_like(amax) + _FP8_MAX, amax],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )
    product = groups * factor[:, None]
    # The smaller of NaN and 448 is 448, and so is that of Inf: no e4m3 NaN is ever written.
    return tl.maximum(tl.minimum(product, _FP8_MAX), -_FP8_MAX), amax * (1.0 / _FP8_MAX)


@triton.jit(do_not_specialize=["groups"])
def quant_kernel(
    x,  # (M, K), with SILU_MUL (M, 2 K); row r starts at r // inner * outer_stride + r % inner * inner_stride
    q,  # (M, K) e4m3, contiguous
    scale,  # (M, ceil(K / 128)) float32, any strides
    groups,  # values of scale
    inner,
    outer_stride,
    inner_stride,
    scale_stride_m,
    scale_stride_g,
    K: tl.constexpr,
    SILU_MUL: tl.constexpr,
    AS_SGLANG: tl.constexpr,
    BLOCK: tl.constexpr,  # groups a program
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    group = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = group < groups
    lanes = tl.arange(0, 128)
    row = group // tl.cdiv(K, 128)
    of_row = group % tl.cdiv(K, 128)
    start = (
        (row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride + of_row * 128
    )
    if K % 128 == 0:
        target = group.to(tl.int64)[:, None] * 128 + lanes[None, :]
        inside = mask[:, None]
    else:
        target = row.to(tl.int64)[:, None] * K + of_row[:, None] * 128 + lanes[None, :]
        inside = mask[:, None] & (of_row[:, None] * 128 + lanes[None, :] < K)
    if PDL:
        tl.extra.cuda.gdc_wait()
    source = x + start[:, None] + lanes[None, :]
    values = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    if SILU_MUL:
        up = tl.load(source + K, mask=inside, other=0.0).to(tl.float32)
        values = tl.div_rn(values, 1.0 + tl.exp(-values)) * up
    if AS_SGLANG:
        codes, scales = quantize_as_sglang(values)
    else:
        codes, scales = quantize(values)
    tl.store(q + target, codes.to(q.dtype.element_ty), mask=inside)
    tl.store(scale + row.to(tl.int64) * scale_stride_m + of_row * scale_stride_g, scales, mask=mask)


class Tile(NamedTuple):
    groups: int  # a program
    num_warps: int


def tile_of(M: int, K: int) -> Tile:
    if M * K <= 1 << 19:  # small programs, while SMs would be idle otherwise
        return Tile(4, 4)
    return Tile(16, 8) if M * K <= 1 << 21 else Tile(16, 4)


def launch(x: Rows, q: torch.Tensor, scale: torch.Tensor, silu_mul: bool, rounding: Rounding) -> None:
    """As `ops.quant.reference.launch`."""
    launch_tile(x, q, scale, silu_mul, rounding, tile_of(*q.shape))


def launch_tile(
    x: Rows, q: torch.Tensor, scale: torch.Tensor, silu_mul: bool, rounding: Rounding, tile: Tile
) -> None:
    groups = scale.numel()
    with torch.cuda.device_of(q):  # Triton launches on the current device
        quant_kernel[(triton.cdiv(groups, tile.groups),)](
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
            AS_SGLANG=rounding == "sglang",
            BLOCK=tile.groups,
            num_warps=tile.num_warps,
            **triton_options(q),
        )


def launch_contiguous(
    x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, memory: torch.Tensor, rounding: Rounding
) -> None:
    """As `ops.quant.reference.launch_contiguous`."""
    del memory
    K = x.shape[-1]
    launch(Rows(x.view(-1, 1, K), K, K), q.view(-1, K), scale, False, rounding)
