"""RMSNorm, alone and with the residual added in place: Triton and TileLang beside PyTorch and its peers.

    python benchmarks/benchmark_rmsnorm.py                                  all shapes
    python benchmarks/benchmark_rmsnorm.py --ops rmsnorm --shapes 4096x4096
    python benchmarks/benchmark_rmsnorm.py --from-csv FILE.csv              the report of an earlier run

FlashInfer, Liger and sgl-kernel are timed where they are installed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from op_command import Suite, main
from op_rows import Cell

if TYPE_CHECKING:
    import torch
    from op_benchmark import Case, Launch, Session

EPS = 1e-6
PROVIDERS = (
    "torch",
    "triton",
    "tilelang",
    "auto",
    "flashinfer",
    "flashinfer_pdl",
    "liger",
    "sgl_kernel",
)
SHAPES = ((1, 4096), (4096, 4096), (4096, 14336), (14336, 4096), (512, 2560))
HEADS = (32768, 128)  # q and k norm of a thousand tokens with 32 heads

METHOD = (
    "Shapes are M x K, bfloat16. The reference is PyTorch: torch.nn.functional.rms_norm, for "
    "fused_add_rmsnorm after residual.add_(x). PyTorch and Liger write fused_add_rmsnorm's results to new "
    "tensors, the others in place, which is what the op has to do and what its bytes count."
)


def norm_cell(op: str, M: int, K: int) -> Cell:
    return Cell(op, f"{M}x{K}", M, 0, K, "bfloat16")


CELLS = (
    *(norm_cell("rmsnorm", *shape) for shape in (*SHAPES, HEADS)),
    *(norm_cell("fused_add_rmsnorm", *shape) for shape in SHAPES),
)


@dataclass(frozen=True)
class NormInputs:
    """The tensors of an RMSNorm with M rows of K, in copies; expected values are float64.

    x, and with a residual that as well: (M, K) bfloat16 by copy; out: (M, K) by copy, without a residual
    only. weight: (K,) bfloat16. total is residual + x, or x alone, and normalised what comes of it.
    """

    x: Sequence[torch.Tensor]
    residual: Sequence[torch.Tensor]
    out: Sequence[torch.Tensor]
    weight: torch.Tensor
    fresh: tuple[torch.Tensor, ...]
    total: torch.Tensor
    normalised: torch.Tensor

    @classmethod
    def random(cls, M: int, K: int, *, added: bool, copies: int, device: str) -> NormInputs:
        import torch
        from op_benchmark import copies_of, empty_copies

        fresh = tuple(torch.randn((M, K), device=device).bfloat16() for _ in range(2 if added else 1))
        weight = (1 + 0.1 * torch.randn(K, device=device)).bfloat16()
        total = fresh[0].double() + (fresh[1].double() if added else 0)
        factor = (total.square().mean(1, keepdim=True) + EPS).rsqrt()
        return cls(
            x=copies_of(fresh[0], copies),
            residual=copies_of(fresh[1], copies) if added else (),
            out=() if added else empty_copies(fresh[0], copies),
            weight=weight,
            fresh=fresh,
            total=total,
            normalised=total * factor * weight.double(),
        )

    def restore(self, i: int) -> None:
        # Between checks and replays nothing is restored: residual += norm(residual) grows until the addend
        # is below half a unit of bfloat16, some hundred times the norm, and stays there, finite.
        self.x[i].copy_(self.fresh[0])
        if self.residual:
            self.residual[i].copy_(self.fresh[1])


def norm_bytes(op: str, M: int, K: int) -> int:
    """x and the weight read, the norm written; with a residual that is read and written as well."""
    return (8 if op == "fused_add_rmsnorm" else 4) * M * K + 2 * K


def norm_case(cell: Cell, inputs: NormInputs) -> Case:
    import torch
    from op_benchmark import MAX_ERROR, Case

    prepare = _fused_add if cell.op == "fused_add_rmsnorm" else _norm
    added = (inputs.total,) if cell.op == "fused_add_rmsnorm" else ()
    return Case(
        cell=cell,
        bytes=norm_bytes(cell.op, cell.M, cell.K),
        ceiling="copy",
        copies=len(inputs.x),
        providers={name: partial(prepare, name, inputs) for name in PROVIDERS},
        expected=(inputs.normalised, *added),
        limit=MAX_ERROR[torch.bfloat16],
        references=("torch",),
        restore=inputs.restore,
    )


def build(cell: Cell, session: Session, options: argparse.Namespace) -> Case:
    from tilelang_gemm_wrapper.core.timing import cold_copies

    # x and out, or x and residual, both in place: what a launch touches, whichever it reads and writes twice.
    copies = cold_copies(4 * cell.M * cell.K, session.device.l2_bytes)
    added = cell.op == "fused_add_rmsnorm"
    inputs = NormInputs.random(cell.M, cell.K, added=added, copies=copies, device=session.torch_device)
    return norm_case(cell, inputs)


def _norm(name: str, inputs: NormInputs) -> Launch:
    """Provider `name` of rmsnorm; its calls return (the norm,)."""
    from op_benchmark import Launch

    x, out, weight = inputs.x, inputs.out, inputs.weight
    if name == "torch":
        from torch.nn.functional import rms_norm

        return Launch(lambda i: (rms_norm(x[i], weight.shape, weight, EPS),))
    if name == "liger":
        from liger_kernel.ops.rms_norm import rms_norm_forward

        return Launch(lambda i: (rms_norm_forward(x[i], weight, EPS, 0.0, "llama", None)[0],))
    run: Callable[..., object]
    if name in ("flashinfer", "flashinfer_pdl"):
        import flashinfer.norm

        run = partial(flashinfer.norm.rmsnorm, enable_pdl=name == "flashinfer_pdl")
    elif name == "sgl_kernel":
        import sgl_kernel

        run = sgl_kernel.rmsnorm
    else:
        from tilelang_gemm_wrapper.ops import rmsnorm

        ours: Callable[..., object] = rmsnorm
        run = partial(ours, backend=name)

    def into_out(i: int) -> tuple[torch.Tensor]:
        run(x[i], weight, EPS, out=out[i])
        return (out[i],)

    return Launch(into_out)


def _fused_add(name: str, inputs: NormInputs) -> Launch:
    """Provider `name` of fused_add_rmsnorm; its calls return (the norm, residual + x)."""
    from op_benchmark import Launch

    x, residual, weight = inputs.x, inputs.residual, inputs.weight
    if name == "torch":
        from torch.nn.functional import rms_norm

        def add_then_norm(i: int) -> tuple[torch.Tensor, torch.Tensor]:
            residual[i].add_(x[i])
            return rms_norm(residual[i], weight.shape, weight, EPS), residual[i]

        return Launch(add_then_norm)
    if name == "liger":
        from liger_kernel.ops.fused_add_rms_norm import fused_add_rms_norm_forward

        return Launch(lambda i: fused_add_rms_norm_forward(x[i], residual[i], weight, EPS, 0.0, "llama")[:2])
    run: Callable[..., object]
    if name in ("flashinfer", "flashinfer_pdl"):
        import flashinfer.norm

        run = partial(flashinfer.norm.fused_add_rmsnorm, enable_pdl=name == "flashinfer_pdl")
    elif name == "sgl_kernel":
        import sgl_kernel

        run = sgl_kernel.fused_add_rmsnorm
    else:
        from tilelang_gemm_wrapper.ops import fused_add_rmsnorm

        ours: Callable[..., object] = fused_add_rmsnorm
        run = partial(ours, backend=name)

    def in_place(i: int) -> tuple[torch.Tensor, torch.Tensor]:
        run(x[i], residual[i], weight, EPS)
        return x[i], residual[i]

    return Launch(in_place)


SUITE = Suite("rmsnorm", "RMSNorm", METHOD, CELLS, PROVIDERS, build)

if __name__ == "__main__":
    sys.exit(main(SUITE))
