"""Bringing the scales of base and splitK into the ring on Hopper: three warps that do nothing else.

There are two ways. By cp.async nothing waits for a scale but the barrier of its slot. Through registers the
next step's scales are there before its slot is free: base's large tiles keep the way from L2 busy for many
steps, and scales that are asked for with them arrive after them. Each is some percent faster than the other
in its place (docs/hopper-speed.md).
"""

import tilelang.language as T

from tilelang_gemm_wrapper.core.kernels.operands import F32
from tilelang_gemm_wrapper.core.kernels.resources import LOADING_WARPS
from tilelang_gemm_wrapper.core.kernels.roles import ALL, each_step

LANES = 32 * (LOADING_WARPS - 1)
LARGE_TILE = 128 * 96  # tokens x weights


def copy_scale(source, destination):
    """One float32, by cp.async: it takes no register, and nothing but its slot's barrier waits for it."""
    return T.ptx_cp_async(T.access_ptr(destination, "w"), T.access_ptr(source, "r"), 1)


@T.macro
def copy_slot(slot, k, use, A_scale, B_scale, ring, M, m_start, block, first_step, early, lane):
    """The scales of a K step into a slot once it is free."""
    tile_tokens = int(ring.A_scale.shape[1])
    T.barrier_wait(ring.empty[slot], (use & 1) ^ 1)
    if lane < int(ring.B_scale.shape[1]) and (early == 0 or use > 0):
        copy_scale(B_scale[block, first_step + k], ring.B_scale[slot, lane])
    for i in T.unroll(-(-tile_tokens // LANES)):
        token = i * LANES + lane
        if token < tile_tokens:
            copy_scale(A_scale[T.min(m_start + token, M - 1), first_step + k], ring.A_scale[slot, token])
    T.cp_async_barrier_noinc(ring.full[slot])


@T.macro
def copy_tile(A_scale, B_scale, ring, M, m_start, block, first_step, steps, turn, early, lane):
    """The scales of every K step of one tile, by cp.async."""
    if early > 0:
        if turn == 0 and lane < int(ring.B_scale.shape[1]):
            for k in T.serial(early):
                copy_scale(B_scale[block, first_step + k], ring.B_scale[k, lane])
        T.pdl_sync()
    operands = (A_scale, B_scale, ring, M, m_start, block, first_step, early, lane)
    each_step(ring, steps, turn, ALL, copy_slot, operands)


@T.macro
def store_slot(slot, k, use, A_scale, B_scale, ring, rows, tokens, weights, block, first_step, steps, lane):
    """The scales of a K step, read one step ago, into a slot once it is free; the next step's are read."""
    tile_tokens = int(ring.A_scale.shape[1])
    ahead = first_step + T.min(k + 1, steps - 1)
    weights[0] = weights[1]
    weights[1] = B_scale[block, ahead]
    for i in T.unroll(-(-tile_tokens // LANES)):
        tokens[0, i] = tokens[1, i]
        tokens[1, i] = A_scale[rows[i], ahead]
    T.barrier_wait(ring.empty[slot], (use & 1) ^ 1)
    if lane < int(ring.B_scale.shape[1]):
        ring.B_scale[slot, lane] = weights[0]
    for i in T.unroll(-(-tile_tokens // LANES)):
        if i * LANES + lane < tile_tokens:
            ring.A_scale[slot, i * LANES + lane] = tokens[0, i]
    T.barrier_arrive(ring.full[slot])


@T.macro
def store_tile(A_scale, B_scale, ring, M, m_start, block, first_step, steps, turn, early, lane):
    """The scales of every K step of one tile, through registers."""
    rows_per_lane = -(-int(ring.A_scale.shape[1]) // LANES)
    rows = T.alloc_local((rows_per_lane,), "int32")
    tokens = T.alloc_local((2, rows_per_lane), F32)
    weights = T.alloc_local((2,), F32)
    weights[1] = B_scale[block, first_step]
    if early > 0:
        T.pdl_sync()
    for i in T.unroll(rows_per_lane):
        rows[i] = T.min(m_start + i * LANES + lane, M - 1)
        tokens[1, i] = A_scale[rows[i], first_step]
    operands = (A_scale, B_scale, ring, rows, tokens, weights, block, first_step, steps, lane)
    each_step(ring, steps, turn, ALL, store_slot, operands)


@T.macro
def feed_scales(
    A_scale, B_scale, ring, M, m_start, n_start, first_step, steps, turn, early, first_thread,
    through_registers,
):  # fmt: skip
    """The scale warps: the scales of every K step of one tile.

    A tile of weights lies in one block of B_scale or across two. The first of B_scale, which come from DRAM,
    are read before the wait for the stream's preceding kernel where the weights are (`early`). Rows past M
    read the last row's scale; what they scale is never stored.
    """
    lane = T.get_thread_binding() - first_thread
    last_block = int(ring.B_scale.shape[1]) - 1
    block = T.min(n_start // 128 + T.min(lane, last_block), B_scale.shape[0] - 1)
    operands = (A_scale, B_scale, ring, M, m_start, block, first_step, steps, turn, early, lane)
    if through_registers:
        store_tile(*operands)
    else:
        copy_tile(*operands)
