"""Inputs, reference and error measure: every other test leans on these."""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction

import pytest
import torch

from tilelang_gemm_wrapper.backends import torch_reference
from tilelang_gemm_wrapper.core import workload as module
from tilelang_gemm_wrapper.core.workload import (
    Workload,
    error,
    integer_workload,
    random_workload,
    reference,
)

SHAPES = [(1, 1, 1), (5, 130, 200), (64, 576, 384)]


def bits(workload: Workload) -> list[torch.Tensor]:
    """Every tensor's bytes in row-major order, so that layouts and NaN do not matter."""
    tensors = (getattr(workload, field.name) for field in fields(workload))
    return [x.clone(memory_format=torch.contiguous_format).view(torch.uint8) for x in tensors]


def equal(a: Workload, b: Workload) -> bool:
    return all(torch.equal(x, y) for x, y in zip(bits(a), bits(b), strict=True))


@pytest.mark.parametrize("make", [random_workload, integer_workload])
@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
def test_shapes_dtypes_and_layouts(make, M: int, N: int, K: int) -> None:
    k_blocks = -(-K // 128)
    for layout, stride in (("row", (k_blocks, 1)), ("column_tma", (1, -(-M // 4) * 4))):
        workload = make(M, N, K, scale_layout=layout)
        assert (workload.M, workload.N, workload.K) == (M, N, K)
        assert workload.A.dtype == workload.B.dtype == torch.float8_e4m3fn
        assert workload.A_scale.shape == (M, k_blocks)
        assert workload.A_scale.stride() == stride
        assert workload.B_scale.shape == (-(-N // 128), k_blocks)
        assert all(getattr(workload, name).is_contiguous() for name in ("A", "B", "B_scale"))
        assert equal(workload, make(M, N, K).with_scale_layout(layout))
    assert workload.empty_output().isnan().all()


@pytest.mark.parametrize("make", [random_workload, integer_workload])
def test_the_seed_decides(make) -> None:
    first = make(5, 130, 200, seed=1)
    torch.manual_seed(99)  # the global generator has no say
    assert equal(first, make(5, 130, 200, seed=1))
    assert not any(
        torch.equal(x, y) for x, y in zip(bits(first), bits(make(5, 130, 200, seed=2)), strict=True)
    )


def test_normal_data_is_quantised_to_the_end_of_the_range() -> None:
    workload = random_workload(8, 256, 256, distribution="normal")
    assert (workload.A.float().abs().unflatten(1, (-1, 128)).amax(2) == 448).all()
    assert workload.A_scale.max() / workload.A_scale.min() < 3
    spread = random_workload(8, 256, 256, distribution="wide_scales")
    assert torch.equal(spread.A.float(), workload.A.float())
    assert spread.A_scale.max() / spread.A_scale.min() > 10


@pytest.mark.parametrize("wrong", ["A_rows", "A_blocks", "B_rows", "B_blocks"])
@pytest.mark.parametrize("make", [random_workload, integer_workload])
def test_a_wrong_scale_is_seen(make, wrong: str) -> None:
    w = make(16, 256, 512)
    name, dim = f"{wrong[0]}_scale", ("rows", "blocks").index(wrong[2:])
    scales = {"A_scale": w.A_scale, "B_scale": w.B_scale}
    scales[name] = scales[name].roll(1, dim)
    assert error(reference(Workload(w.A, scales["A_scale"], w.B, scales["B_scale"])), reference(w)) > 1e-2


def test_chunks_do_not_cut_the_blocks_of_b(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 1)
    workload = random_workload(300, 300, 256, distribution="normal")
    largest = torch.stack([rows.float().abs().amax(0) for rows in workload.B.split(128)])
    assert (largest.unflatten(1, (-1, 128)).amax(2) == 448).all()
    assert workload.A_scale.shape == (300, 2)
    assert workload.B_scale.shape == (3, 2)


@pytest.mark.parametrize("scale_layout", ["row", "column_tma"])
def test_integer_results_are_exact_in_any_order(scale_layout: str) -> None:
    w = integer_workload(3, 140, 300, seed=4, scale_layout=scale_layout)
    expected = reference(w)
    for m, n in ((0, 0), (1, 127), (2, 139)):
        exact = sum(
            Fraction(w.A[m, k].item())
            * Fraction(w.A_scale[m, k // 128].item())
            * Fraction(w.B[n, k].item())
            * Fraction(w.B_scale[n // 128, k // 128].item())
            for k in range(300)
        )
        assert expected[m, n].item() == exact
    a = w.A.float() * w.A_scale.repeat_interleave(128, 1)[:, :300]
    b = w.B.float() * w.B_scale.repeat_interleave(128, 0)[:140].repeat_interleave(128, 1)[:, :300]
    for order in (torch.arange(300), torch.arange(299, -1, -1), torch.randperm(300)):
        total = torch.zeros(3, 140)
        for k in order.tolist():
            total += a[:, k, None] * b[None, :, k]
        assert torch.equal(total, expected)


def test_integer_sums_stay_within_float32_and_wgmma() -> None:
    w = integer_workload(64, 128, 256)
    assert {*w.A.float().unique().tolist()} == {-3, -2, -1, 0, 1, 2, 3}
    assert {*w.A_scale.unique().tolist(), *w.B_scale.unique().tolist()} <= {0.5, 1, 2}
    with pytest.raises(ValueError, match="K is 116736; expected at most 116508"):
        integer_workload(1, 1, 116736)


def test_reference_matches_dequantised_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    w = random_workload(7, 200, 300)
    a = w.A.double() * w.A_scale.double().repeat_interleave(128, 1)[:, :300]
    b = w.B.double() * w.B_scale.double().repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)[:, :300]
    expected = (a @ b.t()).float()
    torch.testing.assert_close(reference(w), expected, rtol=1e-6, atol=0)
    monkeypatch.setattr(torch_reference, "_CHUNK", 1000)
    torch.testing.assert_close(reference(w), expected, rtol=1e-6, atol=0)
    assert reference(w).dtype == torch.float32


def test_error_is_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    y = x + 0.1 * torch.randn(50, 40, generator=torch.Generator().manual_seed(1))
    a, b = x.double(), y.double()
    formula = (1 - 2 * (a * b).sum() / ((a * a).sum() + (b * b).sum())).item()
    assert error(x, y) == pytest.approx(formula, rel=1e-9)
    monkeypatch.setattr(module, "_CHUNK", 7)
    assert error(x, y) == pytest.approx(formula, rel=1e-9)
    assert error(y, x) == pytest.approx(formula, rel=1e-9)


def test_error_at_the_edges() -> None:
    x = torch.tensor([1.0, 2.0])
    assert error(x, x) == 0
    assert error(x, -x) == 2
    assert error(x, torch.zeros(2)) == 1
    assert error(torch.zeros(2), torch.zeros(2)) == 0
    assert error(torch.empty(0), torch.empty(0)) == 0
    assert error(x.bfloat16(), x) == 0
    for bad in (torch.nan, torch.inf, -torch.inf):
        y = torch.tensor([1.0, bad])
        assert error(x, y) == error(y, x) == error(y, y) == float("inf")
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(1, 2\) differ"):
        error(x, x[None])


def test_error_keeps_its_digits_where_results_are_close() -> None:
    x = torch.ones(1000)
    y = x * (1 + 2**-20)
    assert error(x, y) == pytest.approx(2.0**-41, rel=1e-5)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="distribution is 'zipf'; expected one of normal, wide_scales"):
        random_workload(1, 1, 1, distribution="zipf")
    with pytest.raises(ValueError, match="scale_layout is 'column'"):
        random_workload(1, 1, 1, scale_layout="column")
