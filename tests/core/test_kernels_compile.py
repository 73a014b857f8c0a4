"""Every kernel variant compiles for Hopper and Ada without a GPU, uses the unit meant for it, and fits."""

from __future__ import annotations

import pytest

from tilelang_gemm_wrapper import configurer
from tilelang_gemm_wrapper.core.config import KernelConfig, why_invalid
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES
from tilelang_gemm_wrapper.core.kernels.resources import shared_memory_bytes

pytest.importorskip("tilelang")
pytestmark = pytest.mark.skipif(configurer.find_nvcc() is None, reason="nvcc was not found")

HOPPER, ADA = KNOWN_DEVICES["NVIDIA_H200"], KNOWN_DEVICES["NVIDIA_L40S"]

# (device, config, N, K): each variant at its smallest and largest tile, ragged N (2112, 576, 1600) included.
CASES = [
    (HOPPER, KernelConfig("base", 64, 16, 128, 3, 128), 1600, 512),
    (HOPPER, KernelConfig("base", 128, 128, 128, 5, 256), 2112, 7168),
    (HOPPER, KernelConfig("base", 192, 128, 128, 4, 384), 576, 640),
    (HOPPER, KernelConfig("base", 64, 128, 128, 4, 256), 576, 512),
    (HOPPER, KernelConfig("base", 64, 160, 128, 4, 256), 576, 512),
    (HOPPER, KernelConfig("base", 64, 112, 128, 6, 384), 2112, 7168),
    (HOPPER, KernelConfig("base", 128, 96, 128, 5, 256), 1600, 640),
    (HOPPER, KernelConfig("base", 128, 192, 128, 4, 256), 2112, 896),
    (HOPPER, KernelConfig("base", 256, 32, 128, 4, 128), 576, 512),
    (HOPPER, KernelConfig("base", 256, 128, 128, 3, 256), 2112, 7168),
    (HOPPER, KernelConfig("base", 256, 64, 128, 3, 128), 576, 640),
    (HOPPER, KernelConfig("swapAB", 64, 8, 128, 8, 128), 2112, 7168),
    (HOPPER, KernelConfig("swapAB", 64, 16, 128, 4, 256), 576, 512),
    (HOPPER, KernelConfig("swapAB", 128, 128, 128, 4, 256), 1600, 512),
    (HOPPER, KernelConfig("swapAB", 64, 128, 128, 4, 256), 1600, 512),
    (HOPPER, KernelConfig("splitK", 64, 64, 128, 0, 128, 2), 576, 512),
    (HOPPER, KernelConfig("splitK", 128, 128, 128, 4, 256, 8), 2112, 7168),
    (HOPPER, KernelConfig("splitK", 64, 80, 128, 6, 384, 2), 1600, 1792),
    (HOPPER, KernelConfig("splitK", 128, 160, 128, 3, 256, 2), 576, 1024),
    (HOPPER, KernelConfig("splitK", 64, 144, 128, 4, 256, 7), 576, 1792),
    (HOPPER, KernelConfig("splitK_swapAB", 64, 8, 128, 6, 128, 7), 2112, 7168),
    (HOPPER, KernelConfig("splitK_swapAB", 128, 64, 128, 4, 256, 4), 1600, 512),
    (ADA, KernelConfig("base", 64, 64, 128, 3, 128), 1600, 512),
    (ADA, KernelConfig("base", 64, 128, 128, 3, 256), 2112, 7168),
    (ADA, KernelConfig("swapAB", 64, 16, 128, 4, 128), 2112, 7168),
    (ADA, KernelConfig("swapAB", 64, 64, 128, 3, 128), 576, 512),
    (ADA, KernelConfig("splitK", 64, 64, 128, 0, 256, 2), 576, 512),
    (ADA, KernelConfig("splitK", 64, 64, 128, 3, 256, 4), 2560, 4096),
    (ADA, KernelConfig("splitK_swapAB", 64, 16, 128, 3, 128, 4), 2112, 7168),
]


@pytest.mark.parametrize(
    ("device", "config", "N", "K"),
    CASES,
    ids=[f"{d.arch}-{c.kernel_type}-{c.block_M}x{c.block_N}-s{c.num_stages}" for d, c, _, _ in CASES],
)
def test_variant_compiles_and_fits(device, config, N, K):
    from tilelang_gemm_wrapper.core.compile_report import cross_compile
    from tilelang_gemm_wrapper.core.kernels import scales

    assert why_invalid(config, N, K, device) is None
    report = cross_compile(N, K, config, device.arch)
    assert report.spill_bytes == report.stack_bytes == 0
    assert report.shared_memory_bytes <= device.shared_memory_per_block
    # The estimate that the loader and the tuner trust may be too careful, never too low.
    assert report.shared_memory_bytes <= shared_memory_bytes(config, N, K, device.arch)
    counts = report.instructions
    if device is HOPPER:
        assert counts["wgmma e4m3"] and counts["TMA load"]
        assert not counts["mma e4m3"]
        large = config.block_M * config.block_N >= scales.LARGE_TILE
        by_registers = config.is_swap_ab or (config.kernel_type == "base" and large)
        assert bool(counts["cp.async"]) != by_registers  # the scales
        assert bool(counts["cluster store"]) == config.is_split_k
    else:
        assert counts["mma e4m3"] and counts["ldmatrix"]
        assert bool(counts["cp.async"]) == (config.num_stages > 1)
        assert not counts["wgmma e4m3"] and not counts["TMA load"]
