"""`swapAB`: C.T = B @ A.T, so that the weights fill WGMMA's 64 rows and a few tokens its columns.

With M tokens in the row operand a WGMMA computes 64 rows however few are real; with the operands swapped the
token tile can be 8, 16, 32, 64 or 128 wide. `block_M` runs along N (weights), `block_N` along M (tokens).
"""

import tilelang.language as T

from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.kernels import ada, instructions, roles, swapped
from tilelang_gemm_wrapper.core.kernels.ahead import Ahead
from tilelang_gemm_wrapper.core.kernels.operands import BF16, F32, FP8, run_time_sizes
from tilelang_gemm_wrapper.core.kernels.resources import K_STEP, pieces


def sm_90a(N: int, K: int, config: KernelConfig, static_weights: bool):
    """Hopper kernel: scales staged in shared memory, tile transposed and stored from registers."""
    tile_weights, tile_tokens = config.block_M, config.block_N
    threads, stages = config.threads, max(1, config.num_stages)
    row_pieces = pieces(config)
    steps = K // K_STEP
    ahead = Ahead.of(config, steps, static_weights)
    M, token_stride, group_stride = run_time_sizes()

    @T.prim_func
    def swap_ab(
        A: T.Tensor((M, K), FP8),
        A_scale: T.StridedTensor((M, steps), (token_stride, group_stride), F32),
        B: T.Tensor((N, K), FP8),
        B_scale: T.Tensor((-(-N // 128), steps), F32),
        C: T.Tensor((M, N), BF16),
    ):
        with T.Kernel(T.ceildiv(M, tile_tokens), T.ceildiv(N, tile_weights), threads=threads + 32) as (
            m_tile,
            n_tile,
        ):
            T.import_source(instructions.SOURCE)
            A_shared = T.alloc_shared((stages, 1, tile_tokens, K_STEP), FP8)
            B_shared = T.alloc_shared((stages, row_pieces, tile_weights // row_pieces, K_STEP), FP8)
            weight_strip = T.alloc_shared((steps,), F32) if ahead.loaded > 0 else None
            scale_strip = T.alloc_shared((steps, tile_tokens), F32)
            parts = roles.alloc_group_parts(config)
            full, empty = roles.alloc_barriers(stages, 4 * row_pieces, 0)
            roles.swizzled(A_shared, B_shared)
            ring = roles.Ring(A_shared, B_shared, full, empty)
            m_start, n_start = m_tile * tile_tokens, n_tile * tile_weights
            T.pdl_trigger()
            swapped.swapped_tile(
                A, A_scale, B, B_scale, ring, weight_strip, scale_strip, parts, M, m_start, n_start, 0,
                threads, ahead, roles.store, (C, M, N, m_start, n_start),
            )  # fmt: skip

    return swap_ab


def sm_89(N: int, K: int, config: KernelConfig):
    """Ada kernel: cp.async pipeline of `num_stages` buffers, tile transposed through shared memory."""
    tile_weights, tile_tokens = config.block_M, config.block_N
    steps = K // K_STEP
    M, token_stride, group_stride = run_time_sizes()

    @T.prim_func
    def swap_ab(
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
            C_shared = T.alloc_shared((tile_tokens, tile_weights), BF16)
            partial = T.alloc_fragment((tile_weights, tile_tokens), F32)
            accum = T.alloc_fragment((tile_weights, tile_tokens), F32)
            scale = T.alloc_fragment((tile_tokens,), F32)
            m_start, n_start = m_tile * tile_tokens, n_tile * tile_weights
            ada.accumulate_columns(
                A, A_scale, B, B_scale, A_shared, B_shared, scale, partial, accum,
                M, m_start, n_start, 0, steps, config.num_stages,
            )  # fmt: skip
            for i, j in T.Parallel(tile_weights, tile_tokens):
                C_shared[j, i] = accum[i, j]
            T.copy(C_shared, C[m_start, n_start])

    return swap_ab
