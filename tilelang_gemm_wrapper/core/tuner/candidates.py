"""Which configs of the search space a run compiles for one (N, K), and in which order.

First those that the cost model likes, the best of each M in turn; then, with these timed, the neighbours of
what led.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tilelang_gemm_wrapper.core import kernel_registry
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.cost_model import CostModel
from tilelang_gemm_wrapper.core.device import Device
from tilelang_gemm_wrapper.core.tuner.effort import Effort
from tilelang_gemm_wrapper.core.tuner.shape_times import ShapeTimes, tile_of

_HANDICAP = 0.2  # of each further config of a tile, against the first of other tiles
_NEIGHBOURS_OF = 2  # the fastest configs of an M whose neighbours are worth compiling


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
    """What to compile next: neighbours of each M's fastest so far, those that the model likes best."""
    tried = {config for times in seen.quick.values() for config in times} | seen.failures.keys()
    room = effort.kernels - len([config for config in tried if config.is_tilelang])
    untried = [config for config in kernel_registry.search_space(N, K, device) if config not in tried]
    cells = []
    for M in m_values:
        leaders = seen.best_quick(M, _NEIGHBOURS_OF)
        near = [config for config in untried if any(_are_neighbours(config, one) for one in leaders)]
        cells.append((M, [config for config in near if kernel_registry.suits(config, M, N, device)]))
    found = list(dict.fromkeys(config for _, configs in cells for config in configs))
    return most_of(found, cells, model, N, K, max(0, room))


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
    ranked = [_varied({c: model.predict(c, M, N, K) for c in suited}) for M, suited in cells]
    chosen: dict[KernelConfig, None] = {}
    for rank in range(max(map(len, ranked), default=0)):
        for order in ranked:
            if rank < len(order) and len(chosen) < most:
                chosen.setdefault(order[rank])
    return list(chosen)


def _varied(predicted: Mapping[KernelConfig, float]) -> list[KernelConfig]:
    """Fastest first, but one more config of a tile has to promise more than the first of another tile.

    The model errs by tile: what it says of two configs with one tile is wrong, or right, for both.
    """
    of_tile: Counter[tuple[int, int, int, bool]] = Counter()
    handicapped = {}
    for config in sorted(predicted, key=lambda c: predicted[c]):
        handicapped[config] = predicted[config] * (1 + _HANDICAP * of_tile[tile_of(config)])
        of_tile[tile_of(config)] += 1
    return sorted(handicapped, key=lambda c: handicapped[c])


def _are_neighbours(one: KernelConfig, other: KernelConfig) -> bool:
    """Whether they differ in one thing: a side of the tile, which operand comes first, the pipeline, or the
    split of K."""
    return sum(a != b for a, b in zip(_traits(one), _traits(other), strict=True)) == 1


def _traits(config: KernelConfig) -> tuple[object, ...]:
    # Which rings are possible depends on the threads, so these two change together.
    pipeline = config.threads, config.num_stages
    return config.tile_tokens, config.tile_weights, config.is_swap_ab, pipeline, config.split_k
