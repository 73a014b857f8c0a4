"""The Triton block-scaled FP8 GEMM kernel. Importing this module imports triton: `triton.py` defers it."""

from __future__ import annotations

import triton
import triton.language as tl


# M and the scale strides would otherwise be compiled in by value class (1, multiple of 16, other), and a
# serving process would meet a compile on the first odd batch size.
@triton.jit(
    do_not_specialize=["M", "stride_am", "stride_ak"], do_not_specialize_on_alignment=["A_scale", "B_scale"]
)
def block_scaled_gemm(
    A,  # (M, K), row-major
    A_scale,  # (M, ceil(K / 128)) float32, any strides
    B,  # (N, K), row-major
    B_scale,  # (ceil(N / 128), ceil(K / 128)) float32, row-major
    C,  # (M, N), rows stride_cm apart
    M,
    N,
    K,
    stride_am,  # of A_scale along M
    stride_ak,  # of A_scale along the K blocks
    stride_cm,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP_M: tl.constexpr,
    WHOLE_K: tl.constexpr,  # K is a multiple of 128: the loads need no mask along K
):
    """C = (A * A_scale) @ (B * B_scale).T, one program a tile, float32 promotion after every 128 of K."""
    BLOCK_K: tl.constexpr = 128
    tl.static_assert(128 % BLOCK_N == 0, "a tile must lie within one row of B_scale")

    # Programs that run together should share rows of A and B in L2: GROUP_M tiles down, then the next across.
    pid = tl.program_id(0)
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    group = pid // (GROUP_M * tiles_n)
    group_rows = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    tile_m = group * GROUP_M + (pid % (GROUP_M * tiles_n)) % group_rows
    tile_n = (pid % (GROUP_M * tiles_n)) // group_rows

    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    row_mask = rows < M
    col_mask = cols < N
    # M * K, N * K and M * N may pass 2**31. Addresses are 64 bit anyway, so this costs nothing in the loop.
    rows64 = rows.to(tl.int64)
    a_ptrs = A + rows64[:, None] * K + ks[None, :]
    b_ptrs = B + cols.to(tl.int64)[None, :] * K + ks[:, None]
    a_scale_ptrs = A_scale + rows64 * stride_am
    k_blocks = tl.cdiv(K, BLOCK_K)
    b_scale_ptr = B_scale + (tile_n * BLOCK_N // 128) * k_blocks

    # Scales are read one step ahead: Triton pipelines only the loads that feed a dot, and these would
    # otherwise put the latency of L2 on every step.
    a_scale = tl.load(a_scale_ptrs, mask=row_mask, other=0.0)
    b_scale = tl.load(b_scale_ptr)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(0, k_blocks):
        if WHOLE_K:
            a = tl.load(a_ptrs, mask=row_mask[:, None], other=0.0)
            b = tl.load(b_ptrs, mask=col_mask[None, :], other=0.0)
        else:
            k_mask = ks < K - step * BLOCK_K
            a = tl.load(a_ptrs, mask=row_mask[:, None] & k_mask[None, :], other=0.0)
            b = tl.load(b_ptrs, mask=col_mask[None, :] & k_mask[:, None], other=0.0)
        scale = a_scale * b_scale
        ahead = tl.minimum(step + 1, k_blocks - 1)
        a_scale = tl.load(a_scale_ptrs + ahead * stride_ak, mask=row_mask, other=0.0)
        b_scale = tl.load(b_scale_ptr + ahead)
        acc += tl.dot(a, b) * scale[:, None]
        a_ptrs += BLOCK_K
        b_ptrs += BLOCK_K

    c_ptrs = C + rows64[:, None] * stride_cm + cols[None, :]
    tl.store(c_ptrs, acc.to(C.dtype.element_ty), mask=row_mask[:, None] & col_mask[None, :])
