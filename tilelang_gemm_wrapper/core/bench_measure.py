"""Measure one weight shape: every provider on the same data in one process, checked first, then timed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from .bench_providers import PROVIDERS, Call, Case, Matrix, Refused, chosen_kernel
from .conditions import record_conditions
from .device import Device, device_of
from .environment import Environment
from .failure_text import first_line
from .results import Row, gemm_bytes, gemm_flops, with_ratios
from .timing import Timing, TimingError, ideal_us, streaming_floor_us, time_interleaved, why_impossible
from .workload import Comparison, compare

logger = logging.getLogger(__name__)


class DeviceLostError(RuntimeError):
    """A kernel has poisoned the CUDA context; only a new process can measure on."""


def measure_shape(
    N: int,
    K: int,
    providers: Mapping[int, Sequence[str]],
    environment: Environment,
    *,
    budget_ms: float = 25.0,
) -> Iterator[list[Row]]:
    """Measure one weight shape on the current CUDA device; yields the rows of one M after the other.

    providers: of each M, which are compared. The weight copies, the expected results and the floor are made
    once for all M. Raises DeviceLostError where a provider has left the CUDA context unusable: nothing
    measured after that would mean anything.
    """
    device = device_of(torch.cuda.current_device())
    matrix = Matrix.random(max(providers), N, K, device)
    integers = Matrix.integers(max(providers), N, K, device)
    read_us = streaming_floor_us([B for B, _ in matrix.weights])
    impossible = why_impossible(read_us, N * K, 0, matrix.device)
    if impossible:
        logger.warning("N=%d K=%d: no floor is given: %s", N, K, impossible)
    floor_us = None if impossible else read_us
    conditions = record_conditions()
    for warning in conditions.warnings():
        logger.warning("N=%d K=%d: %s", N, K, warning)
    for M, names in providers.items():
        common = Row(
            **environment.as_fields(),
            M=M,
            N=N,
            K=K,
            provider="",
            floor_us=floor_us,
            ideal_us=ideal_us(floor_us, gemm_flops(M, N, K), matrix.device) if floor_us else None,
            sm_clock_mhz=conditions.sm_clock_mhz,
            temperature_c=conditions.temperature_c,
            power_w=conditions.power_w,
        )
        yield _measure_cell(matrix, integers, names, common, budget_ms)


def _measure_cell(
    matrix: Matrix, integers: Matrix | None, providers: Sequence[str], common: Row, budget_ms: float
) -> list[Row]:
    M, N, K = common.cell
    case = matrix.case(M)
    rows: dict[str, Row] = {}
    calls: dict[str, Call] = {}
    for name in providers:
        row = replace(common, provider=name)
        try:
            call = PROVIDERS[name](case)
            comparison, why_wrong = _checked(call, case)
            if why_wrong is None and integers is not None:
                why_wrong = _why_inexact(PROVIDERS[name], integers.case(M))
            if name.startswith("tilelang_gemm"):
                kernel, config = chosen_kernel(M, N, K)
                row = replace(row, kernel=kernel, config=config)
        except Refused as refusal:
            rows[name] = replace(row, reason=str(refusal))
            continue
        except Exception as failure:
            stop_if_device_is_lost(name, failure)
            rows[name] = replace(row, reason=first_line(failure))
            continue
        rows[name] = replace(row, error=comparison.error)
        if why_wrong is None:
            calls[name] = call
        else:
            rows[name] = replace(rows[name], reason=f"wrong: {why_wrong}")
    while calls:
        try:
            timings = time_interleaved(calls, len(matrix.weights), budget_ms=budget_ms)
        except TimingError as failure:
            stop_if_device_is_lost(failure.provider, failure)
            rows[failure.provider] = replace(rows[failure.provider], reason=first_line(failure))
            del calls[failure.provider]
            continue
        for name, timing in timings.items():
            try:
                _, why_wrong = _checked(calls[name], case, copies=len(matrix.weights))
            except Exception as failure:
                stop_if_device_is_lost(name, failure)
                why_wrong = first_line(failure)
            if why_wrong is None:
                rows[name] = _timed(rows[name], timing, matrix.device)
            else:
                rows[name] = replace(rows[name], reason=f"wrong after it was timed: {why_wrong}")
        break
    return with_ratios(list(rows.values()))


def _checked(call: Call, case: Case, copies: int = 1) -> tuple[Comparison, str | None]:
    """The result beside what is expected of the case, and why it is wrong.

    It is that of the last of `copies` launches, one right behind the other, each with its own weights.
    """
    C = case.matrix.C
    C.fill_(math.nan)  # an element that is not written must not pass for the last provider's
    for copy in range(copies):
        out = call(copy)
    comparison = compare(out, case.expected)
    if not C[case.M :].isnan().all():
        return comparison, f"it wrote outside its {case.M} rows of C"
    return comparison, comparison.why_wrong()


def _why_inexact(provider: Callable[[Case], Call], case: Case) -> str | None:
    _, why = _checked(provider(case), case)
    return f"on integers {why}" if why else None


def _timed(row: Row, timing: Timing, device: Device) -> Row:
    M, N, K = row.cell
    impossible = why_impossible(timing.p50_us, N * K, gemm_flops(M, N, K), device)
    if impossible:
        return replace(row, reason=f"measurement bug: {impossible}")
    return replace(
        row,
        p20_us=timing.p20_us,
        p50_us=timing.p50_us,
        p80_us=timing.p80_us,
        replays=timing.replays,
        launches=timing.launches,
        tflops=gemm_flops(M, N, K) / timing.p50_us / 1e6,
        gb_per_s=gemm_bytes(M, N, K) / timing.p50_us / 1e3,
        pct_of_floor=100 * row.floor_us / timing.p50_us if row.floor_us else None,
    )


def stop_if_device_is_lost(provider: str, failure: BaseException) -> None:
    """Raise DeviceLostError, naming the provider, where its failure has left the CUDA context unusable."""
    try:
        torch.cuda.synchronize()
    except RuntimeError as lost:
        raise DeviceLostError(
            f"{provider} has left the CUDA context unusable ({first_line(failure)}): the rows before it are "
            f"written; go on with --resume and --providers without {provider}, whose older rows of this cell "
            f"you must delete, if the CSV has any"
        ) from lost
