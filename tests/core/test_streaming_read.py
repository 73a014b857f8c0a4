"""The kernel behind the streaming floor, compiled for Hopper and Ada: wide loads, and nothing but them."""

from __future__ import annotations

import os
import re

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed on this platform")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton compiles nothing in a process that interprets", allow_module_level=True)

from tilelang_gemm_wrapper.core._streaming_read import _CHOICES, streaming_read_kernel  # noqa: E402


@pytest.mark.parametrize("capability", [89, 90])
@pytest.mark.parametrize("choice", dict.fromkeys(choice[:2] for choice in _CHOICES), ids=str)
def test_every_load_is_16_bytes_wide_and_nothing_waits(choice, capability):
    warps, loads = choice
    source = triton.compiler.ASTSource(
        streaming_read_kernel,
        {"source": "*i32", "sink": "*i32", "words": "i32", "BLOCK": "constexpr"},
        {"BLOCK": warps * 32 * loads * 4},
        # As at run time: the copies are at least 16-byte aligned and a multiple of 16 words long.
        {(argument,): [["tt.divisibility", 16]] for argument in range(3)},
    )
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    ptx = triton.compile(source, target=target, options={"num_warps": warps}).asm["ptx"]

    assert re.findall(r"ld\.global\S*", ptx) == re.findall(r"ld\.global\S*v4\S*", ptx)
    assert ptx.count("ld.global") == loads
    assert "bar.sync" not in ptx
    assert "ld.local" not in ptx
