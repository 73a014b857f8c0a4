"""Step 6: the kernel of step 5 in TileLang.

New here: another language for the same thought, one level lower. Triton decides by itself what lies in
shared memory and in registers. TileLang has you say it: `T.alloc_shared` is memory that all threads of a
block see, `T.alloc_fragment` is a tile spread over their registers. `T.copy` moves a tile, `T.gemm`
multiplies two, `T.Parallel` does something to each element, and `T.Pipelined` runs the copies of later
steps under the products of this one. From this Hopper gets TMA copies and WGMMA, Ada cp.async and mma.

There are no masks on the tiles: `T.copy` knows the shape of the tensors, reads zeros outside and writes
nothing there. Only the scales, read one by one, need theirs. M is known when the kernel is called, N and K
when it is built, so that the compiler can use them; a new (N, K) is compiled anew, in seconds.

    python examples/tour/6_tilelang_fp8_matmul.py --shape 100 4096 4096
"""

# TileLang reads the annotations of a kernel as they stand: no `from __future__ import annotations` here.
from collections.abc import Callable
from functools import lru_cache

import tilelang.language as T
import torch
from tour_checks import check_matrix, report_product, shapes_from_command_line

from tilelang_gemm_wrapper.core import workload
from tilelang_gemm_wrapper.core.compile_cache import compile_primfunc
from tilelang_gemm_wrapper.core.device import device_of
from tilelang_gemm_wrapper.core.workload import Workload, random_workload

BLOCK_M, BLOCK_N, BLOCK_K = 128, 128, 128  # BLOCK_N as wide as a block of scales
THREADS, STAGES = 256, 3
FP8, F32, BF16 = "float8_e4m3fn", "float32", "bfloat16"


def build(N: int, K: int):
    """The kernel for weights (N, K) and any M; K is a multiple of 128."""
    steps = K // BLOCK_K
    M = T.dynamic("m")

    @T.prim_func
    def fp8_matmul(
        A: T.Tensor((M, K), FP8),
        A_scale: T.Tensor((M, steps), F32),
        B: T.Tensor((N, K), FP8),
        B_scale: T.Tensor((T.ceildiv(N, 128), steps), F32),
        C: T.Tensor((M, N), BF16),
    ):
        with T.Kernel(T.ceildiv(M, BLOCK_M), T.ceildiv(N, BLOCK_N), threads=THREADS) as (tile_m, tile_n):
            A_tile = T.alloc_shared((BLOCK_M, BLOCK_K), FP8)
            B_tile = T.alloc_shared((BLOCK_N, BLOCK_K), FP8)
            scale = T.alloc_fragment((BLOCK_M,), F32)
            partial = T.alloc_fragment((BLOCK_M, BLOCK_N), F32)  # the product of one step
            acc = T.alloc_fragment((BLOCK_M, BLOCK_N), F32)
            T.clear(acc)
            for k in T.Pipelined(steps, num_stages=STAGES):
                T.copy(A[tile_m * BLOCK_M, k * BLOCK_K], A_tile)
                T.copy(B[tile_n * BLOCK_N, k * BLOCK_K], B_tile)
                for i in T.Parallel(BLOCK_M):
                    row = tile_m * BLOCK_M + i
                    scale[i] = T.if_then_else(row < M, A_scale[row, k] * B_scale[tile_n, k], 0.0)
                T.gemm(A_tile, B_tile, partial, transpose_B=True, clear_accum=True)
                for i, j in T.Parallel(BLOCK_M, BLOCK_N):
                    acc[i, j] += partial[i, j] * scale[i]
            T.copy(acc, C[tile_m * BLOCK_M, tile_n * BLOCK_N])

    return fp8_matmul


@lru_cache
def compiled(N: int, K: int, arch: str) -> Callable[..., None]:
    """The launcher of `build(N, K)`: takes the tensors, launches on the current stream."""
    return compile_primfunc(build(N, K), arch)


def matmul(
    A: torch.Tensor, A_scale: torch.Tensor, B: torch.Tensor, B_scale: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """(A * A_scale) @ (B * B_scale).T, each scale over its 128 or 128 x 128 values, into `out`.

    A (M, K) and B (N, K) e4m3, A_scale (M, K / 128) and B_scale (ceil(N / 128), K / 128) float32, out (M, N)
    bfloat16, all row-major on one Hopper or Ada GPU; K a multiple of 128 and N of 8.
    """
    check_matrix("A", A, (None, None), [torch.float8_e4m3fn])
    M, K = A.shape
    check_matrix("B", B, (None, K), [torch.float8_e4m3fn])
    N = B.shape[0]
    if K % 128 or N % 8:
        raise ValueError(f"K is {K} and N is {N}, expected multiples of 128 and 8; step 5 takes any")
    check_matrix("A_scale", A_scale, (M, K // 128), [torch.float32])
    check_matrix("B_scale", B_scale, (-(-N // 128), K // 128), [torch.float32])
    check_matrix("out", out, (M, N), [torch.bfloat16])
    tensors = (A, A_scale, B, B_scale, out)
    if {x.device for x in tensors} != {A.device} or not A.is_cuda:
        devices = ", ".join(str(x.device) for x in tensors)
        raise ValueError(f"the tensors are on {devices}, expected one GPU; move them there")
    if M and N:
        with torch.cuda.device_of(A):
            compiled(N, K, device_of(A.device.index).arch)(*tensors)
    return out


def reference(A: torch.Tensor, A_scale: torch.Tensor, B: torch.Tensor, B_scale: torch.Tensor) -> torch.Tensor:
    """The product in float32, summed in float64."""
    return workload.reference(Workload(A, A_scale, B, B_scale))


def main() -> None:
    shapes = shapes_from_command_line(__doc__, [(1, 8, 128), (65, 136, 256), (100, 1000, 384)])
    if not torch.cuda.is_available() or not device_of(torch.cuda.current_device()).runs_tilelang:
        raise SystemExit(
            "This step needs a Hopper or Ada GPU: TileLang has no interpreter. Step 5 is the same product, "
            "and runs anywhere with TRITON_INTERPRET=1."
        )
    for M, N, K in shapes:
        inputs = random_workload(M, N, K, "cuda")
        operands = (inputs.A, inputs.A_scale, inputs.B, inputs.B_scale)
        C = matmul(*operands, torch.empty((M, N), dtype=torch.bfloat16, device="cuda"))
        report_product(f"M={M}, N={N}, K={K}", C, inputs)


if __name__ == "__main__":
    main()
