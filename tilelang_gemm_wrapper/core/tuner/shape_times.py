"""What is known of one (N, K), by M: the timings of a run, and what follows from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.tuner.effort import Effort
from tilelang_gemm_wrapper.core.tuner.records import CellDone, Failure, Record, Timing


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

    def best_of_tiles(self, M: int, within: float) -> list[KernelConfig]:
        """The fastest TileLang config of each tile at M, of tiles that reach `within` times the fastest."""
        times = {**self.quick[M], **self.final[M]}
        own = [config for config in times if config.is_tilelang and config not in self.failures]
        tiles: dict[tuple[int, int, int, bool], KernelConfig] = {}
        for config in sorted(own, key=lambda config: times[config]):
            tiles.setdefault(tile_of(config), config)
        best = list(tiles.values())
        return [config for config in best if times[config] <= within * times[best[0]]]


def tile_of(config: KernelConfig) -> tuple[int, int, int, bool]:
    """What decides into how many waves an M falls, and for which M a config is worth a look."""
    return config.tile_tokens, config.tile_weights, config.split_k, config.is_swap_ab
