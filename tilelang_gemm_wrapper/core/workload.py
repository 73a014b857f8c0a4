"""Inputs, reference and error measure of the GEMM: one source for tests, tuner and benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from ..backends import torch_reference
from ..quantize import (
    ScaleLayout,
    convert_scale_layout,
    per_block_quant_fp8,
    per_token_group_quant_fp8_reference,
)

Distribution = Literal["normal", "wide_scales"]
Quantiser = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

# Of `error` against float32: right kernels stand at 1.4e-6, a lost K step or a wrong scale far above.
MAX_ERROR = 3e-6

_BLOCK = 128
_CHUNK = 1 << 26  # float32 elements made at one time: 256 MiB
_MAX_INTEGER = 3  # of integer_workload: sums over 128 products stay below 2**13, exact in Hopper's FP8 WGMMA
_MAX_INTEGER_K = 2**22 // (_MAX_INTEGER**2 * 4)  # see integer_workload


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """The inputs of one GEMM.

    A: (M, K) and B: (N, K) float8_e4m3fn, row-major. A_scale: (M, ceil(K / 128)) float32, row- or
    column-major. B_scale: (ceil(N / 128), ceil(K / 128)) float32, row-major. All on one device.
    """

    A: torch.Tensor
    A_scale: torch.Tensor
    B: torch.Tensor
    B_scale: torch.Tensor

    @property
    def M(self) -> int:
        return self.A.shape[0]

    @property
    def N(self) -> int:
        return self.B.shape[0]

    @property
    def K(self) -> int:
        return self.A.shape[1]

    @property
    def device(self) -> torch.device:
        return self.A.device

    def with_scale_layout(self, scale_layout: ScaleLayout) -> Workload:
        """The same values with A_scale in another layout; A, B and B_scale are shared."""
        return Workload(self.A, convert_scale_layout(self.A_scale, scale_layout), self.B, self.B_scale)

    def empty_output(self) -> torch.Tensor:
        """(M, N) bfloat16, filled with NaN so that what a kernel leaves unwritten is seen."""
        return torch.full((self.M, self.N), torch.nan, dtype=torch.bfloat16, device=self.device)


def random_workload(
    M: int,
    N: int,
    K: int,
    device: torch.device | str = "cpu",
    seed: int = 0,
    *,
    scale_layout: ScaleLayout = "row",
    distribution: Distribution = "wide_scales",
) -> Workload:
    """Fresh random inputs, the same for the same arguments on the same kind of device.

    "normal": N(0, 1) values, quantised; scales lie close together, as in a trained layer. "wide_scales": the
    same with every scale multiplied by its own factor between 1/8 and 8, so that a kernel which reads a wrong
    scale is far off instead of slightly. Raises ValueError for an unknown distribution or scale layout.
    """
    if distribution not in get_args(Distribution):
        raise ValueError(
            f"distribution is {distribution!r}; expected one of {', '.join(get_args(Distribution))}"
        )
    generator = torch.Generator(device).manual_seed(seed)
    A, A_scale = _quantised_normal(M, K, generator, per_token_group_quant_fp8_reference)
    B, B_scale = _quantised_normal(N, K, generator, per_block_quant_fp8)
    if distribution == "wide_scales":
        for scale in (A_scale, B_scale):
            scale.mul_(torch.empty_like(scale).uniform_(-3, 3, generator=generator).exp2_())
    return Workload(A, convert_scale_layout(A_scale, scale_layout), B, B_scale)


def integer_workload(
    M: int,
    N: int,
    K: int,
    device: torch.device | str = "cpu",
    seed: int = 0,
    *,
    scale_layout: ScaleLayout = "row",
) -> Workload:
    """Inputs whose product every right kernel must give bit for bit, in whatever order it adds.

    Values are integers from -3 to 3 and scales 1/2, 1 or 2: every partial sum is a multiple of 1/4, at most
    36 * K in magnitude and so exact in float32 up to K = 116508. `reference(...)` is then exact, and rounding
    it to bfloat16 gives the only right result. Raises ValueError for a larger K.
    """
    if K > _MAX_INTEGER_K:
        raise ValueError(f"K is {K}; expected at most {_MAX_INTEGER_K}, where float32 sums are still exact")
    generator = torch.Generator(device).manual_seed(seed)

    def integers(rows: int) -> torch.Tensor:
        q = torch.empty((rows, K), dtype=torch.float8_e4m3fn, device=device)
        for part in _row_chunks(q):
            low, high = -_MAX_INTEGER, _MAX_INTEGER + 1
            part.copy_(torch.randint(low, high, part.shape, generator=generator, device=device))
        return q

    def powers_of_two(rows: int) -> torch.Tensor:
        shape = (rows, -(-K // _BLOCK))
        return torch.randint(-1, 2, shape, generator=generator, device=device).float().exp2()

    A_scale = convert_scale_layout(powers_of_two(M), scale_layout)
    return Workload(integers(M), A_scale, integers(N), powers_of_two(-(-N // _BLOCK)))


def reference(workload: Workload) -> torch.Tensor:
    """The right result, (M, N) float32, computed in float64 from the dequantised inputs, chunk by chunk."""
    out = torch.empty((workload.M, workload.N), dtype=torch.float32, device=workload.device)
    torch_reference.gemm(workload.A, workload.A_scale, workload.B, workload.B_scale, out)
    return out


def error(x: torch.Tensor, y: torch.Tensor) -> float:
    """1 - 2<x, y> / (<x, x> + <y, y>) in float64: 0 where equal, about half the squared relative difference.

    inf where either holds NaN or Inf: `error(...) <= limit` then fails. Raises ValueError if shapes differ.
    """
    if x.shape != y.shape:
        raise ValueError(f"shapes {tuple(x.shape)} and {tuple(y.shape)} differ; expected results of one GEMM")
    difference = total = 0.0
    for part_x, part_y in zip(x.flatten().split(_CHUNK), y.flatten().split(_CHUNK), strict=True):
        a, b = part_x.double(), part_y.double()
        # |x - y|² is <x, x> + <y, y> - 2<x, y> without the cancellation.
        difference += (a - b).square().sum().item()
        total += (a.square().sum() + b.square().sum()).item()
    if total == 0:
        return 0.0
    ratio = difference / total
    return ratio if ratio < float("inf") else float("inf")  # NaN compares false as well


def _quantised_normal(
    rows: int, K: int, generator: torch.Generator, quantise: Quantiser
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, K) N(0, 1) values through `quantise`, in chunks: 2**31 elements would be 8 GiB in float32."""
    q = torch.empty((rows, K), dtype=torch.float8_e4m3fn, device=generator.device)
    scales = []
    for part in _row_chunks(q):
        values, scale = quantise(torch.randn(part.shape, generator=generator, device=generator.device))
        part.copy_(values)
        scales.append(scale)
    if not scales:
        return quantise(torch.empty((rows, K), device=generator.device))
    return q, torch.cat(scales)


def _row_chunks(q: torch.Tensor) -> Iterator[torch.Tensor]:
    """Views of up to _CHUNK elements, whole 128-row blocks each: the blocks of B's scales must not be cut."""
    rows = max(1, _CHUNK // (q.shape[1] * _BLOCK)) * _BLOCK
    return iter(q.split(rows)) if q.shape[0] else iter(())
