"""GEMV: Triton and TileLang beside cuBLAS, bfloat16 weights and FP8 ones with block scales.

    python benchmarks/benchmark_gemv.py                                    all shapes
    python benchmarks/benchmark_gemv.py --tune                             TileLang autotuned before each
    python benchmarks/benchmark_gemv.py --shapes 4096x4096 --providers torch,triton
    python benchmarks/benchmark_gemv.py --from-csv FILE.csv                the report of an earlier run

Needs a GPU, and for weights in copies four times as large as its L2 memory for the largest, 0.9 GiB.
"""

from __future__ import annotations

import argparse
import logging
import sys
from functools import partial
from typing import TYPE_CHECKING

from op_command import Suite, main
from op_rows import Cell

if TYPE_CHECKING:
    from op_benchmark import Case, Launch, Session

logger = logging.getLogger(__name__)

BF16 = "bfloat16"
FP8 = "bfloat16 x float8_e4m3fn"
PROVIDERS = ("torch", "gemm", "triton", "tilelang_naive", "tilelang_split_k", "tilelang", "auto")
NK = ((1024, 1024), (4096, 4096), (4096, 14336), (14336, 4096), (7168, 16384), (28672, 8192))
NK_OF_MORE_ROWS = ((4096, 4096), (14336, 4096))
NK_FP8 = ((6144, 2560), (2560, 4096), (19456, 2560), (2560, 9728))  # qkv, o, gate and up, down of Qwen3-4B

METHOD = (
    "Shapes are N x K of the weights, M = 1 where none is named. Only the weights are cold: x and the output "
    "are thousands of times smaller. *Floor* is the fastest plain read of the weights in the same harness. "
    "The reference is cuBLAS (torch.nn.functional.linear) for bfloat16, and for FP8 weights this package's "
    "FP8 GEMM on x quantised beforehand (its error is of x quantised too); PyTorch then is the formula. "
    "*TileLang naive* gives a row of W to a thread, *split-K* shares it among threads in the default "
    "configuration, *TileLang* is split-K as tuned for the shape where Config says so; *auto* takes what "
    "was measured best."
)


def _cell(M: int, N: int, K: int, dtype: str) -> Cell:
    shape = f"{N}x{K}" + (f" M={M}" if M > 1 else "") + (" fp8" if dtype == FP8 else "")
    return Cell("gemv", shape, M, N, K, dtype)


CELLS = (
    *(_cell(1, N, K, BF16) for N, K in NK),
    *(_cell(M, N, K, BF16) for N, K in NK_OF_MORE_ROWS for M in (2, 4, 8)),
    *(_cell(M, N, K, FP8) for N, K in NK_FP8 for M in (1, 4)),
)


def gemv_bytes(M: int, N: int, K: int, dtype: str) -> int:
    """x and W, with its scales if it is e4m3, read once; the output written once."""
    weights = N * K + 4 * -(-N // 128) * -(-K // 128) if dtype == FP8 else 2 * N * K
    return weights + 2 * M * K + 2 * M * N


def build(cell: Cell, session: Session, options: argparse.Namespace) -> Case:
    import torch
    from op_benchmark import MAX_ERROR, Case, copies_of

    from tilelang_gemm_wrapper.core.timing import cold_copies
    from tilelang_gemm_wrapper.quantize import per_block_quant_fp8

    _, _, M, N, K, dtype = cell
    x = torch.randn((M, K), device=session.torch_device).bfloat16()
    W = torch.randn((N, K), device=session.torch_device).bfloat16()
    scale = None
    exact = W.double()
    if dtype == FP8:
        W, scale = per_block_quant_fp8(W)
        blocks = scale.double().repeat_interleave(128, 0)[:N].repeat_interleave(128, 1)[:, :K]
        exact = W.double() * blocks
    copies = cold_copies(W.numel() * W.element_size(), session.device.l2_bytes)
    weights = copies_of(W, copies)
    out = torch.empty((M, N), dtype=torch.bfloat16, device=session.torch_device)
    operands = weights if scale is None else tuple((copy, scale) for copy in weights)
    config = _tuned(x, operands[0]) if options.tune else ""
    launches = {
        name: partial(_launch, name, x, operands, out, config)
        for name in PROVIDERS
        if not (name == "gemm" and scale is None)
        and not (name == "tilelang_naive" and (M > 1 or scale is not None))  # it takes one row of bfloat16
    }
    return Case(
        cell=cell,
        bytes=gemv_bytes(M, N, K, dtype),
        ceiling="read",
        copies=copies,
        providers=launches,
        expected=(x.double() @ exact.t(),),
        limit=MAX_ERROR[torch.bfloat16],
        references=("torch",) if scale is None else ("gemm",),
        weights=weights,
    )


def _launch(name, x, operands, out, config) -> Launch:
    """Provider `name`: x (M, K), operands W or (W, W_scale) by copy, out (M, N)."""
    import torch
    from op_benchmark import MAX_ERROR_FP8, Launch

    scaled = isinstance(operands[0], tuple)
    if name == "torch" and not scaled:
        return Launch(lambda i: (torch.nn.functional.linear(x, operands[i]),))
    if name == "gemm":
        from tilelang_gemm_wrapper import gemm_nt_f8f8bf16, per_token_group_quant_fp8

        quantised = per_token_group_quant_fp8(x, scale_layout="column_tma")
        return Launch(
            lambda i: (gemm_nt_f8f8bf16(quantised, operands[i], out),), "x quantised before", MAX_ERROR_FP8
        )
    if name in ("tilelang_naive", "tilelang_split_k"):
        from tilelang_gemm_wrapper.ops.gemv import tilelang

        run = tilelang.naive if name == "tilelang_naive" else tilelang.split_k

        def into_out(i):
            run(x, operands[i], out)
            return (out,)

        return Launch(into_out)

    from tilelang_gemm_wrapper.ops import gemv

    return Launch(
        lambda i: (gemv(x, operands[i], out=out, backend=name),), config if name == "tilelang" else ""
    )


def _tuned(x, W) -> str:
    """What tuning found, or why it found nothing: the provider then runs untuned, and its row says so."""
    from tilelang_gemm_wrapper.core.bench_measure import stop_if_device_is_lost
    from tilelang_gemm_wrapper.core.failure_text import first_line
    from tilelang_gemm_wrapper.ops.autotune import tune

    try:
        entry = tune(x, W)
    except Exception as failure:
        stop_if_device_is_lost("tilelang", failure)
        logger.warning("the tuning failed, the default configuration is timed: %s", first_line(failure))
        return f"not tuned: {first_line(failure)}"
    return "tuned: " + ", ".join(f"{key}={value}" for key, value in entry.config.items())


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tune", action="store_true", help="autotune TileLang for each shape first")


SUITE = Suite("gemv", "GEMV", METHOD, CELLS, PROVIDERS, build, _add_arguments)

if __name__ == "__main__":
    sys.exit(main(SUITE))
