"""Occupancy against CUDA's occupancy calculator, worked out by hand, and the counting of instructions."""

from __future__ import annotations

import re

import pytest

from tilelang_gemm_wrapper.lab.occupancy import occupancy
from tilelang_gemm_wrapper.lab.resources import KINDS, capability_of, resources


@pytest.mark.parametrize(
    ("capability", "threads", "registers", "shared", "ctas", "limited_by"),
    [
        (90, 1024, 32, 0, 2, "warps"),
        (90, 32, 16, 0, 32, "CTAs"),
        (90, 128, 128, 0, 4, "registers"),  # 16 warps of 4096 registers
        (90, 128, 255, 0, 2, "registers"),
        (90, 288, 30, 77440, 2, "shared memory"),
        (90, 384, 168, 232448 - 1024, 1, "registers"),
        (90, 128, 32, 300000, 0, "shared memory"),
        (89, 128, 40, 24576, 4, "shared memory"),  # four of 25 KiB, the system's kilobyte in each
        (89, 1024, 32, 0, 1, "warps"),  # 48 warps
        (86, 32, 16, 0, 16, "CTAs"),
        (80, 256, 64, 81920, 2, "shared memory"),
    ],
)
def test_ctas(capability: int, threads: int, registers: int, shared: int, ctas: int, limited_by: str) -> None:
    found = occupancy(capability, threads, registers, shared)
    assert found is not None
    assert (found.ctas, found.limited_by) == (ctas, limited_by)


def test_fraction_of_the_warps() -> None:
    found = occupancy(90, 288, 30, 77440)
    assert found is not None
    assert (found.warps, found.fraction) == (18, 18 / 64)
    assert occupancy(75, 128, 32, 0) is None


def test_capability_of() -> None:
    assert [capability_of(arch) for arch in ("sm_90a", "sm_89", "sm_120")] == [90, 89, 120]


PTX = """.visible .entry first(.param .u64 p)
{
	ld.global.v4.b32 	{%r1, %r2, %r3, %r4}, [%rd1];
	@%p1 ld.global.b32 %r5, [%rd2];
	wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%f1}, %rd3, %rd4, 1, 1, 1;
	cp.async.cg.shared.global [%r6], [%rd5], 16;
	st.local.b32 [%rd6], %r1;
	ret;
}
.visible .entry second()
{
	bar.sync 0;
	ret;
}
"""


def test_without_a_disassembler_the_ptx_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what only the cubin knows is unknown, not 0."""
    from tilelang_gemm_wrapper.core import cuda_toolchain

    monkeypatch.setattr(cuda_toolchain, "find_reader", lambda name: None)
    first, second = resources({"first": (128, 1000), "second": (32, 0)}, "sm_90a", PTX, b"no cubin")
    assert first.instructions == {
        "wgmma": 1, "cp.async": 1, "global load": 2, "local store": 1,
    }  # fmt: skip
    assert (first.counted_in, first.instruction_total) == ("PTX", 6)
    assert first.registers is first.barriers is first.occupancy is first.static_shared_bytes is None
    assert second.instructions == {"barrier": 1}


def test_kinds_do_not_overlap() -> None:
    for opcode in [
        "HGMMA",
        "QGMMA",
        "HMMA",
        "LDG",
        "LDGSTS",
        "LDS",
        "LDSM",
        "LDL",
        "STL",
        "STS",
        "STSM",
        "UTMALDG",
    ]:
        assert sum(bool(re.fullmatch(kind.sass, opcode)) for kind in KINDS.values()) == 1, opcode
