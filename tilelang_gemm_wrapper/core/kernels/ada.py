"""Building blocks of the Ada (sm_89) kernels: cp.async pipelines feeding m16n8k32 e4m3 MMA.

Ada has no TMA, no WGMMA and no clusters; TileLang's software pipeliner turns the copies of `T.Pipelined` into
predicated 16-byte cp.async, so ragged token tails read as zeros. Scales and promotion are as on Hopper.
"""

import tilelang.language as T

from tilelang_gemm_wrapper.core.kernels.hopper import K_STEP


@T.macro
def accumulate_tokens_by_weights(
    A,
    A_scale,
    B,
    B_scale,
    A_shared,
    B_shared,
    scale,
    partial,
    accum,
    M,
    m_start,
    n_start,
    first_step,
    steps,
    num_stages,
):
    """accum[token, weight] += scaled partial of each K step; `scale` is a (tile_tokens,) fragment."""
    tile_tokens, tile_weights = accum.shape
    T.clear(accum)
    for k in T.Pipelined(steps, num_stages=num_stages):
        group = first_step + k
        T.copy(A[m_start, group * K_STEP], A_shared)
        T.copy(B[n_start, group * K_STEP], B_shared)
        for i in T.Parallel(tile_tokens):
            scale[i] = T.if_then_else(
                m_start + i < M, A_scale[m_start + i, group] * B_scale[n_start // 128, group], 0.0
            )
        T.gemm(A_shared, B_shared, partial, transpose_B=True, clear_accum=True)
        for i, j in T.Parallel(tile_tokens, tile_weights):
            accum[i, j] += partial[i, j] * scale[i]


@T.macro
def accumulate_weights_by_tokens(
    A,
    A_scale,
    B,
    B_scale,
    A_shared,
    B_shared,
    scale,
    partial,
    accum,
    M,
    m_start,
    n_start,
    first_step,
    steps,
    num_stages,
):
    """accum[weight, token] += scaled partial of each K step; `scale` is a (tile_tokens,) fragment."""
    tile_weights, tile_tokens = accum.shape
    T.clear(accum)
    for k in T.Pipelined(steps, num_stages=num_stages):
        group = first_step + k
        T.copy(B[n_start, group * K_STEP], B_shared)
        T.copy(A[m_start, group * K_STEP], A_shared)
        for j in T.Parallel(tile_tokens):
            scale[j] = T.if_then_else(
                m_start + j < M, A_scale[m_start + j, group] * B_scale[n_start // 128, group], 0.0
            )
        T.gemm(B_shared, A_shared, partial, transpose_B=True, clear_accum=True)
        for i, j in T.Parallel(tile_weights, tile_tokens):
            accum[i, j] += partial[i, j] * scale[j]


@T.macro
def sum_splits(partials, C, M, N, split_k):
    """Second launch of the split-K kernels: add the float32 partials in split order, store bfloat16."""
    columns = 1024
    with T.Kernel(M, T.ceildiv(N, columns), threads=256) as (m, n_tile):
        total = T.alloc_fragment((columns,), "float32")
        T.clear(total)
        for split in T.serial(split_k):
            for j in T.Parallel(columns):
                total[j] += T.if_then_else(
                    n_tile * columns + j < N, partials[split, m, n_tile * columns + j], 0.0
                )
        for j in T.Parallel(columns):
            if n_tile * columns + j < N:
                C[m, n_tile * columns + j] = total[j]
