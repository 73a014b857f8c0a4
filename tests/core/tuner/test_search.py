"""The search on one shape: which configs are compiled, and where more M are looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from simulated_gpu import true_us
from tuning_runs import H200

from tilelang_gemm_wrapper.core import kernel_registry
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.cost_model import CostModel
from tilelang_gemm_wrapper.core.tuner.bench import Timed
from tilelang_gemm_wrapper.core.tuner.candidates import first_candidates, more_candidates
from tilelang_gemm_wrapper.core.tuner.child import Outcome
from tilelang_gemm_wrapper.core.tuner.effort import EFFORTS
from tilelang_gemm_wrapper.core.tuner.entries import winner
from tilelang_gemm_wrapper.core.tuner.records import CellDone, Failure, Record, Timing
from tilelang_gemm_wrapper.core.tuner.search import (
    DEEP_GEMM,
    PEERS,
    PROBE_LOSS,
    ShapeRequest,
    ShapeSearch,
    probe_m,
)
from tilelang_gemm_wrapper.core.tuner.shape_times import ShapeTimes

N, K = 4096, 2048
SPACE = list(kernel_registry.search_space(N, K, H200))
M_VALUES = (1, 16, 64, 256, 1024)


class Child:
    """A child that answers at once, with simulated times and no process."""

    device = H200

    def __init__(self, failing: Sequence[KernelConfig] = ()) -> None:
        self.failing = failing
        self.asked: list[tuple[int, KernelConfig, float]] = []

    def open(self, N: int, K: int, m_max: int) -> dict[str, Any]:
        return {
            "floor_us": 1.7,
            "sm_clock_mhz": None,
            "temperature_c": None,
            "power_w": None,
            "warnings": [],
        }

    def measure(self, M: int, configs: Sequence[KernelConfig], budget_ms: float, rounds: int):
        for config in configs:
            self.asked.append((M, config, budget_ms))
            if config in self.failing:
                yield Outcome(config, kind="wrong", message="error 0.1")
            else:
                us = true_us(config, M, N, K, H200)
                yield Outcome(config, Timed(us, us, us, 5), 1.4e-6)


def search(
    child: Child,
    m_values: Sequence[int],
    configs: Sequence[KernelConfig],
    visit: str = "decide",
    known: Sequence[Record] = (),
    effort: str = "full",
) -> list[Record]:
    request = ShapeRequest(N, K, tuple(m_values), tuple(configs), EFFORTS[effort], visit, tuple(known))
    return list(ShapeSearch(request, child).run())


def probes_of(records: Sequence[Record]) -> set[int]:
    return {record.M for record in records if isinstance(record, CellDone) and record.probe}


def served(times: Mapping[int, Mapping[KernelConfig, float]], M: int) -> KernelConfig:
    return winner(times[min(m for m in times if m >= M)])


def test_no_m_in_between_is_left_where_a_choice_may_lose() -> None:
    wanted = (64, 128, 256, 1024, 4096)
    times = ShapeTimes(search(Child(), wanted, SPACE)).decided()
    for M in range(64, 4096, 37):
        suited = [config for config in SPACE if kernel_registry.suits(config, M, N, H200)]
        best_us = min(true_us(config, M, N, K, H200) for config in (*suited, *PEERS))
        served_us = true_us(served(times, M), M, N, K, H200)
        assert served_us <= 1.01 * PROBE_LOSS * best_us, f"M = {M}: {served(times, M)}"


def test_no_m_is_added_where_nothing_can_be_lost() -> None:
    assert not probes_of(search(Child(), (1, 8, 16), SPACE)), "decode is bound by the weights at any M"
    many = probes_of(search(Child(), (64, 4096), SPACE))
    assert 0 < len(many) < 0.75 * len(probe_m((64, 4096)))


class DeepGemmOf(Child):
    """DeepGEMM takes `us(M)`."""

    def __init__(self, us: Callable[[int], float]) -> None:
        super().__init__()
        self.us = us

    def measure(self, M: int, configs: Sequence[KernelConfig], budget_ms: float, rounds: int):
        for outcome in super().measure(M, configs, budget_ms, rounds):
            us = self.us(M)
            yield Outcome(DEEP_GEMM, Timed(us, us, us, 5)) if outcome.config == DEEP_GEMM else outcome


def test_a_peer_that_is_slow_in_between_does_not_serve_there() -> None:
    erratic = DeepGemmOf(lambda M: 100.0 if 2048 < M <= 2304 else 1.0)
    times = ShapeTimes(search(erratic, (1024, 4096), SPACE)).decided()
    for M in range(1025, 4096, 13):
        assert served(times, M).is_tilelang == (2048 < M <= 2304), M


def test_where_a_peer_leads_at_all_its_tiles_nothing_is_looked_at() -> None:
    assert not probes_of(search(DeepGemmOf(lambda M: 1.0), (64, 128, 1024), SPACE))


def test_few_tokens_are_explored_by_the_most_that_fill_their_tile() -> None:
    """All the same each has leaders to be timed again, and `full` explores each for itself."""
    few = (1, 3, 8, 12, 16, 24)
    for effort, explored in (("standard", {8, 16, 24}), ("full", set(few))):
        child = Child()
        records = search(child, few, SPACE, effort=effort)
        times = ShapeTimes(records)
        assert {M for M in few if any(c.is_tilelang for c in times.quick[M])} == explored
        assert all(len([c for c in times.decided()[M] if c.is_tilelang]) >= 3 for M in few)


def test_without_probes_only_the_wanted_m_are_timed() -> None:
    child = Child()
    search(child, M_VALUES, SPACE, effort="quick")
    assert {M for M, _, _ in child.asked} == set(M_VALUES)


def test_exploring_times_briefly_and_decides_nothing() -> None:
    child = Child()
    records = search(child, M_VALUES, SPACE[:40], visit="explore")
    assert {ms for _, _, ms in child.asked} == {EFFORTS["full"].quick_ms}
    assert not [record for record in records if isinstance(record, CellDone)]
    assert not ShapeTimes(records).decided()


def test_what_is_known_is_not_timed_again() -> None:
    known = search(Child(), M_VALUES, SPACE[:40], visit="explore")
    child = Child()
    search(child, M_VALUES, SPACE, known=known)
    timed = {(r.M, r.config) for r in known if isinstance(r, Timing)}
    brief = {(M, config) for M, config, ms in child.asked if ms == EFFORTS["full"].quick_ms}
    assert brief
    assert not brief & timed


def test_what_failed_at_one_m_is_not_tried_at_another() -> None:
    failing = [c for c in SPACE if kernel_registry.suits(c, 64, N, H200)][:3]
    child = Child(failing)
    records = search(child, M_VALUES, SPACE)
    for config in failing:
        assert [c for _, c, _ in child.asked].count(config) == 1
    assert {r.config for r in records if isinstance(r, Failure)} == set(failing)
    assert all(config not in times for times in ShapeTimes(records).decided().values() for config in failing)


def test_a_late_failure_takes_earlier_times_out() -> None:
    config = SPACE[0]
    cell = [Timing(N, K, 16, c, "final", us, us, us, 5, 0.0) for c, us in ((config, 1.0), (SPACE[1], 2.0))]
    times = ShapeTimes([*cell, CellDone(N, K, 16, "full", False)])
    assert winner(times.decided()[16]) == config
    times.add(Failure(N, K, 64, config, "wrong", "error 0.1"))
    assert times.decided() == {16: {SPACE[1]: 2.0}}


@pytest.mark.parametrize("effort", ["quick", "standard", "full"])
def test_what_is_compiled_suits_and_stays_within_the_effort(effort: str) -> None:
    model, most = CostModel(H200), EFFORTS[effort].kernels
    first = first_candidates(N, K, M_VALUES, H200, model, EFFORTS[effort])
    seen = ShapeTimes(search(Child(), M_VALUES, first, visit="explore"))
    more = more_candidates(N, K, M_VALUES, H200, model, EFFORTS[effort], seen)
    assert len({*first, *more}) == len(first) + len(more) <= most
    for config in (*first, *more):
        assert config in SPACE
        if effort != "full":
            assert any(kernel_registry.suits(config, M, N, H200) for M in M_VALUES)
    for M in M_VALUES:
        assert any(kernel_registry.suits(config, M, N, H200) for config in first), f"nothing for M = {M}"


def test_the_exhaustive_search_finds_the_optimum_at_every_m() -> None:
    times = ShapeTimes(search(Child(), M_VALUES, SPACE)).decided()
    for M in M_VALUES:
        suited = [config for config in SPACE if kernel_registry.suits(config, M, N, H200)]
        best = min(true_us(config, M, N, K, H200) for config in suited)
        assert times[M][winner(times[M])] <= 1.001 * best
