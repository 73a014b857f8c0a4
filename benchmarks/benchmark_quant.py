"""FP8 quantisation of activations, alone and fused behind RMSNorm or SiLU, beside separate kernels.

    python benchmarks/benchmark_quant.py                                   all shapes
    python benchmarks/benchmark_quant.py --ops silu_mul_quant_fp8 --resume in pieces
    python benchmarks/benchmark_quant.py --from-csv FILE.csv               the report of an earlier run

The separate kernels are the fastest of those installed, chosen by measurement for each shape.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmark_rmsnorm import EPS, NormInputs, norm_case, norm_cell
from op_command import Suite, main
from op_rows import Cell, OpRow

if TYPE_CHECKING:
    import torch
    from op_benchmark import Call, Case, Launch, Output, Session

    Quantise = Callable[..., tuple[torch.Tensor, torch.Tensor]]

GROUP_QUANT = "per_token_group_quant_fp8"
SILU = "silu_mul_quant_fp8"
NORMS = {"rmsnorm_quant_fp8": "rmsnorm", "fused_add_rmsnorm_quant_fp8": "fused_add_rmsnorm"}
LAYOUT = "column_tma"
OURS = ("triton", "tilelang", "auto")
QUANTISERS = ("torch", *OURS, "group_quant", "sglang")
ACTIVATIONS = ("torch", "flashinfer", "flashinfer_pdl", "sgl_kernel")
PROVIDERS = (
    "separate",
    "separate_peers",
    "torch",
    *OURS,
    "group_quant",
    "sglang",
    "flashinfer",
    "flashinfer_pdl",
)
MS = (1, 4, 16, 64, 256, 1024, 4096)
SGLANG = (
    "sglang.srt.layers.quantization.fp8_kernel:sglang_per_token_group_quant_fp8",
    "sglang.kernels.ops.quantization.fp8_kernel:sglang_per_token_group_quant_fp8",  # since 0.5.17
)

METHOD = (
    "Shapes are M x K of the FP8 output, bfloat16 in, a float32 scale for each row and 128 columns, all "
    'providers with scale_layout "column_tma", the one that GEMMs read. The reference of the fused ops is '
    "*separate kernels*: the fastest (add and) norm, or SiLU with the product, then the fastest quantiser, "
    "each chosen by measurement in this run at this shape among all that were available and right; Config "
    "names them, and which could not be taken; *separate kernels of others* is the same without this "
    "package's. What lies between the two is written where the allocator has "
    "it, as in an engine, and may be found in L2. *PyTorch* is the plain formula. The reference of the "
    "quantiser alone is SGLang's where it is installed, else the plain formula. *FlashInfer* behind "
    "fused_add_rmsnorm is its own fused kernel, which writes the norm in bfloat16 too."
)


def _cells(op: str, *ks: int) -> tuple[Cell, ...]:
    return tuple(norm_cell(op, M, K) for K in ks for M in MS)


CELLS = (
    *_cells("rmsnorm_quant_fp8", 2560, 4096, 7168),
    *_cells("fused_add_rmsnorm_quant_fp8", 2560, 4096, 7168),
    *_cells(SILU, 9728),
    *_cells(GROUP_QUANT, 4096),
)


def quant_bytes(op: str, M: int, K: int) -> int:
    """bfloat16 read, with the weight of a norm; e4m3 and its scales written, and a residual's new values."""
    besides = {
        GROUP_QUANT: 2 * M * K,
        SILU: 4 * M * K,
        "rmsnorm_quant_fp8": 2 * M * K + 2 * K,
        "fused_add_rmsnorm_quant_fp8": 6 * M * K + 2 * K,
    }
    return M * K + 4 * M * (K // 128) + besides[op]


def build(cell: Cell, session: Session, options: argparse.Namespace) -> Case:
    import torch

    op, _, M, _, K, _ = cell
    if op in NORMS:
        return _norm_quant_case(cell, session)
    x = torch.randn((M, 2 * K if op == SILU else K), device=session.torch_device).bfloat16()
    return _silu_case(cell, session, x) if op == SILU else _quant_case(cell, session, x)


def _cold(session: Session, cell: Cell) -> int:
    """Copies of what a launch of the op touches, for it to be cold."""
    from tilelang_gemm_wrapper.core.timing import cold_copies

    _, _, M, _, K, _ = cell
    touched = quant_bytes(cell.op, M, K)
    if cell.op in NORMS:
        touched -= 2 * K  # the weight is one for all copies
    if cell.op == "fused_add_rmsnorm_quant_fp8":
        touched -= 2 * M * K  # the residual is written where it was read
    return cold_copies(touched, session.device.l2_bytes)


def _case(cell: Cell, **fields: Any) -> Case:
    from op_benchmark import MAX_ERROR_FP8, Case

    size = quant_bytes(cell.op, cell.M, cell.K)
    return Case(cell=cell, bytes=size, ceiling="read", limit=MAX_ERROR_FP8, **fields)


# ---- the quantiser alone


def _quant_case(cell: Cell, session: Session, value: torch.Tensor) -> Case:
    from op_benchmark import copies_of

    copies = _cold(session, cell)
    x = copies_of(value, copies)
    return _case(
        cell,
        copies=copies,
        providers={name: partial(_quantise, name, x) for name in QUANTISERS},
        expected=(value.double(),),
        references=("sglang", "torch"),
    )


def _quantise(name: str, x: Sequence[torch.Tensor]) -> Launch:
    from op_benchmark import Launch

    quantise = _quantiser(name)
    return Launch(lambda i: (quantise(x[i]),), LAYOUT)


def _quantiser(name: str) -> Quantise:
    """x (M, K) bfloat16 -> q (M, K) e4m3, scale (M, K / 128) float32, column-major."""
    if name == "sglang":
        return partial(_sglang(), group_size=128, column_major_scales=True, scale_tma_aligned=True)
    from tilelang_gemm_wrapper.ops import per_token_group_quant_fp8

    ours: Quantise = partial(per_token_group_quant_fp8, scale_layout=LAYOUT)
    if name == "group_quant":  # what the plugin calls
        return partial(ours, rounding="sglang", backend="tilelang")
    return partial(ours, backend=name)


def _sglang() -> Quantise:
    from op_benchmark import first_of

    return first_of(*SGLANG)


# ---- fused behind a norm


def _norm_quant_case(cell: Cell, session: Session) -> Case:
    op, _, M, _, K, _ = cell
    added = op == "fused_add_rmsnorm_quant_fp8"
    copies = _cold(session, cell)
    inputs = NormInputs.random(M, K, added=added, copies=copies, device=session.torch_device)
    first = norm_case(norm_cell(NORMS[op], M, K), inputs)
    providers = _separate_providers(session, cell, first)
    providers |= {name: partial(_norm_quant, name, op, inputs) for name in ("torch", *OURS)}
    if added:
        providers |= {name: partial(_flashinfer, name, inputs) for name in ("flashinfer", "flashinfer_pdl")}
    return _case(
        cell,
        copies=copies,
        providers=providers,
        expected=(inputs.normalised, inputs.total) if added else (inputs.normalised,),
        references=("separate",),
        restore=inputs.restore,
    )


def _norm_quant(name: str, op: str, inputs: NormInputs) -> Launch:
    from op_benchmark import Launch

    from tilelang_gemm_wrapper import ops

    run = partial(getattr(ops, op), eps=EPS, scale_layout=LAYOUT, backend=name)
    x, residual, weight = inputs.x, inputs.residual, inputs.weight
    if residual:
        return Launch(lambda i: (run(x[i], residual[i], weight), residual[i]), LAYOUT)
    return Launch(lambda i: (run(x[i], weight),), LAYOUT)


def _flashinfer(name: str, inputs: NormInputs) -> Launch:
    import torch
    from flashinfer.norm import fused_add_rmsnorm_fp8_block_quant
    from op_benchmark import Launch, empty_copies

    x, residual, copies = inputs.x, inputs.residual, len(inputs.x)
    M, K = x[0].shape
    norm, q = (empty_copies(x[0], copies, dtype) for dtype in (torch.bfloat16, torch.float8_e4m3fn))
    scale = empty_copies(x[0].new_empty((K // 128, -(-M // 4) * 4)), copies, torch.float32)

    def call(i: int) -> tuple[Any, ...]:
        fused_add_rmsnorm_fp8_block_quant(
            q[i], scale[i], norm[i], x[i], residual[i], inputs.weight, EPS, name == "flashinfer_pdl"
        )
        return (q[i], scale[i].t()[:M]), residual[i]

    return Launch(call, LAYOUT)


# ---- fused behind SiLU


def _silu_case(cell: Cell, session: Session, value: torch.Tensor) -> Case:
    import torch
    from op_benchmark import MAX_ERROR, Case, copies_of

    _, shape, M, _, K, dtype = cell
    copies = _cold(session, cell)
    x = copies_of(value, copies)
    gate, up = value.double().split(K, 1)
    exact = torch.nn.functional.silu(gate) * up
    first = Case(
        cell=Cell("silu_mul", shape, M, 0, K, dtype),
        bytes=6 * M * K,
        ceiling="read",
        copies=copies,
        providers={name: partial(_silu_mul, name, x) for name in ACTIVATIONS},
        expected=(exact,),
        limit=MAX_ERROR[torch.bfloat16],
        references=("torch",),
    )
    providers = _separate_providers(session, cell, first)
    providers |= {name: partial(_silu_quant, name, x) for name in ("torch", *OURS, "sglang")}
    return _case(cell, copies=copies, providers=providers, expected=(exact,), references=("separate",))


def _silu_mul(name: str, x: Sequence[torch.Tensor]) -> Launch:
    from op_benchmark import Launch

    if name == "torch":
        from torch.nn.functional import silu

        def formula(i: int) -> tuple[torch.Tensor]:
            gate, up = x[i].chunk(2, 1)
            return (silu(gate) * up,)

        return Launch(formula)
    run: Callable[..., torch.Tensor]
    if name == "sgl_kernel":
        import sgl_kernel

        run = sgl_kernel.silu_and_mul
    else:
        from flashinfer.activation import silu_and_mul

        run = partial(silu_and_mul, enable_pdl=name == "flashinfer_pdl")
    return Launch(lambda i: (run(x[i]),))


def _silu_quant(name: str, x: Sequence[torch.Tensor]) -> Launch:
    from op_benchmark import Launch

    if name == "sglang":
        run = partial(
            _sglang(),
            group_size=128,
            column_major_scales=True,
            scale_tma_aligned=True,
            fuse_silu_and_mul=True,
        )
    else:
        from tilelang_gemm_wrapper.ops import silu_mul_quant_fp8

        ours: Quantise = silu_mul_quant_fp8
        run = partial(ours, scale_layout=LAYOUT, backend=name)
    return Launch(lambda i: (run(x[i]),), LAYOUT)


# ---- the separate kernels


def _separate_providers(session: Session, cell: Cell, first: Case) -> dict[str, Callable[[], Launch]]:
    """The best separate kernels of all, and of those that are not this package's."""
    return {
        "separate": partial(_separate, session, cell, first, of_others=False),
        "separate_peers": partial(_separate, session, cell, first, of_others=True),
    }


def _separate(session: Session, cell: Cell, first: Case, *, of_others: bool) -> Launch:
    """The fastest provider of `first`, then the fastest quantiser, both measured here and now."""
    from op_benchmark import Launch

    if first.cell not in session.chosen:
        names = [name for name in first.providers if name != "auto"]
        session.chosen[first.cell] = session.measure(first, names)
    rows = _allowed(session.chosen[first.cell], of_others)
    before, missing = _fastest(rows), [row.provider for row in rows if row.p50_us is None]
    quantisers = _allowed(_measured_quantisers(session, cell), of_others)
    quantiser = _fastest(quantisers)
    missing += [row.provider for row in quantisers if row.p50_us is None and row.provider not in missing]
    config = f"{before} + {quantiser}" + (f" (not available: {', '.join(missing)})" if missing else "")
    return Launch(_in_turn(first.providers[before]().call, _quantiser(quantiser)), config)


def _in_turn(first: Call, quantise: Quantise) -> Call:
    def call(i: int) -> tuple[Output, ...]:
        value, *others = first(i)
        return quantise(value), *others

    return call


def _allowed(rows: Sequence[OpRow], of_others: bool) -> list[OpRow]:
    return [row for row in rows if not (of_others and row.provider in (*OURS, "group_quant"))]


def _measured_quantisers(session: Session, cell: Cell) -> list[OpRow]:
    """The quantisers' rows for M x K; measured once a run."""
    import torch

    key = GROUP_QUANT, cell.M, cell.K
    if key not in session.chosen:
        x = torch.randn((cell.M, cell.K), device=session.torch_device).bfloat16()
        case = _quant_case(norm_cell(*key), session, x)
        session.chosen[key] = session.measure(case, [name for name in QUANTISERS if name != "auto"])
    return session.chosen[key]


def _fastest(rows: Sequence[OpRow]) -> str:
    times = {row.provider: row.p50_us for row in rows if row.p50_us is not None}
    if not times:
        reasons = "; ".join(f"{row.provider}: {row.reason}" for row in rows)
        raise RuntimeError(f"no kernel for {rows[0].op} {rows[0].shape} could be timed: {reasons}")
    return min(times, key=times.__getitem__)


SUITE = Suite("quant", "FP8 quantisation of activations", METHOD, CELLS, PROVIDERS, build)

if __name__ == "__main__":
    sys.exit(main(SUITE))
