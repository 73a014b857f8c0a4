"""`splitK`: `base` with the K steps of a tile divided among the CTAs of a cluster.

For token counts that fill WGMMA's 64 rows while the tiles are still too few for the GPU.
"""

import tilelang.language as T

from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.kernels import ada, cluster, instructions, launch, promotion, roles, scales
from tilelang_gemm_wrapper.core.kernels.ahead import Ahead
from tilelang_gemm_wrapper.core.kernels.operands import BF16, F32, FP8, run_time_sizes
from tilelang_gemm_wrapper.core.kernels.resources import (
    K_STEP,
    LOADING_WARPS,
    partials,
    pieces,
    register_split,
    scale_blocks,
)


@T.macro
def multiply_share(
    warpgroup, warpgroups, partial_count, ring, parts, inbox, C, M, N, m_start, n_start, steps
):
    """One warpgroup's share of the K steps of this CTA, and of the cluster's sum."""
    share = roles.Share.of(warpgroup, int(ring.A.shape[1]), warpgroups)
    tokens, weights = ring.A.shape[2], ring.B.shape[2]
    partials = promotion.alloc_fragments(partial_count, tokens, weights)
    accum = T.alloc_fragment((tokens, weights), F32)
    scale = T.alloc_fragment((tokens,), F32)
    scale_beyond = T.alloc_fragment((tokens,), F32)
    promotion.accumulate(ring, partials, (accum,), scale, scale_beyond, n_start, steps, 0, share)
    roles.sum_groups(accum, parts, share, False)
    cluster.reduce_store(accum, share, inbox, C, M, N, m_start, n_start, False)


def sm_90a(N: int, K: int, config: KernelConfig, static_weights: bool):
    """Hopper kernel: one cluster of `split_k` CTAs a tile."""
    tile_tokens, tile_weights = config.block_M, config.block_N
    threads, stages, split_k = config.threads, max(1, config.num_stages), config.split_k
    warpgroups, row_pieces = threads // 128, pieces(config)
    groups = K // K_STEP
    steps = groups // split_k
    ahead = Ahead.of(config, steps, static_weights)
    math_registers, loading_registers = register_split(config)
    M, token_stride, group_stride = run_time_sizes()

    @T.prim_func
    def split_k_base(
        A: T.Tensor((M, K), FP8),
        A_scale: T.StridedTensor((M, groups), (token_stride, group_stride), F32),
        B: T.Tensor((N, K), FP8),
        B_scale: T.Tensor((-(-N // 128), groups), F32),
        C: T.Tensor((M, N), BF16),
    ):
        with launch.in_clusters(
            T.ceildiv(M, tile_tokens),
            T.ceildiv(N, tile_weights),
            split_k,
            threads=threads + 32 * LOADING_WARPS,
            cluster_dims=(1, 1, split_k),
        ) as (m_tile, n_tile, split):
            T.import_source(instructions.SOURCE)
            A_shared = T.alloc_shared((stages, row_pieces, tile_tokens // row_pieces, K_STEP), FP8)
            B_shared = T.alloc_shared((stages, 1, tile_weights, K_STEP), FP8)
            token_scales = T.alloc_shared((stages, tile_tokens), F32)
            weight_scales = T.alloc_shared((stages, scale_blocks(config)), F32)
            parts = roles.alloc_group_parts(config)
            received, received_full = cluster.alloc_inbox(config)
            inbox = cluster.Inbox(received, received_full, split_k)
            full, empty = roles.alloc_barriers(stages, 4 * row_pieces, scales.LANES)
            roles.swizzled(A_shared, B_shared)
            ring = roles.Ring(A_shared, B_shared, full, empty, token_scales, weight_scales)
            m_start, n_start, first_step = m_tile * tile_tokens, n_tile * tile_weights, split * steps
            # Branches go by `warp`; TileLang learns from the assumptions which threads take them.
            thread, warp = T.get_thread_binding(), roles.uniform_warp()
            cluster.announce()
            T.pdl_trigger()

            if warp >= threads // 32:
                T.assume(thread >= threads)
                if math_registers:
                    T.dec_max_nreg(loading_registers)
                if warp == threads // 32:
                    T.assume(thread < threads + 32)
                    roles.load_ahead(B, ring, m_start, n_start, first_step, ahead, True)
                    roles.feed_tile(A, B, ring, m_start, n_start, first_step, steps, 0, ahead, threads, True)
                else:
                    T.assume(thread >= threads + 32)
                    scales.feed_scales(
                        A_scale, B_scale, ring, M, m_start, n_start, first_step, steps, 0,
                        ahead, threads + 32, False,
                    )  # fmt: skip
            else:
                T.assume(thread < threads)
                if math_registers:
                    T.inc_max_nreg(math_registers)
                T.pdl_sync()
                roles.by_warpgroup(
                    warpgroups,
                    multiply_share,
                    (warpgroups, partials(config), ring, parts, inbox, C, M, N, m_start, n_start, steps),
                )

    return split_k_base


def sm_89(N: int, K: int, config: KernelConfig):
    """Ada kernel: two launches, float32 partials in the workspace `partials` (split_k, M, N)."""
    tile_tokens, tile_weights, split_k = config.block_M, config.block_N, config.split_k
    groups = K // K_STEP
    steps = groups // split_k
    M, token_stride, group_stride = run_time_sizes()

    @T.prim_func
    def split_k_base(
        A: T.Tensor((M, K), FP8),
        A_scale: T.StridedTensor((M, groups), (token_stride, group_stride), F32),
        B: T.Tensor((N, K), FP8),
        B_scale: T.Tensor((-(-N // 128), groups), F32),
        C: T.Tensor((M, N), BF16),
        partials: T.Tensor((split_k, M, N), F32),
    ):
        with T.Kernel(
            T.ceildiv(M, tile_tokens), T.ceildiv(N, tile_weights), split_k, threads=config.threads
        ) as (m_tile, n_tile, split):
            A_shared = T.alloc_shared((tile_tokens, K_STEP), FP8)
            B_shared = T.alloc_shared((tile_weights, K_STEP), FP8)
            partial = T.alloc_fragment((tile_tokens, tile_weights), F32)
            accum = T.alloc_fragment((tile_tokens, tile_weights), F32)
            scale = T.alloc_fragment((tile_tokens,), F32)
            m_start, n_start = m_tile * tile_tokens, n_tile * tile_weights
            ada.accumulate_rows(
                A, A_scale, B, B_scale, A_shared, B_shared, scale, partial, accum,
                M, m_start, n_start, split * steps, steps, config.num_stages,
            )  # fmt: skip
            T.copy(accum, partials[split, m_start, n_start])
        ada.sum_splits(partials, C, M, N, split_k)

    return split_k_base
