"""ops.quant on the GPU: the bits of `quantize` from every backend, and SiLU with the product before it."""

from __future__ import annotations

import pytest
import torch

from tilelang_gemm_wrapper.ops import per_token_group_quant_fp8, silu_mul_quant_fp8
from tilelang_gemm_wrapper.ops.arguments import empty_fp8, empty_scale, rows_of
from tilelang_gemm_wrapper.ops.quant.tilelang import TILES, launch_tile
from tilelang_gemm_wrapper.quantize import per_token_group_quant_fp8_reference

KERNELS = ["triton", "tilelang"]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
NAN, INF = float("nan"), float("inf")


def assert_same(q, scale, x, layout="row"):
    wanted_q, wanted_scale = per_token_group_quant_fp8_reference(x.flatten(0, -2).float())
    M, groups = wanted_scale.shape
    assert scale.shape == (M, groups)
    assert scale.stride() == ((groups, 1) if layout == "row" else (1, -(-M // 4) * 4))
    assert torch.equal(scale, wanted_scale)
    codes, wanted = (t.view(torch.uint8) for t in (q.flatten(0, -2), wanted_q))
    nan = wanted_q.float().isnan()
    assert torch.equal(q.flatten(0, -2).float().isnan(), nan)
    assert torch.equal(codes[~nan], wanted[~nan])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("K", [128, 2560, 4096, 7168, 9728, 1, 200, 3884])
@pytest.mark.parametrize("backend", [*KERNELS, "torch", "auto"])
def test_bits_are_those_of_the_reference(backend, K, dtype):
    for M, layout in ((1, "row"), (3, "column_tma"), (17, "row"), (300, "column_tma"), (2048, "row")):
        x = (torch.randn(M, K, device="cuda") * torch.rand(M, 1, device="cuda").mul(20).exp2()).to(dtype)
        assert_same(*per_token_group_quant_fp8(x, scale_layout=layout, backend=backend), x, layout)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", KERNELS)
def test_every_value_of_a_dtype_between_its_neighbours(backend, dtype):
    """All 16-bit patterns, float32 beside the boundaries between codes, tiny and huge groups."""
    if dtype is torch.float32:
        codes = torch.arange(-128, 127, device="cuda", dtype=torch.int8).view(torch.float8_e4m3fn).float()
        steps = torch.tensor([0, 1, -1, 2, -2], device="cuda", dtype=torch.int32)
        middles = (codes[:-1] + codes[1:]) / 2
        x = (middles.view(torch.int32)[:, None] + steps).view(torch.float32).flatten()
        x = torch.cat([x * 2.0**p for p in (-149, -130, -126, -110, -20, 0, 3, 100)])
        x = torch.cat([x, x * 0.7, x / 3])
    else:
        x = torch.arange(-(2**15), 2**15, device="cuda", dtype=torch.int32).to(torch.int16).view(dtype)
        x = torch.cat([x, x[torch.randperm(2**16, device="cuda")]])
    x = torch.cat([x, x[: -x.numel() % 1024]]).view(-1, 1024)
    assert_same(*per_token_group_quant_fp8(x, backend=backend), x)


@pytest.mark.parametrize("backend", [*KERNELS, "torch"])
def test_nan_inf_and_zeros(backend):
    x = torch.randn(6, 256, device="cuda")
    x[0] = 0
    x[1, 0], x[1, 1] = NAN, -INF
    x[2, :128] = INF
    x[3, :128] = NAN
    x[4] *= 1e-42
    x[5, 5] = 3e38
    q, scale = per_token_group_quant_fp8(x, backend=backend)
    assert_same(q, scale, x)
    assert (scale[0] == 1).all() and scale[2, 0] == 1 and scale[3, 0] == 1
    assert q[1].float().isnan().sum() == 2 and q[2, :128].float().isnan().all()


@pytest.mark.parametrize("backend", [*KERNELS, "torch", "auto"])
def test_leading_dimensions_and_strides(backend):
    x = torch.randn(5, 12, 1024, device="cuda").bfloat16()[:, 2:9, 128:640]
    q, scale = per_token_group_quant_fp8(x, backend=backend)
    assert q.shape == x.shape
    assert_same(q, scale, x)
    odd = torch.randn(40 * 1003, device="cuda").bfloat16()[1 : 1 + 39 * 1003].view(39, 1003)[:, :896]
    assert_same(*per_token_group_quant_fp8(odd, backend=backend), odd)
    whole = torch.randn(300, 70, device="cuda")
    assert_same(*per_token_group_quant_fp8(whole.t(), backend=backend), whole.t())
    for ragged in (whole[:, 1:], whole.half().view(30, 10, 70)[:, ::2, :68]):
        assert_same(*per_token_group_quant_fp8(ragged, backend=backend), ragged)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("K", [128, 9728, 12288])
@pytest.mark.parametrize("backend", [*KERNELS, "torch", "auto"])
def test_silu_mul(backend, K, dtype):
    """exp may be off in its last place: scales by as much, codes by one where a value is near a boundary."""
    for M, layout in ((1, "row"), (64, "column_tma"), (300, "row")):
        x = torch.randn(M, 2 * K, device="cuda").mul(4).to(dtype)
        gate, up = x.double().chunk(2, dim=1)
        wanted_q, wanted_scale = per_token_group_quant_fp8_reference(
            (gate / (1 + (-gate).exp()) * up).float()
        )
        q, scale = silu_mul_quant_fp8(x, layout, backend)
        assert ((scale - wanted_scale).abs() <= 1e-6 * wanted_scale).all()
        codes, wanted = (t.view(torch.uint8).int() for t in (q, wanted_q))
        assert ((codes - wanted).abs() <= 1).all() and (codes != wanted).float().mean() < 1e-3


@pytest.mark.parametrize("backend", [*KERNELS, "torch"])
def test_silu_of_what_is_not_finite(backend):
    x = torch.ones(4, 256, device="cuda")
    x[0, 0], x[1, 0], x[2, 0], x[3, 0] = NAN, INF, -INF, -200.0
    q, _ = silu_mul_quant_fp8(x, backend=backend)
    # silu(-inf) is -inf / inf: NaN, as the formula has it.
    assert (
        q[0, 0].float().isnan()
        and q[1, 0].float().isnan()
        and q[2, 0].float().isnan()
        and q[3, 0].float() == 0
    )
    assert not q[:, 1:].float().isnan().any()


@pytest.mark.parametrize("backend", [*KERNELS, "torch", "auto"])
def test_an_empty_batch(backend):
    q, scale = per_token_group_quant_fp8(torch.empty(0, 256, device="cuda"), backend=backend)
    assert q.shape == (0, 256) and scale.shape == (0, 2)


@pytest.mark.parametrize("backend", [*KERNELS, "auto"])
def test_in_a_graph_and_under_compile(backend):
    x = torch.randn(33, 512, device="cuda").bfloat16()
    wanted = per_token_group_quant_fp8(x, backend=backend), silu_mul_quant_fp8(x, backend=backend)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = per_token_group_quant_fp8(x, backend=backend), silu_mul_quant_fp8(x, backend=backend)
    graph.replay()

    def both(x):
        return per_token_group_quant_fp8(x, backend=backend), silu_mul_quant_fp8(x, backend=backend)

    with torch.inference_mode():
        compiled = torch.compile(both, fullgraph=True)(x)
    for result in (captured, compiled):
        for own, other in zip(result, wanted, strict=True):
            assert torch.equal(own[0].view(torch.uint8), other[0].view(torch.uint8))
            assert torch.equal(own[1], other[1])


@pytest.mark.parametrize("tile", [tile for _, tile in TILES])
def test_every_tile_of_tilelang_with_a_last_block_that_is_not_full(tile):
    (source,) = rows_of(["x"], [torch.randn(37, 1152, device="cuda").bfloat16()])
    q, scale = empty_fp8((37, 1152), "cuda"), empty_scale(37, 9, "row", "cuda")
    launch_tile(source, q, scale, False, "ieee", tile)
    assert_same(q, scale, source.tensor)


@pytest.mark.parametrize("backend", KERNELS)
def test_more_than_two_to_the_31_values(backend):
    x = torch.empty(40000, 65536, device="cuda", dtype=torch.bfloat16).fill_(2.0)
    x[-1] = 4.0
    q, scale = per_token_group_quant_fp8(x, backend=backend)
    assert (scale[:-1] == 2 / 448).all() and (scale[-1] == 4 / 448).all()
    assert all((part.view(torch.uint8) == 0x7E).all() for part in q.split(4096))
