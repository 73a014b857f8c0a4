"""The GEMM in plain PyTorch: right for every shape and device, slow, and the yardstick for the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ..core.device import Device

_CHUNK = 1 << 24  # elements of A, of B and of the result that exist in float64 at one time: 128 MiB each
_BLOCK = 128  # columns of A, and rows and columns of B, under one scale


def why_unavailable(device: Device) -> str | None:
    """None: torch runs wherever the package does."""
    del device
    return None


def why_unsupported(N: int, K: int) -> str | None:
    """None: every shape is computed."""
    del N, K
    return None


def warmup(N: int, K: int, m_values: Sequence[int], device: torch.device | None = None) -> None:
    """Does nothing: there is nothing to compile."""
    del N, K, m_values, device


@torch.no_grad()
def gemm(
    A: torch.Tensor, A_scale: torch.Tensor, B: torch.Tensor, B_scale: torch.Tensor, C: torch.Tensor
) -> None:
    """Writes C = (A * A_scale) @ (B * B_scale).T, computed in float64 and rounded once to C's dtype.

    Shapes and layouts as in `Backend.gemm`; C may also be float32 or float64, and its strides are free.
    float64 because a float32 matmul is at the mercy of the process's TF32 settings, on CPUs too.
    """
    M, K = A.shape
    N = B.shape[0]
    rows = max(1, min(_CHUNK // K, 1 << 12))  # 2**12 squared is _CHUNK: bounds the result as well
    for m in range(0, M, rows):
        a = _dequantise(A[m : m + rows], A_scale[m : m + rows])
        for n in range(0, N, rows):
            b_blocks = torch.arange(n, min(n + rows, N), device=B.device) // _BLOCK
            b = _dequantise(B[n : n + rows], B_scale[b_blocks])
            C[m : m + rows, n : n + rows] = a @ b.t()


def _dequantise(q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """q: (rows, K) e4m3, scale: (rows, ceil(K / 128)) -> their product, (rows, K) float64."""
    return q.double() * scale.double().repeat_interleave(_BLOCK, dim=1)[:, : q.shape[1]]
