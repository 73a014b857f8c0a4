"""The ops' Triton kernels run by Triton's interpreter: masks, strides, loops and rules, without a GPU.

The interpreter rounds neither to bfloat16 nor to e4m3 as a GPU does: outputs are float32 here, in which codes
stand before their rounding. Run with TRITON_INTERPRET=1 in a process of its own: Triton reads it once, at
import.
"""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process of its own with TRITON_INTERPRET=1", allow_module_level=True)

from tilelang_gemm_wrapper.ops.arguments import rows_of
from tilelang_gemm_wrapper.ops.gemv import Problem
from tilelang_gemm_wrapper.ops.gemv import reference as gemv_reference
from tilelang_gemm_wrapper.ops.gemv import triton as gemv_triton
from tilelang_gemm_wrapper.ops.quant import reference as quant_reference
from tilelang_gemm_wrapper.ops.quant import triton as quant_triton
from tilelang_gemm_wrapper.ops.rmsnorm import reference as rmsnorm_reference
from tilelang_gemm_wrapper.ops.rmsnorm import triton as rmsnorm_triton

NAN, INF = float("nan"), float("inf")


def rows(tensor):
    return rows_of(["tensor"], [tensor])[0]


def integers(*shape):
    """Values whose products add up without rounding, in any order."""
    return torch.randint(-3, 4, shape).float()


def as_codes(quotients):
    return quotients.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)


def assert_same_codes(quotients, codes):
    """NaN where NaN is wanted; else the same code."""
    nan = codes.float().isnan()
    assert torch.equal(quotients.isnan(), nan)
    assert torch.equal(as_codes(quotients)[~nan], codes.view(torch.uint8)[~nan])


@pytest.mark.parametrize("K", [1, 7, 100, 256, 1000])
@pytest.mark.parametrize("M", [1, 5, 600])
def test_rmsnorm(M, K):
    x, weight = integers(M, K), torch.randn(K)
    around = torch.full((M + 2, K), NAN)
    out, wanted = rows(around[1 : M + 1]), rows(torch.empty(M, K))
    rmsnorm_triton.launch(rows(x), None, weight, out, 1e-6, 0.5)
    rmsnorm_reference.launch(rows(x), None, weight, wanted, 1e-6, 0.5)
    assert torch.equal(out.tensor, wanted.tensor)
    assert around[0].isnan().all() and around[-1].isnan().all(), "wrote beside out"


@pytest.fixture
def short_blocks(monkeypatch):
    """Rows of more than 256 columns are read twice, as long ones are on a GPU."""
    monkeypatch.setattr(rmsnorm_triton, "MAX_BLOCK", 256)


@pytest.mark.parametrize("K", [257, 1000, 1024])
def test_rows_too_long_for_the_registers(short_blocks, K):
    x, residual, weight = integers(3, K), integers(3, K), torch.randn(K)
    streams = [rows(residual.clone()), rows(residual.clone())]
    outs = [rows(torch.full((3, K), NAN)), rows(torch.empty(3, K))]
    for module, stream, out in zip((rmsnorm_triton, rmsnorm_reference), streams, outs, strict=True):
        module.launch(rows(x), stream, weight, out, 1e-6, 0.0)
    assert torch.equal(streams[0].tensor.flatten(0, 1), residual + x)
    assert torch.equal(outs[0].tensor, outs[1].tensor)


