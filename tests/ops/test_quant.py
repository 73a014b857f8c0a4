"""ops.quant on the CPU: the one public quantizer, its two roundings, what it takes and what it refuses."""

from __future__ import annotations

import pytest
import torch

import tilelang_gemm_wrapper as package
from tilelang_gemm_wrapper import ops, per_token_group_quant_fp8
from tilelang_gemm_wrapper.quantize import per_token_group_quant_fp8_reference

X = torch.randn(6, 256, generator=torch.Generator().manual_seed(0))


def bits(result):
    q, scale = result
    return q.view(torch.uint8), scale


def assert_same(result, wanted):
    assert all(map(torch.equal, bits(result), bits(wanted)))


def test_there_is_one():
    assert package.per_token_group_quant_fp8 is ops.per_token_group_quant_fp8
    assert not hasattr(package.quantize, "per_token_group_quant_fp8")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rounding", ["ieee", "sglang"])
@pytest.mark.parametrize("layout", ["row", "column_tma"])
@pytest.mark.parametrize(("M", "K"), [(1, 1), (3, 200), (5, 256), (9, 1003), (0, 256)])
def test_results_are_those_of_the_reference(M, K, layout, rounding, dtype):
    x = torch.randn(M, K, generator=torch.Generator().manual_seed(K)).to(dtype)
    result = per_token_group_quant_fp8(x, scale_layout=layout, rounding=rounding)
    wanted = per_token_group_quant_fp8_reference(x, scale_layout=layout, rounding=rounding)
    assert_same(result, wanted)
    if M:
        assert result[1].stride() == wanted[1].stride()


def test_any_strides_and_any_leading_dimensions():
    wide = torch.randn(7, 3, 300)
    for x in (X.t(), X[::2, ::2], X[:, :1], wide[:, :, 1:257], wide[1], wide.transpose(0, 2), X[0]):
        q, scale = per_token_group_quant_fp8(x)
        assert q.shape == x.shape and q.is_contiguous()
        assert_same((q.flatten(0, -2) if q.dim() > 1 else q[None], scale), reference_of_rows(x))


def reference_of_rows(x):
    return per_token_group_quant_fp8_reference(x.reshape(-1, x.shape[-1]))


def test_no_gradient_flows():
    x = X.clone().requires_grad_()
    assert_same(per_token_group_quant_fp8(x), per_token_group_quant_fp8(X))
    assert not any(result.requires_grad for result in per_token_group_quant_fp8(x))


def test_under_torch_compile():
    def step(x):
        return per_token_group_quant_fp8(x * 2, scale_layout="column_tma", rounding="sglang")

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert_same(compiled(X), step(X))


def test_callers_who_name_the_only_group_size_are_served():
    for result in (per_token_group_quant_fp8(X, 128), per_token_group_quant_fp8(X, group_size=128)):
        assert_same(result, per_token_group_quant_fp8(X))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"group_size": 64}, ValueError, r"group_size is 64, expected 128: .*_reference"),
        (
            {"group_size": "row"},
            TypeError,
            "group_size is 'row', expected 128; name the options: scale_layout=",
        ),
        ({"scale_layout": "column"}, ValueError, "scale_layout is 'column'; expected 'row' or 'column_tma'"),
        ({"rounding": "fast"}, ValueError, "rounding is 'fast'; expected one of 'ieee', 'sglang'"),
        ({"backend": "cuda"}, ValueError, "backend is 'cuda', expected one of 'auto'"),
        ({"backend": "tilelang"}, RuntimeError, "'tilelang' cannot run: the tensors are on the CPU"),
    ],
)
def test_refused_options(options, error, match):
    with pytest.raises(error, match=match):
        per_token_group_quant_fp8(X, **options)


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        ([1.0], TypeError, r"x is a list, expected a torch\.Tensor"),
        (X.double(), TypeError, r"x is torch\.float64, expected bfloat16, float16 or float32; convert it"),
        (X[:, :0], ValueError, r"x has shape \(6, 0\), expected \(\.\.\., K\) with K from 1"),
        (torch.tensor(1.0), ValueError, r"x has shape \(\), expected \(\.\.\., K\)"),
        (torch.empty(9, 9, 9, 256)[::2, ::2, ::2], ValueError, "lie in more than two strides"),
        (
            X[:1].repeat(1, 128).expand(1 << 20, -1),
            ValueError,
            "is 268435456 groups .*: quantize it in parts",
        ),
        (X.to("meta"), ValueError, "x is on meta, expected the CPU or a CUDA device"),
    ],
)
def test_refused_tensors(x, error, match):
    with pytest.raises(error, match=match):
        per_token_group_quant_fp8(x)
