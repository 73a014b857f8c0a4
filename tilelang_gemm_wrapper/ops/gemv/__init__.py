"""GEMV: y = x @ W.T for one to eight rows of x, where the time is that of reading W.

Sums are float32, rounded once where y is written. W is bfloat16, float16 or e4m3 with a float32 scale for
each 128x128 block; beside e4m3 weights x may be e4m3 as well, with a scale for each row and 128 columns, or
stay bfloat16 or float16: then nothing needs to be quantised at run time.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch

from ...quantize import check_dense
from .. import backends
from ..arguments import check_apart, check_place, check_shape, dtype_name
from ..backends import Backend
from ..custom_op import define, is_tracing

MAX_M = 8
Operand = torch.Tensor | tuple[torch.Tensor, torch.Tensor]

_FP8 = torch.float8_e4m3fn
_HALVES = (torch.bfloat16, torch.float16)


class Problem(NamedTuple):
    """x (M, K), W (N, K) and out (M, N), row-major, with the scales of those that are e4m3.

    x_scale (M, ceil(K / 128)) and W_scale (ceil(N / 128), ceil(K / 128)) float32, row-major, or None.
    """

    x: torch.Tensor
    x_scale: torch.Tensor | None
    W: torch.Tensor
    W_scale: torch.Tensor | None
    out: torch.Tensor

    @property
    def M(self) -> int:
        return self.x.shape[0]

    @property
    def N(self) -> int:
        return self.W.shape[0]

    @property
    def K(self) -> int:
        return self.x.shape[1]

    @property
    def is_fp8(self) -> bool:
        return self.W_scale is not None

    def implementation(self, backend: str) -> ModuleType:
        """The module whose `launch` computes it; see `backends.implementation`."""
        return backends.implementation(
            "gemv", backend, self.out, self.dtype, self.M, self.N, self.K, fp8=self.is_fp8
        )

    @property
    def dtype(self) -> str:
        """The operands as the measurements name them: "bfloat16", "bfloat16 x float8_e4m3fn", ..."""
        x, W = dtype_name(self.x), dtype_name(self.W)
        return x if x == W else f"{x} x {W}"


def gemv(x: Operand, W: Operand, out: torch.Tensor | None = None, backend: Backend = "auto") -> torch.Tensor:
    """y = x @ W.T: x (M, K), W (N, K), y (M, N); M from 1 to 8, any N and K of at least 1.

    x and W: both bfloat16 or both float16; or W = (W, W_scale), W e4m3 with W_scale (ceil(N / 128), ceil(K /
    128)) float32, and x bfloat16, float16 or (x, x_scale), x e4m3 with x_scale (M, ceil(K / 128)) float32.
    All row-major. out: where to write, of x's dtype, bfloat16 if x is e4m3; by default new. Returns out.

    "torch" is cuBLAS where x and W are of one dtype; "auto" takes the fastest as measured for such a shape.
    Raises TypeError or ValueError for tensors that do not fit, RuntimeError for a backend that cannot run.
    """
    problem = as_problem(x, W, out)
    call = torch.ops.tilelang_gemm.gemv if is_tracing(problem.x) else _launch
    call(*problem, backend)
    return problem.out


def as_problem(x: Operand, W: Operand, out: torch.Tensor | None = None) -> Problem:
    """The arguments of `gemv`, checked as far as they can be while they are traced; out is new by default."""
    (x, x_scale), (W, W_scale) = _pair("x", x), _pair("W", W)
    _check_operands(x, x_scale, W, W_scale)
    dtype = torch.bfloat16 if x_scale is not None else x.dtype
    if out is None:
        out = torch.empty((x.shape[0], W.shape[0]), dtype=dtype, device=x.device)
    else:
        _check_out(out, x, W, dtype)
    return Problem(x, x_scale, W, W_scale, out)


def _pair(name: str, operand: Operand) -> tuple[torch.Tensor, torch.Tensor | None]:
    """An operand as (values, scales or None)."""
    if not isinstance(operand, tuple | list):
        return operand, None
    if len(operand) != 2:
        raise TypeError(f"{name} is a {type(operand).__name__} of {len(operand)}, expected (values, scales)")
    return operand[0], operand[1]


def _check_operands(
    x: torch.Tensor, x_scale: torch.Tensor | None, W: torch.Tensor, W_scale: torch.Tensor | None
) -> None:
    _check_tensor("x", x)
    _check_tensor("W", W)
    given = {"x": x, "W": W, "x_scale": x_scale, "W_scale": W_scale}
    tensors = {name: tensor for name, tensor in given.items() if tensor is not None}
    for name, tensor in tensors.items():
        _check_tensor(name, tensor)
    _check_dtypes(x, x_scale, W, W_scale)
    for name, tensor in tensors.items():
        if tensor.dim() != 2:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected two dimensions; reshape it")
        check_place(name, tensor, "x", x.device)
        if not tensor.is_contiguous():
            raise ValueError(
                f"{name} has strides {tensor.stride()}, expected row-major; pass {name}.contiguous()"
            )
    (M, K), (N, _) = x.shape, W.shape
    if not 1 <= M <= MAX_M:
        raise ValueError(f"x has {M} rows, expected 1 to {MAX_M}; gemm_nt_f8f8bf16 and torch.mm take more")
    if not N or not K:
        raise ValueError(f"x is {tuple(x.shape)} and W {tuple(W.shape)}, expected N and K of at least 1")
    check_shape("W", W, (N, K), f"x {tuple(x.shape)}")
    groups = -(-K // 128)
    if x_scale is not None:
        check_shape("x_scale", x_scale, (M, groups), f"x {tuple(x.shape)}")
    if W_scale is not None:
        check_shape("W_scale", W_scale, (-(-N // 128), groups), f"W {tuple(W.shape)}")


def _check_tensor(name: str, tensor: object) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}, expected a torch.Tensor")
    check_dense(name, tensor)


def _check_dtypes(
    x: torch.Tensor, x_scale: torch.Tensor | None, W: torch.Tensor, W_scale: torch.Tensor | None
) -> None:
    for name, tensor, scale in (("x", x, x_scale), ("W", W, W_scale)):
        if (tensor.dtype is _FP8) != (scale is not None):
            raise TypeError(
                f"{name} is {tensor.dtype} {'without' if scale is None else 'with'} scales, expected "
                f"bfloat16 or float16 alone or (e4m3, scales); pass ({name}, {name}_scale) for float8_e4m3fn"
            )
        if scale is not None and scale.dtype is not torch.float32:
            raise TypeError(f"{name}_scale is {scale.dtype}, expected torch.float32; convert it")
    if W_scale is None and (W.dtype not in _HALVES or x.dtype is not W.dtype):
        raise TypeError(
            f"x is {x.dtype} and W {W.dtype}, expected both bfloat16 or both float16; convert one"
        )
    if W_scale is not None and x_scale is None and x.dtype not in _HALVES:
        raise TypeError(f"x is {x.dtype}, expected bfloat16, float16 or (e4m3, scales) beside e4m3 weights")


def _check_out(out: torch.Tensor, x: torch.Tensor, W: torch.Tensor, dtype: torch.dtype) -> None:
    _check_tensor("out", out)
    if out.dtype is not dtype:
        raise TypeError(f"out is {out.dtype}, expected {dtype}; pass such a buffer")
    check_shape("out", out, (x.shape[0], W.shape[0]), f"x {tuple(x.shape)} and W {tuple(W.shape)}")
    check_place("out", out, "x", x.device)
    if not out.is_contiguous():
        raise ValueError(f"out has strides {out.stride()}, expected row-major; pass a contiguous buffer")


def _launch(
    x: torch.Tensor,
    x_scale: torch.Tensor | None,
    W: torch.Tensor,
    W_scale: torch.Tensor | None,
    out: torch.Tensor,
    backend: str,
) -> None:
    check_apart("out", out, x=x, W=W)
    problem = Problem(x, x_scale, W, W_scale, out)
    problem.implementation(backend).launch(problem)


define(
    "gemv(Tensor x, Tensor? x_scale, Tensor W, Tensor? W_scale, Tensor(a!) out, str backend) -> ()", _launch
)
