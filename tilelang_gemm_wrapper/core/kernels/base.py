"""`base`: C = A @ B.T in tiles of `block_M` tokens by `block_N` weights, every CTA over the whole of K."""

import tilelang.language as T

from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.kernels import ada, hopper
from tilelang_gemm_wrapper.core.kernels.operands import BF16, F32, FP8, run_time_sizes
from tilelang_gemm_wrapper.core.kernels.resources import K_STEP


def sm_90a(N: int, K: int, config: KernelConfig):
    """Hopper kernel: A scales read to registers before the step's WGMMA, TMA store of the tile."""
    tile_tokens, tile_weights = config.block_M, config.block_N
    threads, stages = config.threads, max(1, config.num_stages)
    steps = K // K_STEP
    policy = hopper.warp_policy(config.block_M, threads)
    M, token_stride, group_stride = run_time_sizes()

    @T.prim_func
    def base(
        A: T.Tensor((M, K), FP8),
        A_scale: T.StridedTensor((M, steps), (token_stride, group_stride), F32),
        B: T.Tensor((N, K), FP8),
        B_scale: T.Tensor((-(-N // 128), steps), F32),
        C: T.Tensor((M, N), BF16),
    ):
        with T.Kernel(
            T.ceildiv(M, tile_tokens), T.ceildiv(N, tile_weights), threads=threads + hopper.PRODUCER_THREADS
        ) as (m_tile, n_tile):
            A_shared = T.alloc_shared((stages, tile_tokens, K_STEP), FP8)
            B_shared = T.alloc_shared((stages, tile_weights, K_STEP), FP8)
            C_shared = T.alloc_shared((tile_tokens, tile_weights), BF16)
            partial = T.alloc_fragment((tile_tokens, tile_weights), F32)
            accum = T.alloc_fragment((tile_tokens, tile_weights), F32)
            scale = T.alloc_fragment((tile_tokens,), F32)
            full = T.alloc_barrier([1] * stages)
            empty = T.alloc_barrier([threads // 32] * stages)
            hopper.swizzled(A_shared, B_shared)
            # Neighbouring CTAs share a panel of tiles along N, which are still in L2 when they are wanted.
            T.use_swizzle(panel_size=8)
            m_start, n_start = m_tile * tile_tokens, n_tile * tile_weights

            if T.get_thread_binding() >= threads:
                hopper.fill_ring(
                    A, B, A_shared, B_shared, full, empty, m_start, n_start, 0, steps, threads, False
                )
            else:
                hopper.accumulate_rows(
                    A_scale, B_scale, A_shared, B_shared, scale, partial, accum, full, empty,
                    M, m_start, n_start, 0, steps, policy,
                )  # fmt: skip
                T.copy(accum, C_shared)
                T.sync_threads(1, threads)
                T.copy(C_shared, C[m_start, n_start])

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
