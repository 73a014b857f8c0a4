"""Bringing the scales of base and splitK into the ring on Hopper: three warps that do nothing else.

There are two ways. By cp.async nothing waits for a scale but the barrier of its slot. Through registers the
next step's scales are there before its slot is free: base's large tiles keep the way from L2 busy for many
steps, and scales that are asked for with them arrive after them. Each is some percent faster than the other
in its place (docs/hopper-speed.md).
"""

import tilelang.language as T

from tilelang_gemm_wrapper.core.kernels.ahead import prefetch_scales
from tilelang_gemm_wrapper.core.kernels.instructions import is_aligned, read_four
from tilelang_gemm_wrapper.core.kernels.operands import F32
from tilelang_gemm_wrapper.core.kernels.resources import LOADING_WARPS, has_room_for_four_scales
from tilelang_gemm_wrapper.core.kernels.roles import ALL, each_step

LANES = 32 * (LOADING_WARPS - 1)
LARGE_TILE = 128 * 96  # tokens x weights


def copy_scale(source, destination):
    """One float32, by cp.async: it takes no register, and nothing but its slot's barrier waits for it."""
    return T.ptx_cp_async(T.access_ptr(destination, "w"), T.access_ptr(source, "r"), 1)


@T.macro
def copy_slot(slot, k, use, A_scale, B_scale, ring, M, m_start, block, first_step, ahead, lane):
    """The scales of a K step into a slot once it is free."""
    tile_tokens = int(ring.A_scale.shape[1])
    T.barrier_wait(ring.empty[slot], (use & 1) ^ 1)
    if lane < int(ring.B_scale.shape[1]) and (ahead.loaded == 0 or use > 0):
        copy_scale(B_scale[block, first_step + k], ring.B_scale[slot, lane])
    for i in T.unroll(-(-tile_tokens // LANES)):
        token = i * LANES + lane
        if token < tile_tokens:
            copy_scale(A_scale[T.min(m_start + token, M - 1), first_step + k], ring.A_scale[slot, token])
    T.cp_async_barrier_noinc(ring.full[slot])


@T.macro
def copy_tile(A_scale, B_scale, ring, M, m_start, block, first_step, steps, turn, ahead, lane):
    """The scales of every K step of one tile, by cp.async."""
    if ahead.loaded > 0 and turn == 0 and lane < int(ring.B_scale.shape[1]):
        for k in T.serial(ahead.loaded):
            copy_scale(B_scale[block, first_step + k], ring.B_scale[k, lane])
    T.pdl_sync()
    operands = (A_scale, B_scale, ring, M, m_start, block, first_step, ahead, lane)
    each_step(ring, steps, turn, ALL, copy_slot, operands)


@T.macro
def put_scales(slot, use, ring, now, weights, lane):
    """The scales of a K step, from registers, into a slot once it is free."""
    tile_tokens = int(ring.A_scale.shape[1])
    T.barrier_wait(ring.empty[slot], (use & 1) ^ 1)
    if lane < int(ring.B_scale.shape[1]):
        ring.B_scale[slot, lane] = weights[0]
    for i in T.unroll(-(-tile_tokens // LANES)):
        if i * LANES + lane < tile_tokens:
            ring.A_scale[slot, i * LANES + lane] = now[i]
    T.barrier_arrive(ring.full[slot])


@T.macro
def store_slot(slot, k, use, A_scale, B_scale, ring, rows, now, next_ones, weights, block, steps, lane):
    """The scales of a K step, read one step ago, into its slot; the next step's are read."""
    following = T.min(k + 1, steps - 1)
    weights[0] = weights[1]
    weights[1] = B_scale[block, following]
    for i in T.unroll(now.shape[0]):
        now[i] = next_ones[i]
        next_ones[i] = A_scale[rows[i], following]
    put_scales(slot, use, ring, now, weights, lane)


@T.macro
def store_one_by_one(steps, turn, operands, more):
    """Every K step's scales read for themselves, whatever the layout of A_scale."""
    A_scale, _, ring, rows, now = operands
    next_ones = T.alloc_local((int(now.shape[0]),), F32)
    for i in T.unroll(now.shape[0]):
        next_ones[i] = A_scale[rows[i], 0]
    each_step(ring, steps, turn, ALL, store_slot, (*operands, next_ones, *more))


def lies_in_fours(A_scale):
    """Whether a token's scales can be read four at a time."""
    token_stride, group_stride = A_scale.strides
    return T.And(T.And(group_stride == 1, token_stride % 4 == 0), is_aligned(A_scale[0, 0]))


@T.macro
def read_quads(A_scale, rows, quads, k):
    """The scales of K step `k` and the three after it, of this lane's tokens."""
    for i in T.unroll(rows.shape[0]):
        read_four(quads[i, 0], A_scale[rows[i], 0], k)


@T.macro
def store_slot_of_quads(slot, k, use, A_scale, B_scale, ring, rows, now, quads, weights, block, steps, lane):
    """As `store_slot`, where four K steps of a token lie side by side and are read at once."""
    weights[0] = weights[1]
    weights[1] = B_scale[block, T.min(k + 1, steps - 1)]
    for i in T.unroll(now.shape[0]):
        now[i] = T.if_then_else(
            k % 4 < 2,
            T.if_then_else(k % 4 == 0, quads[i, 0], quads[i, 1]),
            T.if_then_else(k % 4 == 2, quads[i, 2], quads[i, 3]),
        )
    if k % 4 == 3 and k + 1 < steps:
        read_quads(A_scale, rows, quads, k + 1)
    put_scales(slot, use, ring, now, weights, lane)


@T.macro
def store_tile(A_scale, B_scale, ring, M, m_start, block, steps, turn, ahead, lane):
    """The scales of every K step of one tile, through registers.

    Row-major scales are read four K steps at a time, where they lie in fours: a warp's reads of one step are
    a row of A_scale apart, which costs each of them a line of L1 (docs/hopper-speed.md has the gain).
    """
    rows_per_lane = -(-int(ring.A_scale.shape[1]) // LANES)
    rows = T.alloc_local((rows_per_lane,), "int32")
    now = T.alloc_local((rows_per_lane,), F32)
    weights = T.alloc_local((2,), F32)
    if ahead.loaded == 0:
        T.pdl_sync()
    weights[1] = B_scale[block, 0]
    if ahead.loaded > 0:
        T.pdl_sync()
    for i in T.unroll(rows_per_lane):
        rows[i] = T.min(m_start + i * LANES + lane, M - 1)
    operands = (A_scale, B_scale, ring, rows, now)
    more = (weights, block, steps, lane)
    if steps % 4 or not has_room_for_four_scales(int(ring.B.shape[2])):
        store_one_by_one(steps, turn, operands, more)
    elif lies_in_fours(A_scale):
        quads = T.alloc_local((rows_per_lane, 4), F32)
        read_quads(A_scale, rows, quads, 0)
        each_step(ring, steps, turn, ALL, store_slot_of_quads, (*operands, quads, *more))
    else:
        store_one_by_one(steps, turn, operands, more)


@T.macro
def feed_scales(
    A_scale, B_scale, ring, M, m_start, n_start, first_step, steps, turn, ahead, first_thread,
    through_registers,
):  # fmt: skip
    """The scale warps: the scales of every K step of one tile.

    A tile of weights lies in one block of B_scale or across two. Those of B_scale, which come from DRAM, go
    ahead of the wait for the stream's preceding kernel as the weights do. Rows past M read the last row's
    scale; what they scale is never stored.
    """
    lane = T.get_thread_binding() - first_thread
    last_block = int(ring.B_scale.shape[1]) - 1
    block = T.min(n_start // 128 + T.min(lane, last_block), B_scale.shape[0] - 1)
    if ahead.loaded == 0 and turn == 0 and m_start == 0:
        prefetch_scales(B_scale, n_start // 128, last_block + 1, first_step, steps, lane)
    if through_registers:
        store_tile(A_scale, B_scale, ring, M, m_start, block, steps, turn, ahead, lane)
    else:
        copy_tile(A_scale, B_scale, ring, M, m_start, block, first_step, steps, turn, ahead, lane)
