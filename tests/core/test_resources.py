"""core/kernels/resources.py: the bytes a kernel asks for, and the tiles that have no kernel."""

from __future__ import annotations

import math
import random

import pytest

from tilelang_gemm_wrapper.core import kernel_registry
from tilelang_gemm_wrapper.core.config import TILELANG_KERNELS, KernelConfig
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES
from tilelang_gemm_wrapper.core.kernels.resources import (
    LOADING_WARPS,
    partials,
    register_split,
    shared_memory_bytes,
    waves,
    why_unbuildable,
)

N, K = 576, 1024
DEVICES = {"sm_90a": KNOWN_DEVICES["NVIDIA_H200"], "sm_89": KNOWN_DEVICES["NVIDIA_L40S"]}
BYTES = {"float8_e4m3fn": 1, "bfloat16": 2, "float32": 4}


def configs_of(kernel_type, arch, count=6):
    """A fixed random choice among the configs of that kind that a tuner would try."""
    configs = [c for c in kernel_registry.search_space(N, K, DEVICES[arch]) if c.kernel_type == kernel_type]
    return random.Random(kernel_type + arch).sample(configs, count)


def declared_bytes(config, arch):
    """Shared memory that the kernel's source declares, static weights and all; on Ada the compiler makes a
    copy of a tile a stage."""
    from tilelang import tvm

    tir = tvm.tirx if hasattr(tvm, "tirx") else tvm.tir
    buffers = []
    tir.stmt_functor.post_order_visit(
        kernel_registry.build(N, K, config, arch, static_weights=True).body,
        lambda node: buffers.extend(getattr(node, "alloc_buffers", ())),
    )
    total = 0
    for buffer in buffers:
        if buffer.scope() in ("shared", "shared.dyn"):
            copies = config.num_stages if arch == "sm_89" and buffer.name in ("A_shared", "B_shared") else 1
            size = math.prod(map(int, buffer.shape)) * BYTES[str(buffer.dtype)] * max(1, copies)
            total += -(-size // 1024) * 1024
    return total


@pytest.mark.parametrize("arch", DEVICES)
@pytest.mark.parametrize("kernel_type", TILELANG_KERNELS)
def test_the_estimate_is_what_the_kernel_declares(kernel_type, arch):
    pytest.importorskip("tilelang")
    for config in configs_of(kernel_type, arch):
        # 1024 for the mbarriers, which have a scope of their own.
        assert shared_memory_bytes(config, N, K, arch) == declared_bytes(config, arch) + 1024, config


def test_a_split_needs_the_scales_of_its_own_steps_alone():
    whole = shared_memory_bytes(KernelConfig("swapAB", 64, 64, 128, 4, 128), N, 64 * 1024, "sm_90a")
    part = shared_memory_bytes(KernelConfig("splitK_swapAB", 64, 64, 128, 4, 128, 8), N, 64 * 1024, "sm_90a")
    assert part < whole


@pytest.mark.parametrize("arch", DEVICES)
def test_no_stage_is_one_stage(arch):
    sizes = [
        shared_memory_bytes(KernelConfig("base", 64, 64, 128, stages, 128), N, K, arch) for stages in range(4)
    ]
    assert sizes[0] == sizes[1]
    assert sizes[2] - sizes[1] == sizes[3] - sizes[2] == 2 * 64 * 128


REFUSED = [
    (
        "sm_90a",
        KernelConfig("base", 128, 8, 128, 4, 128),
        ["block_N = 8", "16, 32, 48, 64", "scale block"],
    ),
    ("sm_90a", KernelConfig("splitK", 64, 176, 128, 4, 256, 2), ["block_N = 176", "160, 192", "scale block"]),
    ("sm_89", KernelConfig("base", 64, 48, 128, 4, 128), ["block_N = 48", "16, 32, 64, 128"]),
    ("sm_90a", KernelConfig("swapAB", 256, 16, 128, 4, 256), ["block_M = 256", "64, 128"]),
    ("sm_89", KernelConfig("splitK_swapAB", 96, 16, 128, 3, 128, 2), ["block_M = 96", "scale block"]),
    (
        "sm_90a",
        KernelConfig("splitK", 128, 128, 128, 4, 128, 2),
        ["128 x 128", "128 threads", "256 float32", "more"],
    ),
    ("sm_90a", KernelConfig("base", 256, 112, 128, 3, 256), ["256 x 112", "224 float32", "smaller tile"]),
    ("sm_89", KernelConfig("base", 256, 128, 128, 2, 256), ["256 x 128", "256 float32", "smaller tile"]),
    ("sm_90a", KernelConfig("base", 64, 64, 128, 4, 384), ["num_stages = 4", "3 groups", "multiple of 3"]),
    ("sm_90a", KernelConfig("swapAB", 64, 32, 128, 3, 256), ["num_stages = 3", "2 groups", "multiple of 2"]),
    (
        "sm_90a",
        KernelConfig("splitK", 64, 64, 128, 4, 256, 8),
        ["threads = 256", "2 groups", "1 steps", "split_k = 8", "fewer threads"],
    ),
    ("sm_89", KernelConfig("swapAB", 64, 16, 128, 3, 384), ["threads = 384", "at most 256"]),
    ("sm_90a", KernelConfig("swapAB", 64, 24, 128, 4, 128), ["block_N = 24", "multiple of 16"]),
    ("sm_89", KernelConfig("swapAB", 64, 8, 128, 3, 128), ["block_N = 8", "sm_89", "16, 32, 64, 128"]),
    ("sm_89", KernelConfig("base", 48, 64, 128, 3, 128), ["block_M = 48", "16, 32, 64, 128"]),
    ("sm_89", KernelConfig("base", 16, 16, 128, 3, 128), ["16 x 16", "4 warps", "fewer threads"]),
    ("sm_89", KernelConfig("base", 16, 32, 128, 3, 256), ["16 x 32", "8 warps"]),
]


@pytest.mark.parametrize(("arch", "config", "said"), REFUSED, ids=lambda value: str(value)[:80])
def test_tiles_without_a_kernel(arch, config, said):
    reason = why_unbuildable(config, N, K, arch)
    assert reason is not None
    missing = [text for text in said if text not in reason]
    assert not missing, (missing, reason)


BUILDABLE = [
    ("sm_90a", KernelConfig("base", 128, 128, 128, 4, 256)),  # exactly 128 values a thread
    ("sm_90a", KernelConfig("base", 64, 128, 128, 4, 128)),
    ("sm_90a", KernelConfig("base", 192, 128, 128, 4, 384)),  # the largest
    ("sm_90a", KernelConfig("base", 64, 128, 128, 4, 256)),  # two warpgroups side by side
    ("sm_90a", KernelConfig("base", 256, 64, 128, 4, 256)),  # two WGMMA of each warpgroup
    ("sm_90a", KernelConfig("base", 256, 128, 128, 3, 256)),  # in two waves
    ("sm_90a", KernelConfig("splitK", 256, 32, 128, 4, 128, 2)),  # four WGMMA of one warpgroup
    ("sm_90a", KernelConfig("swapAB", 64, 8, 128, 4, 128)),  # the narrowest WGMMA
    ("sm_90a", KernelConfig("swapAB", 64, 16, 128, 4, 256)),  # two warpgroups of 8 columns
    ("sm_90a", KernelConfig("swapAB", 128, 8, 128, 4, 256)),
    ("sm_89", KernelConfig("base", 16, 32, 128, 3, 128)),  # one MMA a warp
    ("sm_89", KernelConfig("swapAB", 16, 64, 128, 3, 256)),
]


@pytest.mark.parametrize(("arch", "config"), BUILDABLE, ids=lambda value: str(value)[:80])
def test_tiles_at_the_limit_have_a_kernel(arch, config):
    assert why_unbuildable(config, N, K, arch) is None


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (KernelConfig("base", 128, 128, 128, 5, 256), 2),
        (KernelConfig("base", 64, 128, 128, 6, 128), 2),
        (KernelConfig("splitK", 128, 96, 128, 5, 256, 2), 2),
        (KernelConfig("base", 128, 80, 128, 5, 256), 1),  # loads bound its short steps
        (KernelConfig("base", 64, 128, 128, 6, 256), 1),  # its warpgroups take turns at the steps
        (KernelConfig("base", 128, 192, 128, 4, 256), 1),  # 288 values a thread do not fit
        (KernelConfig("base", 192, 128, 128, 4, 384), 1),  # 192 do not fit beside two other warpgroups
    ],
)
def test_two_partials_where_they_are_of_use_and_fit(config, count):
    assert partials(config) == count


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (KernelConfig("base", 256, 128, 128, 3, 256), 2),
        (KernelConfig("base", 256, 64, 128, 3, 128), 4),
        (KernelConfig("base", 256, 96, 128, 3, 256), 1),  # a partial of all its 128 rows fits
        (KernelConfig("base", 128, 192, 128, 4, 256), 1),  # it has 64 rows a warpgroup
        (KernelConfig("base", 64, 128, 128, 4, 256), 1),
    ],
)
def test_waves_where_a_partial_of_all_rows_does_not_fit(config, count):
    assert waves(config) == count


def test_no_warp_asks_for_registers_that_others_did_not_give():
    """A kernel gets an equal share of the SM's registers, a multiple of 8 a thread, and has no more: a warp
    that asks for what is not there waits forever."""
    for config in kernel_registry.search_space(N, K, DEVICES["sm_90a"]):
        if not config.is_swap_ab:
            multiplying, loading = register_split(config)
            threads = config.threads + 32 * LOADING_WARPS
            share = 65536 // threads // 8 * 8
            if multiplying:
                wanted = config.threads * multiplying + 32 * LOADING_WARPS * loading
                assert wanted <= threads * share, config
