"""What both swapAB kinds do on Hopper, up to the sum over the K steps of a CTA."""

import tilelang.language as T

from tilelang_gemm_wrapper.core.kernels.ahead import prefetch_scales
from tilelang_gemm_wrapper.core.kernels.operands import F32
from tilelang_gemm_wrapper.core.kernels.roles import (
    Share,
    arrive,
    by_warpgroup,
    each_step,
    feed_tile,
    load_ahead,
    sum_groups,
    uniform_warp,
)


@T.macro
def weights_step(slot, k, use, ring, scale_strip, partial, accum, piece):
    """One K step of a warpgroup with weights in WGMMA's rows: accum[weight, token]."""
    T.barrier_wait(ring.full[slot], use & 1)
    T.wgmma_gemm(
        ring.B[slot, piece, :, :], ring.A[slot, 0, :, :], partial, transpose_B=True, clear_accum=True
    )
    T.wait_wgmma(0)
    arrive(ring.empty, slot)
    for i, j in T.Parallel(accum.shape[0], accum.shape[1]):
        accum[i, j] += partial[i, j] * scale_strip[k, j]


@T.macro
def accumulate_weights(ring, scale_strip, partial, accum, share):
    """A warpgroup of the swapAB kinds: its share of the K steps of `scale_strip`."""
    T.clear(accum)
    operands = (ring, scale_strip, partial, accum, share.piece)
    each_step(ring, int(scale_strip.shape[0]), 0, share, weights_step, operands)


@T.macro
def stage_scales(
    A_scale, B_scale, weight_strip, scale_strip, M, m_start, n_start, first_step, threads, ahead
):
    """All multiplying warps of a swapAB kind: scale_strip[k, token] = A_scale * B_scale of its K steps.

    Staged once, up front: a thread promotes two of every eight tokens, too many scales for registers. Where
    weights are read before the wait for the stream's preceding kernel, so are their scales, which come from
    DRAM; elsewhere one pass reads both, since the second of two would wait for DRAM again. Neighbouring
    threads stage neighbouring tokens whatever the layout of A_scale: walking along K where that is contiguous
    was slower on an H200, not faster.
    """
    steps, tile_tokens = scale_strip.shape
    if ahead.loaded > 0:
        for k in T.Parallel(steps):
            weight_strip[k] = B_scale[n_start // 128, first_step + k]
        T.pdl_sync()
        T.sync_threads(1, threads)
        for k, j in T.Parallel(steps, tile_tokens):
            scale_strip[k, j] = T.if_then_else(
                m_start + j < M, A_scale[m_start + j, first_step + k] * weight_strip[k], 0.0
            )
    else:
        if m_start == 0:
            prefetch_scales(B_scale, n_start // 128, 1, first_step, int(steps), T.get_thread_binding())
        T.pdl_sync()
        for k, j in T.Parallel(steps, tile_tokens):
            scale_strip[k, j] = T.if_then_else(
                m_start + j < M,
                A_scale[m_start + j, first_step + k] * B_scale[n_start // 128, first_step + k],
                0.0,
            )
    T.sync_threads(1, threads)


@T.macro
def multiply_swapped(warpgroup, warpgroups, ring, scale_strip, parts, finish, operands):
    """One warpgroup's share of a swapAB tile, and finish(accum, share, *operands, True) with its units."""
    share = Share.of(warpgroup, int(ring.B.shape[1]), warpgroups)
    weights, tokens = ring.B.shape[2], ring.A.shape[2]
    partial = T.alloc_fragment((weights, tokens), F32)
    accum = T.alloc_fragment((weights, tokens), F32)
    accumulate_weights(ring, scale_strip, partial, accum, share)
    sum_groups(accum, parts, share, False)
    finish(accum, share, *operands, True)


@T.macro
def swapped_tile(
    A, A_scale, B, B_scale, ring, weight_strip, scale_strip, parts, M, m_start, n_start, first_step,
    threads, ahead, finish, operands,
):  # fmt: skip
    """All roles of a swapAB kind: the K steps of this CTA, then `finish` with accum[weight, token]."""
    thread, warp = T.get_thread_binding(), uniform_warp()
    if warp >= threads // 32:
        T.assume(thread >= threads)
        load_ahead(B, ring, m_start, n_start, first_step, ahead, True)
        feed_tile(A, B, ring, m_start, n_start, first_step, scale_strip.shape[0], 0, ahead, threads, True)
    else:
        T.assume(thread < threads)
        stage_scales(
            A_scale, B_scale, weight_strip, scale_strip, M, m_start, n_start, first_step, threads, ahead
        )
        by_warpgroup(
            threads // 128,
            multiply_swapped,
            (threads // 128, ring, scale_strip, parts, finish, operands),
        )
