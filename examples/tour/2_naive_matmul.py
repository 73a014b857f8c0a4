"""Step 2: multiply two matrices, C = A @ B.T.

New here: two dimensions and a loop. A program owns a tile of C, BLOCK_M by BLOCK_N, and walks along K in
steps of BLOCK_K. In each step it loads a tile of A and one of B, and `tl.dot` multiplies them on the tensor
cores. The sum stays in registers, in float32: float16 would round it after every step.

Both operands are "K-major": a row of A holds the K values of a token, a row of B those of an output
feature, as `torch.nn.Linear` keeps its weights. So every load runs along memory, and C = A @ B.T.

All three sizes may be ragged. M and N are masked where loads and stores stick out. K needs a mask as well:
what lies behind the end of a row is no harmless padding, it is the next row, and it would be added to the
sum.

    python examples/tour/2_naive_matmul.py --shape 100 200 300
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from tour_checks import check_device, check_matrix, device, report, shapes_from_command_line

from tilelang_gemm_wrapper.core.workload import error

BLOCK_M, BLOCK_N, BLOCK_K = 128, 128, 64
MAX_ERROR = 1e-7  # rounding to float16 once costs 2e-8


@triton.jit
def matmul_kernel(
    A,  # (M, K), row-major
    B,  # (N, K), row-major
    C,  # (M, N), rows stride_cm apart
    M,
    N,
    K,
    stride_cm,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    row_mask = rows < M
    col_mask = cols < N
    rows = rows.to(tl.int64)  # rows * K may pass 2**31
    cols = cols.to(tl.int64)

    # A column of indices and a row of them broadcast to a tile of pointers.
    a_ptrs = A + rows[:, None] * K + ks[None, :]  # (BLOCK_M, BLOCK_K)
    b_ptrs = B + cols[None, :] * K + ks[:, None]  # (BLOCK_K, BLOCK_N): read as the transpose of B
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        k_mask = ks < K - start
        a = tl.load(a_ptrs, mask=row_mask[:, None] & k_mask[None, :], other=0.0)
        b = tl.load(b_ptrs, mask=col_mask[None, :] & k_mask[:, None], other=0.0)
        acc = tl.dot(a, b, acc)
        a_ptrs += BLOCK_K
        b_ptrs += BLOCK_K

    c_ptrs = C + rows[:, None] * stride_cm + cols[None, :]
    tl.store(c_ptrs, acc.to(C.dtype.element_ty), mask=row_mask[:, None] & col_mask[None, :])


def matmul(A: torch.Tensor, B: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """A @ B.T for A (M, K) and B (N, K), float16 and row-major; into `out` (M, N), allocated where None."""
    check_matrix("A", A, (None, None), [torch.float16])
    M, K = A.shape
    check_matrix("B", B, (None, K), [torch.float16])
    N = B.shape[0]
    if out is None:
        out = torch.empty((M, N), dtype=torch.float16, device=A.device)
    check_matrix("out", out, (M, N), [torch.float16], rows_apart=True)
    check_device(A=A, B=B, out=out)
    if M and N:
        grid = (triton.cdiv(M, BLOCK_M), triton.cdiv(N, BLOCK_N))
        matmul_kernel[grid](
            A, B, out, M, N, K, out.stride(0), BLOCK_M, BLOCK_N, BLOCK_K, num_warps=8, num_stages=3
        )
    return out


def reference(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """The product in float64."""
    return A.double() @ B.double().T


def main() -> None:
    for M, N, K in shapes_from_command_line(__doc__, [(1, 1, 1), (5, 130, 70), (129, 257, 200)]):
        A = torch.randn((M, K), device=device()).half()
        B = torch.randn((N, K), device=device()).half()
        report(f"M={M}, N={N}, K={K}", error(matmul(A, B), reference(A, B)), MAX_ERROR)


if __name__ == "__main__":
    main()
