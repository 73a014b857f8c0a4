"""Our Triton GEMM: every M, N and K, on Ada, Hopper and newer.

The tile comes from a fixed table: nothing is tuned or timed at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from ..core import kernel_cache
from ..core.device import HOPPER_SHARED_MEMORY, device_of
from ..core.failure_text import first_line

if TYPE_CHECKING:
    from ..core.device import Device


@dataclass(frozen=True, slots=True)
class Tile:
    """What a program computes, block_M × block_N with 128 of K a step, and how it is compiled."""

    block_M: int
    block_N: int
    group_M: int  # tiles along M that share a pass over B, so that B is read from L2
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class TileRow:
    """The tiles for M up to `max_M`, largest first: the first that gives each SM `waves` tiles is taken."""

    max_M: float
    waves: float
    tiles: tuple[Tile, ...]


# 16 rows are the least a tensor-core dot takes, 64 the least WGMMA takes. 64 × 128 with 4 warps holds 128
# accumulator registers a thread (the partial and the promoted sum), so two programs fit an SM and one can
# multiply while the other promotes; 128 × 128 with 8 warps leaves room for one alone. Public Triton
# configurations tuned on an H200 choose 64 × 128 at large M as well.
HOPPER_TILES = (
    TileRow(
        max_M=16,
        waves=1.0,
        tiles=(Tile(16, 128, 1, 4, 5), Tile(16, 64, 1, 4, 6), Tile(16, 32, 1, 4, 8)),
    ),
    TileRow(
        max_M=float("inf"),
        waves=2.0,
        tiles=(Tile(64, 128, 32, 4, 4), Tile(64, 64, 32, 4, 4), Tile(64, 32, 32, 4, 4)),
    ),
)
# Within Ada's 99 KiB of shared memory; 5 KB in flight an SM already cover the latency of its slower DRAM.
ADA_TILES = (
    TileRow(
        max_M=16,
        waves=1.0,
        tiles=(Tile(16, 128, 1, 4, 4), Tile(16, 64, 1, 4, 4), Tile(16, 32, 1, 4, 5)),
    ),
    TileRow(
        max_M=32,
        waves=1.0,
        tiles=(Tile(32, 128, 1, 4, 4), Tile(32, 64, 1, 4, 4), Tile(32, 32, 1, 4, 4)),
    ),
    TileRow(
        max_M=float("inf"),
        waves=1.0,
        tiles=(
            Tile(128, 128, 16, 8, 3),
            Tile(64, 128, 32, 8, 3),
            Tile(64, 64, 32, 4, 3),
            Tile(64, 32, 32, 4, 4),
        ),
    ),
)


@lru_cache(maxsize=4096)
def choose_tile(M: int, N: int, K: int, sm_count: int, shared_memory_per_block: int) -> Tile:
    """The tile for this shape: the largest of its row of the table that still gives every SM work."""
    table = HOPPER_TILES if shared_memory_per_block >= HOPPER_SHARED_MEMORY else ADA_TILES
    row = next(row for row in table if row.max_M >= M)
    if K % 16:  # rows of A and B start at odd addresses: single-byte loads, which large tiles spill on
        return row.tiles[-1]
    for tile in row.tiles:
        if -(-M // tile.block_M) * -(-N // tile.block_N) >= row.waves * sm_count:
            return tile
    return row.tiles[-1]


@lru_cache(maxsize=64)
def why_unavailable(device: Device) -> str | None:
    """Why the kernel cannot run on `device`: no NVIDIA GPU of sm_89 or newer, or triton is not importable."""
    if not device.is_cuda:
        return f"Triton needs an NVIDIA GPU; this device is {device.arch}"
    if device.capability < 89:
        return f"e4m3 in Triton needs sm_89 or newer; {device.name} is {device.arch}"
    try:
        _kernel()
    except Exception as exception:  # whatever goes wrong in another package's import is the reason
        return f"triton cannot be imported ({first_line(exception)}): pip install 'triton>=3.4'"
    return None


def why_unsupported(N: int, K: int) -> str | None:
    """None: every shape is computed. K that is no multiple of 16 is slow."""
    del N, K
    return None


def gemm(
    A: torch.Tensor, A_scale: torch.Tensor, B: torch.Tensor, B_scale: torch.Tensor, C: torch.Tensor
) -> None:
    """Writes C; see `Backend.gemm`. Compiles on the first call that needs another tile or K alignment."""
    device = device_of(A.device.index)
    M, K = A.shape
    N = B.shape[0]
    tile = choose_tile(M, N, K, device.sm_count, device.shared_memory_per_block)
    launch(A, A_scale, B, B_scale, C, tile=tile)


def launch(
    A: torch.Tensor,
    A_scale: torch.Tensor,
    B: torch.Tensor,
    B_scale: torch.Tensor,
    C: torch.Tensor,
    *,
    tile: Tile,
) -> None:
    """`gemm` with a tile of the caller's choice: any whose block_N divides 128."""
    M, K = A.shape
    N = B.shape[0]
    programs = -(-M // tile.block_M) * -(-N // tile.block_N)
    if programs == 0:
        return
    with torch.cuda.device_of(A):  # Triton launches on the current device
        _kernel()[(programs,)](
            A,
            A_scale,
            B,
            B_scale,
            C,
            M,
            N,
            K,
            A_scale.stride(0),
            A_scale.stride(1),
            C.stride(0),
            BLOCK_M=tile.block_M,
            BLOCK_N=tile.block_N,
            GROUP_M=tile.group_M,
            WHOLE_K=K % 128 == 0,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            enable_fp_fusion=True,  # Triton 3.10 turns it off by default; the promotion is one FMA with it
        )


def warmup(N: int, K: int, m_values: Sequence[int], device: torch.device | None = None) -> None:
    """Compiles and loads the kernel of every tile these M lead to, by running each on one row.

    Compiled kernels stay in Triton's cache on disk. Takes memory for B: N * K bytes.
    """
    k_blocks = -(-K // 128)
    with torch.cuda.device(device):
        chip = device_of(torch.cuda.current_device())
        tiles = {choose_tile(m, N, K, chip.sm_count, chip.shared_memory_per_block) for m in m_values if m > 0}
        A = torch.zeros((1, K), dtype=torch.float8_e4m3fn, device="cuda")
        B = torch.zeros((N, K), dtype=torch.float8_e4m3fn, device="cuda")
        A_scale = torch.ones((1, k_blocks), device="cuda")
        B_scale = torch.ones((-(-N // 128), k_blocks), device="cuda")
        C = torch.empty((1, N), dtype=torch.bfloat16, device="cuda")
        for tile in tiles:
            launch(A, A_scale, B, B_scale, C, tile=tile)


@lru_cache(maxsize=1)
def _kernel() -> Any:
    kernel_cache.lend_to_triton()
    from ._triton_kernel import block_scaled_gemm

    return block_scaled_gemm
