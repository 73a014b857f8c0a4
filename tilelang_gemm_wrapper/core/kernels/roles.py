"""Building blocks of the Hopper kernels: warps with roles of their own around a ring of shared-memory slots.

One warp feeds both operands through TMA, the warpgroups multiply, and in base and splitK three more warps
bring the scales. A slot holds one 128-wide K step; it is full when every loading warp has arrived and empty
when every warp that multiplies it has. A WGMMA of e4m3 keeps only about 14 bits of mantissa in its
accumulator, so each K step starts from zero and its partial is scaled and added in float32 ("promotion").

The warpgroups share a tile in two ways (`Share`): each has its own piece of WGMMA's rows, and where there are
more warpgroups than pieces, groups of them take turns at the K steps and each sums some columns at the end.
Taking turns reads no operand twice and lets a warpgroup wait and promote while another one multiplies.

What the loop costs besides its WGMMAs decides the speed (measured in docs/hopper-speed.md). Hence:

- Branches on the role go by a warp index that is uniform for the compiler (`uniform_warp`), and each
  multiplying warpgroup has code of its own (`by_warpgroup`). Only then are descriptors computed in uniform
  registers, which WGMMA needs them in, instead of being moved there before every instruction.
- The ring starts at slot 0 with every tile and the loop over its slots is unrolled, so that slots are
  constants, and the wait for the next slot is issued among the additions of this one.

What the kinds make of these blocks is in scales.py and promotion.py (base and splitK) and swapped.py (the
swapAB kinds). The layout of the roles follows DeepGEMM's sm90 1D2D kernel and TileOPs' FP8 kernels.
"""

from typing import Any, NamedTuple

import tilelang.language as T
from tilelang.layout import make_swizzled_layout

from tilelang_gemm_wrapper.core.kernels import build_settings, instructions
from tilelang_gemm_wrapper.core.kernels.ahead import prefetch_weights
from tilelang_gemm_wrapper.core.kernels.operands import F32
from tilelang_gemm_wrapper.core.kernels.resources import K_STEP, group_floats, pieces

FIRST_GROUP_BARRIER = 9  # named barriers 1 to 8 belong to the kernels


class Ring(NamedTuple):
    """The slots, each for one K step, and their barriers.

    A and B hold the tile of that operand in the pieces that the warpgroups multiply, or the waves of these:
    (stages, pieces, rows of a piece, 128) e4m3. Only the operand in WGMMA's rows has more than one. In base
    and splitK a slot has the step's scales too: A_scale (stages, tokens of the tile) and B_scale (stages,
    scale blocks of the tile).
    """

    A: Any
    B: Any
    full: Any
    empty: Any
    A_scale: Any = None
    B_scale: Any = None

    @property
    def stages(self) -> int:
        return int(self.A.shape[0])


