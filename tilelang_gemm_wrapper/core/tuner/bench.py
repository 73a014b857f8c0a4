"""What runs inside the killable child: check candidates against float32, then time them, on one GPU.

A child trusts no candidate. Each is run on a poisoned output between guard rows, with ragged M and row-major
scales as well, on random data and on integers, of which every element must be exact, and twice, at different
places; only what is right, stays inside and repeats bit for bit is timed, and must still be right after that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tilelang_gemm_wrapper import configurer
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.device import Device
from tilelang_gemm_wrapper.core.failure_text import first_line
from tilelang_gemm_wrapper.core.results import gemm_flops
from tilelang_gemm_wrapper.core.tuner.records import FailureKind

if TYPE_CHECKING:
    from tilelang_gemm_wrapper.core.bench_providers import Matrix
    from tilelang_gemm_wrapper.quantize import ScaleLayout

GUARD_ROWS = 8  # rows of C kept before and after the output that a kernel must not touch
_OTHER_POISON = 4096.0  # where NaN was the first: what a kernel adds to its output shows as well


class CandidateError(Exception):
    """A candidate is out, for the reason in `kind` and the message."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind


class DeviceLostError(CandidateError):
    """The candidate has made the CUDA context unusable: the process must end."""


@dataclass(frozen=True, slots=True)
class Timed:
    """What one candidate took, in microseconds a launch."""

    p20_us: float
    p50_us: float
    p80_us: float
    replays: int


class Bench(Protocol):
    """What the child asks of a device; `GpuBench` is the real one, tests bring a simulated one."""

    def device(self) -> Device: ...
    def environment(self) -> dict[str, Any]: ...
    def open(self, N: int, K: int, m_max: int) -> dict[str, Any]: ...
    def check(self, config: KernelConfig, M: int) -> float: ...
    def time(self, configs: Sequence[KernelConfig], M: int, budget_ms: float, rounds: int) -> list[Timed]: ...


