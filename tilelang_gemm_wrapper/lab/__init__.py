"""Kernel lab: see, edit and run a kernel at every level of its compilation; see docs/kernel-lab.md.

    from tilelang_gemm_wrapper.lab import dump, run_from

    dump("swapAB", to="out", arch="sm_90a", M=16, N=4096, K=2560)  # no GPU needed
    run_from("out/kernel.ptx", check=True, bench=True)  # out/kernel.ptx as it is now, edits and all

`debug` has helpers for Triton's interpreter. Names load on first use, so that `--help` needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cases import Launch, TileLangCase, TritonCase
    from .diffs import diff
    from .dumping import dump
    from .running import Run, compile_from, run_from

__all__ = ["Launch", "Run", "TileLangCase", "TritonCase", "compile_from", "diff", "dump", "run_from"]

_HOME = {
    "Launch": ".cases",
    "TileLangCase": ".cases",
    "TritonCase": ".cases",
    "diff": ".diffs",
    "dump": ".dumping",
    "Run": ".running",
    "compile_from": ".running",
    "run_from": ".running",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name], __name__), name)
    globals()[name] = value  # later look-ups find it without coming here
    return value