@pytest.mark.parametrize("K", [128, 384, 1280])
@pytest.mark.parametrize("has_residual", [False, True])
def test_rmsnorm_quant(short_blocks, K, has_residual):
    x, residual, weight = integers(5, K), integers(5, K), torch.randn(K)
    x[1] = residual[1] = 0
    x[2, 5], x[3, 100] = NAN, INF
    q, scale = torch.full((5, K), NAN), torch.full((K // 128, 8), NAN).t()[:5]
    codes, wanted_scale = torch.empty(5, K, dtype=torch.float8_e4m3fn), torch.empty(5, K // 128)
    streams = [rows(residual.clone()) if has_residual else None for _ in range(2)]
    rmsnorm_triton.launch_quant(rows(x), streams[0], weight, q, scale, 1e-6, 0.0)
    rmsnorm_reference.launch_quant(rows(x), streams[1], weight, codes, wanted_scale, 1e-6, 0.0)
    assert torch.equal(scale, wanted_scale)
    assert_same_codes(q, codes)


def test_heads_in_a_fused_qkv_and_in_place():
    qkv = integers(6, 10 * 64)
    before, weight = qkv.clone(), torch.randn(64)
    heads = qkv[:, 128 : 128 + 3 * 64].unflatten(1, (3, 64))
    wanted = rows(torch.empty(6, 3, 64))
    rmsnorm_reference.launch(*rows_of(["x"], [heads.clone()]), None, weight, wanted, 1e-6, 0.0)
    source, target = rows_of(["x", "out"], [heads, heads])
    rmsnorm_triton.launch(source, None, weight, target, 1e-6, 0.0)
    assert torch.equal(heads.flatten(0, 1), wanted.tensor.flatten(0, 1))
    heads.copy_(before[:, 128 : 128 + 3 * 64].unflatten(1, (3, 64)))
    assert torch.equal(qkv, before), "wrote beside the heads"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_quant(dtype):
    x = (torch.randn(7, 384) * torch.rand(7, 1).mul(10).exp2()).to(dtype)
    x[0, :128] = 0
    x[1, 3], x[2, 300] = NAN, -INF
    x[3, 128:256] = INF
    if dtype is torch.float32:
        x[4] *= 1e-38
        x[5] *= 1e-30
    q, scale = torch.full((7, 384), NAN), torch.full((7, 3), NAN)
    codes, wanted = torch.empty(7, 384, dtype=torch.float8_e4m3fn), torch.empty(7, 3)
    quant_triton.launch(rows(x), q, scale, False, "ieee")
    quant_reference.launch(rows(x), codes, wanted, False, "ieee")
    assert torch.equal(scale, wanted)
    assert_same_codes(q, codes)


def groups_of(amax, values):
    """Rows (amax, values...) with zeros behind them up to 128."""
    x = torch.zeros(amax.numel(), 128)
    x[:, 0] = amax
    x[:, 1 : 1 + values.shape[1]] = values.clamp(max=amax[:, None])
    return x


def every_pair_of_bfloat16():
    """All significands of a group's largest value, with all of a value, down to where codes are 0."""
    significands = torch.arange(128.0, 256) / 128
    values = torch.cat([significands * 2.0**-power for power in range(21)])
    values = torch.cat([values, values[:1].expand(-values.numel() % 127)]).view(-1, 1, 127)
    amax = significands.repeat(values.shape[0])
    return groups_of(amax, values.expand(-1, 128, -1).reshape(-1, 127)).bfloat16()


def float32_beside_every_boundary():
    """The three values nearest to where the rounded quotient becomes, or leaves, the middle of two codes."""
    amax = torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 1
    scale = (amax / 448).double()[:, None]
    middles = torch.cat([torch.arange(17, 32, 2) / 16.0, torch.arange(1, 16, 2) / 1024.0]).double()
    steps = middles.log2().floor().exp2() * 2.0**-24
    near = (torch.cat([middles - steps, middles + steps]) * scale).float()
    away = [torch.nextafter(near, torch.full_like(near, end)) for end in (0.0, 448.0)]
    return groups_of(amax, torch.cat([near, *away], dim=1))


@pytest.mark.parametrize("values", [every_pair_of_bfloat16, float32_beside_every_boundary])
def test_codes_are_those_of_the_division(values):
    x = values()
    q, scale = torch.full(x.shape, NAN), torch.full((x.shape[0], 1), NAN)
    codes, wanted = torch.empty(x.shape, dtype=torch.float8_e4m3fn), torch.empty_like(scale)
    quant_triton.launch_tile(rows(x), q, scale, False, "ieee", quant_triton.Tile(128, 4))
    quant_reference.launch(rows(x), codes, wanted, False, "ieee")
    assert torch.equal(scale, wanted)
    assert_same_codes(q, codes)


@pytest.mark.parametrize("K", [1, 100, 200, 1003])
def test_quant_of_rows_whose_last_group_is_shorter(K):
    x = torch.randn(5, K + 3)[:, 1 : K + 1]
    around, scale = torch.full((7, K), NAN), torch.full((-(-K // 128), 8), NAN).t()[:5]
    codes, wanted = torch.empty(5, K, dtype=torch.float8_e4m3fn), torch.empty(5, -(-K // 128))
    quant_triton.launch(rows(x), around[1:6], scale, False, "ieee")
    quant_reference.launch(rows(x), codes, wanted, False, "ieee")
    assert torch.equal(scale, wanted)
    assert_same_codes(around[1:6], codes)
    assert around[0].isnan().all() and around[-1].isnan().all(), "wrote beside q"


def test_strided_quant_with_silu():
    whole = torch.randn(4, 3, 2 * 256 + 40)
    x = whole[:, 1:, 8 : 8 + 512]
    q, scale = torch.full((8, 256), NAN), torch.full((2, 8), NAN).t()
    codes, wanted = torch.empty(8, 256, dtype=torch.float8_e4m3fn), torch.empty(8, 2)
    quant_triton.launch(rows(x), q, scale, True, "ieee")
    quant_reference.launch(rows(x), codes, wanted, True, "ieee")
    assert torch.allclose(scale, wanted, rtol=1e-6, atol=0)
    assert (as_codes(q).int() - codes.view(torch.uint8).int()).abs().max() <= 1


@pytest.mark.parametrize("scaled", ["", "W", "x and W"])
@pytest.mark.parametrize(("N", "K"), [(5, 7), (33, 600), (130, 513), (16, 256)])
@pytest.mark.parametrize("M", [1, 3, 8])
def test_gemv(M, N, K, scaled):
    x, W = integers(M, K).half(), integers(N, K).half()
    groups = -(-K // 128)
    x_scale = torch.randint(-1, 2, (M, groups)).float().exp2() if "x" in scaled else None
    W_scale = torch.randint(-1, 2, (-(-N // 128), groups)).float().exp2() if scaled else None
    around, wanted = torch.full((M + 2, N), NAN), torch.empty(M, N)
    gemv_triton.launch(Problem(x, x_scale, W, W_scale, around[1 : M + 1]))
    gemv_reference.launch(Problem(x, x_scale, W, W_scale, wanted))
    assert torch.equal(around[1 : M + 1], wanted)
    assert around[0].isnan().all() and around[-1].isnan().all(), "wrote beside out"


@pytest.mark.parametrize("M", [1, 2])
def test_gemv_reads_nothing_behind_the_end(M):
    def before_nan(*shape):
        storage = torch.full((2 * torch.Size(shape).numel() + 512,), NAN).half()
        part = storage[: torch.Size(shape).numel()].view(shape)
        part.copy_(integers(*shape))
        return part

    x, W, out = before_nan(M, 200), before_nan(20, 200), torch.full((M, 20), NAN)
    gemv_triton.launch(Problem(x, None, W, None, out))
    assert torch.equal(out, x.float() @ W.float().t())
