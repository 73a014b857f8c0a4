"""The Triton steps of the tour, run by Triton's interpreter.

Run with TRITON_INTERPRET=1 in a process of its own: Triton reads it once, at import.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process of its own with TRITON_INTERPRET=1", allow_module_level=True)

import triton
import triton.language as tl

from tilelang_gemm_wrapper.core.workload import error, integer_workload, random_workload

TOUR = Path(__file__).parents[3] / "examples" / "tour"
FP16_STEPS = (2, 3, 4)
SHAPES = [
    (1, 1, 1),
    (1, 8, 64),
    (7, 130, 70),  # less than a tile, K ragged over two steps
    (128, 128, 128),  # exactly a tile
    (129, 257, 200),  # a tile and one more, each way
    (300, 40, 33),  # K below one step
    (3, 5, 0),  # nothing to add: zeros
]
FP8_SHAPES = [(1, 1, 1), (16, 128, 128), (17, 130, 200), (7, 300, 384), (65, 257, 60), (130, 129, 129)]


@pytest.fixture(scope="module")
def tour():
    """Loads the module of a step; the examples find tour_checks beside them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOUR))
        loaded: dict[int, ModuleType] = {}

        def load(step: int) -> ModuleType:
            if step not in loaded:
                (path,) = TOUR.glob(f"{step}_*.py")
                spec = importlib.util.spec_from_file_location(f"tour_{step}", path)
                loaded[step] = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(loaded[step])
            return loaded[step]

        yield load
        sys.modules.pop("tour_checks", None)


def framed(M, N, dtype):
    """(whole, C): C lies inside a larger matrix of NaN."""
    whole = torch.full((M + 130, N + 130), torch.nan, dtype=dtype)
    return whole, whole[1 : M + 1, 1 : N + 1]


def assert_frame_untouched(whole, C):
    """Sets C to NaN: then all must be."""
    C.fill_(torch.nan)
    assert whole.isnan().all(), "wrote outside of C"


def before_nan(x):
    """The same values at the start of a storage that goes on with NaN."""
    storage = torch.full((x.numel() + 4096,), torch.nan).to(x.dtype)
    storage[: x.numel()] = x.flatten()
    return storage[: x.numel()].view(x.shape)


def integers(*shape):
    """Values whose products add up without rounding, also in float16 for the K here."""
    return torch.randint(-3, 4, shape).half()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8])
@pytest.mark.parametrize("size", ["one", "less", "block", "more"])
def test_copy(tour, size, dtype):
    step = tour(1)
    numel = {"one": 1, "less": step.BLOCK - 1, "block": step.BLOCK, "more": 2 * step.BLOCK + 3}[size]
    source = torch.randint(0, 90, (numel + 5000,)).to(dtype)
    whole = torch.full_like(source, 99)  # the source has none
    out = step.copy(source[:numel], whole[:numel])
    assert torch.equal(out, step.reference(source[:numel]))
    assert (whole[numel:] == 99).all(), "wrote behind the end"


def test_copy_of_a_matrix_and_of_nothing(tour):
    source = torch.randn(3, 5, 7)
    assert torch.equal(tour(1).copy(source), source)
    assert tour(1).copy(torch.empty(0, 4)).shape == (0, 4)


