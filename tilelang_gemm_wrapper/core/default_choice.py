"""The choice for shapes that nobody tuned: from M, N, K and the number of SMs, never wrong, usually good."""

from __future__ import annotations

from tilelang_gemm_wrapper.core.config import KernelConfig, splits_of, why_invalid
from tilelang_gemm_wrapper.core.device import Device

# Up to this many tokens -> the token tile of the swapped kernels. Above 16 tokens two tiles of half the size
# beat one (both CTAs read the same weights, the second time from L2), as sweep.csv of the H200 shows.
_SWAPPED_TOKENS = {8: 8, 16: 16, 32: 16, 64: 32, 128: 32, 256: 64}
_ADA_SWAPPED_TOKENS = {16: 16, 32: 32, 64: 64}
_LAST_M_BEFORE_DEEP_GEMM = 64  # above it DeepGEMM's 256-row tiles lead on Hopper

# Straight tiles from large to small: (block_M, block_N, num_stages, threads).
_HOPPER_TILES = ((128, 128, 5, 256), (128, 64, 5, 256), (64, 64, 5, 128))
_ADA_TILES = ((64, 128, 3, 256), (64, 64, 3, 256))
_STRAIGHT_M = (512, 1024, 2048, 4096)


def default_entries(N: int, K: int, device: Device, *, deep_gemm: bool) -> list[tuple[int, KernelConfig]]:
    """(M, config) pairs in ascending M, each valid on `device`: up to that M, the last for all larger M too.

    `deep_gemm`: whether DeepGEMM can run here, which then takes the token counts where it leads. Empty where
    no TileLang kernel is valid.
    """
    tokens = _SWAPPED_TOKENS if device.is_hopper else _ADA_SWAPPED_TOKENS
    entries = [(M, _swapped(M, tile, N, K, device)) for M, tile in tokens.items()]
    if deep_gemm:
        last = _LAST_M_BEFORE_DEEP_GEMM
        entries = [(M, config) for M, config in entries if last >= M]
        entries.append((last + 1, KernelConfig("deep_gemm")))
    else:
        entries += [(M, _straight(M, N, device)) for M in _STRAIGHT_M]
    return [(M, config) for M, config in entries if why_invalid(config, N, K, device) is None]


def _swapped(M: int, tile_tokens: int, N: int, K: int, device: Device) -> KernelConfig:
    """Tiles of 64 weights, K split until every SM has a CTA: a decode GEMM is a race to read the weights."""
    tiles = -(-N // 64) * -(-M // tile_tokens)
    split = _split_that_fills(tiles, K, device)
    # Deep rings where an SM has one or two CTAs to keep its memory pipe full, shallow ones where it has more.
    stages = 6 if tile_tokens <= 16 and tiles * split <= 2 * device.sm_count else 4
    kind = "swapAB" if split == 1 else "splitK_swapAB"
    return KernelConfig(kind, 64, tile_tokens, 128, stages if device.is_hopper else 3, 128, split)


def _straight(M: int, N: int, device: Device) -> KernelConfig:
    """The largest tile of which there is about one for every SM."""
    for block_M, block_N, stages, threads in _HOPPER_TILES if device.is_hopper else _ADA_TILES:
        config = KernelConfig("base", block_M, block_N, 128, stages, threads)
        if -(-M // block_M) * -(-N // block_N) >= 0.9 * device.sm_count:
            break
    return config


def _split_that_fills(tiles: int, K: int, device: Device) -> int:
    splits = splits_of(K)
    return next((split for split in splits if tiles * split >= device.sm_count), splits[-1])
