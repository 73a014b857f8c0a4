"""Configs and shapes of the GPU tests, and how one config is launched without the tables."""

from __future__ import annotations

from tilelang_gemm_wrapper.core.config import KernelConfig, why_invalid
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES, device_of
from tilelang_gemm_wrapper.core.dispatch import Choice, DispatchTable
from tilelang_gemm_wrapper.core.wrapper import Gemm

# Small and large tiles, within a scale block, across two and wider than one, warpgroups side by side and by
# turns, rings shallow and deep.
CONFIGS: dict[str, list[KernelConfig]] = {
    "base": [
        KernelConfig("base", 64, 16, 128, 3, 128),
        KernelConfig("base", 64, 128, 128, 4, 128),
        KernelConfig("base", 64, 64, 128, 2, 256),
        KernelConfig("base", 64, 48, 128, 6, 256),
        KernelConfig("base", 64, 112, 128, 6, 384),
        KernelConfig("base", 128, 96, 128, 5, 256),
        KernelConfig("base", 128, 128, 128, 4, 256),
        KernelConfig("base", 256, 32, 128, 3, 128),
        KernelConfig("base", 256, 128, 128, 3, 256),
        KernelConfig("base", 128, 128, 128, 3, 128),
        KernelConfig("base", 128, 32, 128, 6, 256),
        KernelConfig("base", 64, 144, 128, 4, 256),
        KernelConfig("base", 64, 128, 128, 4, 256),
        KernelConfig("base", 128, 160, 128, 4, 256),
        KernelConfig("base", 128, 192, 128, 3, 256),
        KernelConfig("base", 192, 128, 128, 4, 384),
    ],
    "swapAB": [
        KernelConfig("swapAB", 64, 8, 128, 8, 128),
        KernelConfig("swapAB", 64, 32, 128, 2, 256),
        KernelConfig("swapAB", 64, 16, 128, 6, 384),
        KernelConfig("swapAB", 64, 64, 128, 4, 128),
        KernelConfig("swapAB", 64, 128, 128, 4, 256),
        KernelConfig("swapAB", 128, 32, 128, 4, 128),
        KernelConfig("swapAB", 128, 128, 128, 4, 256),
    ],
    "splitK": [
        KernelConfig("splitK", 64, 32, 128, 3, 128, 4),
        KernelConfig("splitK", 64, 64, 128, 0, 128, 2),
        KernelConfig("splitK", 64, 80, 128, 6, 384, 2),
        KernelConfig("splitK", 64, 144, 128, 4, 256, 7),
        KernelConfig("splitK", 128, 128, 128, 4, 256, 2),
        KernelConfig("splitK", 128, 160, 128, 3, 256, 2),
    ],
    "splitK_swapAB": [
        KernelConfig("splitK_swapAB", 64, 8, 128, 6, 128, 4),
        KernelConfig("splitK_swapAB", 64, 16, 128, 4, 256, 8),
        KernelConfig("splitK_swapAB", 64, 8, 128, 4, 256, 2),
        KernelConfig("splitK_swapAB", 128, 64, 128, 4, 256, 2),
        KernelConfig("splitK_swapAB", 64, 64, 128, 4, 128, 7),
    ],
}
ALL_CONFIGS = [config for configs in CONFIGS.values() for config in configs]

# N: below one tile, no multiple of 64 or 128, large; K: one step, an odd number of steps, many steps.
SHAPES = [(16, 1024), (576, 128), (1600, 896), (2112, 1024), (2560, 7168)]


def valid(config: KernelConfig, N: int, K: int) -> bool:
    return why_invalid(config, N, K, KNOWN_DEVICES["NVIDIA_H200"]) is None


def gemm_of(config: KernelConfig, N: int, K: int) -> Gemm:
    """A `Gemm` on device 0 that runs this config for every M."""
    choice = Choice(config.kernel_type, config, "test", "test")
    return Gemm(DispatchTable(N, K, device_of(0), (1,), (choice,)), 0)
