"""What a kernel variant needs of a device: shared memory, registers, instruction shapes.

Kept apart from the kernels so that a config can be judged without importing TileLang.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tilelang_gemm_wrapper.core.device import HOPPER_SHARED_MEMORY

if TYPE_CHECKING:
    from tilelang_gemm_wrapper.core.config import KernelConfig

K_STEP = 128  # bytes and elements of K in one step, one ring slot and one pair of scales
LOADING_WARPS = 4  # of base and splitK on Hopper: one for the tiles, the others for the scales
SCALE_WARPS = LOADING_WARPS - 1
PARTIAL_PAD = 4  # floats after each row of a float32 partial tile, see cluster.reduce_store
_STATIC_BYTES = 1024  # mbarriers, rounded up to the alignment of the dynamic buffer
_ALIGN = 1024  # the largest alignment TileLang gives a buffer, that of swizzled tiles

# Two float32 tiles, accumulator and partial, live in registers. 128 values a thread leave room for
# addresses and scales under the 255-register limit; the next size up (256) spills.
_MAX_TILE_VALUES_PER_THREAD = 128
# On sm_89 the MMA operands take registers too, and splitK's float32 partials an address each besides.
_MAX_ADA_VALUES = 64
_MAX_ADA_SPLIT_VALUES = 32


def shared_memory_bytes(config: KernelConfig, N: int, K: int, arch: str) -> int:
    """Shared memory of one CTA in bytes, static and dynamic, for a TileLang `config` on `arch`."""
    stages = max(1, config.num_stages)
    tokens, weights = config.tile_tokens, config.tile_weights
    steps = K // K_STEP // config.split_k
    buffers = [stages * tokens * K_STEP, stages * weights * K_STEP]
    if config.is_split_k and (arch == "sm_90a" or config.is_swap_ab):
        buffers.append(4 * tokens * (weights + PARTIAL_PAD))
    elif arch == "sm_90a" or config.is_swap_ab:
        buffers.append(2 * tokens * weights)
    if arch == "sm_90a":
        buffers += [4 * steps * tokens, 4 * steps] if config.is_swap_ab else [4 * stages * tokens]
    return _STATIC_BYTES + sum(-(-size // _ALIGN) * _ALIGN for size in buffers)


def why_unbuildable(config: KernelConfig, N: int, K: int, arch: str) -> str | None:
    """Why this tile has no kernel on `arch`: a clause naming field, value and remedy, or None."""
    if config.tile_weights not in (16, 32, 64, 128):
        field = "block_M" if config.is_swap_ab else "block_N"
        return (
            f"{field} = {config.tile_weights}; a tile along N must be 16, 32, 64 or 128 to lie in one scale "
            f"block"
        )
    if config.threads == 384 and (arch != "sm_90a" or config.kernel_type != "base"):
        return (
            f"threads = 384 with kernel_type {config.kernel_type!r} on {arch}; Hopper's 'base' alone takes it"
        )
    values = _values(config)
    if values > _MAX_TILE_VALUES_PER_THREAD:
        return (
            f"a {config.block_M} x {config.block_N} tile on {config.threads} threads keeps {values} float32 "
            f"values a thread in registers, more than {_MAX_TILE_VALUES_PER_THREAD}; use more threads or a "
            f"smaller tile"
        )
    return _why_no_wgmma(config) if arch == "sm_90a" else _why_no_mma(config)


def _why_no_wgmma(config: KernelConfig) -> str | None:
    column_pieces = pieces(config)[1]
    if config.block_N % column_pieces:
        return (
            f"threads = {config.threads}; its warpgroups cannot share {config.block_N} columns equally; "
            f"use 128 or 256"
        )
    columns = config.block_N // column_pieces
    if columns != 8 and columns % 16:
        return (
            f"block_N = {config.block_N}; {columns} columns a warpgroup, but WGMMA here takes 8 or a "
            f"multiple of 16"
        )
    return None


def _why_no_mma(config: KernelConfig) -> str | None:
    values = _values(config)
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


def pieces(config: KernelConfig) -> tuple[int, int]:
    """Into how many pieces Hopper's warpgroups cut the tile along block_M and along block_N, one for each."""
    warpgroups = config.threads // 128
    rows = math.gcd(config.block_M // 64, warpgroups)
    return rows, warpgroups // rows


def register_split(config: KernelConfig) -> tuple[int, int]:
    """Registers a thread of the multiplying and of the loading warps of Hopper's `base`, (0, 0) where equal.

    The register file holds 65536 and is given out by warpgroup. Accumulator and partial of a 64 x 128 piece
    are 128 values a thread: with 8 or 12 multiplying warps that is more than an equal share.
    """
    if _values(config) <= 64 or config.threads < 256:
        return 0, 0
    return {256: (224, 56), 384: (160, 32)}[config.threads]


def ctas_per_sm(config: KernelConfig, N: int, K: int) -> int:
    """How many CTAs of Hopper's persistent `base` fit on an SM: that many for each SM share out the tiles."""
    threads = config.threads + 32 * LOADING_WARPS
    registers = 65536 // (threads * min(255, _values(config) + 40))
    return max(1, min(registers, HOPPER_SHARED_MEMORY // shared_memory_bytes(config, N, K, "sm_90a")))


def _values(config: KernelConfig) -> int:
    """Accumulator and partial, in float32 values a multiplying thread."""
    return 2 * config.block_M * config.block_N // config.threads
