"""The search on one weight shape: what is timed, for how long, and where more M are looked at.

Two visits to the GPU, with compiling in between: `explore` times every first candidate briefly; `decide`
times those that explore made promising, then the leaders again with the peers, and probes M between the
wanted ones where the kernel changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from tilelang_gemm_wrapper.core import kernel_registry
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.device import Device
from tilelang_gemm_wrapper.core.tuner.child import Child
from tilelang_gemm_wrapper.core.tuner.cost_model import CostModel
from tilelang_gemm_wrapper.core.tuner.effort import Effort
from tilelang_gemm_wrapper.core.tuner.entries import winner
from tilelang_gemm_wrapper.core.tuner.records import (
    CellDone,
    Failure,
    Record,
    ShapeConditions,
    Stage,
    Timing,
)

PEERS = (KernelConfig("deep_gemm"), KernelConfig("triton"))
PROBE_LOSS = 1.03  # what a choice may cost at an M in between, against that M's own best
_PROBE_DEPTH = 2
_NARROWEST = 8  # an M within so many of the next shares its tiles
_TIMED_TOGETHER = 24  # graphs that are captured and interleaved at one time


@dataclass(frozen=True, slots=True)
class ShapeRequest:
    """One visit of a shape to a GPU. `known`: what the journal already has of it; `previous`: what the file
    in place names for each M, timed beside the new ones."""

    N: int
    K: int
    m_values: tuple[int, ...]
    configs: tuple[KernelConfig, ...]
    effort: Effort
    visit: Literal["explore", "decide"]
    known: tuple[Record, ...] = ()
    previous: tuple[tuple[int, KernelConfig], ...] = ()


class ShapeTimes:
    """The records of one (N, K), by M and stage."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.quick: dict[int, dict[KernelConfig, float]] = defaultdict(dict)
        self.final: dict[int, dict[KernelConfig, float]] = defaultdict(dict)
        self.failures: dict[KernelConfig, Failure] = {}
        self.done: dict[int, CellDone] = {}
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        if isinstance(record, Timing):
            stage = self.quick if record.stage == "quick" else self.final
            stage[record.M][record.config] = record.p50_us
        elif isinstance(record, Failure):
            self.failures[record.config] = record
        elif isinstance(record, CellDone):
            self.done[record.M] = record

    def decided(self) -> dict[int, dict[KernelConfig, float]]:
        """The final times of each M that was searched to its end, without what later proved wrong."""
        times = {
            M: {config: us for config, us in self.final[M].items() if config not in self.failures}
            for M in self.done
        }
        return {M: by_config for M, by_config in times.items() if by_config}

    def is_done(self, M: int, effort: Effort) -> bool:
        """Whether M was searched to its end, and as thoroughly as `effort`."""
        return M in self.done and self.done[M].effort == effort.name

    def best_quick(self, M: int, count: int) -> list[KernelConfig]:
        times = self.quick[M]
        return sorted((c for c in times if c not in self.failures), key=lambda c: times[c])[:count]


