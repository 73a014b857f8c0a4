"""Quantization against its definition in plain Python, and at the edges its docstring promises."""

from __future__ import annotations

import math
import re

import pytest
import torch

from tilelang_gemm_wrapper.quantize import (
    convert_scale_layout,
    is_column_tma,
    per_block_quant_fp8,
    per_token_group_quant_fp8_reference,
)

TINY = torch.finfo(torch.float32).tiny


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def expect_blocks(x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, block: tuple[int, int]) -> None:
    """Checks q and scale against the definition, one block at a time."""
    rows, columns = (math.ceil(size / step) for size, step in zip(x.shape, block, strict=True))
    assert q.shape == x.shape
    assert q.dtype == torch.float8_e4m3fn
    assert q.is_contiguous()
    assert scale.shape == (rows, columns)
    assert scale.dtype == torch.float32
    for i in range(rows):
        for j in range(columns):
            part = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
            values = x[part].float()
            assert scale[i, j] == values.abs().max() / 448
            assert torch.equal(q[part].float(), (values / scale[i, j]).to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("M", "K"), [(1, 1), (1, 128), (2, 127), (3, 200), (130, 384), (5, 3884)])
def test_tokens_match_the_definition(M: int, K: int, dtype: torch.dtype) -> None:
    x = randn(M, K, seed=K).to(dtype)
    q, scale = per_token_group_quant_fp8_reference(x)
    expect_blocks(x, q, scale, (1, 128))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("N", "K"), [(1, 1), (128, 128), (127, 255), (130, 200), (300, 384), (576, 1100)])
def test_blocks_match_the_definition(N: int, K: int, dtype: torch.dtype) -> None:
    w = randn(N, K, seed=K).to(dtype)
    q, scale = per_block_quant_fp8(w)
    expect_blocks(w, q, scale, (128, 128))
    assert scale.is_contiguous()


def test_other_sizes() -> None:
    x = randn(50, 100)
    expect_blocks(x, *per_token_group_quant_fp8_reference(x, group_size=64), (1, 64))
    expect_blocks(x, *per_block_quant_fp8(x, (32, 64)), (32, 64))


def test_the_largest_magnitude_lands_on_448_and_the_rest_within_a_half_step() -> None:
    x = randn(64, 512) * randn(64, 1, seed=1).exp()
    q, scale = per_token_group_quant_fp8_reference(x)
    assert (q.float().abs().unflatten(1, (-1, 128)).amax(2) == 448).all()
    restored = q.float() * scale.repeat_interleave(128, 1)
    # Three mantissa bits: half a step is 1/16 of the value, and 2**-10 of the scale among the subnormals.
    half_step = torch.maximum(x.abs() / 16, scale.repeat_interleave(128, 1) * 2**-10)
    assert ((restored - x).abs() <= half_step * 1.001).all()


def test_all_zero_groups_get_scale_one() -> None:
    x = randn(2, 256)
    x[1, :128] = 0
    for q, scale in (per_token_group_quant_fp8_reference(x), per_block_quant_fp8(x, (1, 128))):
        assert scale[1, 0] == 1
        assert (q[1, :128].float() == 0).all()
        assert scale[1, 1] == x[1, 128:].abs().max() / 448


@pytest.mark.parametrize("magnitude", [1e-45, 1e-40, 448 * 1e-38])
def test_tiny_groups_get_a_normal_scale(magnitude: float) -> None:
    q, scale = per_token_group_quant_fp8_reference(torch.full((1, 128), magnitude))
    assert scale.item() == TINY
    assert (q.float() * scale - magnitude).abs().max() <= TINY * max(2**-10, magnitude / TINY / 16)


def test_the_largest_floats_stay_finite() -> None:
    x = torch.full((1, 128), torch.finfo(torch.float32).max)
    q, scale = per_token_group_quant_fp8_reference(-x)
    assert (q.float() == -448).all()
    assert scale.isfinite().all()


def test_non_finite_values_become_nan_and_leave_the_rest_alone() -> None:
    x = randn(3, 256)
    clean_q, clean_scale = per_token_group_quant_fp8_reference(x)
    bad = {(0, 5): torch.nan, (0, 7): torch.inf, (1, 130): -torch.inf}
    for position, value in bad.items():
        x[position] = value
        clean_q[position] = torch.nan
    x[2, :128] = torch.inf
    q, scale = per_token_group_quant_fp8_reference(x)
    assert torch.equal(scale[:2], clean_scale[:2])  # none of the replaced values was the largest
    assert torch.equal(q[:2].view(torch.uint8), clean_q[:2].view(torch.uint8))
    assert scale[2, 0] == 1
    assert q[2, :128].isnan().all()
    assert not q[2, 128:].isnan().any()


def test_any_strides_of_the_input() -> None:
    x = randn(200, 10)
    for got, expected in zip(
        per_token_group_quant_fp8_reference(x.t()),
        per_token_group_quant_fp8_reference(x.t().contiguous()),
        strict=True,
    ):
        assert torch.equal(got.float(), expected.float())


def test_input_is_left_alone_and_no_gradient_flows() -> None:
    x = randn(4, 200).requires_grad_()
    before = x.detach().clone()
    for q, scale in (per_token_group_quant_fp8_reference(x), per_block_quant_fp8(x)):
        assert not q.requires_grad
        assert not scale.requires_grad
    assert torch.equal(x, before)