def test_a_copy_moves_each_byte_twice(tour):
    assert tour(1).gb_per_s(10**9, time_us=1e6) == pytest.approx(2.0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("step", FP16_STEPS)
def test_fp16_matmul_is_exact(tour, step, shape):
    M, N, K = shape
    A, B = before_nan(integers(M, K)), before_nan(integers(N, K))
    whole, C = framed(M, N, torch.float16)
    assert tour(step).matmul(A, B, C) is C
    assert torch.equal(C.double(), tour(step).reference(A, B))
    assert torch.equal(tour(step).reference(A, B), A.double() @ B.double().T)
    assert_frame_untouched(whole, C)


@pytest.mark.parametrize("step", FP16_STEPS)
def test_fp16_matmul_of_random_values(tour, step):
    A, B = torch.randn(130, 200).half(), torch.randn(70, 200).half()
    C = tour(step).matmul(A, B)
    assert C.dtype == torch.float16
    assert 0 < error(C, tour(step).reference(A, B)) < tour(step).MAX_ERROR


@pytest.mark.parametrize("step", FP16_STEPS)
@pytest.mark.parametrize(("M", "N"), [(0, 5), (5, 0)])
def test_empty_output(tour, step, M, N):
    assert tour(step).matmul(integers(M, 8), integers(N, 8)).shape == (M, N)


@pytest.mark.parametrize("group_m", [1, 2, 3, 8])
def test_grouped_order_covers_every_tile_once(tour, group_m):
    step = tour(3)
    A, B = integers(5 * step.BLOCK_M - 1, 16), integers(2 * step.BLOCK_N + 1, 16)  # 5 x 3 tiles
    _, C = framed(len(A), len(B), torch.float16)
    step.matmul(A, B, C, group_m=group_m)
    assert torch.equal(C.double(), step.reference(A, B))


@triton.jit
def write_order(out, tiles_m, tiles_n, GROUP_M: tl.constexpr, TILE_OF: tl.constexpr):
    row, column = TILE_OF(tl.program_id(0), tiles_m, tiles_n, GROUP_M)
    tl.store(out + 2 * tl.program_id(0), row)
    tl.store(out + 2 * tl.program_id(0) + 1, column)


@pytest.mark.parametrize("step", [3, 4])
def test_grouped_order_fills_bands_column_by_column(tour, step):
    """Any order that covers the tiles gives the right product; this one is what the step is about."""
    out = torch.empty((10, 2), dtype=torch.int32)
    write_order[(10,)](out, 5, 2, 3, tour(step).tile_of)
    first_band = [(row, column) for column in range(2) for row in range(3)]
    last_band = [(row, column) for column in range(2) for row in (3, 4)]
    assert [tuple(tile) for tile in out.tolist()] == first_band + last_band


@pytest.mark.parametrize("number", range(5))
def test_every_configuration_of_the_autotuner_is_right(tour, monkeypatch, number):
    step = tour(4)
    assert len(step.CONFIGS) == 5
    monkeypatch.setattr(step.matmul_kernel, "configs", [step.CONFIGS[number]])
    A, B = integers(130, 100), integers(260, 100)
    whole, C = framed(130, 260, torch.float16)
    step.matmul(A, B, C)
    assert step.matmul_kernel.best_config is step.CONFIGS[number]
    assert torch.equal(C.double(), step.reference(A, B))
    assert_frame_untouched(whole, C)


@pytest.mark.parametrize("shape", FP8_SHAPES, ids=str)
def test_block_scaled_matmul(tour, shape):
    step = tour(5)
    for inputs, limit in (
        (integer_workload(*shape, seed=sum(shape)), 0.0),
        (random_workload(*shape, seed=sum(shape)), 1e-12),
    ):
        operands = (inputs.A, inputs.A_scale, inputs.B, inputs.B_scale)
        whole, C = framed(inputs.M, inputs.N, torch.float32)
        assert step.matmul(*operands, C) is C
        assert error(C, step.reference(*operands)) <= limit
        assert_frame_untouched(whole, C)


def test_block_scaled_empty_output(tour):
    inputs = integer_workload(0, 16, 128)
    out = torch.empty(0, 16)
    tour(5).matmul(inputs.A, inputs.A_scale, inputs.B, inputs.B_scale, out)


def fp16_operands():
    return {"A": integers(4, 8), "B": integers(6, 8), "out": torch.empty((4, 6), dtype=torch.float16)}


BAD_FP16 = {
    "A of three dimensions": ({"A": integers(1, 4, 8)}, r"A has shape \(1, 4, 8\), expected \(any, any\)"),
    "K differs": ({"B": integers(6, 9)}, r"B has shape \(6, 9\), expected \(any, 8\)"),
    "A in float32": ({"A": torch.ones(4, 8)}, "A is torch.float32, expected torch.float16; convert"),
    "B in float32": ({"B": torch.ones(6, 8)}, "B is torch.float32"),
    "A transposed": ({"A": integers(8, 4).T}, r"A has strides \(1, 4\), expected row-major; pass A.contig"),
    "rows of A apart": ({"A": integers(4, 16)[:, :8]}, r"A has strides \(16, 1\)"),
    "B transposed": ({"B": integers(8, 6).T}, "B has strides"),
    "out of another shape": (
        {"out": torch.empty((4, 7)).half()},
        r"out has shape \(4, 7\), expected \(4, 6\)",
    ),
    "out in float32": ({"out": torch.empty((4, 6))}, "out is torch.float32"),
    "out transposed": ({"out": torch.empty((6, 4)).half().T}, "out has strides"),
    "out elsewhere": ({"out": torch.empty((4, 6), device="meta").half()}, "out is on meta, expected cpu"),
}


@pytest.mark.parametrize("change", BAD_FP16, ids=str)
@pytest.mark.parametrize("step", FP16_STEPS)
def test_fp16_operands_that_do_not_fit(tour, step, change):
    bad, message = BAD_FP16[change]
    operands = fp16_operands()
    tour(step).matmul(**operands)
    with pytest.raises(ValueError, match=message):
        tour(step).matmul(**(operands | bad))


def test_no_group_of_tiles_is_refused(tour):
    with pytest.raises(ValueError, match="group_m is 0, expected at least 1; 8 suits"):
        tour(3).matmul(**fp16_operands(), group_m=0)


BAD_FP8 = {
    "A in float16": ({"A": integers(4, 200)}, "A is torch.float16, expected torch.float8_e4m3fn"),
    "a scale too few": ({"A_scale": torch.ones(4, 1)}, r"A_scale has shape \(4, 1\), expected \(4, 2\)"),
    "scales column-major": ({"A_scale": torch.ones(2, 4).T}, r"A_scale has strides \(1, 4\)"),
    "scales of B by row": ({"B_scale": torch.ones(6, 2)}, r"B_scale has shape \(6, 2\), expected \(1, 2\)"),
    "scales in float64": ({"B_scale": torch.ones(1, 2).double()}, "B_scale is torch.float64"),
    "out in float16": (
        {"out": torch.empty((4, 6)).half()},
        "out is torch.float16, expected torch.bfloat16 or torch.float32",
    ),
}


@pytest.mark.parametrize("change", BAD_FP8, ids=str)
def test_fp8_operands_that_do_not_fit(tour, change):
    bad, message = BAD_FP8[change]
    inputs = integer_workload(4, 6, 200)
    operands = {"A": inputs.A, "A_scale": inputs.A_scale, "B": inputs.B, "B_scale": inputs.B_scale}
    operands["out"] = torch.empty((4, 6))
    tour(5).matmul(**operands)
    with pytest.raises(ValueError, match=message):
        tour(5).matmul(**(operands | bad))


def test_copies_that_do_not_fit(tour):
    source = torch.ones(4, 6)
    copy = tour(1).copy
    with pytest.raises(ValueError, match=r"out is \(4, 5\) torch.float32, expected \(4, 6\)"):
        copy(source, torch.empty(4, 5))
    with pytest.raises(ValueError, match=r"out is .* torch.float64, expected"):
        copy(source, torch.empty(4, 6).double())
    with pytest.raises(
        ValueError, match=r"source has strides \(1, 6\), expected contiguous; pass source.con"
    ):
        copy(source.T)
    with pytest.raises(ValueError, match=r"out has strides \(1, 4\)"):
        copy(source, torch.empty(6, 4).T)


@pytest.mark.parametrize("step", range(1, 6))
def test_main_checks_odd_shapes(tour, step, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["example"])
    tour(step).main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 3
    assert all(("same" if step == 1 else "error") in line for line in lines)


def test_main_checks_the_shapes_asked_for(tour, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["example", "--shape", "2", "3", "4", "--shape", "5", "6", "7"])
    tour(2).main()
    out = capsys.readouterr().out
    assert "M=2, N=3, K=4" in out and "M=5, N=6, K=7" in out and len(out.splitlines()) == 2


@pytest.mark.parametrize("step", range(1, 6))
def test_main_fails_where_the_result_is_wrong(tour, step, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["example"])
    compared = "matmul" if step == 5 else "reference"  # step 5 hands its inputs to the check, not a reference
    right = getattr(tour(step), compared)
    monkeypatch.setattr(tour(step), compared, lambda *operands: right(*operands) * 1.01)
    with pytest.raises(SystemExit, match=r"differs|is wrong"):
        tour(step).main()
