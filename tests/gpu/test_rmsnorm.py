"""ops.rmsnorm and its fused forms on the GPU: every backend against float64, strides, in place, graphs."""

from __future__ import annotations

import pytest
import torch

from tilelang_gemm_wrapper.ops import (
    fused_add_rmsnorm,
    fused_add_rmsnorm_quant_fp8,
    rmsnorm,
    rmsnorm_quant_fp8,
)
from tilelang_gemm_wrapper.quantize import per_token_group_quant_fp8_reference

KERNELS = ["triton", "tilelang"]
LIMIT = {torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float32: 1e-6}
NAN = float("nan")


def exact(x, weight, eps=1e-6, offset=0.0):
    x, weight = x.double(), weight.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * (weight + offset)


def distance(result, wanted):
    return ((result.double() - wanted).norm() / wanted.norm()).item()


def exact_rows(M, K, dtype=torch.bfloat16):
    """Rows whose squares add up without rounding, in any order."""
    return torch.randint(-3, 4, (M, K), device="cuda").to(dtype)


@pytest.mark.parametrize("dtype", LIMIT, ids=str)
@pytest.mark.parametrize("K", [1, 2, 7, 128, 129, 1000, 2560, 4096, 4097, 14336, 20000, 65535, 65536])
@pytest.mark.parametrize("backend", [*KERNELS, "torch", "auto"])
def test_row_lengths(backend, K, dtype):
    for M in (1, 5, 300):
        x, weight = torch.randn(M, K, device="cuda").to(dtype), torch.randn(K, device="cuda").to(dtype)
        out = torch.full((M + 2, K), NAN, device="cuda", dtype=dtype)
        rmsnorm(x, weight, out=out[1 : M + 1], backend=backend)
        assert distance(out[1 : M + 1], exact(x, weight)) < LIMIT[dtype]
        assert out[0].isnan().all() and out[-1].isnan().all(), "wrote beside out"


@pytest.mark.parametrize("backend", [*KERNELS, "torch"])
def test_offset_eps_and_a_float32_weight(backend):
    x, weight = torch.randn(40, 2560, device="cuda").bfloat16(), torch.randn(2560, device="cuda")
    out = rmsnorm(x, weight, eps=0.5, offset=1.0, backend=backend)
    assert distance(out, exact(x, weight, 0.5, 1.0)) < LIMIT[torch.bfloat16]


@pytest.mark.parametrize("backend", [*KERNELS, "torch", "auto"])
def test_heads_in_a_fused_qkv(backend):
    qkv = torch.randn(37, 48 * 128, device="cuda").bfloat16()
    before, weight = qkv.clone(), torch.randn(128, device="cuda").bfloat16()
    heads = qkv[:, 512 : 512 + 8 * 128].unflatten(1, (8, 128))
    assert distance(rmsnorm(heads, weight, backend=backend), exact(heads, weight)) < LIMIT[torch.bfloat16]
    wanted = rmsnorm(heads, weight, backend=backend)
    assert rmsnorm(heads, weight, out=heads, backend=backend) is heads
    assert torch.equal(heads, wanted)
    qkv[:, 512 : 512 + 8 * 128] = before[:, 512 : 512 + 8 * 128]
    assert torch.equal(qkv, before), "wrote beside the heads"


@pytest.mark.parametrize("backend", KERNELS)
def test_rows_that_start_anywhere(backend):
    x = torch.randn(64 * 1003, device="cuda").bfloat16()[1 : 1 + 40 * 1003].view(40, 1003)[:, :1000]
    weight = torch.randn(1001, device="cuda").bfloat16()[1:]
    assert distance(rmsnorm(x, weight, backend=backend), exact(x, weight)) < LIMIT[torch.bfloat16]


@pytest.mark.parametrize("K", [7, 2560, 4096, 20000])
@pytest.mark.parametrize("backend", [*KERNELS, "torch", "auto"])
def test_the_residual_is_updated_and_then_normalised(backend, K):
    for M in (1, 64, 300):
        x, residual = (torch.randn(M, K, device="cuda").bfloat16() for _ in range(2))
        weight, wanted = torch.randn(K, device="cuda").bfloat16(), residual + x
        fused_add_rmsnorm(x, residual, weight, backend=backend)
        assert torch.equal(residual, wanted)
        assert torch.equal(x, rmsnorm(wanted, weight, backend=backend))


