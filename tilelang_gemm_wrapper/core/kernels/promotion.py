"""What a multiplying warpgroup of base or splitK does with the K steps of a tile on Hopper.

A step's partial is scaled and added to the accumulator in float32 ("promotion"). With one partial the tensor
cores have only the other warpgroup's work meanwhile; with two, the next step's products are under way. That
costs registers and keeps a slot a little longer, so it is for tiles with long steps (`resources.partials`).
A piece of rows whose partial does not fit at all is multiplied in waves, with a partial and an accumulator
for 64 rows at a time (`resources.waves`), as in DeepGEMM's sm90 1D2D kernel.
"""

import math

import tilelang.language as T

from tilelang_gemm_wrapper.core.kernels.operands import F32
from tilelang_gemm_wrapper.core.kernels.roles import arrive, each_step, use_of


@T.macro
def multiply(slot, ring, piece, partial):
    """Start the products of one of the ring's pieces of A in a full slot."""
    T.wgmma_gemm(
        ring.A[slot, piece, :, :], ring.B[slot, 0, :, :], partial, transpose_B=True, clear_accum=True
    )


@T.macro
def promote(slot, ring, piece, partial, accum, scale, scale_beyond, n_start, under_way, is_last):
    """accum[token, weight] += a piece's partial * its scales, with `under_way` later WGMMAs not waited for.

    `is_last`: the warpgroup needs the slot for no other piece. Where a tile can lie across two scale blocks,
    it does so at a multiple of `stride` columns: few enough places that choosing between the two scales costs
    little.
    """
    tokens, weights = accum.shape
    first = piece * tokens
    for i in T.Parallel(tokens):
        scale[i] = ring.A_scale[slot, first + i] * ring.B_scale[slot, 0]
    if ring.B_scale.shape[1] > 1:
        for i in T.Parallel(tokens):
            scale_beyond[i] = ring.A_scale[slot, first + i] * ring.B_scale[slot, 1]
    T.wait_wgmma(under_way)
    if is_last:
        arrive(ring.empty, slot)
    if ring.B_scale.shape[1] == 1:
        for i, j in T.Parallel(tokens, weights):
            accum[i, j] += partial[i, j] * scale[i]
    else:
        stride = math.gcd(int(weights), 128)
        for i, j in T.Parallel(tokens, weights):
            accum[i, j] += partial[i, j] * T.if_then_else(
                j // stride * stride < 128 - n_start % 128, scale[i], scale_beyond[i]
            )


@T.macro
def waves_from(wave, slot, ring, partials, accums, scale, scale_beyond, n_start, share):
    """The waves of one K step from `wave` on, each from its products to its sum."""
    waves = len(accums)
    piece = share.piece * waves + wave
    multiply(slot, ring, piece, partials[0])
    promote(slot, ring, piece, partials[0], accums[wave], scale, scale_beyond, n_start, 0, wave == waves - 1)
    if wave + 1 < waves:
        waves_from(wave + 1, slot, ring, partials, accums, scale, scale_beyond, n_start, share)


@T.macro
def step_alone(slot, k, use, ring, partials, accums, scale, scale_beyond, n_start, share):
    """One K step from its products to its sum."""
    T.barrier_wait(ring.full[slot], use & 1)
    waves_from(0, slot, ring, partials, accums, scale, scale_beyond, n_start, share)


@T.macro
def steps_in_pairs(slot, end, lap, steps, turn, ring, partials, accums, scale, scale_beyond, n_start, share):
    """The slots from `slot` on, whose products are under way, up to `end`: each promoted under the next's.

    A macro that calls itself, since TileLang 0.1.11 has no loop whose index chooses between buffers.
    """
    ahead = slot + 1
    if ahead < end:
        use = use_of(ahead, turn, lap, steps, ring.stages)
        T.barrier_wait(ring.full[ahead], use & 1)
        multiply(ahead, ring, share.piece, partials[ahead % 2])
    promote(
        slot, ring, share.piece, partials[slot % 2], accums[0], scale, scale_beyond, n_start,
        1 if ahead < end else 0, True,
    )  # fmt: skip
    if ahead < end:
        steps_in_pairs(
            ahead, end, lap, steps, turn, ring, partials, accums, scale, scale_beyond, n_start, share
        )


@T.macro
def lap_in_pairs(end, lap, steps, turn, ring, partials, accums, scale, scale_beyond, n_start, share):
    """One way around the ring, or its first `end` slots. No products stay under way from lap to lap: ptxas
    lets WGMMAs overlap only in straight-line code."""
    if end > 0:
        use = use_of(0, turn, lap, steps, ring.stages)
        T.barrier_wait(ring.full[0], use & 1)
        multiply(0, ring, share.piece, partials[0])
        steps_in_pairs(0, end, lap, steps, turn, ring, partials, accums, scale, scale_beyond, n_start, share)


@T.macro
def clear_from(wave, accums):
    """The sums of the waves from `wave` on, at the start of a tile."""
    T.clear(accums[wave])
    if wave + 1 < len(accums):
        clear_from(wave + 1, accums)


@T.macro
def accumulate(ring, partials, accums, scale, scale_beyond, n_start, steps, turn, share):
    """accums[wave][token, weight] = a warpgroup's share of all K steps of a tile, with one partial or two."""
    clear_from(0, accums)
    operands = (ring, partials, accums, scale, scale_beyond, n_start, share)
    if len(partials) == 1:
        each_step(ring, steps, turn, share, step_alone, operands)
    else:
        laps = steps // ring.stages
        for lap in T.unroll(laps, unroll_factor=1):
            lap_in_pairs(ring.stages, lap, steps, turn, *operands)
        lap_in_pairs(steps % ring.stages, laps, steps, turn, *operands)


def alloc_fragments(count, rows, columns):
    return tuple(T.alloc_fragment((rows, columns), F32) for _ in range(count))
