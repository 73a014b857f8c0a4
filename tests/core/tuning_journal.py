"""The timings of real tuning runs (28 shapes on an H100), for tests of what predicts them."""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import pytest
from published_results import RESULTS

from tilelang_gemm_wrapper.core import kernel_registry
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.cost_model import CostModel
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES
from tilelang_gemm_wrapper.core.tuner.journal import read_records
from tilelang_gemm_wrapper.core.tuner.records import Timing
from tilelang_gemm_wrapper.models import PUBLIC_M

PATH = Path("benchmarks/results/NVIDIA_H100_80GB_HBM3/trials/51_tuning_journal.jsonl.xz")
# The run before: the 16 of these shapes that have 10 million weights or more.
LARGE_SHAPES_PATH = Path("benchmarks/results/NVIDIA_H100_80GB_HBM3/trials/39_tuning_journal.jsonl.xz")
EARLIER_PATH = Path("benchmarks/results/NVIDIA_H200/trials/10_tuning_journal.jsonl.xz")
H100 = KNOWN_DEVICES["NVIDIA_H100_80GB_HBM3"]
LEAST_TIMED = 8  # with fewer candidates nothing is chosen

Shape = tuple[int, int]
Times = dict[tuple[int, Shape], dict[KernelConfig, float]]


@cache
def timings(path: Path = PATH) -> Times:
    """µs by (M, (N, K)) and TileLang config, of the configs that a tuner would try today."""
    if not RESULTS.is_dir():
        pytest.skip("the journals are in the repository alone, not in the sdist")
    times: Times = {}
    with lzma.open(Path(__file__).resolve().parents[2] / path) as lines:
        for record in read_records(lines):
            if isinstance(record, Timing) and record.config in _search_space(record.N, record.K):
                cell = times.setdefault((record.M, (record.N, record.K)), {})
                cell[record.config] = record.p50_us
    return times


@cache
def _search_space(N: int, K: int) -> frozenset[KernelConfig]:
    return frozenset(kernel_registry.search_space(N, K, H100))


def samples(times: Times, shapes: Iterable[Shape]) -> list[tuple[KernelConfig, int, int, int, float]]:
    """As `CostModel.fit` takes them."""
    wanted = set(shapes)
    return [
        (config, M, *shape, us)
        for (M, shape), cell in times.items()
        if shape in wanted
        for config, us in cell.items()
    ]


def first_choice_losses(
    model_for: Callable[[Shape, Times], CostModel], times: Times
) -> dict[tuple[int, Shape], float]:
    """How much longer than the fastest config the one takes that the model puts first, for every public M."""
    models = {shape: model_for(shape, times) for shape in {shape for _, shape in times}}
    losses = {}
    for (M, shape), cell in times.items():
        if M in PUBLIC_M and len(cell) >= LEAST_TIMED:
            model = models[shape]
            first = min(cell, key=lambda config: model.predict(config, M, *shape))
            losses[M, shape] = cell[first] / min(cell.values())
    return losses
