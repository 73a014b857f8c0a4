"""core/config.py: the meaning of a tile, and every reason for which `why_invalid` refuses."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilelang_gemm_wrapper.core.config import (
    KERNEL_TYPES,
    TILELANG_KERNELS,
    KernelConfig,
    splits_of,
    why_invalid,
)
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES, Device, cpu_device
from tilelang_gemm_wrapper.core.kernels import resources

H200 = KNOWN_DEVICES["NVIDIA_H200"]
L40S = KNOWN_DEVICES["NVIDIA_L40S"]
B200 = Device("NVIDIA_B200", "sm_100", 148, 232448, 126 << 20, 8e12)
CPU = cpu_device()

N, K = 6144, 2560  # 20 steps along K

BASE = KernelConfig("base", 128, 128, 128, 4, 256)
SWAP = KernelConfig("swapAB", 64, 16, 128, 6, 128)
SPLIT = KernelConfig("splitK", 64, 64, 128, 3, 128, 4)
SPLIT_SWAP = KernelConfig("splitK_swapAB", 64, 16, 128, 4, 128, 2)


def changed(config, **fields):
    return KernelConfig(**{name: getattr(config, name) for name in config.__slots__} | fields)


VALID = [
    *[(config, H200) for config in (BASE, SWAP, SPLIT, SPLIT_SWAP)],
    (changed(SWAP, block_N=8), H200),
    (changed(SWAP, num_stages=0), H200),
    (KernelConfig("base", 256, 64, 128, 3, 256), H200),
    (KernelConfig("base", 64, 64, 128, 3, 128), L40S),
    (KernelConfig("swapAB", 16, 64, 128, 2, 128), L40S),
    *[(KernelConfig("triton"), device) for device in (H200, L40S, B200)],
    (KernelConfig("deep_gemm"), H200),
]

# config, N, K, device, what the clause must say: field and value, then reason or remedy
INVALID = [
    (changed(BASE, kernel_type="fast"), N, K, H200, ["kernel_type", "'fast'", "splitK_swapAB", "triton"]),
    (changed(BASE, kernel_type="swapab"), N, K, H200, ["kernel_type", "'swapab'"]),
    (BASE, N, K, B200, ["kernel_type", "'base'", "NVIDIA_B200", "sm_100", "fallback"]),
    (BASE, N, K, CPU, ["kernel_type", "cpu", "fallback"]),
    (BASE, 6152, K, H200, ["N = 6152", "multiple of 16", "triton"]),
    (BASE, 0, K, H200, ["N = 0", "positive"]),
    (BASE, N, 3884, H200, ["K = 3884", "multiple of 128", "triton"]),
    (BASE, N, -128, H200, ["K = -128", "positive"]),
    (BASE, N, 0, H200, ["K = 0", "positive"]),
    (changed(BASE, block_K=64), N, K, H200, ["block_K = 64", "128 alone"]),
    (changed(BASE, block_K=256), N, K, H200, ["block_K = 256", "128 alone"]),
    (changed(BASE, block_M=0), N, K, H200, ["block_M = 0", "multiple of 64"]),
    (changed(BASE, block_M=96), N, K, H200, ["block_M = 96", "multiple of 64"]),
    (changed(BASE, block_M=320), N, K, H200, ["block_M = 320", "to 256"]),
    (KernelConfig("base", 8, 64, 128, 3, 128), N, K, L40S, ["block_M = 8", "sm_89", "multiple of 16"]),
    (changed(SWAP, block_N=12), N, K, H200, ["block_N = 12", "multiple of 8"]),
    (changed(SWAP, block_N=-8), N, K, H200, ["block_N = -8"]),
    (changed(BASE, block_N=264), N, K, H200, ["block_N = 264", "to 256"]),
    (changed(BASE, block_N=176), N, K, H200, ["block_N = 176", "144, 160, 192"]),
    (changed(BASE, threads=0), N, K, H200, ["threads = 0", "128, 256"]),
    (changed(BASE, threads=384), N, K, H200, ["384 threads", "256 float32", "smaller tile"]),
    (changed(SWAP, threads=384, num_stages=4), N, K, H200, ["num_stages = 4", "384 threads", "of 3"]),
    (KernelConfig("base", 64, 64, 128, 3, 384), N, K, L40S, ["threads = 384", "sm_89"]),
    (changed(BASE, num_stages=-1), N, K, H200, ["num_stages = -1", "0 or more"]),
    (changed(BASE, split_k=2), N, K, H200, ["split_k = 2", "'base'", "'splitK'"]),
    (changed(BASE, split_k=0), N, K, H200, ["split_k = 0", "'base'", "use 1"]),
    (changed(SWAP, split_k=4), N, K, H200, ["split_k = 4", "'swapAB'", "'splitK_swapAB'"]),
    (changed(SPLIT, split_k=1), N, K, H200, ["split_k = 1", "2 to 8", "2, 4, 5"]),
    (changed(SPLIT, split_k=3), N, K, H200, ["split_k = 3", "20 steps", "2, 4, 5"]),
    (changed(SPLIT, split_k=10), N, K, H200, ["split_k = 10", "2 to 8", "2, 4, 5"]),
    (changed(SPLIT_SWAP, split_k=-2), N, K, H200, ["split_k = -2"]),
    (changed(SPLIT, split_k=2), N, 128, H200, ["split_k = 2", "1 steps", "without split"]),
    (changed(SWAP, num_stages=99), N, K, H200, ["num_stages = 99", "64 x 16", "bytes", "232448", "fewer"]),
    (KernelConfig("base", 128, 64, 128, 5, 256), N, K, L40S, ["num_stages = 5", "NVIDIA_L40S", "101376"]),
    (KernelConfig("deep_gemm"), N, K, L40S, ["'deep_gemm'", "Hopper", "sm_89", "triton"]),
    (KernelConfig("deep_gemm"), N, K, CPU, ["'deep_gemm'", "CUDA", "cpu"]),
    (KernelConfig("deep_gemm"), 2564, K, H200, ["'deep_gemm'", "N is 2564", "triton"]),
    (KernelConfig("triton"), N, K, CPU, ["'triton'", "CUDA", "cpu"]),
    (KernelConfig("triton", block_M=64), N, K, H200, ["'triton'", "no tile"]),
    (KernelConfig("deep_gemm", split_k=2), N, K, H200, ["'deep_gemm'", "split_k"]),
]


@pytest.mark.parametrize(("config", "device"), VALID, ids=lambda value: str(value)[:90])
def test_runnable_config_is_accepted(config, device):
    assert why_invalid(config, N, K, device) is None


@pytest.mark.parametrize(("config", "n", "k", "device", "says"), INVALID)
def test_config_that_cannot_run_is_refused_with_its_reason(config, n, k, device, says):
    why = why_invalid(config, n, k, device)
    assert why is not None
    assert [part for part in says if part not in why] == [], why


def test_shared_memory_may_be_filled_to_the_last_byte(monkeypatch):
    limit = H200.shared_memory_per_block
    monkeypatch.setattr(resources, "shared_memory_bytes", lambda config, N, K, arch: limit)
    assert why_invalid(BASE, N, K, H200) is None
    monkeypatch.setattr(resources, "shared_memory_bytes", lambda config, N, K, arch: limit + 1)
    assert f"needs {limit + 1} bytes" in (why_invalid(BASE, N, K, H200) or "")


def test_kernel_is_asked_for_the_right_problem_and_its_refusal_is_passed_on(monkeypatch):
    asked = []

    def refuse(*arguments):
        asked.append(arguments)
        return "block_M = 128; not today"

    monkeypatch.setattr(resources, "why_unbuildable", refuse)
    assert why_invalid(BASE, N, K, H200) == "block_M = 128; not today"
    assert asked == [(BASE, N, K, "sm_90a")]


@pytest.mark.parametrize(
    ("config", "swap_ab", "split_k", "tokens", "weights"),
    [
        (BASE, False, False, 128, 128),
        (KernelConfig("base", 128, 64), False, False, 128, 64),
        (SWAP, True, False, 16, 64),
        (KernelConfig("splitK", 256, 32), False, True, 256, 32),
        (SPLIT_SWAP, True, True, 16, 64),
    ],
)
def test_swap_ab_puts_weights_along_block_m(config, swap_ab, split_k, tokens, weights):
    assert (config.is_swap_ab, config.is_split_k) == (swap_ab, split_k)
    assert (config.tile_tokens, config.tile_weights) == (tokens, weights)
    assert config.is_tilelang and not KernelConfig("triton").is_tilelang


def test_a_config_is_a_value_with_one_spelling_for_a_fallback():
    assert KernelConfig("triton") == KernelConfig("triton", 0, 0, 128, 0, 0, 1)
    assert len({SWAP, changed(SWAP), changed(SWAP, threads=256)}) == 2
    with pytest.raises(FrozenInstanceError):
        SWAP.threads = 256


@pytest.mark.parametrize(
    ("steps", "splits"),
    [(1, [1]), (7, [1, 7]), (9, [1, 3]), (11, [1]), (20, [1, 2, 4, 5]), (56, [1, 2, 4, 7, 8])],
)
def test_k_is_split_into_up_to_eight_equal_parts(steps, splits):
    assert splits_of(128 * steps) == splits


integers = st.integers() | st.sampled_from([0, 1, 2, 4, 8, 16, 64, 128, 256])
any_configs = st.builds(
    KernelConfig,
    st.sampled_from(KERNEL_TYPES) | st.text(),
    *[integers] * 6,
)
likely_configs = st.builds(
    KernelConfig,
    st.sampled_from(TILELANG_KERNELS),
    st.sampled_from([16, 32, 64, 128, 192, 256]),
    st.sampled_from([8, 16, 24, 32, 64, 128, 144, 192, 256]),
    st.just(128),
    st.integers(0, 12),
    st.sampled_from([128, 256]),
    st.integers(1, 9),
)


@settings(deadline=None)  # the first example imports the kernels' resource table
@given(any_configs, integers, integers, st.sampled_from([H200, L40S, B200, CPU]))
def test_any_config_gets_an_answer(config, n, k, device):
    why = why_invalid(config, n, k, device)
    assert why is None or why.strip()


@settings(deadline=None)
@given(likely_configs, st.sampled_from([H200, L40S]))
def test_accepted_config_keeps_to_the_chip(config, device):
    if why_invalid(config, N, K, device) is None:
        assert resources.shared_memory_bytes(config, N, K, device.arch) <= device.shared_memory_per_block
        assert (K // 128) % config.split_k == 0
        assert (config.split_k > 1) == config.is_split_k
        assert config.block_M % (64 if device.is_hopper else 16) == 0
