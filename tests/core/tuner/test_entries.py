"""From timings to entries: the peers' margin, the fewest entries, and what merging keeps."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.config_entry import Entry
from tilelang_gemm_wrapper.core.config_loader import choose
from tilelang_gemm_wrapper.core.tuner.entries import SHARE, choose_entries, kept_m, merged, winner

N, K = 4096, 2048
OWN = [KernelConfig("swapAB", 64, tokens, 128, 4, 128) for tokens in (8, 16, 32)]
DEEP_GEMM, TRITON = KernelConfig("deep_gemm"), KernelConfig("triton")

Times = dict[int, dict[KernelConfig, float]]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({OWN[0]: 2.0, OWN[1]: 1.9}, OWN[1]),
        ({OWN[0]: 101.9, DEEP_GEMM: 100.0}, OWN[0]),
        ({OWN[0]: 102.0, DEEP_GEMM: 100.0}, DEEP_GEMM),
        ({OWN[0]: 103.0, OWN[1]: 101.0, DEEP_GEMM: 100.0, TRITON: 99.5}, OWN[1]),
        ({OWN[0]: 103.0, DEEP_GEMM: 100.0, TRITON: 99.5}, TRITON),
        ({OWN[0]: 100.0, DEEP_GEMM: 100.0}, OWN[0]),
        ({DEEP_GEMM: 3.0, TRITON: 2.9}, TRITON),
    ],
)
def test_a_peer_wins_only_by_two_per_cent(times: dict[KernelConfig, float], expected: KernelConfig) -> None:
    assert winner(times) == expected


def test_nothing_timed_has_no_winner() -> None:
    with pytest.raises(ValueError, match="no candidate was timed"):
        winner({})
    assert choose_entries({16: {}}, N, K) == []


M_VALUES = (1, 2, 4, 8, 16)
US = st.sampled_from([100.0, 100.5, 101.0, 101.5, 102.0, 103.0, 110.0])


def tables(configs: list[KernelConfig]) -> st.SearchStrategy[Times]:
    some = st.dictionaries(st.sampled_from(configs), US, min_size=1)
    return st.dictionaries(st.sampled_from(M_VALUES), some, min_size=1)


def costs_too_much(config: KernelConfig, times: dict[KernelConfig, float]) -> bool:
    return times.get(config, float("inf")) > SHARE * times[winner(times)]


def serves(at: tuple[int, ...], times: Times, kept: tuple[int, ...] = ()) -> bool:
    """Whether entries at just these M can serve every M, by trying each config."""
    for low, high in zip((0, *at), at, strict=False):
        served = [m for m in times if low < m <= high]
        if any(min(served) <= m < high for m in kept if served):
            return False
        if not any(not any(costs_too_much(c, times[m]) for m in served) for c in times[high]):
            return False
    return max(times) <= at[-1]


@given(tables([*OWN, DEEP_GEMM, TRITON]), st.sets(st.sampled_from((3, 6, 12, 20))))
def test_each_measured_m_is_served_within_a_per_cent_of_its_winner(times: Times, kept: set[int]) -> None:
    old = [Entry(M, KernelConfig("swapAB", 64, 64, 128, 4, 128), 1.0, 1.0) for M in sorted(kept)]
    file = merged(choose_entries(times, N, K, kept_m(old, list(times))), old, list(times))
    for M, measured in times.items():
        entry = choose(file, M)
        assert entry is not None
        assert not costs_too_much(entry.config, measured), f"M = {M} gets {entry}"


@given(tables(OWN), st.sets(st.sampled_from((3, 6, 12))))
@example({1: {OWN[0]: 100.0, OWN[1]: 101.0}, 2: {OWN[0]: 101.0, OWN[1]: 100.0}}, set())
def test_the_entries_are_the_fewest(times: Times, kept: set[int]) -> None:
    entries = choose_entries(times, N, K, sorted(kept))
    assert serves(tuple(entry.M for entry in entries), times, tuple(kept))
    for count in range(1, len(entries)):
        for at in combinations(sorted(times), count):
            assert not serves(at, times, tuple(kept)), f"{at} would do, but it took {entries}"


@given(tables([*OWN, DEEP_GEMM, TRITON]))
@example({1: {OWN[0]: 101.5, DEEP_GEMM: 100.0}, 2: {OWN[0]: 110.0, DEEP_GEMM: 100.0}})
def test_a_peer_serves_only_m_that_it_wins(times: Times) -> None:
    entries = choose_entries(times, N, K)
    for M, measured in times.items():
        entry = choose(entries, M)
        assert entry is not None
        assert entry.config.is_tilelang or not winner(measured).is_tilelang


def test_an_entry_tells_its_time() -> None:
    (entry,) = choose_entries({16: {OWN[0]: 4.0}}, N, K)
    assert (entry.M, entry.config) == (16, OWN[0])
    assert entry == Entry(16, OWN[0], 0.004, 67.1)


def test_merging_keeps_what_was_not_measured() -> None:
    old = [Entry(M, OWN[2], 1.0, 1.0) for M in (1, 8, 16, 333)]
    new = [Entry(M, OWN[0], 0.5, 2.0) for M in (16, 64)]
    after = merged(new, old, touched=[8, 16, 64])  # 8 was measured and shares the entry of 16
    assert after == [old[0], new[0], new[1], old[3]]
