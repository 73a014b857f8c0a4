"""ops.gemv on the GPU: every backend, odd shapes, graphs, repeats, what lies around the operands."""

from __future__ import annotations

import pytest
import torch

from tilelang_gemm_wrapper import per_block_quant_fp8, per_token_group_quant_fp8
from tilelang_gemm_wrapper.ops import gemv
from tilelang_gemm_wrapper.ops.gemv import Problem, reference
from tilelang_gemm_wrapper.ops.gemv.tilelang import CONFIGS, launch_config, naive

KERNELS = ["triton", "tilelang"]
SHAPES = [(1, 1), (5, 7), (128, 128), (129, 1000), (1000, 2560), (2112, 7168), (4096, 4096), (33, 513)]
LIMIT = {torch.bfloat16: 4e-3, torch.float16: 5e-4}  # of a sum that is rounded once


def operands(M, N, K, kind):
    """x and W as gemv takes them, and both in float64."""
    if kind in (torch.bfloat16, torch.float16):
        x, W = (torch.randn(rows, K, device="cuda").to(kind) for rows in (M, N))
        return x, W, x.double(), W.double()
    W, W_scale = per_block_quant_fp8(torch.randn(N, K, device="cuda"))
    W_scale *= torch.rand_like(W_scale) + 0.5  # a wrong scale must show
    exact_W = W.double() * W_scale.double().repeat_interleave(128, 0)[:N].repeat_interleave(128, 1)[:, :K]
    x = torch.randn(M, K, device="cuda").bfloat16()
    if kind == "w8a16":
        return x, (W, W_scale), x.double(), exact_W
    q, scale = per_token_group_quant_fp8(x)
    exact_x = q.double() * scale.double().repeat_interleave(128, 1)[:, :K]
    return (q, scale), (W, W_scale), exact_x, exact_W


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, "w8a16", "w8a8"], ids=str)
@pytest.mark.parametrize(("N", "K"), SHAPES)
@pytest.mark.parametrize("backend", [*KERNELS, "torch", "auto"])
def test_against_float64(backend, N, K, kind):
    for M in (1, 2, 3, 8) if (N, K) in ((33, 513), (1000, 2560)) else (1, 5):
        x, W, exact_x, exact_W = operands(M, N, K, kind)
        out = torch.full(
            (M + 2, N), float("nan"), device="cuda", dtype=kind if kind in LIMIT else torch.bfloat16
        )
        gemv(x, W, out=out[1 : M + 1], backend=backend)
        wanted = exact_x @ exact_W.t()
        error = (out[1 : M + 1].double() - wanted).norm() / wanted.norm()
        assert error < LIMIT[out.dtype], (M, error)
        assert out[0].isnan().all() and out[-1].isnan().all(), "wrote beside out"


@pytest.mark.parametrize("config", CONFIGS[::3], ids=str)
@pytest.mark.parametrize("kind", [torch.bfloat16, "w8a8"], ids=str)
def test_every_configuration(config, kind):
    x, W, exact_x, exact_W = operands(2, 1001, 2560, kind)
    x, x_scale = x if isinstance(x, tuple) else (x, None)
    W, W_scale = W if isinstance(W, tuple) else (W, None)
    out = torch.full((2, 1001), float("nan"), device="cuda", dtype=torch.bfloat16)
    launch_config(Problem(x, x_scale, W, W_scale, out), config)
    wanted = exact_x @ exact_W.t()
    assert (out.double() - wanted).norm() / wanted.norm() < LIMIT[torch.bfloat16]


def test_naive():
    x, W, exact_x, exact_W = operands(1, 1000, 777, torch.bfloat16)
    out = torch.full((1, 1000), float("nan"), device="cuda", dtype=torch.bfloat16)
    naive(x, W, out)
    wanted = exact_x @ exact_W.t()
    assert (out.double() - wanted).norm() / wanted.norm() < LIMIT[torch.bfloat16]


