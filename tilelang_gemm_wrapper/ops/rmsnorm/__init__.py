"""RMSNorm, with the residual added, and quantised to FP8: y = x / sqrt(mean(x²) + eps) * (weight + offset).

Everything is float32 from the first product to the last and rounded once, where y is written. With a
residual, residual + x is rounded to its dtype first, and what later layers read is what is normalised: the
results are those of the separate steps, bit for bit, in whichever backend. Backends differ in the order in
which they add the squares, and so by a few units in the last place of float32 before the rounding.
"""

from __future__ import annotations

import torch

from ...quantize import ScaleLayout
from .. import backends
from ..arguments import (
    check_apart,
    check_eps,
    check_floats,
    check_groups,
    check_place,
    check_rows,
    check_rows_apart,
    check_shape,
    dtype_name,
    empty_fp8,
    empty_scale,
    overlap,
    rows_of,
)
from ..backends import Backend
from ..custom_op import define, is_tracing


def rmsnorm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    out: torch.Tensor | None = None,
    offset: float = 0.0,
    backend: Backend = "auto",
) -> torch.Tensor:
    """RMSNorm over the last dimension of x (..., K), K from 1 to 65536: bfloat16, float16 or float32.

    x: values of a row side by side, rows in up to two strides, as in slices of a fused QKV. weight: (K,),
    contiguous, of x's dtype or float32; offset is added to it (Gemma: 1.0). out: where to write, shaped as x
    and of its dtype, x itself included; by default new and contiguous. Returns out.

    Raises TypeError or ValueError for tensors that do not fit, RuntimeError for a backend that cannot run.
    """
    check_floats(x=x)
    check_rows("x", x)
    _check_weight(weight, x)
    check_eps(eps, offset)
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    else:
        check_floats(x=x, out=out)
        check_shape("out", out, x.shape, "x")
    if not is_tracing(x):
        _rmsnorm(x, weight, out, eps, offset, backend)
    elif out is x:  # PyTorch traces no op that reads and writes one tensor as two arguments
        x.copy_(rmsnorm(x, weight, eps, None, offset, backend))
    else:
        torch.ops.tilelang_gemm.rmsnorm(x, weight, out, eps, offset, backend)
    return out


def fused_add_rmsnorm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    offset: float = 0.0,
    backend: Backend = "auto",
) -> None:
    """residual += x, then x = rmsnorm(residual, weight, eps): both in place, shaped alike, of one dtype.

    Layouts, dtypes and errors as of `rmsnorm`.
    """
    _check_residual(x, residual)
    _check_weight(weight, x)
    check_eps(eps, offset)
    call = torch.ops.tilelang_gemm.fused_add_rmsnorm if is_tracing(x) else _fused_add_rmsnorm
    call(x, residual, weight, eps, offset, backend)


