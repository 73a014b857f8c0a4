"""core/default_choice.py: the choice for shapes that nobody tuned is never wrong, and fits the shape."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuning_journal import H100, LARGE_SHAPES_PATH, PATH, first_choice_losses, timings

from tilelang_gemm_wrapper.core.config import KernelConfig, why_invalid
from tilelang_gemm_wrapper.core.config_entry import Entry
from tilelang_gemm_wrapper.core.config_loader import choose
from tilelang_gemm_wrapper.core.cost_model import CostModel
from tilelang_gemm_wrapper.core.default_choice import continued, default_entries
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES, Device, cpu_device
from tilelang_gemm_wrapper.core.report import geomean

H200, L40S = KNOWN_DEVICES["NVIDIA_H200"], KNOWN_DEVICES["NVIDIA_L40S"]
B200 = Device("NVIDIA_B200", "sm_100", 148, 232448, 126 << 20, 8e12)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 1 << 14).map(lambda blocks: 16 * blocks),
    st.integers(1, 1 << 11).map(lambda steps: 128 * steps),
    st.sampled_from(list(KNOWN_DEVICES.values())),
)
def test_never_invalid(N, K, device):
    entries = default_entries(N, K, device)
    assert entries
    bounds = [M for M, _ in entries]
    assert bounds == sorted(set(bounds))
    assert bounds[0] >= 1
    for M, config in entries:
        assert config.is_tilelang
        assert why_invalid(config, N, K, device) is None, (M, config)
    # The last entry serves every larger M: a tile of few tokens would read the weights over and over.
    assert entries[-1][1].tile_tokens >= 64


@pytest.mark.parametrize("device", [H200, L40S], ids=lambda device: device.name)
def test_decode_gets_narrow_tiles_and_prefill_wide_ones(device):
    """One token must not pay for a tile of many, nor a prompt read the weights for a few at a time."""
    entries = default_entries(6144, 2560, device)
    M, decode = entries[0]
    assert decode.is_swap_ab
    assert decode.tile_tokens == M == (8 if device.is_hopper else 16)
    assert all(config.tile_tokens <= max(M, 64) for M, config in entries)
    tokens = [config.tile_tokens for _, config in entries]
    assert tokens == sorted(tokens)
    assert not entries[-1][1].is_swap_ab


def test_neighbouring_choices_differ():
    for device in KNOWN_DEVICES.values():
        configs = [config for _, config in default_entries(512, 1024, device)]
        assert all(one != other for one, other in pairwise(configs))


def test_k_is_split_where_tiles_are_too_few_for_the_gpu():
    assert default_entries(2560, 9728, H200)[0][1].split_k > 1
    assert default_entries(19456, 2560, H200)[0][1].split_k == 1
    assert default_entries(64, 128 * 11, H200)[0][1].split_k == 1, "a prime number of steps cannot be split"


@pytest.mark.parametrize(("path", "mean", "worst"), [(LARGE_SHAPES_PATH, 1.05, 1.3), (PATH, 1.045, 1.4)])
def test_every_choice_is_near_the_best_that_was_timed(path, mean, worst):
    """On the shapes of a tuning run before, and of the one for which the model's weights were fitted."""
    losses = first_choice_losses(lambda shape, times: CostModel(H100), timings(path))
    assert geomean(losses.values()) <= mean
    assert max(losses.values()) <= worst


@pytest.mark.parametrize(
    ("N", "K", "device"),
    [(6144, 2560, cpu_device()), (6144, 2560, B200), (6150, 2560, H200), (6144, 2500, L40S)],
    ids=str,
)
def test_empty_where_no_kernel_is_valid(N, K, device):
    assert default_entries(N, K, device) == []


@pytest.mark.parametrize("device", [H200, L40S])
@pytest.mark.parametrize("last", [1, 3, 16, 64, 1024, 2048])
def test_a_tuned_file_goes_on_with_the_default_choice(device, last):
    N, K = 6144, 2560
    kernel = KernelConfig("swapAB", 64, 16, 128, 4, 128)
    tuned = [Entry(M, kernel, latency_ms=0.01) for M in sorted({1, last})]
    serving = continued(tuned, N, K, device)
    bounds = [entry.M for entry in serving]
    assert bounds == sorted(set(bounds))
    assert serving[: len(tuned) - 1] == tuned[:-1]
    defaults = [Entry(M, config) for M, config in default_entries(N, K, device)]
    for M in range(1, 2 * last):
        assert choose(serving, M).config == kernel
    for M in (2 * last, 2 * last + 1, 4096, 8192, 10**6):
        assert choose(serving, M).config == choose(defaults, M).config


def test_nothing_goes_on_where_nothing_is_tuned_or_no_kernel_is_valid():
    assert continued([], 6144, 2560, H200) == []
    tuned = [Entry(8, KernelConfig("triton"))]
    assert continued(tuned, 6144 + 8, 2560, H200) == tuned