def first_candidates(
    N: int, K: int, m_values: Sequence[int], device: Device, model: CostModel, effort: Effort
) -> list[KernelConfig]:
    """What to compile first: the promising two thirds of what the effort allows."""
    space = list(kernel_registry.search_space(N, K, device))
    cells = [(M, [c for c in space if kernel_registry.suits(c, M, N, device)]) for M in m_values]
    return most_of(space, cells, model, N, K, effort.kernels * 2 // 3)


def more_candidates(
    N: int,
    K: int,
    m_values: Sequence[int],
    device: Device,
    model: CostModel,
    effort: Effort,
    seen: ShapeTimes,
) -> list[KernelConfig]:
    """What to compile next: neighbours of the winners so far, those that the model likes best."""
    tried = {config for times in seen.quick.values() for config in times} | seen.failures.keys()
    room = effort.kernels - len([config for config in tried if config.is_tilelang])
    winners = {M: best[0] for M in m_values if (best := seen.best_quick(M, 1))}
    near: dict[KernelConfig, float] = {}
    for config in kernel_registry.search_space(N, K, device):
        if config in tried:
            continue
        # How the model compares it with the winner whose neighbour it is, at the M where it looks best.
        ratios = [
            model.predict(config, M, N, K) / model.predict(best, M, N, K)
            for M, best in winners.items()
            if _are_neighbours(config, best) and kernel_registry.suits(config, M, N, device)
        ]
        if ratios:
            near[config] = min(ratios)
    return sorted(near, key=lambda config: near[config])[: max(0, room)]


def most_of(
    space: Sequence[KernelConfig],
    cells: Sequence[tuple[int, Sequence[KernelConfig]]],
    model: CostModel,
    N: int,
    K: int,
    most: int,
) -> list[KernelConfig]:
    """At most `most` of `space`: the model's first choice of each M, then the second of each, and so on."""
    if len(space) <= most:
        return list(space)
    ranked = [sorted(suited, key=lambda c: model.predict(c, M, N, K)) for M, suited in cells]
    chosen: dict[KernelConfig, None] = {}
    for rank in range(max(map(len, ranked), default=0)):
        for order in ranked:
            if rank < len(order) and len(chosen) < most:
                chosen.setdefault(order[rank])
    return list(chosen)


def _are_neighbours(one: KernelConfig, other: KernelConfig) -> bool:
    """Whether they differ in one thing: a side of the tile, the threads, the ring, or the split of K."""
    if one.is_swap_ab != other.is_swap_ab:
        return False
    fields = ("block_M", "block_N", "threads", "num_stages", "split_k")
    return sum(getattr(one, name) != getattr(other, name) for name in fields) == 1


def probe_m(m_values: Sequence[int]) -> list[int]:
    """The M between the wanted ones that `decide` may look at first: for compiling the peers ahead."""
    ordered = sorted(m_values)
    return [(low + high) // 2 for low, high in pairwise(ordered) if high - low > _NARROWEST]


class ShapeSearch:
    """One visit of one shape to one GPU; yields records as they become known."""

    def __init__(self, request: ShapeRequest, child: Child) -> None:
        self._request = request
        self._child = child
        self._times = ShapeTimes(request.known)
        self._device = child.device
        self._peers: list[KernelConfig] = list(PEERS)

    def run(self) -> Iterator[Record]:
        request = self._request
        todo = [M for M in request.m_values if not self._times.is_done(M, request.effort)]
        opened = self._child.open(request.N, request.K, max(request.m_values))
        yield ShapeConditions(request.N, request.K, **{**opened, "warnings": tuple(opened["warnings"])})
        for M in sorted(todo, reverse=True):
            yield from self._measure(M, self._untimed(M), "quick")
            if request.visit == "decide":
                yield from self._decide(M)
        if request.visit == "decide" and request.effort.probes:
            ordered = sorted(request.m_values)
            for low, high in pairwise(ordered):
                yield from self._probe(low, high, _PROBE_DEPTH)

    def _untimed(self, M: int) -> list[KernelConfig]:
        return [
            config
            for config in self._request.configs
            if config not in self._times.quick[M]
            and kernel_registry.suits(config, M, self._request.N, self._device)
        ]

    def _decide(self, M: int) -> Iterator[Record]:
        """Time the leaders again, with the peers, the file's choice and the next larger M's winner."""
        leaders = self._times.best_quick(M, self._request.effort.finalists)
        decided = self._times.decided()
        larger = [m for m in decided if m > M]
        beside = [winner(decided[min(larger)])] if larger else []
        beside += [config for m, config in self._request.previous if m == M]
        yield from self._finish(M, [*leaders, *beside], probe=False)

    def _probe(self, low: int, high: int, depth: int) -> Iterator[Record]:
        """Look at the M half-way, and closer where the choice there costs more than `PROBE_LOSS`."""
        middle = (low + high) // 2
        if high - low <= _NARROWEST or depth == 0:
            return
        decided = self._times.decided()
        if low not in decided or high not in decided:
            return
        if not self._times.is_done(middle, self._request.effort):
            ends = [c for m in (low, high) for c in sorted(decided[m], key=lambda c: decided[m][c])[:3]]
            served = winner(decided[high])
            yield from self._finish(middle, [served, *ends], probe=True)
            decided = self._times.decided()
        at_middle = decided.get(middle)
        if not at_middle:
            return
        served_us = at_middle.get(winner(decided[high]))
        # A peer picks its own tiles by M, now and then badly: both ends say little of what lies between.
        peer = not winner(decided[high]).is_tilelang
        if peer or served_us is None or served_us > PROBE_LOSS * min(at_middle.values()):
            yield from self._probe(low, middle, depth - 1)
            yield from self._probe(middle, high, depth - 1)

    def _finish(self, M: int, configs: Sequence[KernelConfig], probe: bool) -> Iterator[Record]:
        request = self._request
        suited = [
            c
            for c in dict.fromkeys([*configs, *self._peers])
            if c not in self._times.failures
            and (not c.is_tilelang or kernel_registry.suits(c, M, request.N, self._device))
        ]
        yield from self._measure(M, suited, "final")
        done = CellDone(request.N, request.K, M, request.effort.name, probe)
        self._times.add(done)
        yield done

    def _measure(self, M: int, configs: Sequence[KernelConfig], stage: Stage) -> Iterator[Record]:
        request = self._request
        budget_ms = request.effort.quick_ms if stage == "quick" else request.effort.final_ms
        waiting = [config for config in configs if config not in self._times.failures]
        for start in range(0, len(waiting), _TIMED_TOGETHER):
            together = waiting[start : start + _TIMED_TOGETHER]
            for outcome in self._child.measure(M, together, budget_ms):
                record: Record
                if outcome.timed is None:
                    assert outcome.kind is not None
                    record = Failure(request.N, request.K, M, outcome.config, outcome.kind, outcome.message)
                else:
                    timed = outcome.timed
                    record = Timing(
                        request.N,
                        request.K,
                        M,
                        outcome.config,
                        stage,
                        timed.p20_us,
                        timed.p50_us,
                        timed.p80_us,
                        timed.replays,
                        outcome.error,
                    )
                self._times.add(record)
                yield record
