"""What the benchmarks of memory-bound ops share: a provider is checked, then timed cold, beside the others.

A launch finds its inputs in DRAM and writes where no launch has written for a whole rotation: call i reads
copy i of the inputs, and what it returns stays alive until call i comes again, so that the allocator cannot
hand the same buffer, still in L2, to the next call. `op_command` is the command line over this.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from op_rows import Cell, OpRow, bugs, ceiling_of, with_bandwidth, with_speedups

from tilelang_gemm_wrapper.core.bench_measure import stop_if_device_is_lost
from tilelang_gemm_wrapper.core.conditions import Conditions
from tilelang_gemm_wrapper.core.device import Device
from tilelang_gemm_wrapper.core.environment import Environment, installed_version
from tilelang_gemm_wrapper.core.failure_text import first_line
from tilelang_gemm_wrapper.core.timing import (
    Recorder,
    Timing,
    TimingError,
    streaming_floor_us,
    time_interleaved,
)

PEERS = ("flashinfer-python", "liger-kernel", "sgl-kernel", "sglang-kernel", "sglang")
# ||out - exact|| / ||exact||: rounding the output once costs 1.7e-3 in bfloat16 and 2.1e-4 in float16;
# peers round the sum or the norm in between as well.
MAX_ERROR = {torch.bfloat16: 4e-3, torch.float16: 6e-4}
MAX_ERROR_FP8 = 0.04  # rounding to e4m3's three bits of mantissa costs 2.6e-2
CEILING_BYTES = 1 << 30  # twenty times the largest L2
CEILING_BUDGET_MS = 50.0

Output = torch.Tensor | tuple[torch.Tensor, torch.Tensor]  # values, or q (M, K) e4m3 and scale (M, K / 128)
Call = Callable[[int], tuple[Output, ...]]


class Launch(NamedTuple):
    """A provider ready to run: `call(i)` launches once with the buffers of copy i and returns its outputs."""

    call: Call
    config: str = ""
    limit: float | None = None  # of the error, where the case's own does not fit


@dataclass(kw_only=True)
class Case:
    """One op at one shape: tensors in `copies` copies, equal in value, and the providers over them.

    `bytes` must move at least. `expected` are the outputs in float64, computed by the formula, in the order
    in which calls return theirs. `restore(i)` gives the inputs of copy i their values again, for ops that
    write into them. `references` are providers to compare with: the first that can be timed is taken.
    """

    cell: Cell
    bytes: int
    ceiling: Literal["copy", "read"]
    copies: int
    providers: Mapping[str, Callable[[], Launch]]
    expected: tuple[torch.Tensor, ...]
    limit: float
    references: tuple[str, ...]
    restore: Callable[[int], object] = lambda i: None
    weights: Sequence[torch.Tensor] = ()  # copies whose plain read is the floor


class Ceilings(NamedTuple):
    """GB/s of the best plain copy (read plus written) and of the best plain read of this device, now."""

    copy: float
    read: float


@dataclass(kw_only=True)
class Session:
    """One run on one device: what its rows share, and how they are timed."""

    environment: Environment
    device: Device
    ceilings: Ceilings
    budget_ms: float = 25.0
    torch_device: str = "cuda"
    recorder: Recorder | None = None  # of tests; None is the GPU
    conditions: Conditions = field(default_factory=Conditions)
    chosen: dict[tuple[Any, ...], Any] = field(default_factory=dict)  # what a suite decided by measurement
    bugs: list[str] = field(default_factory=list)  # rows above their ceiling: the run has failed

    def measure(self, case: Case, wanted: Sequence[str] | None = None) -> list[OpRow]:
        """The rows of one case, in the order of its providers; only those `wanted`, None being all.

        Raises DeviceLostError where a provider has left the CUDA context unusable.
        """
        rows, calls = self._check(case, wanted)
        while calls:
            try:
                timings = time_interleaved(
                    calls, case.copies, budget_ms=self.budget_ms, recorder=self.recorder
                )
            except TimingError as failure:
                stop_if_device_is_lost(failure.provider, failure)
                rows[failure.provider] = replace(rows[failure.provider], reason=_reason(failure))
                del calls[failure.provider]
                continue
            for name, timing in timings.items():
                rows[name] = _timed(rows[name], timing)
            break
        self.bugs += bugs(rows.values())
        return with_speedups(list(rows.values()), case.references)

    def _check(self, case: Case, wanted: Sequence[str] | None) -> tuple[dict[str, OpRow], dict[str, Call]]:
        """A row for each provider, and the calls of those that are right."""
        common = self._common(case)
        rows: dict[str, OpRow] = {}
        calls: dict[str, Call] = {}
        for name, prepare in case.providers.items():
            if wanted is not None and name not in wanted:
                continue
            rows[name] = replace(common, provider=name)
            try:
                launch = prepare()
                deviation = max(_error(case, launch.call, i) for i in (0, case.copies - 1))
            except Exception as failure:  # whatever a peer raises, ImportError first
                stop_if_device_is_lost(name, failure)
                rows[name] = replace(rows[name], reason=_reason(failure))
                continue
            rows[name] = replace(rows[name], config=launch.config, error=deviation)
            limit = case.limit if launch.limit is None else launch.limit
            if deviation <= limit:
                calls[name] = _Kept(launch.call, case.copies)
            else:
                rows[name] = replace(
                    rows[name], reason=f"wrong: error {deviation:.3g} is above {limit:g}; not timed"
                )
        return rows, calls

    def _common(self, case: Case) -> OpRow:
        return OpRow(
            **self.environment.as_fields(),
            **case.cell._asdict(),
            peers=installed_peers(),
            provider="",
            bytes=case.bytes,
            copy_gb_per_s=self.ceilings.copy,
            ceiling_gb_per_s=ceiling_of(getattr(self.ceilings, case.ceiling), self.device.dram_bytes_per_s),
            floor_us=streaming_floor_us(case.weights) if case.weights else None,
            sm_clock_mhz=self.conditions.sm_clock_mhz,
            temperature_c=self.conditions.temperature_c,
            power_w=self.conditions.power_w,
        )


class _Kept:
    """A call whose outputs stay alive until its copy is launched again."""

    def __init__(self, call: Call, copies: int) -> None:
        self._call = call
        self._outputs: list[tuple[Output, ...]] = [()] * copies

    def __call__(self, i: int) -> tuple[Output, ...]:
        self._outputs[i] = outputs = self._call(i)
        return outputs


def _reason(failure: BaseException) -> str:
    """What a failure says, without where this machine keeps the library."""
    return re.sub(r" \(/\S+\)", "", first_line(failure))


def _timed(row: OpRow, timing: Timing) -> OpRow:
    return with_bandwidth(
        replace(
            row,
            p20_us=timing.p20_us,
            p50_us=timing.p50_us,
            p80_us=timing.p80_us,
            replays=timing.replays,
            launches=timing.launches,
        )
    )


def _error(case: Case, call: Call, i: int) -> float:
    """The largest error among the outputs of call i, where NaN lay before it."""
    try:
        case.restore(i)
        _poison(call(i))  # also what the allocator gives to the next call is NaN then
        case.restore(i)
        outputs = call(i)
        return max(relative_error(ours, exact) for ours, exact in zip(outputs, case.expected, strict=True))
    finally:
        case.restore(i)


def _poison(outputs: tuple[Output, ...]) -> None:
    for output in outputs:
        for tensor in output if isinstance(output, tuple) else (output,):
            tensor.fill_(math.nan)


def relative_error(output: Output, exact: torch.Tensor) -> float:
    """||output - exact|| / ||exact|| in float64, with q multiplied by its scale; inf where it holds NaN."""
    if isinstance(output, tuple):
        q, scale = output
        values = q.double() * scale.double().repeat_interleave(128, 1)
    else:
        values = output.double()
    if values.shape != exact.shape:
        raise ValueError(f"the output has shape {tuple(values.shape)}, expected {tuple(exact.shape)}")
    ratio = ((values - exact).norm() / exact.norm()).item()
    return ratio if ratio < math.inf else math.inf  # NaN compares false as well


def copies_of(tensor: torch.Tensor, copies: int) -> tuple[torch.Tensor, ...]:
    """`copies` contiguous tensors of the same values, side by side in memory."""
    return tensor.unsqueeze(0).expand(copies, *tensor.shape).contiguous().unbind()


def empty_copies(
    like: torch.Tensor, copies: int, dtype: torch.dtype = torch.bfloat16
) -> tuple[torch.Tensor, ...]:
    """`copies` contiguous tensors of that shape on that device, of NaN, side by side in memory."""
    return torch.full((copies, *like.shape), math.nan, dtype=dtype, device=like.device).unbind()


def first_of(*places: str) -> Any:
    """The first attribute "module:name" that can be imported: libraries move their functions."""
    failure: Exception | None = None
    for place in places:
        module, _, name = place.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            failure = failure or error
    raise ImportError(f"none of {', '.join(places)} can be imported: {failure}")


def installed_peers() -> str:
    """ "liger-kernel 0.8.5, ...": those of `PEERS` that are installed, with their versions."""
    return ", ".join(f"{name} {version}" for name in PEERS if (version := installed_version(name)))


def measure_ceilings() -> Ceilings:
    """The best plain copy and the best plain read of 1 GiB on the current CUDA device."""
    from streaming_copy import streaming_copies

    source = torch.randint(-(2**31), 2**31, (CEILING_BYTES // 4,), dtype=torch.int32, device="cuda")
    copies = streaming_copies(source, torch.empty_like(source))
    copy_us = min(t.p50_us for t in time_interleaved(copies, 1, budget_ms=CEILING_BUDGET_MS).values())
    read_us = streaming_floor_us([source], budget_ms=CEILING_BUDGET_MS)
    return Ceilings(2 * CEILING_BYTES / copy_us / 1e3, CEILING_BYTES / read_us / 1e3)
