"""`base`: C = A @ B.T in tiles of `block_M` tokens by `block_N` weights, every CTA over the whole of K."""

import tilelang.language as T

from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.kernels import ada, hopper, persistent
from tilelang_gemm_wrapper.core.kernels.operands import BF16, F32, FP8, run_time_sizes
from tilelang_gemm_wrapper.core.kernels.resources import K_STEP, ctas_per_sm, register_split


def sm_90a(N: int, K: int, config: KernelConfig, static_weights: bool, sm_count: int):
    """Hopper kernel: persistent, each warpgroup multiplying 64 tokens by its share of the tile's weights."""
    warpgroups, row_groups = config.threads // 128, config.block_M // 64
    column_groups = warpgroups // row_groups
    threads, stages = config.threads, max(1, config.num_stages)
    steps = K // K_STEP
    early = min(stages, steps) if static_weights else 0
    ctas = sm_count * ctas_per_sm(config, N, K)
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
        with T.Kernel(
            T.min(T.ceildiv(M, config.block_M) * -(-N // config.block_N), ctas),
            threads=threads + 32 * persistent.LOADING_WARPS,
        ) as cta:
            A_shared = T.alloc_shared((stages, row_groups, 64, K_STEP), FP8)
            B_shared = T.alloc_shared((stages, column_groups, config.block_N // column_groups, K_STEP), FP8)
            scale_shared = T.alloc_shared((stages, config.block_M), F32)
            full = T.alloc_barrier([persistent.LOADING_WARPS] * stages)
            empty = T.alloc_barrier([threads // 32] * stages)
            hopper.swizzled(A_shared, B_shared)
            ring = persistent.Ring(A_shared, B_shared, scale_shared, full, empty)
            tiles = persistent.tiles_of(cta, M, N, config.block_M, config.block_N, ctas)
            at = T.alloc_local((2,), "int32")
            # Branches go by `warp`; TileLang learns from the assumptions which threads take them.
            thread, warp = T.get_thread_binding(), persistent.uniform_warp()
            if static_weights:
                T.pdl_trigger()

            if warp >= threads // 32:
                T.assume(thread >= threads)
                if math_registers:
                    T.dec_max_nreg(loading_registers)
                if warp == threads // 32:
                    T.assume(thread < threads + 32)
                    persistent.feed_tiles(A, B, ring, tiles, at, steps, early, threads)
                else:
                    T.assume(thread >= threads + 32)
                    persistent.feed_scales(A_scale, B_scale, ring, tiles, at, M, steps, early, threads + 32)
            else:
                T.assume(thread < threads)
                if math_registers:
                    T.inc_max_nreg(math_registers)
                if warpgroups == 1:
                    persistent.multiply_tiles(0, ring, tiles, at, C, steps, early)
                elif warp < 4:
                    T.assume(thread < 128)
                    persistent.multiply_tiles(0, ring, tiles, at, C, steps, early)
                elif warp < 8:
                    T.assume(thread >= 128)
                    T.assume(thread < 256)
                    persistent.multiply_tiles(1, ring, tiles, at, C, steps, early)
                elif warpgroups == 3:
                    T.assume(thread >= 256)
                    persistent.multiply_tiles(2, ring, tiles, at, C, steps, early)

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
