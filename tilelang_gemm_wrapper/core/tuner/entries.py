"""From timings to a file's entries: who wins an M, and which M need an entry of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.config_entry import Entry
from tilelang_gemm_wrapper.core.results import gemm_flops

PEER_MARGIN = 1.02  # DeepGEMM or Triton take an entry where they are faster than ours by this
SHARE = 1.01  # an entry may serve smaller M too where it costs no more than this against their own best

Times = Mapping[int, Mapping[KernelConfig, float]]  # M -> config -> µs, of one interleaved timing each


def winner(times: Mapping[KernelConfig, float]) -> KernelConfig:
    """The config for an M. Raises ValueError where nothing was timed."""
    if not times:
        raise ValueError("no candidate was timed, so none can win; see the failures in the journal")
    fastest = min(times, key=lambda config: times[config])
    own = [config for config in times if config.is_tilelang]
    if fastest.is_tilelang or not own:
        return fastest
    best_own = min(own, key=lambda config: times[config])
    return best_own if times[best_own] < PEER_MARGIN * times[fastest] else fastest


def choose_entries(times: Times, N: int, K: int, kept: Sequence[int] = ()) -> list[Entry]:
    """The fewest entries with which no measured M is slower than its own winner by more than `SHARE`.

    A call with M takes the entry of the smallest tuned M at or above it. So each entry is grown downwards,
    from the largest M, as far as one config serves; of several that reach as far the fastest is taken.
    `kept` are M whose entries stay in the file, see `merged`: they would take the calls of what lies below
    them, so no entry serves M on both sides of one.
    """
    entries: list[Entry] = []
    descending: Sequence[int] = sorted((M for M in times if times[M]), reverse=True)
    at = 0
    while at < len(descending):
        M = descending[at]
        floor = max((m for m in kept if m < M), default=0)
        below = [m for m in descending[at:] if m > floor]
        reach = {config: _reach(config, below, times) for config in times[M]}
        config = max(reach, key=lambda c: (reach[c], -times[M][c]))
        entries.append(entry(M, config, times[M][config], N, K))
        at += reach[config]
    return entries[::-1]


def entry(M: int, config: KernelConfig, us: float, N: int, K: int) -> Entry:
    return Entry(M, config, round(us / 1e3, 6), round(gemm_flops(M, N, K) / us / 1e6, 1))


def _reach(config: KernelConfig, descending: Sequence[int], times: Times) -> int:
    """How many of the M, from the first downwards, `config` serves as well as their winners, nearly."""
    count = 0
    for M in descending:
        best = winner(times[M])
        # A peer in the place of a kernel of ours that is as fast could be far slower at an M in between.
        serves = config.is_tilelang or not best.is_tilelang
        if not serves or times[M].get(config, float("inf")) > SHARE * times[M][best]:
            break
        count += 1
    return count


def merged(tuned: Sequence[Entry], before: Sequence[Entry], touched: Sequence[int]) -> list[Entry]:
    """`tuned`, and of `before` the entries of M that this run did not measure."""
    kept = set(kept_m(before, touched))
    return sorted([*tuned, *(old for old in before if old.M in kept)], key=lambda one: one.M)


def kept_m(before: Sequence[Entry], touched: Sequence[int]) -> list[int]:
    """The M of `before` whose entries stay: those that this run did not measure."""
    return [old.M for old in before if old.M not in touched]
