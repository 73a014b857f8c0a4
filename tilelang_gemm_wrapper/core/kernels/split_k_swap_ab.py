"""`splitK_swapAB`: `swapAB` with the K steps of a tile divided among the CTAs of a cluster.

A decode GEMM has few tiles: 2560 weights in tiles of 64 are 40 CTAs for 132 SMs. Splitting K fills the GPU.
On Hopper the float32 partial tiles meet in distributed shared memory, so there is no workspace, no second
launch, and the order of additions is fixed.
"""

import tilelang.language as T

from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.kernels import ada, cluster, instructions, launch, roles, swapped
from tilelang_gemm_wrapper.core.kernels.ahead import Ahead
from tilelang_gemm_wrapper.core.kernels.operands import BF16, F32, FP8, run_time_sizes
from tilelang_gemm_wrapper.core.kernels.resources import K_STEP, partial_row, pieces


def sm_90a(N: int, K: int, config: KernelConfig, static_weights: bool):
    """Hopper kernel: one cluster of `split_k` CTAs a tile."""
    tile_weights, tile_tokens = config.block_M, config.block_N
    threads, stages, split_k = config.threads, max(1, config.num_stages), config.split_k
    row_pieces = pieces(config)
    groups = K // K_STEP
    steps = groups // split_k
    ahead = Ahead.of(config, steps, static_weights)
    M, token_stride, group_stride = run_time_sizes()

    @T.prim_func
    def split_k_swap_ab(
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
            threads=threads + 32,
            cluster_dims=(1, 1, split_k),
        ) as (m_tile, n_tile, split):
            T.import_source(instructions.SOURCE)
            A_shared = T.alloc_shared((stages, 1, tile_tokens, K_STEP), FP8)
            B_shared = T.alloc_shared((stages, row_pieces, tile_weights // row_pieces, K_STEP), FP8)
            weight_strip = T.alloc_shared((steps,), F32) if ahead.loaded > 0 else None
            scale_strip = T.alloc_shared((steps, tile_tokens), F32)
            received, received_full = cluster.alloc_inbox(config)
            inbox = cluster.Inbox(received, received_full, split_k)
            parts = roles.alloc_group_parts(config)
            full, empty = roles.alloc_barriers(stages, 4 * row_pieces, 0)
            roles.swizzled(A_shared, B_shared)
            ring = roles.Ring(A_shared, B_shared, full, empty)
            m_start, n_start = m_tile * tile_tokens, n_tile * tile_weights
            first_step = split * steps
            cluster.announce()
            T.pdl_trigger()
            swapped.swapped_tile(
                A, A_scale, B, B_scale, ring, weight_strip, scale_strip, parts, M, m_start, n_start,
                first_step, threads, ahead, cluster.reduce_store, (inbox, C, M, N, m_start, n_start),
            )  # fmt: skip

    return split_k_swap_ab


def sm_89(N: int, K: int, config: KernelConfig):
    """Ada kernel: two launches, float32 partials in the workspace `partials` (split_k, M, N)."""
    tile_weights, tile_tokens, split_k = config.block_M, config.block_N, config.split_k
    groups = K // K_STEP
    steps = groups // split_k
    M, token_stride, group_stride = run_time_sizes()

    @T.prim_func
    def split_k_swap_ab(
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
            partial_shared = T.alloc_shared((tile_tokens, partial_row(config)), F32)
            partial = T.alloc_fragment((tile_weights, tile_tokens), F32)
            accum = T.alloc_fragment((tile_weights, tile_tokens), F32)
            scale = T.alloc_fragment((tile_tokens,), F32)
            m_start, n_start = m_tile * tile_tokens, n_tile * tile_weights
            ada.accumulate_columns(
                A, A_scale, B, B_scale, A_shared, B_shared, scale, partial, accum,
                M, m_start, n_start, split * steps, steps, config.num_stages,
            )  # fmt: skip
            for i, j in T.Parallel(tile_weights, tile_tokens):
                partial_shared[j, i] = accum[i, j]
            for j, i in T.Parallel(tile_tokens, tile_weights):
                if m_start + j < M and n_start + i < N:
                    partials[split, m_start + j, n_start + i] = partial_shared[j, i]
        ada.sum_splits(partials, C, M, N, split_k)

    return split_k_swap_ab
