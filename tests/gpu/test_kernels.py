"""Each TileLang variant on the GPU against the float64 reference: values, every element, every repeat."""

from __future__ import annotations

import random

import pytest
import torch

from tilelang_gemm_wrapper import configurer
from tilelang_gemm_wrapper.core.workload import (
    Expected,
    Workload,
    integer_workload,
    random_workload,
    reference,
    why_wrong,
)

from .cases import ALL_CONFIGS, CONFIGS, SHAPES, gemm_of, valid

CASES = [(config, N, K) for config in ALL_CONFIGS for N, K in SHAPES if valid(config, N, K)]


def _id(value) -> str:
    if hasattr(value, "kernel_type"):
        split = f"-k{value.split_k}" if value.split_k > 1 else ""
        return (
            f"{value.kernel_type}-{value.block_M}x{value.block_N}-s{value.num_stages}-t{value.threads}{split}"
        )
    return str(value)


def _launch(config, workload):
    C = workload.empty_output()
    gemm_of(config, workload.N, workload.K)(
        workload.M, workload.A, workload.A_scale, workload.B, workload.B_scale, C
    )
    return C


@pytest.mark.parametrize(("config", "N", "K"), CASES, ids=_id)
def test_matches_reference_for_any_m(config, N, K, compiled):
    seed = random.randrange(2**31)  # fresh data every run; a failure names the seed
    ms = [1, 2, 64, 300, 512, *random.Random(seed).sample(range(3, 300), 4)]
    for i, M in enumerate(ms):
        layout = ("row", "column_tma")[i % 2]
        workload = random_workload(M, N, K, "cuda", seed + i, scale_layout=layout)
        why = why_wrong(_launch(config, workload), Expected.of(workload))
        assert why is None, f"M={M}, {layout}, seed {seed + i}: {why}"


@pytest.mark.parametrize("M", [1024, 4096, 8192])
@pytest.mark.parametrize("kernel_type", list(CONFIGS))
def test_matches_reference_for_large_m(kernel_type, M, compiled):
    config, (N, K) = CONFIGS[kernel_type][-1], (2560, 7168)
    workload = random_workload(M, N, K, "cuda", random.randrange(2**31))
    assert why_wrong(_launch(config, workload), Expected.of(workload)) is None


@pytest.mark.parametrize(("config", "N", "K"), CASES, ids=_id)
def test_integers_are_exact(config, N, K, compiled):
    for M in (1, 37, 130):
        workload = integer_workload(M, N, K, "cuda", random.randrange(2**31))
        assert torch.equal(_launch(config, workload), reference(workload).to(torch.bfloat16))


@pytest.mark.parametrize("config", ALL_CONFIGS, ids=_id)
def test_repeats_bit_for_bit(config, compiled):
    N, K = (2560, 7168) if valid(config, 2560, 7168) else (1600, 896)
    workload = random_workload(77, N, K, "cuda", random.randrange(2**31))
    gemm, C = gemm_of(config, N, K), workload.empty_output()
    first = _launch(config, workload)
    for _ in range(200):
        C.fill_(torch.nan)
        gemm(77, workload.A, workload.A_scale, workload.B, workload.B_scale, C)
        assert torch.equal(C, first)


@pytest.mark.parametrize("kernel_type", list(CONFIGS))
def test_inputs_inside_larger_storage(kernel_type, compiled):
    """Tensors that start in the middle of an allocation; what lies around C stays as it was."""
    config, (M, N, K) = CONFIGS[kernel_type][0], (67, 2112, 1024)
    workload = random_workload(M, N, K, "cuda", random.randrange(2**31))

    def inside(tensor, gap):
        store = torch.full((tensor.numel() + 2 * gap,), 77, dtype=torch.uint8, device="cuda").to(tensor.dtype)
        view = store[gap : gap + tensor.numel()].view(tensor.shape)
        return view.copy_(tensor), store

    A, _ = inside(workload.A, 48)
    A_scale, _ = inside(workload.A_scale, 3)
    B, _ = inside(workload.B, 4096 + 16)
    B_scale, _ = inside(workload.B_scale, 1)
    C, around = inside(workload.empty_output(), 8)
    gemm_of(config, N, K)(M, A, A_scale, B, B_scale, C)
    assert why_wrong(C, Expected.of(workload)) is None
    assert (around[:8] == 77).all() and (around[-8:] == 77).all()


@pytest.mark.parametrize("kernel_type", list(CONFIGS))
def test_nan_and_inf_stay_in_their_rows(kernel_type, compiled):
    config, (M, N, K) = CONFIGS[kernel_type][0], (20, 2112, 1024)
    workload = random_workload(M, N, K, "cuda", 5)
    clean = _launch(config, workload)
    workload.A[3, 700] = torch.nan
    workload.A_scale[11, 2] = torch.inf
    C = _launch(config, workload)
    rows = torch.ones(M, dtype=torch.bool, device="cuda")
    rows[[3, 11]] = False
    assert C[3].isnan().all()
    assert not C[11].isfinite().any()
    assert torch.equal(C[rows], clean[rows])


