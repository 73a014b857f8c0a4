"""Kernels other than our TileLang ones, all with one signature.

A backend is a module that is imported when first asked for, so that naming one needs neither triton nor
deep_gemm. `backend("triton").why_unavailable(device)` says whether it can run before anything is launched.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    import torch

    from ..core.device import Device

BACKENDS: dict[str, str] = {  # name in configs and TILELANG_GEMM_FALLBACK -> module
    "deep_gemm": ".deep_gemm",
    "triton": ".triton",
    "torch": ".torch_reference",
}


class Backend(Protocol):
    """What each module of this package offers."""

    def why_unavailable(self, device: Device) -> str | None:
        """Why the backend cannot run on that device in this process, else None. Cheap when repeated."""

    def why_unsupported(self, N: int, K: int) -> str | None:
        """Why the backend cannot compute this shape; None if it can, for every M."""

    def gemm(
        self,
        A: torch.Tensor,
        A_scale: torch.Tensor,
        B: torch.Tensor,
        B_scale: torch.Tensor,
        C: torch.Tensor,
    ) -> None:
        """Writes C = (A * A_scale) @ (B * B_scale).T. The entrypoint has checked the inputs.

        A: (M, K) and B: (N, K) float8_e4m3fn, row-major. A_scale: (M, ceil(K / 128)) float32, row- or
        column-major. B_scale: (ceil(N / 128), ceil(K / 128)) float32, row-major. C: (M, N) bfloat16.
        """

    def warmup(self, N: int, K: int, m_values: Sequence[int], device: torch.device | None = None) -> None:
        """Compiles and loads what calls with this N, K and these M need, on `device` or the current one."""


@cache
def backend(name: str) -> Backend:
    """The backend with that name. Raises ValueError for a name that is none of `BACKENDS`."""
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r} is unknown; expected one of {', '.join(sorted(BACKENDS))}")
    return cast(Backend, import_module(BACKENDS[name], __name__))
