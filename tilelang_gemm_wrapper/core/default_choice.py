"""The choice for shapes that nobody tuned: from M, N, K and the number of SMs, never wrong, usually good."""

from __future__ import annotations

from tilelang_gemm_wrapper.core.config import MAX_SPLIT_K, KernelConfig, why_invalid
from tilelang_gemm_wrapper.core.device import Device

# The largest M that the swapped kernels serve by default; on Hopper DeepGEMM's 256-row tiles lead above it.
_LAST_SMALL_M = 64


def default_entries(N: int, K: int, device: Device, *, deep_gemm: bool) -> list[tuple[int, KernelConfig]]:
    """(M, config) pairs in ascending M, each valid on `device`: up to that M, the last for all larger M too.

    `deep_gemm`: whether DeepGEMM can run here, which then takes the token counts where it leads. Empty where
    no TileLang kernel is valid.
    """
    small = [(tokens, _swapped(tokens, N, K, device)) for tokens in _token_tiles(device)]
    large = KernelConfig("deep_gemm") if deep_gemm else _straight(device)
    entries = [*small, (_LAST_SMALL_M + 1, large)]
    return [(M, config) for M, config in entries if why_invalid(config, N, K, device) is None]


def _token_tiles(device: Device) -> tuple[int, ...]:
    return (8, 16, 32, 64) if device.is_hopper else (16, 32, 64)


def _swapped(tokens: int, N: int, K: int, device: Device) -> KernelConfig:
    """Tiles of 64 weights, K split until every SM has one: a decode GEMM is a race to read the weights."""
    stages = 6 if device.is_hopper else 3
    split = _split_that_fills(-(-N // 64), K, device)
    kind = "swapAB" if split == 1 else "splitK_swapAB"
    return KernelConfig(kind, 64, tokens, 128, stages, 128, split)


def _straight(device: Device) -> KernelConfig:
    if device.is_hopper:
        return KernelConfig("base", 128, 128, 128, 4, 256)
    return KernelConfig("base", 64, 128, 128, 3, 256)


def _split_that_fills(tiles: int, K: int, device: Device) -> int:
    steps = K // 128
    splits = [split for split in range(1, MAX_SPLIT_K + 1) if steps % split == 0]
    return next((split for split in splits if tiles * split >= device.sm_count), splits[-1])