@pytest.mark.parametrize("kernel_type", list(CONFIGS))
def test_two_streams_and_two_graphs_at_once(kernel_type):
    """Captured launches share nothing: two graphs replayed over each other give what each gives alone."""
    config, (M, N, K) = CONFIGS[kernel_type][0], (48, 2112, 1024)
    gemm = gemm_of(config, N, K)
    gemm.prepare(0)
    workloads = [random_workload(M, N, K, "cuda", seed) for seed in (1, 2)]
    expected = [_launch(config, workload) for workload in workloads]
    outputs = [workload.empty_output() for workload in workloads]
    streams, graphs = [torch.cuda.Stream() for _ in workloads], []
    for workload, C in zip(workloads, outputs, strict=True):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(20):
                gemm(M, workload.A, workload.A_scale, workload.B, workload.B_scale, C)
        graphs.append(graph)
    torch.cuda.synchronize()
    for _ in range(20):
        for C in outputs:
            C.fill_(torch.nan)
        torch.cuda.synchronize()
        for stream, graph in zip(streams, graphs, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        torch.cuda.synchronize()
        for C, right in zip(outputs, expected, strict=True):
            assert torch.equal(C, right)


def _assert_in_one_graph(launch, launches, C, expected):
    """Replay `launches` calls of launch(i, C), one behind the other: each must leave expected[i] in C."""
    results = [torch.empty_like(C) for _ in range(launches)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i, result in enumerate(results):
            launch(i % len(expected), C)
            result.copy_(C)
    graph.replay()
    torch.cuda.synchronize()
    for i, result in enumerate(results):
        assert torch.equal(result, expected[i % len(expected)]), i


@pytest.mark.parametrize("static_weights", ["0", "1"])
@pytest.mark.parametrize("config", ALL_CONFIGS, ids=_id)
def test_tokens_written_just_before_are_waited_for(config, static_weights, monkeypatch):
    """A kernel starts while the one before it still runs: it must not read the tokens that one writes, nor
    write over a C that one reads or is still to write."""
    monkeypatch.setenv(configurer.STATIC_WEIGHTS, static_weights)
    N, K = (2560, 7168) if valid(config, 2560, 7168) else (1600, 896)
    gemm = gemm_of(config, N, K)
    gemm.prepare(0)
    first = random_workload(200, N, K, "cuda", 0)
    tokens = [random_workload(200, N, K, "cuda", seed) for seed in range(1, 5)]
    expected = [_launch(config, Workload(one.A, one.A_scale, first.B, first.B_scale)) for one in tokens]
    A, A_scale = first.A.clone(), first.A_scale.clone()

    def launch(i, C):
        A.copy_(tokens[i].A)
        A_scale.copy_(tokens[i].A_scale)
        gemm(200, first.A, first.A_scale, first.B, first.B_scale, C)
        gemm(200, A, A_scale, first.B, first.B_scale, C)

    _assert_in_one_graph(launch, 40, first.empty_output(), expected)


@pytest.mark.parametrize("kernel_type", list(CONFIGS))
def test_weights_written_just_before_are_read(kernel_type, monkeypatch):
    """Without static weights nothing of B is taken from before the wait, though it is asked for there."""
    monkeypatch.setenv(configurer.STATIC_WEIGHTS, "0")
    N, K = 2560, 7168
    config = next(config for config in CONFIGS[kernel_type] if valid(config, N, K))
    gemm = gemm_of(config, N, K)
    gemm.prepare(0)
    workloads = [random_workload(20, N, K, "cuda", seed) for seed in range(2)]
    tokens = workloads[0]
    expected = [_launch(config, Workload(tokens.A, tokens.A_scale, w.B, w.B_scale)) for w in workloads]
    B, B_scale = tokens.B.clone(), tokens.B_scale.clone()

    def launch(i, C):
        B.copy_(workloads[i].B)
        B_scale.copy_(workloads[i].B_scale)
        gemm(20, tokens.A, tokens.A_scale, B, B_scale, C)

    _assert_in_one_graph(launch, 20, tokens.empty_output(), expected)


@pytest.mark.parametrize(("M", "N", "K"), [(530_000, 4096, 128), (310_000, 512, 7168)], ids=["M*N", "M*K"])
@pytest.mark.parametrize("kernel_type", list(CONFIGS))
def test_more_elements_than_32_bits_count(kernel_type, M, N, K):
    config = next((c for c in reversed(CONFIGS[kernel_type]) if valid(c, N, K)), None)
    if config is None:
        pytest.skip(f"K = {K} cannot be split")
    if torch.cuda.get_device_properties(0).total_memory < 40 << 30:
        pytest.skip("needs 40 GiB of GPU memory")
    assert max(M * N, M * K) > 2**31
    workload = integer_workload(M, N, K, "cuda", 3)
    C = _launch(config, workload)
    rows = torch.cat([torch.arange(0, M, 9973), torch.arange(M - 300, M)]).cuda()
    part = type(workload)(workload.A[rows], workload.A_scale[rows], workload.B, workload.B_scale)
    assert torch.equal(C[rows], reference(part).to(torch.bfloat16))
    assert not C.isnan().any()
