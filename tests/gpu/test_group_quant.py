"""Quantization by SGLang's rules on the GPU, and what an engine does with it: multiply, graphs, streams."""

from __future__ import annotations

import pytest
import torch

from tilelang_gemm_wrapper import gemm_nt_f8f8bf16, per_block_quant_fp8, warmup
from tilelang_gemm_wrapper.core import wrapper
from tilelang_gemm_wrapper.integrations.block_fp8_linear import BlockFp8Linear
from tilelang_gemm_wrapper.ops import compiled, per_token_group_quant_fp8, quant

SQUARE = (2560, 2560)
KERNELS = ["tilelang", "triton"]


def quantize(x, backend="tilelang"):
    return per_token_group_quant_fp8(x, scale_layout="column_tma", rounding="sglang", backend=backend)


def check(x, q, scale):
    """SGLang's formula. Its division and the kernel's are approximate: 448 / amax may be off by two units in
    the last place, which turns all values of a group that lie between two codes; no other code is right."""
    groups = x.float().unflatten(1, (-1, 128))
    amax = groups.abs().nan_to_num(nan=0.0, posinf=float("inf")).amax(2, keepdim=True).clamp_min(1e-10)
    assert torch.equal(scale, (amax * (1.0 / 448.0)).squeeze(2))
    factor = torch.full_like(amax, 448.0) / amax
    low, high = (
        torch.where(product.isnan(), 448.0, product.clamp(-448.0, 448.0)).to(torch.float8_e4m3fn).float()
        for product in (groups * (factor * (1 - 2**-21)), groups * (factor * (1 + 2**-21)))
    )
    codes = q.float().unflatten(1, (-1, 128))
    assert ((codes == low) | (codes == high)).all()


@pytest.mark.parametrize("K", [128, 2560, 9728])
@pytest.mark.parametrize("M", [1, 3, 4, 17, 300, 2048])
@pytest.mark.parametrize("backend", KERNELS)
def test_values_and_scales(backend, M, K):
    x = (torch.randn(M, K, device="cuda") * torch.rand(M, 1, device="cuda").exp()).bfloat16()
    q, scale = quantize(x, backend)
    assert scale.stride() == (1, -(-M // 4) * 4) and scale.shape == (M, K // 128)
    check(x, q, scale)


def test_both_backends_give_the_same_bits():
    """All pairs of significands of a value and of its group's largest, which bfloat16 has 128 of each."""
    significands = torch.arange(128, 256, device="cuda").bfloat16()
    x = significands.repeat(128, 1).div(8)
    x[:, 0] = significands * 4
    results = [quantize(x * 2.0**power, backend) for power in (-20, 0, 60) for backend in KERNELS]
    for ours, other in zip(results[::2], results[1::2], strict=True):
        assert torch.equal(ours[0].view(torch.uint8), other[0].view(torch.uint8))
        assert torch.equal(ours[1], other[1])


@pytest.mark.parametrize("backend", KERNELS)
def test_what_is_not_finite_or_zero(backend):
    x = torch.zeros(4, 256, device="cuda", dtype=torch.bfloat16)
    x[1, 0], x[1, 1], x[1, 2] = float("nan"), 2.0, -1.0
    x[2, 200] = float("inf")
    x[3, 5] = 1e-30
    q, scale = quantize(x, backend)
    check(x, q, scale)
    assert not q.float().isnan().any()


def test_an_empty_batch():
    q, scale = quantize(torch.empty(0, 256, device="cuda", dtype=torch.bfloat16))
    assert q.shape == (0, 256) and scale.shape == (0, 2)


def test_nothing_is_compiled_under_capture():
    x = torch.ones(4, 256, device="cuda", dtype=torch.bfloat16)
    compiled._kernels.clear()
    with pytest.raises(RuntimeError, match="is not compiled"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        quantize(x)


def test_after_warm_up_rows_of_any_number_and_length_are_captured():
    compiled._kernels.clear()
    quant.warmup(0, "sglang")
    inputs = [
        torch.ones(M, K, device="cuda", dtype=torch.bfloat16) for M in (1, 64, 4096) for K in (128, 2560)
    ]
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        for x in inputs:
            quantize(x)


def refuse(**given):
    raise AssertionError("went to the engine's own")


linear = BlockFp8Linear(refuse)


@pytest.fixture
def layers(monkeypatch):
    """Eight square layers, their kernels compiled to read weights ahead, as in an engine."""
    monkeypatch.setenv("TILELANG_GEMM_STATIC_WEIGHTS", "1")
    wrapper.forget()
    quant.warmup(0, "sglang")
    warmup([SQUARE], m_max=64, progress=False)
    yield [
        dict(
            zip(
                ("weight", "weight_scale"),
                per_block_quant_fp8(torch.randn(*SQUARE, device="cuda") / 50),
                strict=True,
            )
        )
        for _ in range(8)
    ]
    wrapper.forget()


def chain(x, layers, synchronise=False):
    for layer in layers:
        x = linear(input=x, block_size=[128, 128], **layer)
        if synchronise:
            torch.cuda.synchronize()
    return x


@pytest.mark.parametrize("M", [1, 16, 64])
def test_a_chain_of_layers_in_a_graph_is_what_it_is_one_by_one(layers, M):
    """Each kernel starts while the one before it still runs; a read ahead of its turn would show."""
    x = torch.empty(M, SQUARE[1], device="cuda", dtype=torch.bfloat16)
    graph = torch.cuda.CUDAGraph()
    chain(x.normal_(), layers)
    with torch.cuda.graph(graph):
        out = chain(x, layers)
    for _ in range(200):
        x.normal_()
        graph.replay()
        replayed = out.clone()
        assert torch.equal(replayed, chain(x, layers, synchronise=True))


def test_two_streams_do_not_disturb_each_other(layers):
    """As two-batch overlap does: both halves of a batch at once, each on a stream of its own."""
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    inputs = [torch.randn(M, SQUARE[1], device="cuda").bfloat16() for M in (16, 64)]
    wanted = [chain(x, layers) for x in inputs]
    torch.cuda.synchronize()
    for _ in range(100):
        outputs = []
        for stream, x in zip(streams, inputs, strict=True):
            with torch.cuda.stream(stream):
                outputs.append(chain(x, layers))
        torch.cuda.synchronize()
        assert all(map(torch.equal, outputs, wanted))


def test_the_linear_compiles_whole(layers):
    compiled = torch.compile(linear, fullgraph=True, dynamic=True)
    with torch.inference_mode():
        for M in (2, 7, 64):
            given = {"input": torch.randn(M, SQUARE[1], device="cuda").bfloat16(), "block_size": [128, 128]}
            assert torch.equal(compiled(**given, **layers[0]), linear(**given, **layers[0]))


def test_parameters_of_an_engine_are_taken(layers):
    given = {name: torch.nn.Parameter(value, requires_grad=False) for name, value in layers[0].items()}
    x = torch.randn(5, SQUARE[1], device="cuda").bfloat16()
    with torch.inference_mode():
        wanted = gemm_nt_f8f8bf16(quantize(x), tuple(layers[0].values()))
        assert torch.equal(linear(input=x, block_size=[128, 128], **given), wanted)
