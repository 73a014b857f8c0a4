"""DeepGEMM, the fastest peer on Hopper: `deep_gemm` from sgl-deep-gemm or DeepSeek's own build."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from ..core import kernel_cache
from ..core.failure_text import first_line
from ..quantize import is_column_tma

if TYPE_CHECKING:
    from ..core.device import Device


@lru_cache(maxsize=64)
def why_unavailable(device: Device) -> str | None:
    """Why DeepGEMM cannot run on `device`: not Hopper, not importable, or no CUDA toolkit for its JIT."""
    if not device.is_hopper:
        return f"DeepGEMM takes float32 scales on Hopper (sm_90a) only; {device.name} is {device.arch}"
    if importlib.util.find_spec("deep_gemm") is None:
        return "deep_gemm is not installed: pip install sgl-deep-gemm"
    if (no_compiler := _why_no_compiler()) is not None:
        return no_compiler
    try:
        _deep_gemm()
    except Exception as exception:  # a build for another torch fails in ways of its own: that is the reason
        return (
            f"deep_gemm cannot be imported ({first_line(exception)}): install a build "
            f"that fits torch {torch.__version__}"
        )
    return None


def why_unsupported(N: int, K: int) -> str | None:
    """Why DeepGEMM cannot compute this shape, else None.

    TMA wants rows of C (2 N bytes) in multiples of 16 bytes. Of K its own tests know multiples of 128 alone.
    """
    if N % 8:
        return f"DeepGEMM needs N to be a multiple of 8, N is {N}"
    if K % 128:
        return f"DeepGEMM is trusted with multiples of 128 for K, K is {K}"
    return None


def gemm(
    A: torch.Tensor, A_scale: torch.Tensor, B: torch.Tensor, B_scale: torch.Tensor, C: torch.Tensor
) -> None:
    """Writes C; see `Backend.gemm`. Compiles on the first call that needs another of DeepGEMM's kernels.

    DeepGEMM reads A_scale column-major by TMA. Any other layout is transposed first, by a kernel of its own,
    into memory allocated for the call.
    """
    if C.numel() == 0:
        return
    library = _deep_gemm()
    with torch.cuda.device_of(A):
        if not is_column_tma(A_scale):
            # DeepGEMM looks at the strides alone: a column-major tensor off a 16-byte address would pass.
            A_scale = library.get_mn_major_tma_aligned_tensor(A_scale.contiguous())
        library.fp8_gemm_nt((A, A_scale), (B, B_scale), C, disable_ue8m0_cast=True)


def warmup(N: int, K: int, m_values: Sequence[int], device: torch.device | None = None) -> None:
    """Compiles and loads what DeepGEMM picks for each M.

    Which kernel that is, DeepGEMM alone knows, from M, N and K, when it is called. So it is called, but into
    a CUDA graph that is never replayed: nothing runs, and what others time on the GPU meanwhile is not
    disturbed. Compiled kernels stay in its cache on disk. Takes memory for B (N * K bytes) and for A and C of
    the largest M.
    """
    sizes = sorted({m for m in m_values if m > 0})
    if not sizes:
        return
    k_blocks = -(-K // 128)
    with torch.cuda.device(device):
        A = torch.empty((sizes[-1], K), dtype=torch.float8_e4m3fn, device="cuda")
        B = torch.empty((N, K), dtype=torch.float8_e4m3fn, device="cuda")
        A_scale = torch.empty((sizes[-1], k_blocks), device="cuda")
        B_scale = torch.empty((-(-N // 128), k_blocks), device="cuda")
        C = torch.empty((sizes[-1], N), dtype=torch.bfloat16, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(torch.cuda.Stream()):
            graph.capture_begin(capture_error_mode="relaxed")  # loading a kernel is allowed
            try:
                for m in sizes:
                    gemm(A[:m], A_scale[:m], B, B_scale, C[:m])
            finally:
                graph.capture_end()
        graph.reset()


def _why_no_compiler() -> str | None:
    """Why DeepGEMM's run-time compiler would not start, else None. Looks where DeepGEMM does."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home is None:
        on_path = shutil.which("nvcc")
        home = str(Path(on_path).parent.parent) if on_path else "/usr/local/cuda"
    if os.environ.get("DG_JIT_USE_NVRTC", "0") not in {"", "0"}:
        needed, role = Path(home), "the CUDA toolkit"
    else:
        needed, role = Path(os.environ.get("DG_JIT_NVCC_COMPILER") or Path(home, "bin", "nvcc")), "nvcc"
    if needed.exists():
        return None
    return f"DeepGEMM compiles with {role}, and there is no {needed}: set CUDA_HOME to a CUDA toolkit"


@lru_cache(maxsize=1)
def _deep_gemm() -> ModuleType:
    kernel_cache.lend_to("DG_JIT_CACHE_DIR", "~/.deep_gemm")
    return importlib.import_module("deep_gemm")
