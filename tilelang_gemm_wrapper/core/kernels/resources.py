"""What a kernel variant needs of a device: shared memory, registers, instruction shapes.

Kept apart from the kernels so that a config can be judged without importing TileLang.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tilelang_gemm_wrapper.core.device import HOPPER_SHARED_MEMORY

if TYPE_CHECKING:
    from tilelang_gemm_wrapper.core.config import KernelConfig

LOADING_WARPS = 4  # of base and splitK on Hopper: one for the tiles, the others for the scales
K_STEP = 128  # bytes and elements of K in one step, one ring slot and one pair of scales
_STATIC_BYTES = 1024  # mbarriers, rounded up to the alignment of the dynamic buffer
_ALIGN = 1024  # the largest alignment TileLang gives a buffer, that of swizzled tiles

# Accumulator and partials, float32, live in registers. 128 values a thread leave room for addresses and
# scales, and 192 where the loading warps give registers to two warpgroups or there is only one.
_MAX_TILE_VALUES = 128
_MAX_WIDE_TILE_VALUES = 192
_COLUMNS_FOR_TWO_PARTIALS = 96
_WIDEST_TILE = 192  # weights, of base and splitK on Hopper
_OTHER_VALUES = 40  # registers for addresses, scales and loops
# On sm_89 the MMA operands take registers too, and splitK's float32 partials an address each besides.
_MAX_ADA_VALUES = 64
_MAX_ADA_SPLIT_VALUES = 32


def shared_memory_bytes(config: KernelConfig, N: int, K: int, arch: str) -> int:
    """Shared memory of one CTA in bytes, static and dynamic, for a TileLang `config` on `arch`."""
    stages = max(1, config.num_stages)
    tokens, weights = config.tile_tokens, config.tile_weights
    steps = K // K_STEP // config.split_k
    buffers = [stages * tokens * K_STEP, stages * weights * K_STEP]
    if arch == "sm_90a" and config.is_split_k:
        buffers.append(4 * inbox_floats(config))
    elif arch == "sm_90a" and not config.is_swap_ab and step_groups(config) == 1:
        buffers.append(2 * tokens * weights)
    elif arch != "sm_90a" and config.is_swap_ab:
        buffers.append((4 * partial_row(config) if config.is_split_k else 2 * weights) * tokens)
    if arch == "sm_90a":
        if config.is_swap_ab:
            buffers += [4 * steps * tokens, 4 * steps]
        else:
            buffers += [4 * stages * tokens, 4 * stages * scale_blocks(config)]
        buffers.append(4 * group_floats(config))
    return _STATIC_BYTES + sum(-(-size // _ALIGN) * _ALIGN for size in buffers)


def why_unbuildable(config: KernelConfig, N: int, K: int, arch: str) -> str | None:
    """Why this tile has no kernel on `arch`: a clause naming field, value and remedy, or None."""
    widths = _tile_weights(config, arch)
    if config.tile_weights not in widths:
        field = "block_M" if config.is_swap_ab else "block_N"
        return (
            f"{field} = {config.tile_weights}; for {config.kernel_type!r} on {arch} it must be one of "
            f"{', '.join(map(str, widths))}, to lie in one scale block or across two"
        )
    if config.threads > 256 and arch != "sm_90a":
        return f"threads = {config.threads}; {arch} takes at most 256 math threads"
    values = _values(config, arch)
    most = _most_values(config, arch)
    if values > most:
        return (
            f"a {config.block_M} x {config.block_N} tile on {config.threads} threads keeps {values} float32 "
            f"values a thread in registers, more than {most}; use more threads or a "
            f"smaller tile"
        )
    return _why_no_wgmma(config, K) if arch == "sm_90a" else _why_no_mma(config)


def _tile_weights(config: KernelConfig, arch: str) -> tuple[int, ...]:
    if arch != "sm_90a":
        return 16, 32, 64, 128
    # Of the tiles wider than a scale block these never reach into a third one.
    return (64, 128) if config.is_swap_ab else (*range(16, 129, 16), 144, 160, _WIDEST_TILE)


def _why_no_wgmma(config: KernelConfig, K: int) -> str | None:
    if config.block_N != 8 and config.block_N % 16:
        return f"block_N = {config.block_N}; WGMMA here takes 8 or a multiple of 16"
    groups = step_groups(config)
    if max(1, config.num_stages) % groups:
        return (
            f"num_stages = {config.num_stages}; {config.threads} threads are {groups} groups of warpgroups "
            f"that take turns at the stages of {config.block_M} rows, so it must be a multiple of {groups}"
        )
    steps = K // K_STEP // config.split_k
    if steps < groups:
        return (
            f"threads = {config.threads}; they are {groups} groups of warpgroups that take turns, and "
            f"K = {K} with split_k = {config.split_k} has {steps} steps of {K_STEP}; use fewer threads"
        )
    return None


def _why_no_mma(config: KernelConfig) -> str | None:
    values = _values(config, "sm_89")
    most = _MAX_ADA_SPLIT_VALUES if config.kernel_type == "splitK" else _MAX_ADA_VALUES
    if values > most:
        return (
            f"a {config.block_M} x {config.block_N} {config.kernel_type} tile on {config.threads} threads "
            f"keeps {values} float32 values a thread and spills on sm_89 above {most}; use more threads or a "
            f"smaller tile"
        )
    sizes = (16, 32, 64, 128)
    for field, value in (("block_M", config.block_M), ("block_N", config.block_N)):
        if value not in sizes:
            return f"{field} = {value}; on sm_89 it must be one of {', '.join(map(str, sizes))}"
    warps = config.threads // 32
    if (config.block_M // 16) * (config.block_N // 8) < warps:
        return (
            f"a {config.block_M} x {config.block_N} tile has fewer m16n8 MMAs than {warps} warps; "
            f"use fewer threads or a larger tile"
        )
    return None


def pieces(config: KernelConfig) -> int:
    """Into how many pieces Hopper's warpgroups cut the tile along block_M."""
    return math.gcd(config.block_M // 64, config.threads // 128)


def step_groups(config: KernelConfig) -> int:
    """How many groups of warpgroups take turns at the K steps of a tile on Hopper."""
    return config.threads // 128 // pieces(config)


def scale_blocks(config: KernelConfig) -> int:
    """Across how many blocks of B's scales a tile of base or splitK can lie."""
    return 1 if 128 % config.block_N == 0 else 2


def partial_row(config: KernelConfig) -> int:
    """Floats from one token to the next in the float32 partial tile of Ada's splitK_swapAB.

    Padded so that a warp storing its fragment transposed, 4 rows by 8 columns, meets every bank once.
    """
    return config.tile_weights + (4 - config.tile_weights) % 32


def _units(config: KernelConfig) -> int:
    """Units of 8 columns of 64 rows that a piece of the tile has."""
    return config.block_M // pieces(config) // 64 * config.block_N // 8


def group_floats(config: KernelConfig) -> int:
    """Floats that Hopper's groups of warpgroups pass on to each other at the end of a tile."""
    return pieces(config) * (step_groups(config) - 1) * _units(config) * 512


def inbox_floats(config: KernelConfig) -> int:
    """Floats that the peers of a CTA send it of its share of a tile, on Hopper."""
    units, groups = _units(config), step_groups(config)
    runs = (units * (group + 1) // groups - units * group // groups for group in range(groups))
    return pieces(config) * sum(share_floats(run, config.split_k) for run in runs)


def share_floats(units: int, split_k: int) -> int:
    """The same of a warpgroup with `units`: what a warp has of a unit is one CTA's as a whole."""
    return (split_k - 1) * -(-4 * units // split_k) * 128


def register_split(config: KernelConfig) -> tuple[int, int]:
    """Registers a thread of the multiplying and of the loading warps of Hopper's `base` and `splitK`.

    (0, 0) where an equal share of the 65536 is enough. Where accumulator and partial need more, a whole
    warpgroup of loading warps gives some of theirs; to ask for more than it gave is to wait forever.
    """
    warpgroups = config.threads // 128 + 1  # an SM's quarter has registers for one warp of each
    if _values(config, "sm_90a") + _OTHER_VALUES <= min(255, 512 // warpgroups):
        return 0, 0
    if config.threads == 384:
        return 160, 32
    return (224, 56) if has_room_for_four_scales(config.block_N) else (232, 40)


def has_room_for_four_scales(tile_weights: int) -> bool:
    """Whether loading warps have registers to read four K steps' scales at once: the widest tile needs them
    itself, or it spills under TileLang 0.1.11."""
    return tile_weights < _WIDEST_TILE


def ctas_per_sm(config: KernelConfig, N: int, K: int) -> int:
    """How many CTAs of Hopper's persistent `base` fit on an SM: that many for each SM share out the tiles."""
    threads = config.threads + 32 * LOADING_WARPS
    registers = 65536 // (threads * min(255, _values(config, "sm_90a") + _OTHER_VALUES))
    return max(1, min(registers, HOPPER_SHARED_MEMORY // shared_memory_bytes(config, N, K, "sm_90a")))


def partials(config: KernelConfig) -> int:
    """How many partials a warpgroup of Hopper's `base` and `splitK` has: two where they are of use and fit.

    Of use to warpgroups that do not take turns at the steps, and from 96 columns on: with fewer a step is
    short, and its loads are what bounds it.
    """
    useful = step_groups(config) == 1 and config.block_N >= _COLUMNS_FOR_TWO_PARTIALS
    return 2 if useful and 3 * _tile_values(config, "sm_90a") <= _most_values(config, "sm_90a") else 1


def waves(config: KernelConfig) -> int:
    """In how many waves of 64 rows a warpgroup of Hopper's `base` multiplies its piece of a tile.

    One where a partial of the whole piece fits beside its accumulator; else each wave has its turn with a
    smaller one. Not for tiles across two scale blocks, which spill.
    """
    if config.kernel_type != "base" or step_groups(config) > 1 or scale_blocks(config) > 1:
        return 1
    if 2 * _tile_values(config, "sm_90a") <= _most_values(config, "sm_90a"):
        return 1
    return config.block_M // pieces(config) // 64


def _tile_values(config: KernelConfig, arch: str) -> int:
    """The accumulator, or a partial, in float32 values a multiplying thread."""
    groups = step_groups(config) if arch == "sm_90a" else 1
    return config.block_M * config.block_N * groups // config.threads


def _values(config: KernelConfig, arch: str) -> int:
    """Accumulator and partials, in float32 values a multiplying thread."""
    tile = _tile_values(config, arch)
    if arch != "sm_90a" or config.is_swap_ab:
        return 2 * tile
    return tile + partials(config) * tile // waves(config)


def _most_values(config: KernelConfig, arch: str) -> int:
    wide = arch == "sm_90a" and not config.is_swap_ab and config.threads <= 256
    return _MAX_WIDE_TILE_VALUES if wide else _MAX_TILE_VALUES
