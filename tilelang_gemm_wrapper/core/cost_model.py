"""How long a config will take: a rough model that says which configs to try first, or to take untried.

Time is a sum of non-negative terms: launch, DRAM, the K steps one after the other in each wave, bytes and
promotion through each SM, ring refills, the reduction of split K, and the sum of what groups of warpgroups
have. The weights are fitted by least squares on the relative error. `PRIOR` was fitted on a tuning run of 28
shapes on an H100, whose journal is kept in benchmarks/results/NVIDIA_H100_80GB_HBM3/trials; every shape that
a run finishes refits them for the next.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tilelang_gemm_wrapper.core.config import SCALE_BLOCK, KernelConfig
from tilelang_gemm_wrapper.core.device import Device
from tilelang_gemm_wrapper.core.kernels.resources import shared_memory_bytes, step_groups
from tilelang_gemm_wrapper.core.kernels.resources import waves as row_waves

PRIOR = (0.708, 0.67, 0.0249, 0.581, 0.0332, 0.0, 0.104, 0.461, 0.796, 0.3, 0.0468, 0.259, 0.119)
# Nobody timed an Ada chip: the weights of earlier Hopper kernels, whose split of K had a second pass over the
# partial tiles, as Ada's has.
ADA_PRIOR = (0.1, 0.48, 0.028, 0.67, 0.045, 0.007, 0.16, 0.61, 1.2, 1.27, 0.0, 0.0, 0.0)
_REGISTERS = 65536
_THREADS = 2048
_UNKNOWN_DRAM = 1e12  # bytes/s where the data sheet's figure is not known
_FIT_ROUNDS = 200
# By CTAs of a cluster: the most that took the time of one wave in the kept tuning journals; 7 taken as 8, and
# of 3 the 38 of an H200 as 36, since the one time that an H100 had 38 it took longer than the model says.
_CLUSTERS_AT_ONCE = {3: 36, 4: 28, 5: 22, 6: 16, 7: 14, 8: 14}
_PRIOR_WEIGHT = 0.02  # keeps a term that the data say nothing of near its prior

Sample = tuple[KernelConfig, int, int, int, float]  # config, M, N, K, µs


class CostModel:
    """Predicts µs for configs on one device; `fit` sharpens it with what was measured there."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._prior = np.array(PRIOR if device.is_hopper else ADA_PRIOR)
        self._weights = self._prior

    def predict(self, config: KernelConfig, M: int, N: int, K: int) -> float:
        """Rough µs of a TileLang config."""
        return float(self._terms(config, M, N, K) @ self._weights)

    def fit(self, samples: Iterable[Sample]) -> None:
        """Refit on timings of TileLang configs, those near the best of their (M, N, K) counting most."""
        rows = [sample for sample in samples if sample[0].is_tilelang]
        if len(rows) < 4 * len(PRIOR):
            return
        best: dict[tuple[int, int, int], float] = {}
        for _, M, N, K, us in rows:
            best[M, N, K] = min(us, best.get((M, N, K), us))
        terms = np.array([self._terms(config, M, N, K) for config, M, N, K, _ in rows])
        times = np.array([us for *_, us in rows])
        nearness = np.array([best[M, N, K] for _, M, N, K, _ in rows]) / times
        weights = nearness / times
        self._weights = _non_negative_fit(terms * weights[:, None], times * weights, self._prior)

    def _terms(self, config: KernelConfig, M: int, N: int, K: int) -> np.ndarray:
        device = self._device
        tokens, weights = config.tile_tokens, config.tile_weights
        steps = K // SCALE_BLOCK // config.split_k
        ctas = -(-M // tokens) * -(-N // weights) * config.split_k
        # On Hopper groups of warpgroups may take turns at the K steps, and more warps load than multiply.
        groups = step_groups(config) if device.is_hopper else 1
        threads = config.threads + (128 if device.is_hopper else 0)
        values = 2 * config.block_M * config.block_N * groups // config.threads  # accumulator and partial
        resident = min(
            device.shared_memory_per_block // shared_memory_bytes(config, N, K, device.arch),
            _REGISTERS // (min(values + 60, 255) * threads),
            _THREADS // threads,
        )
        resident = max(resident, 1)
        clusters = ctas // config.split_k if device.is_hopper else ctas
        at_once = _clusters_at_once(config.split_k, device) if device.is_hopper else device.sm_count
        per_sm = -(-clusters // at_once)  # CTAs that the busiest SM runs, one after another or together
        waves = -(-clusters // (at_once * resident))
        step_bytes = (tokens + weights) * SCALE_BLOCK
        in_flight = min(max(1, config.num_stages), steps) * min(resident, per_sm) * step_bytes
        dram = (N * K + M * K + 2 * M * N) / (device.dram_bytes_per_s or _UNKNOWN_DRAM) * 1e6
        split = config.is_split_k
        turns = steps / groups
        # On Hopper: promotion that waits for each wave of rows, what the groups sum up at the end of a tile
        # (swapAB's times do not show it), and the reduction of a tile that lies transposed.
        in_row_waves = device.is_hopper and row_waves(config) > 1
        summed = 0 if config.is_swap_ab else (groups - 1) * tokens * weights
        return np.array(
            (
                1.0,
                dram,
                waves * turns,
                per_sm * steps * step_bytes / 1e5,
                per_sm * turns * values * config.threads / 1e4,
                waves * turns * values / 100,
                per_sm * steps * step_bytes / in_flight,
                waves,
                per_sm * tokens * weights * (config.split_k**0.5 - 1) / 1e4,
                waves if split else 0.0,
                waves * turns * values / 100 if in_row_waves else 0.0,
                waves * summed / 1e4,
                waves if split and config.is_swap_ab and device.is_hopper else 0.0,
            )
        )


def _clusters_at_once(ctas: int, device: Device) -> int:
    """How many clusters of this many CTAs run side by side with one CTA on an SM.

    A cluster lies within a GPC, and GPCs hold different numbers of SMs, so some stay idle. What the timings
    of 3 to 8 CTAs show is taken for other Hopper GPUs too, in proportion to their SMs.
    """
    if ctas <= 2:
        return device.sm_count // ctas
    return max(1, _CLUSTERS_AT_ONCE[ctas] * device.sm_count // 132)


def _non_negative_fit(terms: np.ndarray, times: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Least squares with all weights >= 0 by coordinate descent, drawn a little towards `prior`."""
    scale = np.linalg.norm(terms, axis=0) + 1e-12
    gram = (terms / scale).T @ (terms / scale)
    projected = (terms / scale).T @ times
    start = prior * scale
    fitted = start.copy()
    gram = gram + _PRIOR_WEIGHT * np.eye(len(prior))
    projected = projected + _PRIOR_WEIGHT * start
    for _ in range(_FIT_ROUNDS):
        for j in range(len(fitted)):
            step = (projected[j] - gram[j] @ fitted) / gram[j, j]
            fitted[j] = max(0.0, fitted[j] + step)
    return fitted / scale
