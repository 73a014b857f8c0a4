"""1x128 quantisation of activations on a GPU, in the layout that the GEMM reads best.

On Hopper the kernel lets its successor start at once: a GEMM whose weights are known to be static loads them
into shared memory while this kernel still quantises. `quantize.per_token_group_quant_fp8` is the reference,
with other rules for what is not finite.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch.compiler import is_compiling

from tilelang_gemm_wrapper.core import compile_cache
from tilelang_gemm_wrapper.core.device import device_of
from tilelang_gemm_wrapper.core.problem import ALIGNMENT, misaligned
from tilelang_gemm_wrapper.core.wrapper import on_device
from tilelang_gemm_wrapper.ops.custom_op import define
from tilelang_gemm_wrapper.quantize import TMA_ALIGNMENT, round_up


def group_quant_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise (M, K) bfloat16 on a Hopper or Ada GPU with one scale a token and 128 columns.

    x: row-major, 16-byte aligned, K a multiple of 128. Returns q (M, K) float8_e4m3fn, row-major, and scale
    (M, K / 128) float32, column-major with stride (1, M rounded up to 4), rows beyond M unwritten: scale is
    max(amax, 1e-10) / 448, and q is x * (448 / amax) clamped to +-448, NaN to 448. Divisions are the GPU's
    approximate ones, as in SGLang's own quantiser, so that both give the same bits.

    Runs on the current stream, in CUDA graphs after `warmup` and under torch.compile. Raises TypeError or
    ValueError for tensors that do not fit, RuntimeError where it would have to compile under capture.
    """
    if x.dtype is not torch.bfloat16:
        raise TypeError(f"x is {x.dtype}, expected torch.bfloat16")
    if x.dim() != 2 or x.shape[1] % 128 or not x.is_contiguous():
        raise ValueError(
            f"x has shape {tuple(x.shape)} and strides {x.stride()}, expected row-major (M, K) with K a "
            "multiple of 128; pass x.contiguous()"
        )
    M, K = x.shape
    q = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scales = torch.empty((K // 128, round_up(M, TMA_ALIGNMENT)), dtype=torch.float32, device=x.device)
    if is_compiling() or type(x) is not torch.Tensor:
        torch.ops.tilelang_gemm.group_quant_fp8(x, q, scales)
    else:
        _launch(x, q, scales)
    return q, scales.t()[:M]


def warmup(index: int) -> None:
    """Compile or load the kernel for CUDA device `index`, before a capture."""
    _kernel(index)


def _launch(x: torch.Tensor, q: torch.Tensor, scales: torch.Tensor) -> None:
    if x.data_ptr() % ALIGNMENT:
        raise misaligned("x", x)
    if not x.is_cuda:
        raise ValueError(
            f"x is on {x.device}, expected a CUDA device; use per_token_group_quant_fp8 elsewhere"
        )
    if x.numel():
        _kernel(x.get_device())(x.view(-1, 128), q.view(-1, 128), scales)


@lru_cache(maxsize=64)
def _kernel(index: int) -> Callable[..., None]:
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "the quantiser is not compiled and a CUDA graph is being captured; warm it up before"
        )
    compile_cache.tilelang_module()
    from tilelang_gemm_wrapper.ops._group_quant_kernel import PASS_CONFIGS, build

    device = device_of(index)
    with compile_cache.alone("compile"):
        kernel = compile_cache.compile_primfunc(build(early=device.is_hopper), device.arch, PASS_CONFIGS)
    return on_device(kernel, index)


define("group_quant_fp8(Tensor x, Tensor(a!) q, Tensor(b!) scales) -> ()", _launch)
