"""ops.rmsnorm and its fused forms on the CPU: the formula, layouts, refusals, tracing."""

from __future__ import annotations

import math

import pytest
import torch

from tilelang_gemm_wrapper.ops import (
    fused_add_rmsnorm,
    fused_add_rmsnorm_quant_fp8,
    rmsnorm,
    rmsnorm_quant_fp8,
    silu_mul_quant_fp8,
)
from tilelang_gemm_wrapper.quantize import per_token_group_quant_fp8_reference

X, WEIGHT = torch.randn(6, 256), torch.randn(256)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_formula(dtype):
    x = X.to(dtype)
    wanted = torch.nn.functional.rms_norm(x.float(), (256,), WEIGHT + 1, eps=0.1)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    out = rmsnorm(x, WEIGHT, eps=0.1, offset=1.0)
    assert out.dtype is dtype
    assert torch.allclose(out.float(), wanted, rtol=tolerance, atol=1e-6)


def test_out_may_be_x():
    x = X.clone()
    assert rmsnorm(x, WEIGHT, out=x) is x
    assert torch.equal(x, rmsnorm(X, WEIGHT))


def test_the_residual_is_rounded_and_then_normalised():
    x, residual, weight = X.bfloat16(), torch.randn(6, 256).bfloat16(), WEIGHT.bfloat16()
    total = residual + x
    q, scale = fused_add_rmsnorm_quant_fp8(x, residual.clone(), weight, scale_layout="column_tma")
    fused_add_rmsnorm(x, residual, weight)
    assert torch.equal(residual, total) and torch.equal(x, rmsnorm(total, weight))
    wanted_q, wanted_scale = rmsnorm_quant_fp8(total, weight)
    assert torch.equal(q.view(torch.uint8), wanted_q.view(torch.uint8)) and torch.equal(scale, wanted_scale)
    assert scale.stride() == (1, 8) and wanted_scale.stride() == (2, 1)


def test_quantised_is_the_norm_in_float32_then_quantised():
    normalised = rmsnorm(X.bfloat16().float(), WEIGHT)
    wanted = per_token_group_quant_fp8_reference(normalised)
    q, scale = rmsnorm_quant_fp8(X.bfloat16(), WEIGHT)
    assert torch.equal(q.view(torch.uint8), wanted[0].view(torch.uint8)) and torch.equal(scale, wanted[1])


def test_silu_mul():
    gate, up = X.chunk(2, dim=1)
    q, scale = silu_mul_quant_fp8(X)
    wanted = torch.nn.functional.silu(gate) * up
    assert q.shape == (6, 128)
    assert torch.allclose(q.float() * scale, wanted, atol=wanted.abs().max().item() / 16)


@pytest.mark.parametrize("shape", [(0, 256), (3, 0, 256)])
def test_empty_batches(shape):
    x = torch.empty(shape)
    assert rmsnorm(x, WEIGHT).shape == shape
    assert rmsnorm_quant_fp8(x, WEIGHT)[0].shape == shape


def test_heads_of_a_fused_qkv_in_place():
    qkv = torch.randint(-3, 4, (5, 8 * 64)).float()  # squares add up exactly, however they lie
    wanted, heads = qkv.clone(), qkv[:, 64:256].unflatten(1, (3, 64))
    wanted[:, 64:256] = rmsnorm(heads.contiguous(), WEIGHT[:64]).flatten(1)
    rmsnorm(heads, WEIGHT[:64], out=heads)
    assert torch.equal(qkv, wanted)


