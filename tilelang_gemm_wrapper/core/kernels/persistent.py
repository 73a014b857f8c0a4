"""Building blocks of Hopper's persistent `base` kernel: warps with roles of their own, for tile after tile.

One CTA holds a multiplying warpgroup for every 64 x `columns` piece of its tile, one warp that feeds both
operands through TMA, and three warps that bring the scales of the same K step into shared memory, already
multiplied. A slot of the ring is full when all four loading warps have arrived.

What the loop costs besides its WGMMAs decides the speed: measured on an H200 with two warpgroups, a 128 x 128
step of 512 tensor cycles takes 650 with the wait for the slot, 830 with the scale reads after it, and 1.25
times more again where the descriptors are not warp-uniform (docs/hopper-speed.md). Hence:

- Branches on the role go by a warp index that is uniform for the compiler (`uniform_warp`), and each
  multiplying warpgroup has code of its own. Only then are descriptors computed in uniform registers, which
  WGMMA needs them in, instead of being moved there before every instruction.
- The ring starts at slot 0 with every tile and the loop over its slots is unrolled, so that slots are
  constants, and the wait for the next slot is issued among the additions of this one.
"""

from typing import Any, NamedTuple

import tilelang.language as T

from tilelang_gemm_wrapper.core.kernels.operands import BF16, F32
from tilelang_gemm_wrapper.core.kernels.resources import K_STEP

LOADING_WARPS = 4  # one for the tiles, the others for the scales
SCALE_WARPS = LOADING_WARPS - 1
SCALE_LANES = 32 * SCALE_WARPS
TILES_PER_PANEL = 8  # token tiles that share the weight tiles they find in L2


class Ring(NamedTuple):
    """The shared-memory slots, each for one K step, and their barriers."""

    tokens: Any  # (stages, 64-row pieces, 64, 128) e4m3
    weights: Any  # (stages, pieces along N, columns, 128) e4m3
    scale: Any  # (stages, tokens of the tile) float32
    full: Any  # LOADING_WARPS arrivals
    empty: Any  # an arrival of every multiplying warp


class Tiles(NamedTuple):
    """The tiles of the problem and which of them this CTA computes: `first`, then every `workers`-th."""

    tokens: int  # rows of C in a tile
    weights: int  # columns of C in a tile
    m_tiles: Any
    n_tiles: int
    first: Any
    workers: Any
    turns: Any  # how many this CTA computes


