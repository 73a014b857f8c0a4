"""Kernel lab: see, edit and run a kernel at every level of its compilation; see docs/kernel-lab.md.

    from tilelang_gemm_wrapper.lab import dump, run_from

    dump("swapAB", to="out", arch="sm_90a", M=16, N=4096, K=2560)  # no GPU needed
    run_from("out/kernel.ptx", check=True, bench=True)  # out/kernel.ptx as it is now, edits and all

`debug` has helpers for Triton's interpreter.
"""

from __future__ import annotations

from .cases import Launch, TileLangCase, TritonCase
from .diffs import diff
from .dumping import dump
from .running import Run, compile_from, run_from

__all__ = ["Launch", "Run", "TileLangCase", "TritonCase", "compile_from", "diff", "dump", "run_from"]