def test_under_torch_compile():
    def step(x, residual):
        y = rmsnorm(x, WEIGHT)
        rmsnorm(x, WEIGHT, out=x)
        fused_add_rmsnorm(y, residual, WEIGHT)
        return x, y, residual, *fused_add_rmsnorm_quant_fp8(y, residual, WEIGHT, scale_layout="column_tma")

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        results = [run(X.clone(), X.clone() + 1) for run in (step, compiled)]
        assert all(torch.equal(a.float(), b.float()) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (([1.0], WEIGHT), TypeError, "x is a list, expected a torch.Tensor"),
        ((X.double(), WEIGHT), TypeError, r"x is torch\.float64, expected bfloat16, float16 or float32"),
        ((X, WEIGHT.half()), TypeError, r"weight is torch\.float16 and x torch\.float32, expected the same"),
        ((X, WEIGHT[:255]), ValueError, r"weight has shape \(255,\), expected \(256,\)"),
        ((X, torch.randn(512)[::2]), ValueError, r"weight has stride \(2,\), expected 1"),
        ((X[:, :0], WEIGHT[:0]), ValueError, r"expected \(\.\.\., K\) with K from 1 to 65536"),
        ((torch.empty(1, 65537), torch.empty(65537)), ValueError, "K from 1 to 65536"),
        (
            (X.t(), WEIGHT[:6]),
            ValueError,
            r"x has strides \(1, 256\), expected the last to be 1; pass x\.cont",
        ),
        ((torch.empty(4, 6, 8, 256)[::2, ::2, ::2], WEIGHT), ValueError, "lie in more than two strides"),
        ((X.clone().requires_grad_(), WEIGHT), ValueError, "x requires grad"),
        ((X.to_sparse(), WEIGHT), ValueError, r"x has layout torch\.sparse_coo, expected torch\.strided"),
        ((torch.nested.nested_tensor([WEIGHT, WEIGHT]), WEIGHT), ValueError, "x is nested, expected"),
        ((X, WEIGHT, "1e-6"), ValueError, "eps is '1e-6', expected a finite number of at least 0"),
        ((X, WEIGHT, None), ValueError, "eps is None"),
        ((X, WEIGHT, -1e-6), ValueError, "eps is -1e-06"),
        ((X, WEIGHT, math.nan), ValueError, "eps is nan"),
        ((X, WEIGHT, torch.ones(2)), ValueError, r"eps is tensor\(\[1., 1.\]\)"),
        ((X, WEIGHT, 1e-6, None, math.inf), ValueError, "offset is inf, expected a finite number$"),
    ],
)
def test_refusals(arguments, error, match):
    with pytest.raises(error, match=match):
        rmsnorm(*arguments)


def test_refused_outputs_and_residuals():
    memory = torch.randn(7, 256)
    with pytest.raises(ValueError, match="out overlaps x in memory without being x"):
        rmsnorm(memory[:6], WEIGHT, out=memory[1:])
    with pytest.raises(ValueError, match="out has shape"):
        rmsnorm(X, WEIGHT, out=torch.empty(5, 256))
    with pytest.raises(TypeError, match=r"out is torch\.bfloat16 and x torch\.float32"):
        rmsnorm(X, WEIGHT, out=X.bfloat16())
    with pytest.raises(ValueError, match="x overlaps residual in memory"):
        fused_add_rmsnorm(memory, memory, WEIGHT)
    with pytest.raises(TypeError, match=r"residual is torch\.bfloat16 and x torch\.float32"):
        fused_add_rmsnorm(memory, memory.bfloat16(), WEIGHT)
    with pytest.raises(ValueError, match="residual overlaps x"):
        fused_add_rmsnorm_quant_fp8(memory, memory, WEIGHT)
    one_row = torch.randn(1, 256).expand(6, 256)
    overlap = r"shape .* and strides .*, overlap in memory, and they are written; pass {}\.contiguous\(\)"
    with pytest.raises(ValueError, match=overlap.format("out")):
        rmsnorm(X, WEIGHT, out=one_row)
    with pytest.raises(ValueError, match=overlap.format("x")):
        fused_add_rmsnorm(one_row, X.clone(), WEIGHT)
    for op in (fused_add_rmsnorm, fused_add_rmsnorm_quant_fp8):
        with pytest.raises(ValueError, match=overlap.format("residual")):
            op(X.clone(), one_row, WEIGHT)


def test_groups_behind_a_norm_are_whole():
    with pytest.raises(ValueError, match=r"x has K = 200, expected a multiple of 128.*pad it"):
        rmsnorm_quant_fp8(X[:, :200], WEIGHT[:200])


def test_refusals_of_silu_mul():
    with pytest.raises(ValueError, match="x has 255 columns, expected twice K"):
        silu_mul_quant_fp8(X[:, :255])
    with pytest.raises(RuntimeError, match="'tilelang' cannot run: the tensors are on the CPU"):
        silu_mul_quant_fp8(X, backend="tilelang")
