"""`base`: C = A @ B.T in tiles of `block_M` tokens by `block_N` weights, every CTA over the whole of K."""

import tilelang.language as T

from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.kernels import (
    ada,
    instructions,
    launch,
    persistent,
    promotion,
    roles,
    scales,
)
from tilelang_gemm_wrapper.core.kernels.ahead import Ahead
from tilelang_gemm_wrapper.core.kernels.operands import BF16, F32, FP8, run_time_sizes
from tilelang_gemm_wrapper.core.kernels.resources import (
    K_STEP,
    LOADING_WARPS,
    ctas_per_sm,
    partials,
    pieces,
    register_split,
    scale_blocks,
    waves,
)


@T.macro
def load_tiles(A, B, ring, tiles, at, steps, ahead, first_thread):
    """Everything that the TMA warp does."""
    persistent.locate(at, tiles, 0)
    if tiles.turns > 0:  # the last CTA may have been launched to make up a pair
        roles.load_ahead(B, ring, at[0], at[1], 0, ahead, False)
    for turn in T.serial(tiles.turns):
        persistent.locate(at, tiles, turn)
        m_start = at[0]
        n_start = at[1]
        roles.feed_tile(A, B, ring, m_start, n_start, 0, steps, turn, ahead, first_thread, False)


@T.macro
def load_scales(A_scale, B_scale, ring, tiles, at, M, steps, ahead, first_thread):
    """Everything that the scale warps do."""
    large = tiles.tokens * tiles.weights >= scales.LARGE_TILE
    for turn in T.serial(tiles.turns):
        persistent.locate(at, tiles, turn)
        m_start = at[0]
        n_start = at[1]
        scales.feed_scales(
            A_scale, B_scale, ring, M, m_start, n_start, 0, steps, turn, ahead, first_thread, large
        )