def rmsnorm_quant_fp8(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    scale_layout: ScaleLayout = "row",
    offset: float = 0.0,
    backend: Backend = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """`rmsnorm` and `ops.per_token_group_quant_fp8` in one kernel, y not rounded to x's dtype in between.

    Returns q, shaped as x, float8_e4m3fn, contiguous, and scale (M, K / 128) float32 in `scale_layout`. A row
    that holds NaN or Inf has NaN for its mean or 0 for its factor, and what comes of that is quantised.
    """
    check_floats(x=x)
    check_rows("x", x)
    _check_weight(weight, x)
    check_eps(eps, offset)
    q, scale = _empty_quantised(x, scale_layout)
    call = torch.ops.tilelang_gemm.rmsnorm_quant_fp8 if is_tracing(x) else _rmsnorm_quant
    call(x, weight, q, scale, eps, offset, backend)
    return q, scale


def fused_add_rmsnorm_quant_fp8(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    scale_layout: ScaleLayout = "row",
    offset: float = 0.0,
    backend: Backend = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """residual += x in place, then `rmsnorm_quant_fp8(residual, ...)`, in one kernel; x stays as it is."""
    _check_residual(x, residual)
    _check_weight(weight, x)
    check_eps(eps, offset)
    q, scale = _empty_quantised(x, scale_layout)
    call = torch.ops.tilelang_gemm.fused_add_rmsnorm_quant_fp8 if is_tracing(x) else _fused_add_rmsnorm_quant
    call(x, residual, weight, q, scale, eps, offset, backend)
    return q, scale


def _check_weight(weight: torch.Tensor, x: torch.Tensor) -> None:
    check_floats(weight=weight)
    if weight.dtype not in (x.dtype, torch.float32):
        raise TypeError(
            f"weight is {weight.dtype} and x {x.dtype}, expected the same or float32; convert weight"
        )
    check_shape("weight", weight, x.shape[-1:], f"x {tuple(x.shape)}")
    check_place("weight", weight, "x", x.device)
    if not weight.is_contiguous():
        raise ValueError(f"weight has stride {weight.stride()}, expected 1; pass weight.contiguous()")


def _check_residual(x: torch.Tensor, residual: torch.Tensor) -> None:
    check_floats(x=x, residual=residual)
    check_rows("x", x)
    check_shape("residual", residual, x.shape, "x")


def _empty_quantised(x: torch.Tensor, scale_layout: ScaleLayout) -> tuple[torch.Tensor, torch.Tensor]:
    *_, K = x.shape
    check_groups("x", K)
    return empty_fp8(x.shape, x.device), empty_scale(x.numel() // K, K // 128, scale_layout, x.device)


def _rmsnorm(
    x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float, offset: float, backend: str
) -> None:
    source, target = rows_of(["x", "out"], [x, out])
    check_rows_apart("out", target)
    in_place = out.data_ptr() == x.data_ptr() and out.stride() == x.stride()
    if not in_place and overlap(out, x):
        raise ValueError("out overlaps x in memory without being x, expected x itself or a buffer apart")
    check_apart("out", out, weight=weight)
    module = backends.implementation("rmsnorm", backend, x, dtype_name(x), source.M, 0, source.K)
    if source.M:
        module.launch(source, None, weight, target, eps, offset)


def _fused_add_rmsnorm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, offset: float, backend: str
) -> None:
    source, stream = rows_of(["x", "residual"], [x, residual])
    check_rows_apart("x", source)
    check_rows_apart("residual", stream)
    check_apart("x", x, residual=residual, weight=weight)
    check_apart("residual", residual, weight=weight)
    module = backends.implementation("fused_add_rmsnorm", backend, x, dtype_name(x), source.M, 0, source.K)
    if source.M:
        module.launch(source, stream, weight, source, eps, offset)


def _rmsnorm_quant(
    x: torch.Tensor,
    weight: torch.Tensor,
    q: torch.Tensor,
    scale: torch.Tensor,
    eps: float,
    offset: float,
    backend: str,
) -> None:
    (source,) = rows_of(["x"], [x])
    module = backends.implementation(
        "rmsnorm_quant_fp8", backend, x, dtype_name(x), source.M, 0, source.K, fp8=True
    )
    if source.M:
        module.launch_quant(source, None, weight, q.view(source.M, source.K), scale, eps, offset)


def _fused_add_rmsnorm_quant(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    q: torch.Tensor,
    scale: torch.Tensor,
    eps: float,
    offset: float,
    backend: str,
) -> None:
    source, stream = rows_of(["x", "residual"], [x, residual])
    check_rows_apart("residual", stream)
    check_apart("residual", residual, x=x, weight=weight)
    module = backends.implementation(
        "fused_add_rmsnorm_quant_fp8", backend, x, dtype_name(x), source.M, 0, source.K, fp8=True
    )
    if source.M:
        module.launch_quant(source, stream, weight, q.view(source.M, source.K), scale, eps, offset)


define(
    "rmsnorm(Tensor x, Tensor weight, Tensor(a!) out, float eps, float offset, str backend) -> ()", _rmsnorm
)
define(
    "fused_add_rmsnorm(Tensor(a!) x, Tensor(b!) residual, Tensor weight, float eps, float offset, "
    "str backend) -> ()",
    _fused_add_rmsnorm,
)
define(
    "rmsnorm_quant_fp8(Tensor x, Tensor weight, Tensor(a!) q, Tensor(b!) scale, float eps, float offset, "
    "str backend) -> ()",
    _rmsnorm_quant,
)
define(
    "fused_add_rmsnorm_quant_fp8(Tensor x, Tensor(a!) residual, Tensor weight, Tensor(b!) q, "
    "Tensor(c!) scale, float eps, float offset, str backend) -> ()",
    _fused_add_rmsnorm_quant,
)