class Share(NamedTuple):
    """Which part of a tile's work a warpgroup does."""

    piece: int  # of WGMMA's rows
    group: int  # takes the K steps k with k % groups == group
    groups: int

    @classmethod
    def of(cls, warpgroup: int, pieces: int, warpgroups: int) -> "Share":
        return cls(warpgroup % pieces, warpgroup // pieces, warpgroups // pieces)

    def steps_of(self, steps: int) -> int:
        """How many of `steps` consecutive K steps, counted from a multiple of `groups`, are this group's."""
        return max(0, -(-(steps - self.group) // self.groups))

    def units_of(self, units: int) -> tuple[int, int]:
        """First and last (exclusive) of a piece's `units` that this group has the whole sum of in the end."""
        return units * self.group // self.groups, units * (self.group + 1) // self.groups


ALL = Share(piece=0, group=0, groups=1)  # of the steps: what the loading warps do


def swizzled(*buffers):
    """Layout annotation for shared tiles that TMA writes and WGMMA reads (128-byte swizzle)."""
    return T.annotate_layout({buffer: make_swizzled_layout(buffer) for buffer in buffers})


def uniform_warp():
    """Index of the calling thread's warp, known to the compiler to be the same in all its lanes."""
    return T.shfl_sync(T.get_thread_binding() // 32, 0)


def use_of(slot, turn, lap, steps, stages):
    """How often `slot` was used before this, in tile number `turn` of the CTA: what its phase goes by."""
    uses_of_a_tile = (steps - slot + stages - 1) // stages
    return turn * uses_of_a_tile + lap


def alloc_barriers(stages, multiplying_warps, scale_lanes):
    """The full and the empty barrier of every slot: full by one lane of the TMA warp and every scale lane."""
    return (
        T.alloc_barrier([1 + scale_lanes] * stages),
        T.alloc_barrier([multiplying_warps * build_settings.lanes_that_arrive] * stages),
    )


@T.macro
def arrive(barriers, slot):
    """This warp has read its part of the slot."""
    T.sync_warp()
    if T.get_thread_binding() % 32 < build_settings.lanes_that_arrive:
        T.barrier_arrive(barriers[slot])


@T.macro
def load_step(operand, pieces, full, slot, start, k, last_use):
    """Put one operand's tile of K step `k` on its way; `last_use`: it need not stay in L2."""
    rows = pieces.shape[2]
    for piece in T.unroll(pieces.shape[1]):
        T.tma_copy(
            operand[start + piece * rows : start + (piece + 1) * rows, k * K_STEP : (k + 1) * K_STEP],
            pieces[slot, piece, :, :],
            barrier=full[slot],
            eviction_policy="evict_first" if last_use else None,
        )


@T.macro
def load_ahead(B, ring, m_start, n_start, first_step, ahead, last_use):
    """The TMA warp: the weights that need not wait for the stream's preceding kernel, and the wait."""
    if ahead.loaded > 0:
        for k in T.serial(ahead.loaded):
            load_step(B, ring.B, ring.full, k, n_start, first_step + k, last_use)
    if ahead.prefetched > 0:
        prefetch_weights(ring, m_start, n_start, first_step, ahead)
    T.pdl_sync()


@T.macro
def each_step(ring, steps, turn, share, work, operands):
    """work(slot, k, use, *operands) for a share of the K steps of a tile, in their order."""
    for lap in T.unroll(steps // ring.stages, unroll_factor=1):
        for i in T.unroll(share.steps_of(ring.stages)):
            slot = i * share.groups + share.group
            use = use_of(slot, turn, lap, steps, ring.stages)
            work(slot, lap * ring.stages + slot, use, *operands)
    for i in T.unroll(share.steps_of(steps % ring.stages)):
        last_slot = i * share.groups + share.group
        last_use = use_of(last_slot, turn, steps // ring.stages, steps, ring.stages)
        work(last_slot, steps // ring.stages * ring.stages + last_slot, last_use, *operands)


@T.macro
def feed_slot(slot, k, use, A, B, ring, m_start, n_start, first_step, ahead, first_thread, last_use):
    """The TMA warp: both operands of a K step into a slot once it is free."""
    T.barrier_wait(ring.empty[slot], (use & 1) ^ 1)
    if ahead.loaded == 0 or use > 0:
        load_step(B, ring.B, ring.full, slot, n_start, first_step + k, last_use)
    load_step(A, ring.A, ring.full, slot, m_start, first_step + k, False)
    if T.get_thread_binding() == first_thread:
        T.barrier_arrive(ring.full[slot])


@T.macro
def feed_tile(A, B, ring, m_start, n_start, first_step, steps, turn, ahead, first_thread, last_use):
    """The TMA warp: every K step of one tile, but for the weights that `load_ahead` loaded."""
    operands = (A, B, ring, m_start, n_start, first_step, ahead, first_thread, last_use)
    each_step(ring, steps, turn, ALL, feed_slot, operands)


def units_of(accum) -> int:
    """How many units of 8 columns of 64 rows a warpgroup's accumulator has."""
    rows, columns = accum.shape
    return int(rows) // 64 * int(columns) // 8


def alloc_group_parts(config):
    """Shared memory for what `sum_groups` passes on, or None where there is one group."""
    floats = group_floats(config)
    return T.alloc_shared((pieces(config), floats // pieces(config)), F32) if floats else None


@T.macro
def sum_groups(accum, parts, share, again):
    """Each group's own units of accum += those of the other groups; `again`: for one tile after another."""
    if share.groups > 1:
        instructions.give_units(accum, parts[share.piece, 0], units_of(accum), share)
        T.sync_threads(FIRST_GROUP_BARRIER + share.piece, 128 * share.groups)
        instructions.take_units(accum, parts[share.piece, 0], units_of(accum), share)
        if again:
            T.sync_threads(FIRST_GROUP_BARRIER + share.piece, 128 * share.groups)


@T.macro
def store(accum, share, C, M, N, m_start, n_start, swapped):
    """This group's units of its piece of the tile, from registers into C; `swapped`: accum[weight, token]."""
    units = share.units_of(units_of(accum))
    if units[0] < units[1]:
        instructions.reduce_store(accum, share.piece, units, C, M, N, m_start, n_start, swapped)


@T.macro
def by_warpgroup(warpgroups, work, operands):
    """Run work(number, *operands) on each multiplying warpgroup, with code of its own for each.

    Branches go by the warp; TileLang learns from the assumptions which threads take them.
    """
    thread, warp = T.get_thread_binding(), uniform_warp()
    if warpgroups == 1:
        work(0, *operands)
    elif warp < 4:
        T.assume(thread < 128)
        work(0, *operands)
    else:
        T.assume(thread >= 128)
        if warpgroups == 2:
            work(1, *operands)
        elif warp < 8:
            T.assume(thread < 256)
            work(1, *operands)
        else:
            T.assume(thread >= 256)
            work(2, *operands)
