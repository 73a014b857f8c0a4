"""Step 4: let the machine choose the tile.

New here: `@triton.autotune`. A large tile reads less, as each value that is loaded meets more partners; a
small one gives every SM work when C is small. Which is best depends on the shape and on the chip. The
decorator times each configuration the first time it meets a new key, here (M, N, K), and keeps the fastest
for this process. One that does not fit the chip's shared memory counts as infinitely slow.

Two things to know. Tuning runs the kernel many times: one that adds to its output would need
`reset_to_zero`. And a key with M tunes anew for every batch size, which a server cannot wait for: this
package tunes offline and keeps the choices in files.

    python examples/tour/4_autotuned_matmul.py --shape 64 4096 4096
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from tour_checks import check_device, check_matrix, device, report, shapes_from_command_line

from tilelang_gemm_wrapper.core.workload import error
from tilelang_gemm_wrapper.lab.debug import interpreting

MAX_ERROR = 1e-7  # rounding to float16 once costs 2e-8


def config(block_m: int, block_n: int, block_k: int, num_warps: int, num_stages: int) -> triton.Config:
    tile = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "GROUP_M": 8}
    return triton.Config(tile, num_warps=num_warps, num_stages=num_stages)


CONFIGS = [
    config(64, 64, 64, num_warps=4, num_stages=5),
    config(64, 128, 64, num_warps=4, num_stages=4),
    config(128, 128, 64, num_warps=8, num_stages=3),
    config(128, 128, 64, num_warps=4, num_stages=4),
    config(128, 256, 64, num_warps=8, num_stages=4),  # too much shared memory for Ada
]


def times_of_nothing(call: Callable[[], object], quantiles: Sequence[float]) -> list[float]:
    """The timer in the interpreter, where times mean nothing: all are equal, so the first config wins."""
    return [0.0 for _ in quantiles]


@triton.jit
def tile_of(number, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """The (row, column) of tiles that program `number` computes, as in step 3."""
    tiles_in_band = GROUP_M * tiles_n
    first = number // tiles_in_band * GROUP_M
    height = tl.minimum(tiles_m - first, GROUP_M)
    place = number % tiles_in_band
    return first + place % height, place // height


@triton.autotune(CONFIGS, key=["M", "N", "K"], do_bench=times_of_nothing if interpreting() else None)
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
        # The grid depends on the tile, so it is a function of the chosen configuration.
        matmul_kernel[lambda tile: (triton.cdiv(M, tile["BLOCK_M"]) * triton.cdiv(N, tile["BLOCK_N"]),)](
            A, B, out, M, N, K, out.stride(0)
        )
    return out


def reference(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """The product in float64."""
    return A.double() @ B.double().T


def main() -> None:
    for M, N, K in shapes_from_command_line(__doc__, [(1, 1, 1), (300, 130, 70), (129, 257, 200)]):
        A = torch.randn((M, K), device=device()).half()
        B = torch.randn((N, K), device=device()).half()
        C = matmul(A, B)
        what = f"M={M}, N={N}, K={K}, with {matmul_kernel.best_config}"
        report(what, error(C, reference(A, B)), MAX_ERROR)


if __name__ == "__main__":
    main()
