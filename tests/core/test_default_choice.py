"""core/default_choice.py: the choice for shapes that nobody tuned is never wrong, and fits the shape."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilelang_gemm_wrapper.core.config import KernelConfig, why_invalid
from tilelang_gemm_wrapper.core.default_choice import default_entries
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES, Device, cpu_device

H200, L40S = KNOWN_DEVICES["NVIDIA_H200"], KNOWN_DEVICES["NVIDIA_L40S"]
B200 = Device("NVIDIA_B200", "sm_100", 148, 232448, 126 << 20, 8e12)


@settings(max_examples=600, deadline=None)
@given(
    st.integers(1, 1 << 14).map(lambda blocks: 16 * blocks),
    st.integers(1, 1 << 11).map(lambda steps: 128 * steps),
    st.sampled_from(list(KNOWN_DEVICES.values())),
    st.booleans(),
)
def test_never_invalid(N, K, device, deep_gemm):
    entries = default_entries(N, K, device, deep_gemm=deep_gemm and device.is_hopper)
    assert entries
    bounds = [M for M, _ in entries]
    assert bounds == sorted(set(bounds))
    assert bounds[0] >= 1
    for M, config in entries:
        assert why_invalid(config, N, K, device) is None, (M, config)
    # The last entry serves every larger M: a tile of few tokens would read the weights over and over.
    last = entries[-1][1]
    assert last.kernel_type == "deep_gemm" if deep_gemm and device.is_hopper else last.tile_tokens >= 64


@pytest.mark.parametrize("device", [H200, L40S], ids=lambda device: device.name)
def test_decode_gets_narrow_tiles_and_prefill_wide_ones(device):
    """One token must not pay for a tile of many, nor a prompt read the weights for a few at a time."""
    entries = default_entries(6144, 2560, device, deep_gemm=False)
    M, decode = entries[0]
    assert decode.is_swap_ab
    assert decode.tile_tokens == M == (8 if device.is_hopper else 16)
    assert all(config.tile_tokens <= max(M, 16) for M, config in entries)
    swapped = [config.is_swap_ab for _, config in entries]
    assert swapped == sorted(swapped, reverse=True)
    assert not swapped[-1]


@pytest.mark.parametrize(
    ("N", "K", "split"),
    [
        (16 * 1024, 4096, 1),  # 256 tiles for 132 SMs
        (64 * 132, 4096, 1),  # one each
        (64 * 131, 4096, 2),  # one SM idle
        (64 * 131 + 16, 4096, 1),  # a ragged tile is a tile
        (2560, 9728, 4),  # 40 tiles, 76 steps: 4 is the first divisor that fills the GPU
        (64, 7168, 8),  # nothing fills it: the most there is
        (64, 128 * 5, 5),
        (64, 128 * 11, 1),  # a prime number of steps cannot be split
        (64, 128, 1),
    ],
)
def test_k_is_split_until_every_sm_has_a_tile(N, K, split):
    M, config = default_entries(N, K, H200, deep_gemm=False)[0]
    assert (M, config.split_k) == (8, split)
    assert config.kernel_type == ("swapAB" if split == 1 else "splitK_swapAB")


def test_fewer_sms_need_less_split():
    """40 tiles and 76 steps: 78 SMs want 2 shares of K, 132 SMs 4."""
    few = default_entries(2560, 9728, KNOWN_DEVICES["NVIDIA_H20"], deep_gemm=False)[0][1]
    assert few.split_k == 2


def test_deep_gemm_takes_large_m_alone():
    ours = default_entries(6144, 2560, H200, deep_gemm=False)
    *small, last = default_entries(6144, 2560, H200, deep_gemm=True)
    assert last[1] == KernelConfig("deep_gemm")
    assert small == ours[: len(small)]
    assert small
    assert last[0] == small[-1][0] + 1


@pytest.mark.parametrize(
    ("N", "K", "device"),
    [(6144, 2560, cpu_device()), (6144, 2560, B200), (6150, 2560, H200), (6144, 2500, L40S)],
    ids=str,
)
def test_empty_where_no_kernel_is_valid(N, K, device):
    assert default_entries(N, K, device, deep_gemm=False) == []
