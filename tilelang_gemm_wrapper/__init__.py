"""FP8 block-scaled GEMM: one call that picks the fastest kernel this machine can run.

Public names load on first use: importing the package touches neither torch, TileLang nor CUDA.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .entrypoint import explain, gemm_nt_f8f8bf16, warmup
    from .ops import per_token_group_quant_fp8
    from .quantize import per_block_quant_fp8

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "explain",
    "gemm_nt_f8f8bf16",
    "per_block_quant_fp8",
    "per_token_group_quant_fp8",
    "warmup",
]

_HOME = {
    "explain": ".entrypoint",
    "gemm_nt_f8f8bf16": ".entrypoint",
    "warmup": ".entrypoint",
    "per_block_quant_fp8": ".quantize",
    "per_token_group_quant_fp8": ".ops",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name], __name__), name)
    globals()[name] = value  # later look-ups find it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