@pytest.mark.parametrize("K", [128, 2560, 4096, 7168, 20096])
@pytest.mark.parametrize("backend", [*KERNELS, "torch", "auto"])
def test_fused_equals_the_separate_steps_in_float32(backend, K):
    """Squares that add up exactly leave one right result: that of the formula in float32, then quantised."""
    for M, layout in ((1, "row"), (5, "column_tma"), (300, "column_tma"), (300, "row")):
        x, residual = exact_rows(M, K), exact_rows(M, K)
        weight = torch.randn(K, device="cuda").bfloat16()
        for added in (False, True):
            total = residual + x if added else x
            normalised = rmsnorm(total.float(), weight.float(), backend="torch")
            wanted_q, wanted_scale = per_token_group_quant_fp8_reference(normalised)
            if added:
                stream = residual.clone()
                q, scale = fused_add_rmsnorm_quant_fp8(
                    x, stream, weight, scale_layout=layout, backend=backend
                )
                assert torch.equal(stream, total)
            else:
                q, scale = rmsnorm_quant_fp8(x, weight, scale_layout=layout, backend=backend)
            assert scale.stride() == ((K // 128, 1) if layout == "row" else (1, -(-M // 4) * 4))
            assert torch.equal(scale, wanted_scale)
            assert torch.equal(q.view(torch.uint8), wanted_q.view(torch.uint8))


@pytest.mark.parametrize("dtype", LIMIT, ids=str)
@pytest.mark.parametrize("backend", KERNELS)
def test_fused_on_any_data_is_within_a_code(backend, dtype):
    """Sums of squares differ in the last place: a value that lies at a boundary then has the next code."""
    x, weight = torch.randn(200, 4096, device="cuda").to(dtype), torch.randn(4096, device="cuda").to(dtype)
    wanted_q, wanted_scale = per_token_group_quant_fp8_reference(
        rmsnorm(x.float(), weight.float(), backend="torch")
    )
    q, scale = rmsnorm_quant_fp8(x, weight, backend=backend)
    assert ((scale - wanted_scale).abs() <= 4e-7 * wanted_scale).all()
    codes, wanted = (t.view(torch.uint8).int() for t in (q, wanted_q))
    assert ((codes - wanted).abs() <= 1).all() and (codes != wanted).float().mean() < 1e-3


@pytest.mark.parametrize("backend", [*KERNELS, "torch"])
def test_rows_with_nan_inf_and_zeros(backend):
    x = exact_rows(5, 256)
    x[1] = 0
    x[2, 3], x[3, 200] = NAN, float("inf")
    x[4, :128] = 0
    q, scale = rmsnorm_quant_fp8(x, torch.ones(256, device="cuda").bfloat16(), backend=backend)
    wanted_q, wanted_scale = per_token_group_quant_fp8_reference(
        rmsnorm(x.float(), torch.ones(256, device="cuda"), backend="torch")
    )
    assert torch.equal(scale, wanted_scale)
    assert torch.equal(q.float().nan_to_num(nan=1e9), wanted_q.float().nan_to_num(nan=1e9))
    assert q[2].float().isnan().all() and q[3].float().isnan().sum() == 1 and not q[1].float().any()


@pytest.mark.parametrize("backend", [*KERNELS, "auto"])
def test_graphs_and_repeats(backend):
    """Twenty layers, each launched while the one before runs, and the residual going through all of them."""
    x, weight = torch.randn(17, 4096, device="cuda").bfloat16(), torch.ones(4096, device="cuda").bfloat16()

    def layers(x, residual, synchronise=False):
        for _ in range(20):
            fused_add_rmsnorm(x, residual, weight, backend=backend)
            if synchronise:
                torch.cuda.synchronize()

    wanted, wanted_residual = x.clone(), x.clone()
    layers(wanted, wanted_residual, synchronise=True)
    own, residual, graph = x.clone(), x.clone(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        own.copy_(x)
        residual.copy_(x)
        layers(own, residual)
    for _ in range(50):
        graph.replay()
        assert torch.equal(own, wanted) and torch.equal(residual, wanted_residual)


@pytest.mark.parametrize("backend", KERNELS)
def test_more_than_two_to_the_31_values(backend):
    x = torch.empty(40000, 65536, device="cuda", dtype=torch.bfloat16).fill_(2.0)
    rmsnorm(x, torch.ones(65536, device="cuda").bfloat16(), eps=0.0, out=x, backend=backend)
    assert all((part == 1.0).all() for part in x.split(4096))


@pytest.mark.parametrize("backend", [*KERNELS, "auto"])
def test_under_torch_compile(backend):
    weight = torch.randn(2560, device="cuda").bfloat16()

    def step(x, residual):
        y = rmsnorm(x, weight, backend=backend)
        fused_add_rmsnorm(y, residual, weight, backend=backend)
        q, scale = fused_add_rmsnorm_quant_fp8(
            y, residual, weight, scale_layout="column_tma", backend=backend
        )
        return y, residual, q.float(), scale

    compiled = torch.compile(step, fullgraph=True)
    with torch.inference_mode():
        x, residual = (torch.randn(9, 2560, device="cuda").bfloat16() for _ in range(2))
        wanted = step(x.clone(), residual.clone())
        assert all(map(torch.equal, compiled(x.clone(), residual.clone()), wanted))
