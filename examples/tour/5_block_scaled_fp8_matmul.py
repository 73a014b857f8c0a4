"""Step 5: FP8 with block scales.

New here: one byte a value. e4m3 has three bits of mantissa and ends at 448, so values travel with scales:
one for every 128 values of a token (A), one for every 128 x 128 block of the weights (B). Within a K step
of 128 both are constant for a pair of tiles, so the tensor cores multiply the plain e4m3 values, and the
product of that step is multiplied by the scales and added to the float32 sum ("promotion"). On Hopper
promotion also keeps the sum precise: the tensor cores' own FP8 sums hold fewer bits than float32, and here
they never run longer than one step.

The tile is 16 rows high for few tokens, the least that `tl.dot` takes, and 64 otherwise, the least of
Hopper's fast instruction, WGMMA. Its width divides 128, so that it lies within one row of B's scales.

The caller's `out` decides the type of the result: bfloat16 on a GPU. The interpreter cuts float32 off
instead of rounding it to bfloat16, so main() asks for float32 there.

    python examples/tour/5_block_scaled_fp8_matmul.py --shape 16 4096 4096
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from tour_checks import check_device, check_matrix, device, report_product, shapes_from_command_line

from tilelang_gemm_wrapper.core import workload
from tilelang_gemm_wrapper.core.workload import Workload, random_workload

BLOCK_N = 128
SCALE_BLOCK = 128  # values a scale, along K and, for B, along N
FP8 = [torch.float8_e4m3fn]


@triton.jit
def matmul_kernel(
    A,  # (M, K) e4m3, row-major
    A_scale,  # (M, ceil(K / 128)) float32, row-major
    B,  # (N, K) e4m3, row-major
    B_scale,  # (ceil(N / 128), ceil(K / 128)) float32, row-major
    C,  # (M, N), rows stride_cm apart
    M,
    N,
    K,
    stride_cm,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    BLOCK_K: tl.constexpr = 128
    tl.static_assert(128 % BLOCK_N == 0, "a tile must lie within one row of B_scale")
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    row_mask = rows < M
    col_mask = cols < N
    rows = rows.to(tl.int64)
    cols = cols.to(tl.int64)

    a_ptrs = A + rows[:, None] * K + ks[None, :]
    b_ptrs = B + cols[None, :] * K + ks[:, None]
    k_blocks = tl.cdiv(K, BLOCK_K)
    a_scale_ptrs = A_scale + rows * k_blocks
    b_scale_ptr = B_scale + (tl.program_id(1) * BLOCK_N // 128) * k_blocks
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for block in range(0, k_blocks):
        k_mask = ks < K - block * BLOCK_K
        a = tl.load(a_ptrs, mask=row_mask[:, None] & k_mask[None, :], other=0.0)
        b = tl.load(b_ptrs, mask=col_mask[None, :] & k_mask[:, None], other=0.0)
        scale = tl.load(a_scale_ptrs + block, mask=row_mask, other=0.0) * tl.load(b_scale_ptr + block)
        acc += tl.dot(a, b) * scale[:, None]
        a_ptrs += BLOCK_K
        b_ptrs += BLOCK_K

    c_ptrs = C + rows[:, None] * stride_cm + cols[None, :]
    tl.store(c_ptrs, acc.to(C.dtype.element_ty), mask=row_mask[:, None] & col_mask[None, :])


def matmul(
    A: torch.Tensor, A_scale: torch.Tensor, B: torch.Tensor, B_scale: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """(A * A_scale) @ (B * B_scale).T, each scale over its 128 or 128 x 128 values, into `out`.

    A (M, K) and B (N, K) e4m3, A_scale (M, ceil(K / 128)) and B_scale (ceil(N / 128), ceil(K / 128)) float32,
    all row-major; out (M, N) bfloat16 or float32.
    """
    check_matrix("A", A, (None, None), FP8)
    M, K = A.shape
    check_matrix("B", B, (None, K), FP8)
    N = B.shape[0]
    k_blocks = triton.cdiv(K, SCALE_BLOCK)
    check_matrix("A_scale", A_scale, (M, k_blocks), [torch.float32])
    check_matrix("B_scale", B_scale, (triton.cdiv(N, SCALE_BLOCK), k_blocks), [torch.float32])
    check_matrix("out", out, (M, N), [torch.bfloat16, torch.float32], rows_apart=True)
    check_device(A=A, A_scale=A_scale, B=B, B_scale=B_scale, out=out)
    if M and N:
        block_m = 16 if M <= 16 else 64
        grid = (triton.cdiv(M, block_m), triton.cdiv(N, BLOCK_N))
        matmul_kernel[grid](
            A, A_scale, B, B_scale, out, M, N, K, out.stride(0), block_m, BLOCK_N, num_warps=4, num_stages=4,
            enable_fp_fusion=True,  # promotion in one FMA; Triton 3.10 splits it by default
        )  # fmt: skip
    return out


def reference(A: torch.Tensor, A_scale: torch.Tensor, B: torch.Tensor, B_scale: torch.Tensor) -> torch.Tensor:
    """The product in float32, summed in float64."""
    return workload.reference(Workload(A, A_scale, B, B_scale))


def main() -> None:
    where = device()
    out_dtype = torch.bfloat16 if where == "cuda" else torch.float32
    for M, N, K in shapes_from_command_line(__doc__, [(1, 1, 1), (7, 130, 200), (65, 257, 384)]):
        inputs = random_workload(M, N, K, where)
        operands = (inputs.A, inputs.A_scale, inputs.B, inputs.B_scale)
        C = matmul(*operands, torch.empty((M, N), dtype=out_dtype, device=where))
        report_product(f"M={M}, N={N}, K={K}, out {out_dtype}", C, inputs)


if __name__ == "__main__":
    main()