def alloc_stored(rows, columns):
    """Shared memory for a tile of C: whole, or in parts of 16 columns where TileLang 0.1.11 cannot store it
    whole, having no swizzle for such rows."""
    shape = (rows, columns) if columns % 32 == 0 else (columns // 16, rows, 16)
    return T.alloc_shared(shape, BF16)


@T.macro
def round_to_bfloat16(wave, accums, C_shared):
    """The sums of the waves from `wave` on, one below the other."""
    accum = accums[wave]
    rows = accum.shape[0]
    if len(C_shared.shape) == 2:
        T.copy(accum, C_shared[wave * rows : (wave + 1) * rows, :])
    else:
        for i, j in T.Parallel(rows, accum.shape[1]):
            C_shared[j // 16, wave * rows + i, j % 16] = accum[i, j]
    if wave + 1 < len(accums):
        round_to_bfloat16(wave + 1, accums, C_shared)


@T.macro
def store(C_shared, C, m_start, n_start):
    if len(C_shared.shape) == 2:
        rows, columns = C_shared.shape
        T.tma_copy(C_shared, C[m_start : m_start + rows, n_start : n_start + columns])
    else:
        for part in T.unroll(C_shared.shape[0]):
            first = n_start + part * 16
            T.tma_copy(C_shared[part, :, :], C[m_start : m_start + C_shared.shape[1], first : first + 16])


@T.macro
def multiply_tiles(warpgroup, warpgroups, partial_count, wave_count, ring, parts, tiles, at, C, steps):
    """Everything that warpgroup number `warpgroup` does: its share of every tile of this CTA.

    A tile is stored by TMA, which is waited for only when the next tile is to be stored, or from registers
    where warpgroups took turns and each has some of the columns.
    """
    share = roles.Share.of(warpgroup, int(ring.A.shape[1]) // wave_count, warpgroups)
    rows_of_wave, columns = ring.A.shape[2], ring.B.shape[2]
    rows = rows_of_wave * wave_count
    C_shared = alloc_stored(rows, columns) if share.groups == 1 else None
    partials = promotion.alloc_fragments(partial_count, rows_of_wave, columns)
    accums = promotion.alloc_fragments(wave_count, rows_of_wave, columns)
    scale = T.alloc_fragment((rows_of_wave,), F32)
    scale_beyond = T.alloc_fragment((rows_of_wave,), F32)
    T.pdl_sync()
    for turn in T.serial(tiles.turns):
        persistent.locate(at, tiles, turn)
        m_start = at[0] + share.piece * rows
        n_start = at[1]
        promotion.accumulate(ring, partials, accums, scale, scale_beyond, n_start, steps, turn, share)
        roles.sum_groups(accums[0], parts, share, True)
        if share.groups > 1:
            roles.store(accums[0], share, C, C.shape[0], C.shape[1], at[0], n_start, False)
        else:
            if T.get_thread_binding() < warpgroup * 128 + 32:
                T.tma_store_wait(0)
            T.sync_threads(1 + share.piece, 128)
            round_to_bfloat16(0, accums, C_shared)
            T.fence_proxy_async()
            T.sync_threads(5 + share.piece, 128)
            if T.get_thread_binding() < warpgroup * 128 + 32:
                store(C_shared, C, m_start, n_start)
    if share.groups == 1 and T.get_thread_binding() < warpgroup * 128 + 32:
        T.tma_store_wait(0)


def sm_90a(N: int, K: int, config: KernelConfig, static_weights: bool, sm_count: int):
    """Hopper kernel: persistent, the store of a tile under the K steps of the next."""
    warpgroups, row_pieces = config.threads // 128, pieces(config)
    row_parts = row_pieces * waves(config)
    threads, stages = config.threads, max(1, config.num_stages)
    steps = K // K_STEP
    ahead = Ahead.of(config, steps, static_weights)
    ctas = persistent.in_pairs(sm_count * ctas_per_sm(config, N, K))
    math_registers, loading_registers = register_split(config)
    M, token_stride, group_stride = run_time_sizes()

    @T.prim_func
    def base(
        A: T.Tensor((M, K), FP8),
        A_scale: T.StridedTensor((M, steps), (token_stride, group_stride), F32),
        B: T.Tensor((N, K), FP8),
        B_scale: T.Tensor((-(-N // 128), steps), F32),
        C: T.Tensor((M, N), BF16),
    ):
        with launch.in_clusters(
            persistent.grid_of(M, N, config.block_M, config.block_N, ctas),
            threads=threads + 32 * LOADING_WARPS,
            cluster_dims=(persistent.PAIR, 1, 1),
        ) as cta:
            T.import_source(instructions.SOURCE)
            A_shared = T.alloc_shared((stages, row_parts, config.block_M // row_parts, K_STEP), FP8)
            B_shared = T.alloc_shared((stages, 1, config.block_N, K_STEP), FP8)
            token_scales = T.alloc_shared((stages, config.block_M), F32)
            weight_scales = T.alloc_shared((stages, scale_blocks(config)), F32)
            parts = roles.alloc_group_parts(config)
            full, empty = roles.alloc_barriers(stages, 4 * row_pieces, scales.LANES)
            roles.swizzled(A_shared, B_shared)
            ring = roles.Ring(A_shared, B_shared, full, empty, token_scales, weight_scales)
            tiles = persistent.tiles_of(cta, M, N, config.block_M, config.block_N, ctas)
            at = T.alloc_local((2,), "int32")
            # Branches go by `warp`; TileLang learns from the assumptions which threads take them.
            thread, warp = T.get_thread_binding(), roles.uniform_warp()
            T.pdl_trigger()

            if warp >= threads // 32:
                T.assume(thread >= threads)
                if math_registers:
                    T.dec_max_nreg(loading_registers)
                if warp == threads // 32:
                    T.assume(thread < threads + 32)
                    load_tiles(A, B, ring, tiles, at, steps, ahead, threads)
                else:
                    T.assume(thread >= threads + 32)
                    load_scales(A_scale, B_scale, ring, tiles, at, M, steps, ahead, threads + 32)
            else:
                T.assume(thread < threads)
                if math_registers:
                    T.inc_max_nreg(math_registers)
                roles.by_warpgroup(
                    warpgroups,
                    multiply_tiles,
                    (warpgroups, partials(config), waves(config), ring, parts, tiles, at, C, steps),
                )

    return base


def sm_89(N: int, K: int, config: KernelConfig):
    """Ada kernel: cp.async pipeline of `num_stages` buffers."""
    tile_tokens, tile_weights = config.block_M, config.block_N
    steps = K // K_STEP
    M, token_stride, group_stride = run_time_sizes()

    @T.prim_func
    def base(
        A: T.Tensor((M, K), FP8),
        A_scale: T.StridedTensor((M, steps), (token_stride, group_stride), F32),
        B: T.Tensor((N, K), FP8),
        B_scale: T.Tensor((-(-N // 128), steps), F32),
        C: T.Tensor((M, N), BF16),
    ):
        with T.Kernel(T.ceildiv(M, tile_tokens), T.ceildiv(N, tile_weights), threads=config.threads) as (
            m_tile,
            n_tile,
        ):
            A_shared = T.alloc_shared((tile_tokens, K_STEP), FP8)
            B_shared = T.alloc_shared((tile_weights, K_STEP), FP8)
            partial = T.alloc_fragment((tile_tokens, tile_weights), F32)
            accum = T.alloc_fragment((tile_tokens, tile_weights), F32)
            scale = T.alloc_fragment((tile_tokens,), F32)
            T.use_swizzle(panel_size=8)
            m_start, n_start = m_tile * tile_tokens, n_tile * tile_weights
            ada.accumulate_rows(
                A, A_scale, B, B_scale, A_shared, B_shared, scale, partial, accum,
                M, m_start, n_start, 0, steps, config.num_stages,
            )  # fmt: skip
            T.copy(accum, C[m_start, n_start])

    return base
