"""1x128 FP8 quantisation of activations, alone or after SiLU and product, in the layout that the GEMM reads.

The rules are those of `quantize`: scale = amax / 448, 1 for a group of zeros; NaN and Inf become NaN codes
and do not take part in amax. Values are formed in float32 and divided as IEEE division, so that every backend
gives the bits of `quantize.per_token_group_quant_fp8` on the same float32 values.
"""

from __future__ import annotations

import torch

from ...quantize import ScaleLayout
from .. import backends
from ..arguments import (
    check_apart,
    check_floats,
    check_groups,
    check_rows,
    dtype_name,
    empty_fp8,
    empty_scale,
    rows_of,
)
from ..backends import Backend
from ..custom_op import define, is_tracing


def per_token_group_quant_fp8(
    x: torch.Tensor, scale_layout: ScaleLayout = "row", backend: Backend = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise (..., K) bfloat16, float16 or float32 with one scale a row and 128 columns.

    x: K a multiple of 128, its values side by side, rows in up to two strides. Returns q, shaped as x,
    float8_e4m3fn, contiguous, and scale (M, K / 128) float32, M being the number of rows: "row"-major, or
    "column_tma" with stride (1, M rounded up to 4), rows beyond M unwritten.

    Raises TypeError or ValueError for tensors that do not fit, RuntimeError for a backend that cannot run.
    """
    return _quantise(x, scale_layout, backend, silu_mul=False)


def silu_mul_quant_fp8(
    x: torch.Tensor, scale_layout: ScaleLayout = "row", backend: Backend = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """silu(gate) * up, quantised: x (..., 2 K), the gate in its first K columns and up in the others.

    silu(g) = g / (1 + exp(-g)); silu and the product are float32 and not rounded to x's dtype in between.
    exp is the backend's own: backends agree to a few units in the last place of float32, after which a value
    between two codes may take either. Results and errors as of `per_token_group_quant_fp8`, q being (..., K).
    """
    return _quantise(x, scale_layout, backend, silu_mul=True)


def _quantise(
    x: torch.Tensor, scale_layout: ScaleLayout, backend: Backend, silu_mul: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    check_floats(x=x)
    check_rows("x", x, 2 * 65536 if silu_mul else 65536)
    *leading, columns = x.shape
    if silu_mul and columns % 2:
        raise ValueError(f"x has {columns} columns, expected twice K: the gate, then up")
    K = columns // 2 if silu_mul else columns
    check_groups("x", K)
    q = empty_fp8((*leading, K), x.device)
    scale = empty_scale(q.numel() // K, K // 128, scale_layout, x.device)
    call = torch.ops.tilelang_gemm.quant_fp8 if is_tracing(x) else _launch
    call(x, q, scale, silu_mul, backend)
    return q, scale


def _launch(x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, silu_mul: bool, backend: str) -> None:
    (source,) = rows_of(["x"], [x])
    check_apart("q", q, x=x)
    M, groups = scale.shape
    op = "silu_mul_quant_fp8" if silu_mul else "per_token_group_quant_fp8"
    module = backends.implementation(op, backend, x, dtype_name(x), M, 0, groups * 128, fp8=True)
    if M:
        module.launch(source, q.view(M, groups * 128), scale, silu_mul)


define(
    "quant_fp8(Tensor x, Tensor(a!) q, Tensor(b!) scale, bool silu_mul, str backend) -> ()",
    _launch,
)
