"""Building blocks of the Ada (sm_89) kernels: cp.async pipelines feeding m16n8k32 e4m3 MMA.

Ada has no TMA, no WGMMA and no clusters; TileLang's software pipeliner turns the copies of `T.Pipelined` into
predicated 16-byte cp.async, so ragged token tails read as zeros. Scales and promotion are as on Hopper.
"""

import tilelang.language as T

from tilelang_gemm_wrapper.core.kernels.operands import F32
from tilelang_gemm_wrapper.core.kernels.resources import K_STEP


def accumulate_rows(A, A_scale, B, B_scale, A_shared, B_shared, *rest):
    """accum[token, weight] of base and splitK; the parameters are those of `_accumulate`."""
    _accumulate(A_scale, B_scale, A, A_shared, B, B_shared, 0, *rest)


def accumulate_columns(A, A_scale, B, B_scale, A_shared, B_shared, *rest):
    """accum[weight, token] of the swapAB kinds; the parameters are those of `_accumulate`."""
    _accumulate(A_scale, B_scale, B, B_shared, A, A_shared, 1, *rest)


@T.macro
def _accumulate(
    A_scale, B_scale, rows, rows_shared, columns, columns_shared, token_axis,
    scale, partial, accum, M, m_start, n_start, first_step, steps, num_stages,
):  # fmt: skip
    """accum = the sum over `steps` K steps of rows @ columns.T, each under its scales.

    Tokens run along axis `token_axis` of `accum`; `scale` is a (tile_tokens,) fragment.
    """
    starts = (m_start, n_start) if token_axis == 0 else (n_start, m_start)
    T.clear(accum)
    for k in T.Pipelined(steps, num_stages=num_stages):
        group = first_step + k
        T.copy(rows[starts[0], group * K_STEP], rows_shared)
        T.copy(columns[starts[1], group * K_STEP], columns_shared)
        for token in T.Parallel(accum.shape[token_axis]):
            scale[token] = T.if_then_else(
                m_start + token < M, A_scale[m_start + token, group] * B_scale[n_start // 128, group], 0.0
            )
        T.gemm(rows_shared, columns_shared, partial, transpose_B=True, clear_accum=True)
        for i, j in T.Parallel(accum.shape[0], accum.shape[1]):
            accum[i, j] += partial[i, j] * scale[(i, j)[token_axis]]


@T.macro
def sum_splits(partials, C, M, N, split_k):
    """Second launch of the split-K kernels: add the float32 partials in split order, store bfloat16."""
    columns = 1024
    with T.Kernel(M, T.ceildiv(N, columns), threads=256) as (m, n_tile):
        total = T.alloc_fragment((columns,), F32)
        T.clear(total)
        for split in T.serial(split_k):
            for j in T.Parallel(columns):
                total[j] += T.if_then_else(
                    n_tile * columns + j < N, partials[split, m, n_tile * columns + j], 0.0
                )
        for j in T.Parallel(columns):
            if n_tile * columns + j < N:
                C[m, n_tile * columns + j] = total[j]
