"""The accept test on a GPU: every right kernel passes, kernels with a few wrong elements do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tilelang_gemm_wrapper.core import bench_measure
from tilelang_gemm_wrapper.core.bench_providers import PROVIDERS
from tilelang_gemm_wrapper.core.compile_cache import CompileJob, compile_many
from tilelang_gemm_wrapper.core.conditions import record_conditions
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.device import device_of
from tilelang_gemm_wrapper.core.environment import Environment
from tilelang_gemm_wrapper.core.tuner.bench import CandidateError, GpuBench

M, N, K = 2048, 4096, 1024  # 8 million results
SMALL_M = 128  # half a million
KERNELS = [
    KernelConfig("base", 128, 128, 128, 4, 256),
    KernelConfig("swapAB", 64, 16, 128, 6, 384),
    KernelConfig("splitK", 64, 64, 128, 4, 128, 2),
    KernelConfig("splitK_swapAB", 64, 16, 128, 4, 256, 4),
    KernelConfig("deep_gemm"),
    KernelConfig("triton"),
]


def flip_one_sign(C: torch.Tensor) -> None:
    C[C.shape[0] // 3, C.shape[1] // 5].neg_()


def leave_24_zeros(C: torch.Tensor) -> None:
    C[-1, :24] = 0


def take_a_neighbour(C: torch.Tensor) -> None:
    """As a lane that stores its two values in the wrong order."""
    C[-1, -2:] = C[-1, -2:].flip(0)


def double_a_scale_block(C: torch.Tensor) -> None:
    C[5, 128:256].mul_(2)


FAULTS = [flip_one_sign, leave_24_zeros, take_a_neighbour, double_a_scale_block]


class PlantedBench(GpuBench):
    """The tuner's bench, with a fault in what every candidate writes."""

    fault: Callable[[torch.Tensor], None] | None = None

    def launcher(self, config: KernelConfig):
        kernel = super().launcher(config)

        def launch(A, A_scale, B, B_scale, C):
            kernel(A, A_scale, B, B_scale, C)
            if self.fault is not None:
                self.fault(C)

        return launch


@pytest.fixture(scope="module")
def bench() -> PlantedBench:
    device = device_of(0)
    jobs = [CompileJob.on(N, K, config, device) for config in KERNELS if config.is_tilelang]
    assert not compile_many(jobs)
    bench = PlantedBench()
    bench.open(N, K, M)
    return bench


@pytest.mark.parametrize("config", KERNELS, ids=lambda config: config.kernel_type)
@pytest.mark.parametrize("tokens", [SMALL_M, M])
def test_a_right_kernel_passes_the_tuner(bench, config, tokens):
    bench.fault = None
    bench.check(config, tokens)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("tokens", [SMALL_M, M])
def test_the_tuner_refuses_a_few_wrong_elements(bench, fault, tokens):
    bench.fault = fault
    with pytest.raises(CandidateError) as refusal:
        bench.check(KERNELS[0], tokens)
    assert refusal.value.kind == "wrong"


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_the_benchmark_gives_wrong_kernels_no_time(fault, monkeypatch):
    def planted(case):
        call = PROVIDERS["triton"](case)

        def faulty(i: int) -> torch.Tensor:
            C = call(i)
            if fault is not None:
                fault(C)
            return C

        return faulty

    names = ("tilelang_gemm", "deep_gemm", "cublas", "planted")
    monkeypatch.setitem(bench_measure.PROVIDERS, "planted", planted)
    environment = Environment.here(device_of(0).name, record_conditions().driver)
    (rows,) = bench_measure.measure_shape(N, K, {SMALL_M: names}, environment, budget_ms=1.0)
    by_name = {row.provider: row for row in rows}
    assert not any(by_name[name].reason for name in names[:-1])
    assert by_name["planted"].reason.startswith("wrong") == (fault is not None)
    assert (by_name["planted"].p50_us is None) == (fault is not None)
