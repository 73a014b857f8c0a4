"""The cells that the exhaustive check draws, and what it reads back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES
from tilelang_gemm_wrapper.core.tuner.driver import ShapeResult
from tilelang_gemm_wrapper.core.tuner.records import Failure, Timing
from tilelang_gemm_wrapper.core.tuner.report import write_csv
from tilelang_gemm_wrapper.models import PUBLIC_M, PUBLIC_SHAPES

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def check_choices(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import check_choices

    yield check_choices
    sys.modules.pop("check_choices")


def test_cells_are_as_many_as_asked_off_the_grid_and_the_same_for_a_seed(check_choices):
    cells = check_choices.random_cells(list(PUBLIC_SHAPES), 5, 200, 0)
    assert cells == check_choices.random_cells(list(PUBLIC_SHAPES), 5, 200, 0)
    assert cells != check_choices.random_cells(list(PUBLIC_SHAPES), 5, 200, 1)
    assert set(cells) <= set(PUBLIC_SHAPES)
    assert [len(set(m_values)) for m_values in cells.values()] == [40] * 5
    for m_values in cells.values():
        assert not set(m_values) & set(PUBLIC_M)
        assert 1 < min(m_values) < 64
        assert 1024 < max(m_values) < 8192


@pytest.mark.parametrize(("count", "cells"), [(0, 200), (26, 200), (5, 4), (1, 8170)])
def test_cells_that_cannot_be_drawn_are_refused(check_choices, count, cells):
    with pytest.raises(ValueError, match=f"{cells} cells of {count} shapes: take 1 to 25 shapes"):
        check_choices.random_cells(list(PUBLIC_SHAPES), count, cells, 0)


def test_only_timed_configs_of_ours_off_the_grid_are_read(check_choices, tmp_path):
    N, K = PUBLIC_SHAPES[0]
    ours, other = KernelConfig("swapAB", 64, 8, num_stages=4, threads=128), KernelConfig("base", 64, 64)
    records = (
        Timing(N, K, 9, ours, "quick", 4.0, 5.0, 6.0, 2, 1e-6),
        Timing(N, K, 8, ours, "quick", 4.0, 5.0, 6.0, 2, 1e-6),
        Timing(N, K, 9, KernelConfig("deep_gemm"), "quick", 1.0, 1.0, 1.0, 2, 1e-6),
        Failure(N, K, 9, other, "wrong", "error 0.1"),
    )
    path = tmp_path / "explored.csv"
    write_csv(path, [ShapeResult(N, K, KNOWN_DEVICES["NVIDIA_H200"], records, None, ())])
    assert check_choices.read_exhaustive(path) == {(N, K): {9: {ours: 5.0}}}
