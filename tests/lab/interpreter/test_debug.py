"""The debug helpers inside interpreted kernels. Run with TRITON_INTERPRET=1 in a process of its own."""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process of its own with TRITON_INTERPRET=1", allow_module_level=True)

import triton
import triton.language as tl

from tilelang_gemm_wrapper.lab.debug import breakpoint_if, check_tensors_gpu_ready, print_if


@triton.jit
def printing(x, out, stride, CONDITIONS: tl.constexpr):
    row, column = tl.program_id(0), tl.program_id(1)
    at = row * stride + column * 4 + tl.arange(0, 4)
    values = tl.load(x + at)
    print_if("values", values, "row", row, conditions=CONDITIONS)
    breakpoint_if(CONDITIONS)
    tl.store(out + at, values * 2)


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the breakpoints instead of stopping."""
    found: list[int] = []
    monkeypatch.setattr("sys.breakpointhook", lambda: found.append(1))
    return found


@pytest.mark.parametrize(
    ("conditions", "programs"),
    [
        ("=0", [(0, 0), (0, 1), (0, 2)]),
        (",>1", [(0, 2), (1, 2)]),
        (">=1,!=0", [(1, 1), (1, 2)]),
        ("", [(r, c) for r in range(2) for c in range(3)]),
        ("=5", []),
    ],
)
def test_in_a_kernel(
    capsys: pytest.CaptureFixture[str], stops: list[int], conditions: str, programs: list[tuple[int, int]]
) -> None:
    x = torch.arange(24.0).view(2, 12)
    out = torch.full_like(x, torch.nan)
    printing[(2, 3)](x, out, 12, CONDITIONS=conditions)
    assert torch.equal(out, 2 * x)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(stops) == len(programs)
    for line, (row, column) in zip(lines, programs, strict=True):
        first = row * 12 + column * 4
        assert line.startswith(f"program ({row}, {column}, 0): values [")
        assert f"{first}." in line and f"{first + 3}." in line
        assert line.endswith(f"row [{row}]") or line.endswith(f"row {row}")


def test_a_bad_condition_in_a_kernel() -> None:
    x = torch.arange(24.0).view(2, 12)
    with pytest.raises(Exception, match="condition '~0' for axis 0 is none"):
        printing[(2, 3)](x, x.clone(), 12, CONDITIONS="~0")


def test_tensors_may_be_on_the_cpu() -> None:
    check_tensors_gpu_ready(torch.zeros(3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="not contiguous"):
        check_tensors_gpu_ready(torch.zeros(4, 4)[:, 1:])