@pytest.mark.parametrize("K", [512, 1000, 2563])
@pytest.mark.parametrize("M", [1, 4])
@pytest.mark.parametrize("backend", KERNELS)
def test_exact_sums_give_exact_results(backend, M, K):
    """Small integers: no order of addition rounds, so the one right result is that of the reference."""
    x, W = (torch.randint(-3, 4, (rows, K), device="cuda").bfloat16() for rows in (M, 515))
    wanted = torch.empty(M, 515, device="cuda")
    reference.launch(Problem(x, None, W, torch.ones(5, -(-K // 128), device="cuda"), wanted))
    assert torch.equal(gemv(x, W, backend=backend), wanted.bfloat16())


@pytest.mark.parametrize("backend", KERNELS)
def test_infinity_stays_one(backend):
    """Nothing is multiplied by a made-up zero, as 0 * inf would be NaN."""
    x, W = torch.ones(1, 200, device="cuda").bfloat16(), torch.ones(9, 200, device="cuda").bfloat16()
    x[0, 199] = float("inf")
    assert (gemv(x, W, backend=backend) == float("inf")).all()


@pytest.mark.parametrize("backend", KERNELS)
def test_poison_around_the_operands_is_not_read_into_results(backend):
    K, N = 200, 50
    memory = torch.full((3 * N * K,), float("nan"), device="cuda", dtype=torch.bfloat16)
    W = memory[N * K : 2 * N * K].view(N, K).normal_()
    x = (
        torch.full((3 * K,), float("nan"), device="cuda", dtype=torch.bfloat16)[K : 2 * K]
        .view(1, K)
        .normal_()
    )
    assert not gemv(x, W, backend=backend).isnan().any()


@pytest.mark.parametrize("M", [1, 3])
@pytest.mark.parametrize("backend", [*KERNELS, "auto"])
def test_repeats_and_graphs_give_the_same_bits(backend, M):
    x, W, _, _ = operands(M, 4096, 2560, torch.bfloat16)
    wanted = gemv(x, W, backend=backend)
    out, graph = torch.empty_like(wanted), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(20):
            gemv(x, W, out=out, backend=backend)
    for _ in range(20):
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, wanted)


@pytest.mark.parametrize("backend", KERNELS)
def test_a_chain_waits_for_what_it_reads(backend):
    """Each launch starts while the one before runs: one that read its x too early would differ."""
    W = (torch.randn(2048, 2048, device="cuda") / 45).bfloat16()
    x = torch.randn(1, 2048, device="cuda").bfloat16()

    def chain(synchronise):
        y = x
        for _ in range(30):
            y = gemv(y, W, backend=backend)
            if synchronise:
                torch.cuda.synchronize()
        return y

    wanted = chain(synchronise=True)
    for _ in range(50):
        assert torch.equal(chain(synchronise=False), wanted)


def test_more_than_two_to_the_31_weights():
    N, K = 40000, 65536
    W = torch.empty(N, K, device="cuda", dtype=torch.bfloat16).fill_(1.0)
    W[-1] = 2.0
    x = torch.ones(1, K, device="cuda", dtype=torch.bfloat16)
    for backend in KERNELS:
        y = gemv(x, W, backend=backend)
        assert (y[0, :-1] == K).all() and y[0, -1] == 2 * K


@pytest.mark.parametrize("backend", [*KERNELS, "auto"])
def test_under_torch_compile(backend):
    x, W, _, _ = operands(2, 512, 1024, torch.bfloat16)
    compiled = torch.compile(lambda x, W: gemv(x * 2, W, backend=backend) + 1, fullgraph=True)
    with torch.inference_mode():
        assert torch.equal(compiled(x, W), gemv(x * 2, W, backend=backend) + 1)


def test_nothing_is_compiled_under_capture():
    x, W = (torch.ones(1, 1104, device="cuda").half() for _ in range(2))
    with pytest.raises(RuntimeError, match="is not compiled"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        gemv(x, W, backend="tilelang")