def tiles_of(cta, M, N, tile_tokens, tile_weights, ctas):
    """Share the tiles of an (M, N) result out to at most `ctas` CTAs, of which this is number `cta`."""
    m_tiles, n_tiles = T.ceildiv(M, tile_tokens), -(-N // tile_weights)
    workers = T.min(m_tiles * n_tiles, ctas)
    turns = (m_tiles * n_tiles - cta + workers - 1) // workers
    return Tiles(tile_tokens, tile_weights, m_tiles, n_tiles, cta, workers, turns)


def uniform_warp():
    """Index of the calling thread's warp, known to the compiler to be the same in all its lanes."""
    return T.shfl_sync(T.get_thread_binding() // 32, 0)


def use_of(slot, turn, lap, steps, num_stages):
    """How often `slot` was used before this: its phase. The ring starts at slot 0 with every turn's tile."""
    uses_of_a_tile = (steps - slot + num_stages - 1) // num_stages
    return turn * uses_of_a_tile + lap


@T.macro
def locate(at, tiles, turn):
    """at[:] = first token and first weight of its tile number `turn`; tiles go down M in panels, then N."""
    tile = tiles.first + turn * tiles.workers
    panel = tile // (TILES_PER_PANEL * tiles.n_tiles)
    height = T.min(TILES_PER_PANEL, tiles.m_tiles - panel * TILES_PER_PANEL)
    place = tile - panel * TILES_PER_PANEL * tiles.n_tiles
    at[0] = (panel * TILES_PER_PANEL + place % height) * tiles.tokens
    at[1] = place // height * tiles.weights


@T.macro
def load_weights(B, ring, slot, n_start, k):
    pieces, columns = ring.weights.shape[1], ring.weights.shape[2]
    for piece in T.unroll(pieces):
        T.tma_copy(
            B[n_start + piece * columns : n_start + (piece + 1) * columns, k * K_STEP : (k + 1) * K_STEP],
            ring.weights[slot, piece, :, :],
            barrier=ring.full[slot],
        )


@T.macro
def load_tokens(A, ring, slot, m_start, k):
    for piece in T.unroll(ring.tokens.shape[1]):
        T.tma_copy(
            A[m_start + piece * 64 : m_start + (piece + 1) * 64, k * K_STEP : (k + 1) * K_STEP],
            ring.tokens[slot, piece, :, :],
            barrier=ring.full[slot],
        )


@T.macro
def feed_tiles(A, B, ring, tiles, at, steps, early, first_thread):
    """The TMA warp: both operands of every K step of every tile of this CTA.

    The first `early` weight tiles are on their way before the kernel waits for its predecessor in the stream.
    """
    num_stages = ring.tokens.shape[0]
    if early > 0:
        locate(at, tiles, 0)
        for k in T.serial(early):
            load_weights(B, ring, k, at[1], k)
        T.pdl_sync()
    for turn in T.serial(tiles.turns):
        locate(at, tiles, turn)
        m_start = at[0]
        n_start = at[1]
        for k in T.serial(steps):
            slot = k % num_stages
            T.barrier_wait(ring.empty[slot], (use_of(slot, turn, k // num_stages, steps, num_stages) & 1) ^ 1)
            if turn * steps + k >= early:
                load_weights(B, ring, slot, n_start, k)
            load_tokens(A, ring, slot, m_start, k)
            if T.get_thread_binding() == first_thread:
                T.barrier_arrive(ring.full[slot])


@T.macro
def feed_scales(A_scale, B_scale, ring, tiles, at, M, steps, early, first_thread):
    """The scale warps: ring.scale[slot, token] = A_scale * B_scale of the K step in that slot.

    Scales are read one step ahead, into registers, because a slot is free for less time than the read takes.
    Rows past M read the last row's scale; what they scale is never stored.
    """
    num_stages = ring.tokens.shape[0]
    rows_per_lane = -(-tiles.tokens // SCALE_LANES)
    lane = T.get_thread_binding() - first_thread
    token_scale = T.alloc_local((2, rows_per_lane), F32)
    weight_scale = T.alloc_local((2,), F32)
    row = T.alloc_local((rows_per_lane,), "int32")
    if early > 0:
        T.pdl_sync()
    for turn in T.serial(tiles.turns):
        locate(at, tiles, turn)
        group = T.min(at[1] // 128, B_scale.shape[0] - 1)
        for i in T.unroll(rows_per_lane):
            row[i] = T.min(at[0] + i * SCALE_LANES + lane, M - 1)
        weight_scale[1] = B_scale[group, 0]
        for i in T.unroll(rows_per_lane):
            token_scale[1, i] = A_scale[row[i], 0]
        for k in T.serial(steps):
            slot = k % num_stages
            weight_scale[0] = weight_scale[1]
            for i in T.unroll(rows_per_lane):
                token_scale[0, i] = token_scale[1, i]
            ahead = T.min(k + 1, steps - 1)
            weight_scale[1] = B_scale[group, ahead]
            for i in T.unroll(rows_per_lane):
                token_scale[1, i] = A_scale[row[i], ahead]
            T.barrier_wait(ring.empty[slot], (use_of(slot, turn, k // num_stages, steps, num_stages) & 1) ^ 1)
            for i in T.unroll(rows_per_lane):
                if i * SCALE_LANES + lane < tiles.tokens:
                    ring.scale[slot, i * SCALE_LANES + lane] = token_scale[0, i] * weight_scale[0]
            T.sync_warp()
            if T.get_thread_binding() % 32 == 0:
                T.barrier_arrive(ring.full[slot])


@T.macro
def multiply_step(ring, partial, accum, scale, slot, use, rows, columns):
    """One warpgroup's piece of one K step: wait, multiply, give the slot back, promote."""
    T.barrier_wait(ring.full[slot], use & 1)
    T.copy(ring.scale[slot, rows * 64 : rows * 64 + 64], scale)
    T.wgmma_gemm(
        ring.tokens[slot, rows, :, :],
        ring.weights[slot, columns, :, :],
        partial,
        transpose_B=True,
        clear_accum=True,
    )
    T.wait_wgmma(0)
    if T.get_thread_binding() % 32 == 0:
        T.barrier_arrive(ring.empty[slot])
    for i, j in T.Parallel(64, accum.shape[1]):
        accum[i, j] += partial[i, j] * scale[i]


@T.macro
def multiply_tiles(warpgroup, ring, tiles, at, C, steps, early):
    """Everything that warpgroup number `warpgroup` does: its 64-row piece of every tile of this CTA.

    The TMA store of a tile is waited for only when the next tile is to be stored.
    """
    num_stages, row_groups, piece_columns = ring.tokens.shape[0], ring.tokens.shape[1], ring.weights.shape[2]
    rows, columns = warpgroup % row_groups, warpgroup // row_groups
    C_shared = T.alloc_shared((64, piece_columns), BF16)
    partial = T.alloc_fragment((64, piece_columns), F32)
    accum = T.alloc_fragment((64, piece_columns), F32)
    scale = T.alloc_fragment((64,), F32)
    if early > 0:
        T.pdl_sync()
    for turn in T.serial(tiles.turns):
        T.clear(accum)
        for lap in T.serial(steps // num_stages):
            for slot in T.unroll(num_stages):
                use = use_of(slot, turn, lap, steps, num_stages)
                multiply_step(ring, partial, accum, scale, slot, use, rows, columns)
        for slot in T.unroll(steps % num_stages):
            use = use_of(slot, turn, steps // num_stages, steps, num_stages)
            multiply_step(ring, partial, accum, scale, slot, use, rows, columns)
        locate(at, tiles, turn)
        m_start = at[0] + rows * 64
        n_start = at[1] + columns * piece_columns
        if T.get_thread_binding() < warpgroup * 128 + 32:
            T.tma_store_wait(0)
        T.sync_threads(1 + warpgroup, 128)
        T.copy(accum, C_shared)
        T.fence_proxy_async()
        T.sync_threads(5 + warpgroup, 128)
        if T.get_thread_binding() < warpgroup * 128 + 32:
            T.tma_copy(C_shared, C[m_start : m_start + 64, n_start : n_start + piece_columns])
    if T.get_thread_binding() < warpgroup * 128 + 32:
        T.tma_store_wait(0)
