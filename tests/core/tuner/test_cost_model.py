"""The cost model: what it is told it learns, as far as ranking configs goes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from simulated_gpu import true_us
from tuning_journal import (
    EARLIER_PATH,
    H100,
    LARGE_SHAPES_PATH,
    PATH,
    Shape,
    Times,
    first_choice_losses,
    timings,
)
from tuning_journal import samples as real_samples
from tuning_runs import H200

from tilelang_gemm_wrapper.core import kernel_registry
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.cost_model import CostModel, Sample
from tilelang_gemm_wrapper.core.device import Device
from tilelang_gemm_wrapper.core.report import geomean

M_VALUES = (1, 16, 64, 256, 1024, 4096)


def samples(N: int, K: int) -> list[Sample]:
    """Simulated timings of all that suits each M."""
    space = list(kernel_registry.search_space(N, K, H200))
    return [
        (config, M, N, K, true_us(config, M, N, K, H200))
        for M in M_VALUES
        for config in space
        if kernel_registry.suits(config, M, N, H200)
    ]


def deviation(model: CostModel, rows: list[Sample]) -> float:
    """The median of the relative error."""
    return float(np.median([abs(model.predict(c, M, N, K) / us - 1) for c, M, N, K, us in rows]))


def test_fitting_on_two_shapes_sharpens_the_prediction_of_a_third() -> None:
    model, unseen = CostModel(H200), samples(4096, 2048)
    before = deviation(model, unseen)
    model.fit([*samples(2048, 2048), *samples(7168, 2304)])
    assert deviation(model, unseen) < 0.6 * before


def test_few_samples_or_none_of_ours_change_nothing() -> None:
    model, rows = CostModel(H200), samples(4096, 2048)
    before = [model.predict(c, M, N, K) for c, M, N, K, _ in rows]
    model.fit([])
    model.fit(rows[:20])
    model.fit([(KernelConfig("deep_gemm"), 64, 4096, 2048, 1.0)] * 1000)
    assert [model.predict(c, M, N, K) for c, M, N, K, _ in rows] == before


def test_nonsense_leaves_predictions_usable() -> None:
    generator = random.Random(1)
    rows = samples(4096, 2048)
    model = CostModel(H200)
    model.fit([(*row[:4], generator.uniform(1e-3, 1e4)) for row in rows])
    predicted = [model.predict(c, M, N, K) for c, M, N, K, _ in rows]
    assert np.isfinite(predicted).all()
    assert min(predicted) >= 0


@pytest.mark.parametrize(
    "device",
    [H200, Device("NVIDIA_Unheard_Of", "sm_90a", 100, 232448, 50 << 20, 0.0)],
    ids=["known", "of unknown memory"],
)
def test_every_config_has_a_prediction(device: Device) -> None:
    for config in kernel_registry.search_space(512, 384, device):
        assert 0 < CostModel(device).predict(config, 7, 512, 384) < 1e6


@pytest.mark.parametrize(
    ("path", "shapes", "mean", "worst"), [(LARGE_SHAPES_PATH, 16, 1.05, 1.3), (PATH, 28, 1.045, 1.4)]
)
def test_first_choice_on_a_shape_that_it_was_not_fitted_to(
    path: Path, shapes: int, mean: float, worst: float
) -> None:
    """Each shape of a real tuning run by a model fitted on the others."""

    def fitted_without(shape: Shape, times: Times) -> CostModel:
        model = CostModel(H100)
        model.fit(real_samples(times, {other for _, other in times} - {shape}))
        return model

    losses = first_choice_losses(fitted_without, timings(path))
    assert len({shape for _, shape in losses}) == shapes
    assert geomean(losses.values()) <= mean
    assert max(losses.values()) <= worst


def test_clusters_of_more_than_two_leave_sms_idle() -> None:
    """32 clusters of four, one CTA on an SM, are 128 CTAs for 132 SMs, and yet they run in two waves."""
    fits, exceeds = (
        KernelConfig("splitK", 128, columns, 128, stages, 256, 4) for columns, stages in ((96, 5), (80, 6))
    )
    measured = timings(EARLIER_PATH)[128, (2560, 9728)]
    predicted = {config: CostModel(H200).predict(config, 128, 2560, 9728) for config in (fits, exceeds)}
    assert measured[exceeds] > 1.5 * measured[fits]
    assert predicted[exceeds] > 1.3 * predicted[fits]