class GpuBench:
    """The current CUDA device. One (N, K) is open at a time; opening another frees it."""

    def __init__(self) -> None:
        import torch

        from tilelang_gemm_wrapper.core.device import device_of

        self._torch = torch
        self._device = device_of(torch.cuda.current_device())
        self._kernels: dict[KernelConfig, Callable[..., None]] = {}
        self._checked_ragged: set[KernelConfig] = set()
        self._seed = 0

    def device(self) -> Device:
        return self._device

    def environment(self) -> dict[str, Any]:
        from tilelang_gemm_wrapper.core.compile_cache import code_version, compiler_version
        from tilelang_gemm_wrapper.core.conditions import record_conditions
        from tilelang_gemm_wrapper.core.environment import Environment

        environment = asdict(Environment.here(self._device.name, record_conditions().driver))
        del environment["date"]
        return {
            **environment,
            "sm_count": self._device.sm_count,
            "kernels": code_version(),
            "nvcc": compiler_version(),
            "triton_gemm": triton_gemm_version(),
            "static_weights": configurer.static_weights(),
        }

    def open(self, N: int, K: int, m_max: int) -> dict[str, Any]:
        """Make fresh random data and cold copies; returns the fields of `ShapeConditions` but N and K."""
        from tilelang_gemm_wrapper.core.bench_providers import Matrix
        from tilelang_gemm_wrapper.core.conditions import record_conditions
        from tilelang_gemm_wrapper.core.timing import streaming_floor_us, why_impossible

        torch = self._torch
        self._kernels.clear()
        self._checked_ragged.clear()
        for name in ("_matrix", "_integers"):
            self.__dict__.pop(name, None)  # freed before the next ones are made
        torch.cuda.empty_cache()
        self._seed += 1
        matrix = self._matrix = Matrix.random(m_max, N, K, self._device, seed=self._seed)
        self._integers = Matrix.integers(m_max, N, K, self._device, seed=self._seed)
        self._scales: dict[tuple[int, str, int], Any] = {}
        # The outputs lie between rows that nobody may write, at one of two places.
        rows = m_max + 3 * GUARD_ROWS
        self._m_max = m_max
        self._C = torch.full((rows, N), torch.nan, dtype=torch.bfloat16, device=matrix.A.device)
        self._sums = self._input_sums()
        floor = streaming_floor_us([B for B, _ in matrix.weights]) if N * K % 16 == 0 else None
        if floor is not None and why_impossible(floor, N * K, 0, self._device):
            floor = None
        conditions = record_conditions()
        return {
            "floor_us": floor,
            "sm_clock_mhz": conditions.sm_clock_mhz,
            "temperature_c": conditions.temperature_c,
            "power_w": conditions.power_w,
            "warnings": list(conditions.warnings()),
        }

    def check(self, config: KernelConfig, M: int) -> float:
        """The error at M tokens. Raises CandidateError where the candidate is wrong in any way."""
        try:
            try:
                error = self._check_layouts(config, M)
            except CandidateError:
                self._require_same_inputs(M)
                raise
            self._require_same_inputs(M)
            return error
        except CandidateError:
            raise
        except Exception as problem:
            raise self._classified(problem) from problem

    def _check_layouts(self, config: KernelConfig, M: int) -> float:
        """The error at M tokens with column-major scales; at first row-major ones and ragged M as well."""
        if config not in self._checked_ragged:
            # One row more than whole tiles where the data have it.
            ragged = min(max(config.tile_tokens, 8) + 1, self._m_max)
            self._check_on_all(config, ragged, "row")
            self._check_on_all(config, ragged, "column_tma")  # their stride is not M, as it mostly is
            # One row less than M: its entry serves that too. The row-major scales of every tile are read.
            self._check_on_all(config, max(1, M - 1), "row")
            self._checked_ragged.add(config)
        return self._check_on_all(config, M, "column_tma")

    def _require_same_inputs(self, M: int) -> None:
        if self._input_sums() != self._sums:
            # Everything checked and timed after this would be on other data.
            raise DeviceLostError("out_of_bounds", f"it changed its inputs at M = {M}")

    def _check_on_all(self, config: KernelConfig, M: int, layout: ScaleLayout) -> float:
        """The error on the random data, once the candidate is right on these and on the integers."""
        error = self._check_once(config, self._matrix, M, layout)
        if self._integers is not None:
            self._check_once(config, self._integers, M, layout)
        return error

    def _check_once(self, config: KernelConfig, matrix: Matrix, M: int, layout: ScaleLayout) -> float:
        from tilelang_gemm_wrapper.core.workload import compare

        torch = self._torch
        out = self._result(config, matrix, M, layout, GUARD_ROWS, torch.nan)
        comparison = compare(out, matrix.expected.first(M))
        why_wrong = comparison.why_wrong()
        if why_wrong is not None:
            raise CandidateError("wrong", f"at M = {M} {why_wrong}")
        first = out.clone()
        if not torch.equal(self._result(config, matrix, M, layout, 2 * GUARD_ROWS, _OTHER_POISON), first):
            raise CandidateError("not_repeatable", f"two runs on the same data differ at M = {M}")
        return comparison.error

    def _result(
        self, config: KernelConfig, matrix: Matrix, M: int, layout: ScaleLayout, start: int, poison: float
    ) -> Any:
        """What a launch writes over `poison` into the M rows of C from `start` on, and nowhere else."""
        C = self._C
        C.fill_(self._torch.nan)
        out = C[start : start + M]
        out.fill_(poison)
        self._launch(config, matrix, M, out, layout)
        self._torch.cuda.synchronize()
        if not (C[:start].isnan().all() and C[start + M :].isnan().all()):
            raise CandidateError("out_of_bounds", f"it wrote outside its {M} rows of C")
        return out

    def time(self, configs: Sequence[KernelConfig], M: int, budget_ms: float, rounds: int) -> list[Timed]:
        """Time candidates that `check` has passed, interleaved, on cold weights and column-major scales.

        Raises CandidateError where one cannot be timed, or is no longer right after all these launches.
        """
        from tilelang_gemm_wrapper.core.timing import time_interleaved, why_impossible

        matrix = self._matrix
        N, K = matrix.N, matrix.K
        out = self._C[GUARD_ROWS : GUARD_ROWS + M]
        calls = {
            str(position): lambda i, config=config: self._launch(config, matrix, M, out, "column_tma", i)
            for position, config in enumerate(configs)
        }
        try:
            timings = time_interleaved(calls, len(matrix.weights), budget_ms=budget_ms, least_rounds=rounds)
        except Exception as problem:
            raise self._classified(problem) from problem
        timed = []
        for position, config in enumerate(configs):
            timing = timings[str(position)]
            impossible = why_impossible(timing.p50_us, N * K, gemm_flops(M, N, K), self._device)
            if impossible:
                raise CandidateError("error", f"{config}: {impossible}")
            timed.append(Timed(timing.p20_us, timing.p50_us, timing.p80_us, timing.replays))
        for call in calls.values():
            self._require_still_right(call, out)
        return timed

    def _require_still_right(self, call: Callable[[int], None], out: Any) -> None:
        """On every copy of the weights, each launch right behind the one before it, as in a timing."""
        from tilelang_gemm_wrapper.core.workload import why_wrong

        try:
            out.fill_(self._torch.nan)
            for copy in range(len(self._matrix.weights)):
                call(copy)
            why = why_wrong(out, self._matrix.expected.first(len(out)))
        except Exception as problem:
            raise self._classified(problem) from problem
        if why is not None:
            raise CandidateError("wrong", f"after it was timed, at M = {len(out)} {why}")

    def launcher(self, config: KernelConfig) -> Callable[..., None]:
        """What launches `config` on (A, A_scale, B, B_scale, C)."""
        from tilelang_gemm_wrapper import backends
        from tilelang_gemm_wrapper.core.compile_cache import CompileJob
        from tilelang_gemm_wrapper.core.wrapper import tilelang_launch

        matrix = self._matrix
        if config.is_tilelang:
            job = CompileJob.on(matrix.N, matrix.K, config, self._device)
            return tilelang_launch(job, self._torch.cuda.current_device())
        backend = backends.backend(config.kernel_type)
        why = backend.why_unavailable(self._device) or backend.why_unsupported(matrix.N, matrix.K)
        if why:
            raise CandidateError("error", why)
        return backend.gemm

    def _launch(
        self, config: KernelConfig, matrix: Matrix, M: int, out: Any, layout: ScaleLayout, copy: int = 0
    ) -> None:
        kernel = self._kernels.get(config)
        if kernel is None:
            kernel = self._kernels[config] = self.launcher(config)
        kernel(matrix.A[:M], self._scale(matrix, layout, M), *matrix.weights[copy], out)

    def _scale(self, matrix: Matrix, layout: ScaleLayout, M: int) -> Any:
        """The first M tokens' scales, laid out for just these: DeepGEMM copies what has another stride."""
        from tilelang_gemm_wrapper.quantize import convert_scale_layout

        key = id(matrix), layout, M
        scale = self._scales.get(key)
        if scale is None:
            scale = self._scales[key] = convert_scale_layout(matrix.A_scale[:M], layout)
        return scale

    def _input_sums(self) -> tuple[int, ...]:
        """Sums over the bits of all that the checked launches read: a stray write shows."""
        return tuple(
            int(t.view(self._torch.uint8).sum(dtype=self._torch.int64).item())
            for matrix in (self._matrix, self._integers)
            if matrix is not None
            for t in (matrix.A, matrix.A_scale, *matrix.weights[0])
        )

    def _classified(self, problem: Exception) -> CandidateError:
        """The class of what a candidate raised, and whether the CUDA context survived it."""
        torch = self._torch
        message = first_line(problem)
        try:
            torch.cuda.synchronize()
        except Exception:
            return DeviceLostError("illegal_access", message)
        out_of_memory = isinstance(problem, torch.OutOfMemoryError) or "out of memory" in message
        if out_of_memory:
            torch.cuda.empty_cache()
        return CandidateError("out_of_memory" if out_of_memory else "error", message)


