"""What tuner and benchmark accept on a GPU: every right kernel, and none that is wrong in a few elements."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from tilelang_gemm_wrapper.core import bench_measure
from tilelang_gemm_wrapper.core.bench_providers import PROVIDERS, Matrix, Refused
from tilelang_gemm_wrapper.core.compile_ahead import compile_ahead
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.device import device_of
from tilelang_gemm_wrapper.core.environment import Environment
from tilelang_gemm_wrapper.core.tuner.bench import CandidateError, GpuBench
from tilelang_gemm_wrapper.core.workload import compare

from .cases import CONFIGS, valid

M_VALUES = (1, 2, 8, 17, 64, 300, 1024, 4096)
SHAPES = [(576, 128), (2112, 1024), (2560, 7168), (1024, 28672)]


@pytest.fixture(scope="module", params=["tilelang_gemm", "deep_gemm", "cublas", "triton"])
def name(request: pytest.FixtureRequest) -> str:
    """A provider, compiled in parallel: DeepGEMM has a kernel for almost every M, each seconds of nvcc."""
    compile_ahead(dict.fromkeys(SHAPES, M_VALUES), [request.param], os.cpu_count() or 1)
    return request.param


@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_right_kernels_are_right_at_every_m(name: str, N: int, K: int) -> None:
    device = device_of(0)
    seed = int(torch.randint(2**31, ()))
    refusals: dict[int, str] = {}
    for matrix in (
        Matrix.random(max(M_VALUES), N, K, device, seed),
        Matrix.integers(4096, N, K, device, seed),
    ):
        assert matrix is not None
        for M in M_VALUES:
            case = matrix.case(M)
            try:
                call = PROVIDERS[name](case)
            except Refused as refusal:
                refusals[M] = str(refusal)
                continue
            case.C.fill_(torch.nan)
            comparison = compare(call(0), case.expected)
            assert comparison.why_wrong() is None, (M, seed)
            assert comparison.excess < 0.9, f"M={M}, seed {seed}: {comparison}"
    if len(refusals) == len(M_VALUES):
        pytest.skip(refusals[1])


@pytest.fixture(scope="module")
def bench(compiled) -> GpuBench:
    bench = GpuBench()
    bench.open(2560, 7168, 4096)
    return bench


@pytest.mark.parametrize("kernel_type", list(CONFIGS))
def test_the_tuner_takes_right_candidates(bench: GpuBench, kernel_type: str) -> None:
    for config in (config for config in CONFIGS[kernel_type] if valid(config, 2560, 7168)):
        for M in (1, 64, 300, 4096):
            assert bench.check(config, M) < 3e-6


@pytest.mark.parametrize("kernel_type", ["deep_gemm", "triton"])
def test_the_tuner_takes_the_peers(bench: GpuBench, kernel_type: str) -> None:
    for M in (1, 64, 300, 4096):
        try:
            assert bench.check(KernelConfig(kernel_type), M) < 3e-6
        except CandidateError as refusal:
            if refusal.kind == "error":
                pytest.skip(str(refusal))
            raise


def flip_one_sign(C: torch.Tensor) -> None:
    C[-1, C[-1].abs().argmax()] *= -1


def leave_the_last_elements_zero(C: torch.Tensor) -> None:
    C[-1, -24:] = 0


def round_one_element_wrong(C: torch.Tensor) -> None:
    C[-1, C[-1].abs().argmax()] *= 1 + 2**-7


DAMAGES = [flip_one_sign, leave_the_last_elements_zero, round_one_element_wrong]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_tuner_refuses_a_few_wrong_elements(damage) -> None:
    """Of ten million at the largest M alone."""
    M, config = 4096, KernelConfig("base", 128, 128, 128, 4, 256)

    class Damaged(GpuBench):
        def launcher(self, config: KernelConfig):
            kernel = super().launcher(config)

            def launch(A, A_scale, B, B_scale, C):
                kernel(A, A_scale, B, B_scale, C)
                if len(A) == M:
                    damage(C)

            return launch

    bench = Damaged()
    bench.open(2560, 1024, M)
    assert bench.check(config, 64) < 3e-6
    with pytest.raises(CandidateError, match=rf"at M = {M} .*element \({M - 1}, ") as refused:
        bench.check(config, M)
    assert refused.value.kind == "wrong"


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_benchmark_refuses_a_few_wrong_elements(damage, monkeypatch: pytest.MonkeyPatch) -> None:
    right = PROVIDERS["triton"]

    def damaged(case):
        call = right(case)

        def damaged_call(i):
            C = call(i)
            damage(C)
            return C

        return damaged_call

    monkeypatch.setattr(bench_measure, "PROVIDERS", {"triton": right, "damaged": damaged})
    environment = Environment.here(device_of(0).name, None)
    cells = bench_measure.measure_shape(2560, 1024, {512: ("triton", "damaged")}, environment, budget_ms=1.0)
    ((good, bad),) = [[replace(row, date="") for row in cell] for cell in cells]
    assert good.p50_us and not good.reason
    assert bad.p50_us is None
    assert bad.reason.startswith("wrong: ") and "element (511, " in bad.reason
