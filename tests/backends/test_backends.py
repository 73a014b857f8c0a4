"""Looking a backend up by name: lazy, complete, and clear about a wrong name."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from tilelang_gemm_wrapper.backends import BACKENDS, Backend, backend

LAZY = """
import sys, torch
before = set(sys.modules)
import tilelang_gemm_wrapper.backends as backends
for name in backends.BACKENDS:
    backends.backend(name)
loaded = {name.split(".")[0] for name in set(sys.modules) - before}
sys.exit(", ".join(sorted(loaded & {"triton", "deep_gemm", "tilelang"})) or 0)
"""


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("function", ["why_unavailable", "why_unsupported", "gemm", "warmup"])
def test_each_offers_the_whole_protocol(name: str, function: str) -> None:
    declared = list(inspect.signature(getattr(Backend, function)).parameters)[1:]
    assert list(inspect.signature(getattr(backend(name), function)).parameters) == declared


def test_unknown_name() -> None:
    with pytest.raises(
        ValueError, match=r"backend 'cutlass' is unknown; expected one of deep_gemm, torch, tri"
    ):
        backend("cutlass")


def test_naming_a_backend_imports_neither_triton_nor_deep_gemm() -> None:
    result = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"imported {result.stderr}"
