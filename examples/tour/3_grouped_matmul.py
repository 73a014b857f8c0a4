"""Step 3: the same product, its tiles in another order.

New here: which program computes which tile. The GPU starts programs in the order of their numbers, some
hundred at a time, and what one of them reads another finds in the L2 cache. In step 2 neighbours go down a
column of tiles: they share one block of rows of B, but each reads rows of A of its own. With many rows A no
longer fits in L2, and it comes from DRAM again for every column.

Here the rows of tiles are cut into bands, GROUP_M tiles high. Programs go down a column within their band,
then to the next column: a wave of programs covers a compact patch of C. Its height and its width both count
in rows to read, and for a given number of tiles a patch has the fewest when it is about square. The
arithmetic is the same; traffic to DRAM falls.

    python examples/tour/3_grouped_matmul.py --shape 300 700 100
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
def tile_of(number, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """The (row, column) of tiles that program `number` computes."""
    tiles_in_band = GROUP_M * tiles_n
    first = number // tiles_in_band * GROUP_M  # row of tiles at the top of the band
    height = tl.minimum(tiles_m - first, GROUP_M)  # the last band may be lower
    place = number % tiles_in_band
    return first + place % height, place // height


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
    GROUP_M: tl.constexpr,
):
    tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M)

    # From here on as in step 2.
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    row_mask = rows < M
    col_mask = cols < N
    rows = rows.to(tl.int64)
    cols = cols.to(tl.int64)

    a_ptrs = A + rows[:, None] * K + ks[None, :]
    b_ptrs = B + cols[None, :] * K + ks[:, None]
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


def matmul(
    A: torch.Tensor, B: torch.Tensor, out: torch.Tensor | None = None, group_m: int = 8
) -> torch.Tensor:
    """A @ B.T for A (M, K) and B (N, K), float16 and row-major; into `out` (M, N), allocated where None.

    group_m: tiles in the height of a band; 1 is row by row.
    """
    check_matrix("A", A, (None, None), [torch.float16])
    M, K = A.shape
    check_matrix("B", B, (None, K), [torch.float16])
    N = B.shape[0]
    if out is None:
        out = torch.empty((M, N), dtype=torch.float16, device=A.device)
    check_matrix("out", out, (M, N), [torch.float16], rows_apart=True)
    check_device(A=A, B=B, out=out)
    if group_m < 1:
        raise ValueError(f"group_m is {group_m}, expected at least 1; 8 suits most shapes")
    if M and N:
        grid = (triton.cdiv(M, BLOCK_M) * triton.cdiv(N, BLOCK_N),)
        matmul_kernel[grid](
            A, B, out, M, N, K, out.stride(0), BLOCK_M, BLOCK_N, BLOCK_K, group_m, num_warps=8, num_stages=3
        )
    return out


def reference(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """The product in float64."""
    return A.double() @ B.double().T


def main() -> None:
    for M, N, K in shapes_from_command_line(__doc__, [(1, 1, 1), (300, 130, 70), (385, 257, 100)]):
        A = torch.randn((M, K), device=device()).half()
        B = torch.randn((N, K), device=device()).half()
        report(f"M={M}, N={N}, K={K}", error(matmul(A, B), reference(A, B)), MAX_ERROR)


if __name__ == "__main__":
    main()
