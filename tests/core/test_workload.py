"""Inputs, reference and error measure: every other test leans on these."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from fractions import Fraction

import pytest
import torch

from tilelang_gemm_wrapper.backends import torch_reference
from tilelang_gemm_wrapper.core import workload as module
from tilelang_gemm_wrapper.core.workload import (
    Comparison,
    Expected,
    Workload,
    compare,
    error,
    integer_workload,
    random_workload,
    reference,
    why_wrong,
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
    assert equal(make(5, 130, 200), make(5, 130, 200, seed=0))
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
    factors = (
        random_workload(512, 128, 512, distribution="wide_scales").A_scale
        / random_workload(512, 128, 512, distribution="normal").A_scale
    )
    assert 0.124 < factors.min() < 0.13 and 7.7 < factors.max() < 8.01


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
    assert {*w.A_scale.unique().tolist()} == {0.5, 1, 2}
    assert {*w.B_scale.unique().tolist()} <= {0.5, 1, 2}
    assert integer_workload(1, 1, 116508).K == 116508
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


def tensor_core_sum(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a (M, 128) x b (N, 128) -> (M, N), as the FP8 tensor cores of Hopper and Ada add: 32 products and the
    accumulator are aligned to the largest of them, and what lies more than 13 bits below its leading one is
    dropped."""

    def cut(x: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        unit = torch.ldexp(torch.ones_like(largest), largest.abs().frexp().exponent - 14)
        return (x / unit).trunc() * unit

    total = torch.zeros(len(a), len(b), dtype=torch.float64)
    for k in range(0, 128, 32):
        products = a[:, None, k : k + 32] * b[None, :, k : k + 32]
        addends = torch.cat([products, total[..., None]], 2)
        total = cut(addends, addends.abs().amax(2, keepdim=True)).sum(2)
        total = cut(total, total)
    return total


def tensor_core_result(w: Workload) -> torch.Tensor:
    """(M, N) bfloat16, with the tensor cores' sums promoted to float32 every 128 columns."""
    total = torch.zeros(w.M, w.N)
    for group, k in enumerate(range(0, w.K, 128)):
        partial = tensor_core_sum(w.A[:, k : k + 128].double(), w.B[:, k : k + 128].double()).float()
        b_scale = w.B_scale[:, group].repeat_interleave(128)[: w.N]
        total += partial * w.A_scale[:, group, None] * b_scale
    return total.bfloat16()


@pytest.mark.parametrize("K", [128, 512])
@pytest.mark.parametrize("distribution", ["normal", "wide_scales"])
def test_what_tensor_cores_round_away_is_right(K: int, distribution: str) -> None:
    w = random_workload(64, 128, K, seed=K, distribution=distribution)
    comparison = compare(tensor_core_result(w), Expected.of(w))
    assert comparison.why_wrong() is None
    # With margin, and not so much that the bound says nothing.
    assert 0.2 < comparison.excess < 0.9


def test_what_tensor_cores_round_away_is_nothing_of_integers() -> None:
    w = integer_workload(32, 128, 512)
    assert why_wrong(tensor_core_result(w), Expected.exactly(w)) is None


@pytest.mark.parametrize("make", [random_workload, integer_workload])
@pytest.mark.parametrize(("M", "N", "K"), [*SHAPES, (1, 16, 128), (300, 200, 640)])
def test_a_result_rounded_once_is_right(make, M: int, N: int, K: int) -> None:
    for seed in range(10 if M < 8 else 2):
        w = make(M, N, K, seed=seed)
        expected = Expected.of(w)
        assert compare(expected.result.bfloat16(), expected).why_wrong() is None
        assert compare(expected.result, expected).excess == 0
    exact = Expected.exactly(integer_workload(M, N, K))
    assert compare(exact.result.bfloat16(), exact).excess == 0


@pytest.fixture(scope="module")
def half_a_million() -> tuple[Workload, Expected]:
    w = random_workload(512, 1024, 512, seed=3)
    return w, Expected.of(w)


def flip_one_sign(out: torch.Tensor) -> tuple[int, int]:
    out[300, 700] *= -1
    return 300, 700


def leave_the_last_elements_zero(out: torch.Tensor) -> tuple[int, int]:
    out[-1, -24:] = 0
    return 511, 1000


def swap_two_neighbours(out: torch.Tensor) -> tuple[int, int]:
    out[511, 1022:] = out[511, 1022:].flip(0)
    return 511, 1022


def write_not_a_number(out: torch.Tensor) -> tuple[int, int]:
    out[0, 0] = torch.nan
    return 0, 0


def write_infinity(out: torch.Tensor) -> tuple[int, int]:
    out[511, 1023] = torch.inf
    return 511, 1023


FLAWS = [
    flip_one_sign,
    leave_the_last_elements_zero,
    swap_two_neighbours,
    write_not_a_number,
    write_infinity,
]


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_few_wrong_elements_are_seen_and_the_worst_is_named(half_a_million, flaw) -> None:
    _, expected = half_a_million
    out = expected.result.bfloat16()
    row, first_column = flaw(out)
    comparison = compare(out, expected)
    assert comparison.excess > 1
    assert (comparison.row, first_column) <= (row, comparison.column)
    why = comparison.why_wrong()
    assert why is not None
    assert f"element ({row}, {comparison.column}) is {comparison.value:.6g}" in why
    assert f"expected {expected.result[row, comparison.column].item():.6g} within" in why


def test_24_zeros_in_the_last_of_4096_rows_are_seen() -> None:
    w = random_workload(4096, 2048, 128, seed=1)
    expected = Expected.of(w)
    out = expected.result.bfloat16()
    assert why_wrong(out, expected) is None
    out[-1, :24] = 0
    assert error(out, expected.result) < module.MAX_ERROR, "the mean does not see it"
    assert compare(out, expected).row == 4095
    assert why_wrong(out, expected) is not None


def test_one_scale_read_wrong_for_one_tile_is_seen(half_a_million) -> None:
    """One token's scale, of one group of K, for 128 of its results."""
    w, expected = half_a_million
    out = expected.result.bfloat16()
    scale = w.A_scale.clone()
    scale[77, 2] = scale[77, 1]
    rows = slice(256, 384)
    tile = Workload(w.A[77:78], scale[77:78], w.B[rows], w.B_scale[2:3])
    out[77:78, rows] = reference(tile).bfloat16()
    assert error(out, expected.result) < module.MAX_ERROR, "the mean does not see it"
    assert compare(out, expected).row == 77
    assert why_wrong(out, expected) is not None


def test_any_one_element_of_an_exact_result_counts() -> None:
    expected = Expected.exactly(integer_workload(64, 128, 256))
    right = expected.result.bfloat16()
    for row, column in ((0, 0), (63, 127), (40, 3)):
        out = right.clone()
        out[row, column] *= 1 + 2**-7  # one unit in the last place of bfloat16
        out[row, column] += 0.25 * (out[row, column] == 0)
        comparison = compare(out, expected)
        assert (comparison.row, comparison.column, comparison.bound) == (row, column, 0)
        exact = right[row, column].item()
        assert comparison.why_wrong() == (
            f"element ({row}, {column}) is {out[row, column].item():.6g}, expected {exact:.6g} exactly"
        )


def test_the_bound_is_of_the_element_and_both_ends_of_it_count() -> None:
    """Two sums of products: what an element may be off by is in proportion to |a b|, not to the result."""
    w = random_workload(2, 128, 128)
    expected = Expected.of(w)
    magnitude = reference(Workload(w.A.float().abs().to(w.A.dtype), w.A_scale, w.B, w.B_scale))
    assert expected.magnitude is not None
    by_hand = (
        (w.A.double() * w.A_scale.double()).abs()
        @ (w.B.double() * w.B_scale.double()).abs().t()
    ).float()  # fmt: skip
    assert (magnitude <= by_hand).all()
    torch.testing.assert_close(expected.magnitude.float(), by_hand, rtol=2**-8, atol=0)
    bound = 2**-8 * expected.result.abs() + 2**-9 * expected.magnitude.float()
    for sign in (-1, 1):
        for part, is_wrong in ((0.99, False), (1.01, True)):
            why = why_wrong(expected.result + sign * part * bound, expected)
            assert ("element (" in str(why)) == is_wrong
        assert compare(expected.result + sign * 0.99 * bound, expected).excess == pytest.approx(
            0.99, rel=1e-3
        )
        assert compare(expected.result + sign * 1.01 * bound, expected).excess == pytest.approx(
            1.01, rel=1e-3
        )


def test_negative_scales_do_not_shrink_the_bound() -> None:
    w = random_workload(4, 128, 256)
    negative = Workload(w.A, -w.A_scale, w.B, -w.B_scale)
    assert torch.equal(Expected.of(negative).magnitude, Expected.of(w).magnitude)


def test_a_mean_that_is_off_counts_though_each_element_is_near(half_a_million) -> None:
    _, expected = half_a_million
    comparison = compare(expected.result * 1.003, expected)
    assert comparison.excess < 1
    assert comparison.why_wrong() == "error 4.49e-06 is above 3e-06"
    both = why_wrong(expected.result * 1.1, expected)
    assert both is not None
    assert both.startswith("error 0.00452 is above 3e-06; element (")


def test_the_first_tokens_are_expected_alone(half_a_million) -> None:
    _, expected = half_a_million
    first = expected.first(7)
    assert first.result.shape == first.magnitude.shape == (7, 1024)
    assert why_wrong(expected.result[:7].bfloat16(), first) is None
    assert why_wrong(expected.result[1:8].bfloat16(), first) is not None
    assert Expected.exactly(integer_workload(3, 16, 128)).first(2).magnitude is None


def test_chunks_change_nothing(half_a_million, monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected = half_a_million
    out = expected.result.bfloat16()
    out[400, 5] *= -1
    whole = compare(out, expected)
    for elements in (10_000, 100):  # nine rows, and less than one
        monkeypatch.setattr(module, "_COMPARED", elements)
        parts = compare(out, expected)
        assert (parts.row, parts.column, parts.excess, parts.value) == (400, 5, whole.excess, whole.value)
        assert parts.error == pytest.approx(whole.error, rel=1e-9)


@pytest.mark.parametrize(("elements", "rows"), [(10_000, [9] * 4 + [4]), (100, [1] * 40)])
def test_so_many_elements_are_compared_at_a_time(half_a_million, monkeypatch, elements, rows) -> None:
    _, expected = half_a_million
    compared: list[int] = []
    add = module._Sums.add
    monkeypatch.setattr(module._Sums, "add", lambda sums, x, y: compared.append(len(x)) or add(sums, x, y))
    monkeypatch.setattr(module, "_COMPARED", elements)
    compare(expected.result[:40].bfloat16(), expected.first(40))
    assert compared[::2] == compared[1::2] == rows  # the error of the result, and that of rounding


@pytest.mark.parametrize(("elements", "rows"), [(2 * 128 * 256 + 1, [256, 256, 88]), (1, [128] * 4 + [88])])
def test_so_many_elements_are_made_at_a_time(monkeypatch, elements, rows) -> None:
    monkeypatch.setattr(module, "_CHUNK", elements)
    assert [len(part) for part in module._row_chunks(torch.empty(600, 256))] == rows


def test_nothing_is_nothing_wrong() -> None:
    for M, N in ((0, 16), (0, 0)):
        assert why_wrong(torch.empty(M, N), Expected(torch.empty(M, N), None)) is None
    with pytest.raises(ValueError, match=r"shapes \(1, 2\) and \(2, 1\) differ"):
        compare(torch.empty(1, 2), Expected(torch.empty(2, 1), None))


def test_limits_may_be_reached() -> None:
    assert Comparison(3e-6, 3e-6, 1.0).why_wrong() is None
    assert Comparison(3.1e-6, 3e-6, 0.0).why_wrong() == "error 3.1e-06 is above 3e-06"
    assert Comparison(0.0, 3e-6, 1.1, 2, 3, 4.0, 5.0, 0.5).why_wrong() == (
        "element (2, 3) is 4, expected 5 within 0.5"
    )


def test_a_result_of_one_element_may_be_off_by_a_tenth_more_than_its_rounding() -> None:
    result = torch.tensor([[1.0039]])  # just below the middle between two bfloat16 values
    rounding = error(result.bfloat16(), result)
    assert compare(result, Expected(result, None)).most_error == pytest.approx(1.1 * rounding)
    assert 1.1 * rounding > module.MAX_ERROR


def test_what_is_exact_everywhere_has_no_worst_element() -> None:
    expected = Expected.exactly(integer_workload(4, 16, 128))
    assert compare(expected.result.bfloat16(), expected) == Comparison(
        compare(expected.result.bfloat16(), expected).error, module.MAX_ERROR, 0.0, 0, 0, 0.0, 0.0, 0.0
    )


def test_inputs_and_outcomes_cannot_be_changed() -> None:
    w = integer_workload(4, 16, 128)
    expected = Expected.exactly(w)
    for value, name in ((w, "A"), (expected, "result"), (compare(expected.result, expected), "excess")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, None)
    assert w != integer_workload(4, 16, 128), "compared by identity: tensors have no one answer"
    assert expected != Expected.exactly(w)


def test_zeros_must_be_zero() -> None:
    """Where every product is zero there is nothing to round."""
    w = random_workload(2, 128, 128)
    zero = Workload(torch.zeros_like(w.A), w.A_scale, w.B, w.B_scale)
    expected = Expected.of(zero)
    assert why_wrong(torch.zeros(2, 128), expected) is None
    out = torch.zeros(2, 128)
    out[1, 3] = 1e-30
    assert why_wrong(out, expected) is not None


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="distribution is 'zipf'; expected one of normal, wide_scales"):
        random_workload(1, 1, 1, distribution="zipf")
    with pytest.raises(ValueError, match="scale_layout is 'column'"):
        random_workload(1, 1, 1, scale_layout="column")
