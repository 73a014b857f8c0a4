"""What a benchmark compares: each provider turns one case into a call that takes the weight copy's index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..backends import backend
from ..quantize import convert_scale_layout
from .compile_cache import CompileJob
from .config import KernelConfig
from .default_choice import default_entries
from .device import Device, device_of
from .timing import cold_copies
from .workload import MAX_INTEGER_K, Expected, Workload, integer_workload, random_workload
from .wrapper import gemm_for, tilelang_launch

Call = Callable[[int], torch.Tensor]

GUARD_ROWS = 8  # rows of C behind those of the largest M


class Refused(RuntimeError):
    """A provider cannot run this case; the message says why and goes into its row."""


@dataclass(frozen=True)
class Matrix:
    """One weight shape with its cold copies and the tokens of the largest M, shared by all M and providers.

    A (m_max, K) e4m3, A_scale (m_max, ceil(K/128)) float32 row-major; weights: copies of B (N, K) e4m3 and
    B_scale (ceil(N/128), ceil(K/128)) float32, equal in value; C (m_max + GUARD_ROWS, N) bfloat16, the last
    rows of which nobody may write; expected: what m_max tokens must give.
    """

    device: Device
    N: int
    K: int
    A: torch.Tensor
    A_scale: torch.Tensor
    weights: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    C: torch.Tensor
    expected: Expected

    @classmethod
    def random(cls, m_max: int, N: int, K: int, device: Device, seed: int = 0) -> Matrix:
        """Fresh random data on the current CUDA device, with as many copies as keep the weights cold."""
        inputs = random_workload(m_max, N, K, device="cuda", seed=seed)
        return cls._of(inputs, Expected.of(inputs), device, cold_copies(N * K, device.l2_bytes))

    @classmethod
    def integers(cls, m_max: int, N: int, K: int, device: Device, seed: int = 0) -> Matrix | None:
        """One copy of integers, of which every element must be exact; None where K is too large for that."""
        if K > MAX_INTEGER_K:
            return None
        inputs = integer_workload(m_max, N, K, device="cuda", seed=seed)
        return cls._of(inputs, Expected.exactly(inputs), device, 1)

    @classmethod
    def _of(cls, inputs: Workload, expected: Expected, device: Device, copies: int) -> Matrix:
        B = inputs.B.unsqueeze(0).expand(copies, *inputs.B.shape).contiguous()
        B_scale = inputs.B_scale.unsqueeze(0).expand(copies, *inputs.B_scale.shape).contiguous()
        weights = tuple(zip(B.unbind(), B_scale.unbind(), strict=True))
        C = torch.full((inputs.M + GUARD_ROWS, inputs.N), torch.nan, dtype=torch.bfloat16, device=B.device)
        return cls(device, inputs.N, inputs.K, inputs.A, inputs.A_scale, weights, C, expected)

    def case(self, M: int) -> Case:
        return Case(self, M, self.A[:M], self.A_scale[:M], self.C[:M], self.expected.first(M))


@dataclass(frozen=True)
class Case:
    """The first M tokens of a `Matrix`."""

    matrix: Matrix
    M: int
    A: torch.Tensor
    A_scale: torch.Tensor
    C: torch.Tensor
    expected: Expected


def _launching(launch: Callable[..., Any], case: Case, A_scale: torch.Tensor) -> Call:
    """A call of what takes (A, A_scale, B, B_scale, C)."""
    A, weights, C = case.A, case.matrix.weights, case.C

    def call(i: int) -> torch.Tensor:
        B, B_scale = weights[i]
        launch(A, A_scale, B, B_scale, C)
        return C

    return call


def _tilelang_gemm_on(case: Case, A_scale: torch.Tensor) -> Call:
    from tilelang_gemm_wrapper import gemm_nt_f8f8bf16

    tokens, weights, C = (case.A, A_scale), case.matrix.weights, case.C
    return lambda i: gemm_nt_f8f8bf16(tokens, weights[i], C)


def _tilelang_gemm(case: Case) -> Call:
    return _tilelang_gemm_on(case, case.A_scale)


def _tilelang_gemm_column_major(case: Case) -> Call:
    return _tilelang_gemm_on(case, convert_scale_layout(case.A_scale, "column_tma"))


def static_weights_job(M: int, N: int, K: int) -> CompileJob | None:
    """What TILELANG_GEMM_STATIC_WEIGHTS=1 compiles for a call; None for a fallback, and off Hopper."""
    gemm = gemm_for(N, K, torch.cuda.current_device())
    return _early_job(N, K, gemm.choices[gemm.table.index(M)].config, gemm.table.device)


def untuned_job(M: int, N: int, K: int) -> CompileJob | None:
    """As `static_weights_job`, of the default choice, whatever file there is; None where there is none."""
    device = device_of(torch.cuda.current_device())
    entries = _default_entries(N, K, device)
    config = next((config for most, config in entries if most >= M), entries[-1][1]) if entries else None
    return _early_job(N, K, config, device)


_default_entries = cache(default_entries)


def _early_job(N: int, K: int, config: KernelConfig | None, device: Device) -> CompileJob | None:
    if config is None or not device.is_hopper:
        return None
    return replace(CompileJob.on(N, K, config, device), static_weights=True)


def _launching_early(case: Case, job: CompileJob | None, why_none: str) -> Call:
    if job is None:
        raise Refused(why_none)
    launch = tilelang_launch(job, torch.cuda.current_device())
    return _launching(launch, case, convert_scale_layout(case.A_scale, "column_tma"))


def _tilelang_gemm_static_weights(case: Case) -> Call:
    """The kernel that the table names, as TILELANG_GEMM_STATIC_WEIGHTS=1 has it; fallbacks are not ours."""
    job = static_weights_job(case.M, case.matrix.N, case.matrix.K)
    return _launching_early(case, job, "no kernel of this package that reads weights early is chosen here")


def _tilelang_gemm_untuned(case: Case) -> Call:
    job = untuned_job(case.M, case.matrix.N, case.matrix.K)
    return _launching_early(case, job, "the default choice has no kernel here that reads weights early")


def _deep_gemm_on(case: Case, A_scale: torch.Tensor) -> Call:
    module = backend("deep_gemm")
    reason = module.why_unavailable(case.matrix.device) or module.why_unsupported(
        case.matrix.N, case.matrix.K
    )
    if reason:
        raise Refused(reason)
    import deep_gemm

    tokens, weights, C = (case.A, A_scale), case.matrix.weights, case.C

    def call(i: int) -> torch.Tensor:
        deep_gemm.fp8_gemm_nt(tokens, weights[i], C, disable_ue8m0_cast=True)
        return C

    return call


def _deep_gemm(case: Case) -> Call:
    # DeepGEMM takes this layout as it is and launches its GEMM alone: what it costs with prepared scales.
    return _deep_gemm_on(case, convert_scale_layout(case.A_scale, "column_tma"))


def _deep_gemm_row_major(case: Case) -> Call:
    return _deep_gemm_on(case, case.A_scale)


def _cublas(case: Case) -> Call:
    scaled_mm = getattr(torch.nn.functional, "scaled_mm", None)
    recipes: Any = getattr(torch.nn.functional, "ScalingType", None)
    if scaled_mm is None or recipes is None:
        raise Refused(
            f"torch {torch.__version__} has no torch.nn.functional.scaled_mm: 2.10 and later have it"
        )
    if case.M % 4:
        raise Refused(f"cuBLAS takes blockwise scales only of M in multiples of 4; M is {case.M}")
    A = case.A
    # Stride (1, M), of one token too: there contiguous() keeps whatever stride a dimension of one has.
    A_scale = torch.empty_strided(case.A_scale.shape, (1, case.M), device=A.device).copy_(case.A_scale)
    # Blocks along K are wanted in multiples of 4; cuBLAS reads none of the added ones.
    added = -case.matrix.weights[0][1].shape[1] % 4
    weights = [
        (B.t(), torch.nn.functional.pad(B_scale, (0, added)).t()) for B, B_scale in case.matrix.weights
    ]

    def call(i: int) -> torch.Tensor:
        B, B_scale = weights[i]
        return scaled_mm(
            A,
            B,
            scale_a=A_scale,
            scale_recipe_a=recipes.BlockWise1x128,
            scale_b=B_scale,
            scale_recipe_b=recipes.BlockWise128x128,
            output_dtype=torch.bfloat16,
        )

    return call


def _triton(case: Case) -> Call:
    module = backend("triton")
    reason = module.why_unavailable(case.matrix.device) or module.why_unsupported(
        case.matrix.N, case.matrix.K
    )
    if reason:
        raise Refused(reason)
    return _launching(module.gemm, case, case.A_scale)


PROVIDERS: dict[str, Callable[[Case], Call]] = {
    "tilelang_gemm": _tilelang_gemm,
    "tilelang_gemm_column_major": _tilelang_gemm_column_major,
    "tilelang_gemm_static_weights": _tilelang_gemm_static_weights,
    "tilelang_gemm_untuned": _tilelang_gemm_untuned,
    "deep_gemm": _deep_gemm,
    "deep_gemm_row_major": _deep_gemm_row_major,
    "cublas": _cublas,
    "triton": _triton,
}


def _bare_kernel(case: Case) -> Call:
    """What the entrypoint would launch, without anything around it."""
    gemm = gemm_for(case.matrix.N, case.matrix.K, torch.cuda.current_device())
    position = gemm.table.index(case.M)
    launch = gemm.prepare(position)
    if gemm.choices[position].config is None:
        raise Refused("no TileLang kernel is chosen for this shape")
    return _launching(launch, case, case.A_scale)


# For the time that the host needs, the kernel alone stands beside them as the least that a call can take.
HOST_PROVIDERS: dict[str, Callable[[Case], Call]] = {**PROVIDERS, "bare_kernel": _bare_kernel}


def chosen_kernel(M: int, N: int, K: int) -> tuple[str, str]:
    """(kernel, configuration and its source) of the package's own call, as it was launched, for its row."""
    gemm = gemm_for(N, K, torch.cuda.current_device())
    choice = gemm.choices[gemm.table.index(M)]
    fields = ("block_M", "block_N", "block_K", "num_stages", "threads", "split_k")
    values = [f"{name}={getattr(choice.config, name)}" for name in fields] if choice.config else []
    source = Path(choice.source).name  # the file, not where this machine keeps it
    return choice.kernel, " ".join((*values, f"({source})"))
