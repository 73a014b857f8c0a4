"""Inputs, reference and accept test of the GEMM: one source for tests, tuner and benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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

# How far one element of a right result may be from the exact value: _ROUNDING of the value itself, plus
# _ACCUMULATION of its sum of |a b|.
#
# Rounding to bfloat16, which keeps 8 bits, moves a value by at most 2**-8 of itself.
#
# Accumulation: the FP8 tensor cores of Hopper and Ada align 32 products and the accumulator to the largest of
# these and drop what lies more than 13 bits below its leading bit. An addend so loses less than 2**-13 of the
# largest, which is at most the sum of |a b| over the 128 columns of a scale. The loss has the sign of its
# addend, and over random data most of it cancels: in a simulation of this arithmetic with 10**5 sums of 128
# products from `random_workload` the largest loss was 2**-11.6 of the sum of |a b|, the root mean square
# 2**-15.8. Of longer sums it is a smaller part. Adding K / 128 of these sums in float32 loses at most
# K / 128 * 2**-24, which is 2**-16 for K = 28672. `Expected.magnitude` is kept in bfloat16 and may be 2**-8
# of itself too small. 2**-9 is six times the largest loss.
_ROUNDING = 2.0**-8
_ACCUMULATION = 2.0**-9

_BLOCK = 128
_CHUNK = 1 << 26  # float32 elements made at one time: 256 MiB
_COMPARED = 1 << 24  # elements compared at one time, with some ten float64 temporaries of 128 MiB
_MAX_INTEGER = 3  # of integer_workload: sums over 128 products stay below 2**13, exact in Hopper's FP8 WGMMA
MAX_INTEGER_K = 2**22 // (_MAX_INTEGER**2 * 4)  # see integer_workload


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
    if K > MAX_INTEGER_K:
        raise ValueError(f"K is {K}; expected at most {MAX_INTEGER_K}, where float32 sums are still exact")
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


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """What a GEMM must give.

    result: (M, N) float32, the right result. magnitude: (M, N) bfloat16, the sum of |a b| that an element's
    rounding errors are in proportion to; None where a right kernel gives `result`, rounded to bfloat16, bit
    for bit.
    """

    result: torch.Tensor
    magnitude: torch.Tensor | None

    @classmethod
    def of(cls, workload: Workload) -> Expected:
        """What every right kernel comes close to, on any workload; costs two references."""
        return cls(reference(workload), _magnitude(workload))

    @classmethod
    def exactly(cls, workload: Workload) -> Expected:
        """What every right kernel gives bit for bit on this `integer_workload`."""
        return cls(reference(workload), None)

    def first(self, M: int) -> Expected:
        """That of the first M tokens; shares memory with this one."""
        return Expected(self.result[:M], None if self.magnitude is None else self.magnitude[:M])


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far a result is from what is expected: in the mean, and at the element that is worst.

    `error` is that of `error(...)`, and `most_error` what a right result may have of it. `excess` is the
    largest |value - expected| / bound of an element: above 1 that element is wrong. The other fields are of
    that element; `bound` is 0 where the result must be exact.
    """

    error: float
    most_error: float
    excess: float
    row: int = 0
    column: int = 0
    value: float = 0.0
    expected: float = 0.0
    bound: float = 0.0

    def why_wrong(self) -> str | None:
        """Why the result is no right one, with its worst element where that is wrong, else None."""
        reasons = []
        if self.error > self.most_error:
            reasons.append(f"error {self.error:.3g} is above {self.most_error:.3g}")
        if self.excess > 1:
            right = f"{self.expected:.6g} " + (f"within {self.bound:.3g}" if self.bound else "exactly")
            reasons.append(f"element ({self.row}, {self.column}) is {self.value:.6g}, expected {right}")
        return "; ".join(reasons) or None


def compare(out: torch.Tensor, expected: Expected) -> Comparison:
    """`out` (M, N) beside what is expected of it, every element looked at, chunk by chunk.

    NaN and Inf are never right. Raises ValueError if shapes differ.
    """
    right = expected.result
    _require_same_shape(out, right)
    sums = _Sums()
    rounding = _Sums()
    worst = Comparison(0.0, 0.0, 0.0)
    rows = max(1, _COMPARED // max(1, out.shape[1]))
    for start in range(0, len(out) if out.numel() else 0, rows):
        part = slice(start, start + rows)
        value, exact = out[part].double(), right[part].double()
        rounded = right[part].bfloat16().double()
        sums.add(value, exact)
        rounding.add(rounded, exact)
        if expected.magnitude is None:
            exact, bound = rounded, torch.zeros_like(exact)
        else:
            bound = _ROUNDING * exact.abs() + _ACCUMULATION * expected.magnitude[part].double()
        excess = (value - exact).abs() / bound.clamp_min(torch.finfo(torch.float64).tiny)
        excess = excess.nan_to_num(nan=math.inf, posinf=math.inf)
        row, column = divmod(int(excess.argmax()), out.shape[1])
        if excess[row, column].item() > worst.excess:
            at = [float(x[row, column]) for x in (excess, value, exact, bound)]
            worst = Comparison(0.0, 0.0, at[0], start + row, column, *at[1:])
    # Rounding to bfloat16 alone costs a result of some ten elements more than MAX_ERROR now and then.
    most_error = max(MAX_ERROR, 1.1 * rounding.error())
    return replace(worst, error=sums.error(), most_error=most_error)


def why_wrong(out: torch.Tensor, expected: Expected) -> str | None:
    """Why `out` (M, N) is not what is expected, with its worst element, else None."""
    return compare(out, expected).why_wrong()


def error(x: torch.Tensor, y: torch.Tensor) -> float:
    """1 - 2<x, y> / (<x, x> + <y, y>) in float64: 0 where equal, about half the squared relative difference.

    inf where either holds NaN or Inf: `error(...) <= limit` then fails. Raises ValueError if shapes differ.
    """
    _require_same_shape(x, y)
    sums = _Sums()
    for part_x, part_y in zip(x.flatten().split(_CHUNK), y.flatten().split(_CHUNK), strict=True):
        sums.add(part_x.double(), part_y.double())
    return sums.error()


class _Sums:
    """The sums that `error` is made of, over chunks."""

    def __init__(self) -> None:
        self._difference = self._total = 0.0

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        # |x - y|² is <x, x> + <y, y> - 2<x, y> without the cancellation.
        self._difference += (x - y).square().sum().item()
        self._total += (x.square().sum() + y.square().sum()).item()

    def error(self) -> float:
        if self._total == 0:
            return 0.0
        ratio = self._difference / self._total
        return ratio if ratio < math.inf else math.inf  # NaN compares false as well


def _require_same_shape(x: torch.Tensor, y: torch.Tensor) -> None:
    if x.shape != y.shape:
        raise ValueError(f"shapes {tuple(x.shape)} and {tuple(y.shape)} differ; expected results of one GEMM")


def _magnitude(workload: Workload) -> torch.Tensor:
    """(M, N) bfloat16: the sum of |a b| of each element."""
    out = torch.empty((workload.M, workload.N), dtype=torch.bfloat16, device=workload.device)
    A, B = _absolute(workload.A), _absolute(workload.B)
    torch_reference.gemm(A, workload.A_scale.abs(), B, workload.B_scale.abs(), out)
    return out


def _absolute(q: torch.Tensor) -> torch.Tensor:
    """|q| of float8_e4m3fn values, for which PyTorch has no abs: the same bits without the sign."""
    return (q.view(torch.uint8) & 0x7F).view(q.dtype)


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