@pytest.mark.parametrize("M", [1, 3, 4, 5, 130])
def test_column_layout_is_what_tma_reads(M: int) -> None:
    x = randn(M, 384)
    (q, row), (q_column, column) = (
        per_token_group_quant_fp8_reference(x),
        per_token_group_quant_fp8_reference(x, scale_layout="column_tma"),
    )
    rows = math.ceil(M / 4) * 4
    assert torch.equal(column, row)
    assert torch.equal(q.float(), q_column.float())
    assert column.stride() == (1, rows)
    assert is_column_tma(column)
    assert not is_column_tma(row)
    storage = torch.as_strided(column, (3, rows), (rows, 1))
    assert (storage[:, M:] == 0).all()


def test_conversion_copies_only_what_lies_otherwise() -> None:
    row = randn(6, 3)
    column = convert_scale_layout(row, "column_tma")
    assert convert_scale_layout(row, "row") is row
    assert convert_scale_layout(column, "column_tma") is column
    assert torch.equal(convert_scale_layout(column, "row"), row)
    for rows, groups in ((1, 1), (1, 3), (6, 1)):  # where torch takes one layout for the other
        column = convert_scale_layout(randn(rows, groups), "column_tma")
        assert convert_scale_layout(column, "row").stride() == (groups, 1)
    column = convert_scale_layout(row, "column_tma")
    off_by_one = convert_scale_layout(randn(8, 3), "column_tma")[1:7]  # strides fit, the address does not
    assert off_by_one.stride() == column.stride()
    assert not is_column_tma(off_by_one)
    assert is_column_tma(convert_scale_layout(off_by_one, "column_tma"))


def test_columns_that_tma_cannot_read_are_not_taken_for_such() -> None:
    """Of 5 rows: not padded to 8, padded to 7, and one column for all groups."""
    for stride in (5, 7, 0):
        assert not is_column_tma(torch.ones(64).as_strided((5, 2), (1, stride)))
    assert is_column_tma(torch.ones(64).as_strided((5, 2), (1, 8)))


@pytest.mark.parametrize("rounding", ["ieee", "sglang"])
def test_not_a_number_does_not_set_the_scale_of_small_values(rounding) -> None:
    x = randn(1, 128) / 1000
    scale = per_token_group_quant_fp8_reference(x, rounding=rounding)[1]
    x[0, x[0].abs().argmin()] = torch.nan
    assert torch.equal(per_token_group_quant_fp8_reference(x, rounding=rounding)[1], scale)


def test_no_rows() -> None:
    for layout in ("row", "column_tma"):
        q, scale = per_token_group_quant_fp8_reference(torch.empty(0, 200), scale_layout=layout)
        assert q.shape == (0, 200)
        assert scale.shape == (0, 2)


@pytest.mark.parametrize("quantise", [per_token_group_quant_fp8_reference, per_block_quant_fp8])
def test_wrong_inputs_are_refused(quantise) -> None:
    with pytest.raises(TypeError, match=r"is a list; expected a torch\.Tensor"):
        quantise([1.0])
    with pytest.raises(TypeError, match=r"is torch.float64; expected float32, bfloat16 or float16"):
        quantise(torch.zeros(2, 128, dtype=torch.float64))
    for shape in ((2, 3, 128), (128,)):
        with pytest.raises(ValueError, match=re.escape(f"shape {shape}; expected two dimensions")):
            quantise(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"shape \(2, 0\); expected K of at least 1"):
        quantise(torch.zeros(2, 0))


def test_rounding_as_sglang_matches_its_definition() -> None:
    x = randn(3, 256)
    x[0, :128] = 0
    x[1, 5], x[1, 6] = torch.nan, -torch.nan
    x[2, 130] = -torch.inf
    q, scale = per_token_group_quant_fp8_reference(x, rounding="sglang")
    inverse = torch.tensor(1 / 448, dtype=torch.float32)
    assert scale[0, 0] == torch.tensor(1e-10) * inverse and scale[2, 1] == torch.inf
    assert (q[0, :128].float() == 0).all() and (q[1, 5:7].float() == 448).all()
    rest = torch.cat([x[2, 128:130], x[2, 131:]])
    assert rest.isfinite().all() and q[2, 130].float() == 448  # Inf times 0, as NaN
    assert (q[2, 128:130].float() == 0).all() and (q[2, 131:].float() == 0).all()
    amax = x[0, 128:].abs().max()
    assert scale[0, 1] == amax * inverse
    assert torch.equal(q[0, 128:].float(), (x[0, 128:] * (448 / amax)).to(torch.float8_e4m3fn).float())
    with pytest.raises(ValueError, match="rounding is 'exact'; expected one of 'ieee', 'sglang'"):
        per_token_group_quant_fp8_reference(x, rounding="exact")


def test_wrong_options_are_refused() -> None:
    x = torch.zeros(2, 128)
    with pytest.raises(ValueError, match="group_size is 0; expected a positive int"):
        per_token_group_quant_fp8_reference(x, group_size=0)
    with pytest.raises(ValueError, match=r"block_size is 128; expected a pair such as \(128, 128\)"):
        per_block_quant_fp8(x, 128)
    with pytest.raises(ValueError, match=r"w has layout torch\.sparse_coo, expected torch\.strided"):
        per_block_quant_fp8(x.to_sparse())
    with pytest.raises(ValueError, match=r"block_size\[1\] is -128"):
        per_block_quant_fp8(x, (128, -128))
    for layout in ("column", "rows", "tma", ""):
        with pytest.raises(
            ValueError, match=f"scale_layout is '{layout}'; expected one of 'row', 'column_tma'"
        ):
            per_token_group_quant_fp8_reference(x, scale_layout=layout)
