"""The search on one weight shape: what is timed, for how long, and where more M are looked at.

Two visits to the GPU, with compiling in between: `explore` times every first candidate briefly; `decide`
times those that explore made promising, then the leaders again with the peers, and last looks between the
wanted M, wherever what a call there would be served may lose to something else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Literal

from tilelang_gemm_wrapper.core import kernel_registry
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.timing import MIN_ROUNDS
from tilelang_gemm_wrapper.core.tuner.child import Child
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
from tilelang_gemm_wrapper.core.tuner.shape_times import ShapeTimes

DEEP_GEMM = KernelConfig("deep_gemm")
TRITON = KernelConfig("triton")
PEERS = (DEEP_GEMM, TRITON)
PROBE_LOSS = 1.03  # what a choice may cost at an M in between, against that M's own best
_TOKEN_TILE = 64  # where M is large: M that need equally many of these share the tiles of every kernel
_LEAST_TOKENS = 8  # where it is small: in the smallest tile
_PROBES_AN_OCTAVE = 16  # in between
_WORTH_PROBING = 1.5  # times the fastest: further off a tile is at neither end, if it is best in between
_QUICK_ROUNDS = 2  # replays: enough to see who leads
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


def probe_m(m_values: Sequence[int]) -> list[int]:
    """The M between the wanted ones that `decide` may look at."""
    between, last = [], max(m_values)
    M = _next_probe(min(m_values))
    while last > M:
        if M not in m_values:
            between.append(M)
        M = _next_probe(M)
    return between


def _next_probe(M: int) -> int:
    octave = 1 << M.bit_length() - 1
    step = min(max(_LEAST_TOKENS, octave // _PROBES_AN_OCTAVE), _TOKEN_TILE)
    return (M // step + 1) * step


def deep_gemm_m(m_values: Sequence[int]) -> list[int]:
    """Those of `probe_m` at which DeepGEMM is timed in any case: where it may pick other tiles."""
    return [M for M in probe_m(m_values) if M % _TOKEN_TILE == 0]


class ShapeSearch:
    """One visit of one shape to one GPU; yields records as they become known."""

    def __init__(self, request: ShapeRequest, child: Child) -> None:
        self._request = request
        self._child = child
        self._times = ShapeTimes(request.known)
        self._device = child.device
        self._probes = probe_m(request.m_values)

    def run(self) -> Iterator[Record]:
        request = self._request
        todo = [M for M in request.m_values if not self._times.is_done(M, request.effort)]
        opened = self._child.open(request.N, request.K, max(request.m_values))
        yield ShapeConditions(request.N, request.K, **{**opened, "warnings": tuple(opened["warnings"])})
        for M in sorted(todo, reverse=True):
            if self._explored_as(M) == M:
                yield from self._measure(M, self._untimed(request.configs, M), "quick")
            if request.visit == "decide":
                yield from self._decide(M)
        if request.visit == "decide" and request.effort.probes:
            for M in deep_gemm_m(request.m_values):
                yield from self._measure(M, self._untimed([DEEP_GEMM], M), "quick")
            for low, high in pairwise(sorted(request.m_values)):
                yield from self._probe(low, high)

    def _untimed(self, configs: Iterable[KernelConfig], M: int) -> list[KernelConfig]:
        return [c for c in configs if c not in self._times.quick[M] and self._may_run(c, M)]

    def _explored_as(self, M: int) -> int:
        """The wanted M whose brief timings say who leads at M: few tokens fill one tile or another alike."""
        if self._request.effort.every_m:
            return M
        tile = -(-M // _LEAST_TOKENS)
        return max([M, *(m for m in self._request.m_values if -(-m // _LEAST_TOKENS) == tile)])

    def _decide(self, M: int, probe: bool = False) -> Iterator[Record]:
        """Time the leaders again, with the peers, the file's choice and the next larger M's winner."""
        leaders = self._times.best_quick(self._explored_as(M), self._request.effort.finalists)
        decided = self._times.decided()
        larger = [m for m in decided if m > M]
        beside = [winner(decided[min(larger)])] if larger else []
        beside += [config for m, config in self._request.previous if m == M]
        suited = [c for c in dict.fromkeys([*leaders, *beside, *PEERS]) if self._may_run(c, M)]
        yield from self._measure(M, suited, "final")
        done = CellDone(self._request.N, self._request.K, M, self._request.effort.name, probe)
        self._times.add(done)
        yield done

    def _may_run(self, config: KernelConfig, M: int) -> bool:
        return config not in self._times.failures and (
            not config.is_tilelang or kernel_registry.suits(config, M, self._request.N, self._device)
        )

    def _probe(self, low: int, high: int) -> Iterator[Record]:
        """Look between two decided M until no choice there can cost more than `PROBE_LOSS`."""
        decided = self._times.decided()
        if low not in decided or high not in decided:
            return
        between = [M for M in self._probes if low < M < high]
        risky = [M for M in between if self._may_lose(M, decided[low], high, decided[high]) > PROBE_LOSS]
        if not risky:
            return
        middle = risky[len(risky) // 2]
        if not self._times.is_done(middle, self._request.effort):
            # What is best in between may be slow at both ends: tiles fill the SMs' waves each at its own M.
            tiles = dict.fromkeys(
                config for end in (low, high) for config in self._times.best_of_tiles(end, _WORTH_PROBING)
            )
            yield from self._measure(middle, self._untimed(tiles, middle), "quick")
            yield from self._decide(middle, probe=True)
        yield from self._probe(low, middle)
        yield from self._probe(middle, high)

    def _may_lose(
        self, M: int, at_low: Mapping[KernelConfig, float], high: int, at_high: Mapping[KernelConfig, float]
    ) -> float:
        """At most how much longer a call with M takes on what serves `high` than on the best for it.

        Kernels take no less time at a larger M, so both ends bound them; but DeepGEMM, which picks its tiles
        by M, may be far slower or faster than at either end: it has been timed.
        """
        full = -(-M // _TOKEN_TILE) * _TOKEN_TILE
        deep_gemm_us = (self._times.quick[full] if full < high else at_high).get(DEEP_GEMM, float("inf"))
        served = winner(at_high)
        served_us = deep_gemm_us if served == DEEP_GEMM else at_high[served]
        others_us = min((us for c, us in at_low.items() if c != DEEP_GEMM), default=float("inf"))
        return served_us / min(others_us, deep_gemm_us, served_us)

    def _measure(self, M: int, configs: Sequence[KernelConfig], stage: Stage) -> Iterator[Record]:
        request = self._request
        effort = request.effort
        sampling = (effort.quick_ms, _QUICK_ROUNDS) if stage == "quick" else (effort.final_ms, MIN_ROUNDS)
        for start in range(0, len(configs), _TIMED_TOGETHER):
            together = configs[start : start + _TIMED_TOGETHER]
            for outcome in self._child.measure(M, together, *sampling):
                record: Record
                if outcome.timed is None:
                    assert outcome.kind is not None
                    record = Failure(request.N, request.K, M, outcome.config, outcome.kind, outcome.message)
                else:
                    spans = asdict(outcome.timed)
                    record = Timing(
                        request.N, request.K, M, outcome.config, stage, **spans, error=outcome.error
                    )
                self._times.add(record)
                yield record
