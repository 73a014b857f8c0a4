"""Which implementation of an op runs: Triton, TileLang or PyTorch's own."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import Literal, get_args

import torch

from .. import configurer
from ..core import compile_cache, kernel_cache
from ..core.device import device_of
from . import measured

Backend = Literal["auto", "triton", "tilelang", "torch"]
_BACKENDS = get_args(Backend)
# Public op -> the package that has its implementations.
PACKAGES = {
    "gemv": "gemv",
    "rmsnorm": "rmsnorm",
    "fused_add_rmsnorm": "rmsnorm",
    "rmsnorm_quant_fp8": "rmsnorm",
    "fused_add_rmsnorm_quant_fp8": "rmsnorm",
    "per_token_group_quant_fp8": "quant",
    "silu_mul_quant_fp8": "quant",
}

OLDEST = 80  # sm_80: bfloat16 and asynchronous copies
OLDEST_FP8 = 89  # the first with conversions to and from e4m3


def implementation(
    op: str, backend: str, x: torch.Tensor, dtype: str, M: int, N: int, K: int, *, fp8: bool = False
) -> ModuleType:
    """The module of an op's backend for tensors like x; "auto" is the measured best that runs here.

    dtype names the operands in the measurements; fp8: whether e4m3 is read or written. Raises ValueError for
    an unknown backend, RuntimeError with the reason for one that cannot run on the device of x.
    """
    if backend not in _BACKENDS:
        raise ValueError(f"backend is {backend!r}, expected one of {', '.join(map(repr, _BACKENDS))}")
    index = x.get_device() if x.is_cuda else -1
    if backend == "auto":
        backend = _measured_best(op, dtype, M, N, K, index, fp8)
    else:
        reason = _why_unavailable(backend, index, fp8)
        if reason:
            raise RuntimeError(f"backend {backend!r} cannot run: {reason}; backend='auto' takes one that can")
    return _module(PACKAGES[op], backend)


@lru_cache(maxsize=8192)
def _measured_best(op: str, dtype: str, M: int, N: int, K: int, index: int, fp8: bool) -> str:
    if index < 0:
        return "torch"
    order = (measured.best(op, dtype, M, N, K, device_of(index)), "triton", "torch")
    return next(name for name in order if _why_unavailable(name, index, fp8) is None)


@lru_cache(maxsize=256)
def _why_unavailable(backend: str, index: int, fp8: bool) -> str | None:
    if backend == "torch":
        return None
    if index < 0:
        return "the tensors are on the CPU, and it needs an NVIDIA GPU"
    device = device_of(index)
    least = OLDEST_FP8 if fp8 else OLDEST
    if device.capability < least:
        return f"it needs sm_{least} or newer, and {device.name} is {device.arch}"
    if backend == "tilelang":
        return configurer.why_tilelang_unfit()
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton cannot be imported ({error}): pip install 'triton>=3.4'"
    return None


@lru_cache(maxsize=16)
def _module(package: str, backend: str) -> ModuleType:
    if backend == "tilelang":
        compile_cache.tilelang_module()  # sets its cache directory before anything else of it is imported
    elif backend == "triton":
        kernel_cache.lend_to_triton()
    # A module named torch would take the place of the real one in its package.
    return import_module(
        f"tilelang_gemm_wrapper.ops.{package}.{'reference' if backend == 'torch' else backend}"
    )


measured.ON_FORGET.append(_measured_best.cache_clear)