def triton_gemm_version() -> str:
    """Names the code of the Triton peer, which is ours as well: `code_version` is of the TileLang kernels."""
    from tilelang_gemm_wrapper import backends
    from tilelang_gemm_wrapper.core import code_identity

    return code_identity.digest([(f"{backends.__name__}.triton", "gemm")])[:16]


def measure(
    bench: Bench, M: int, configs: Sequence[KernelConfig], budget_ms: float, rounds: int
) -> Iterator[dict[str, Any]]:
    """Check and time candidates; yields what the parent must know, `at` before each step that may not return.

    {"at": i} before candidate i is loaded and checked, {"at": None} before all right ones are timed together;
    {"failed": i, "kind", "message", "lost"}; {"timed": i, "p20_us", ..., "error"}.
    """
    errors: dict[int, float] = {}
    for i, config in enumerate(configs):
        yield {"at": i}
        try:
            errors[i] = bench.check(config, M)
        except CandidateError as problem:
            lost = isinstance(problem, DeviceLostError)
            yield {"failed": i, "kind": problem.kind, "message": str(problem), "lost": lost}
            if lost:
                return
    if not errors:
        return
    yield {"at": None}
    try:
        timings = bench.time([configs[i] for i in errors], M, budget_ms, rounds)
    except CandidateError as problem:
        lost = isinstance(problem, DeviceLostError)
        yield {"failed": None, "kind": problem.kind, "message": str(problem), "lost": lost}
        return
    for (i, error), timing in zip(errors.items(), timings, strict=True):
        yield {"timed": i, **asdict(timing), "error": error}
