"""The kernels of examples/tour beside PyTorch and this package, each checked against its reference first.

    python benchmarks/benchmark_tour.py                         CSV, report and plot for this GPU
    python benchmarks/benchmark_tour.py --only 2 3              these steps and their peers, printed alone
    python benchmarks/benchmark_tour.py --from-csv FILE.csv     the report of an earlier run

Needs a GPU, for steps 5 and 6 one of Ada or Hopper, and 3 GiB of its memory. It takes about two minutes.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tour_report import FP8_K, FP8_N, PARTS, PROVIDERS, TourRow, tables, with_rates, write_report

from tilelang_gemm_wrapper.core.arguments import CANNOT_RUN, ending_in_one_line, stop
from tilelang_gemm_wrapper.core.bench import FROM_CSV_HINT, why_cannot_run
from tilelang_gemm_wrapper.core.results import gemm_bytes, gemm_flops, read_rows, write_rows
from tilelang_gemm_wrapper.core.timing import why_impossible

if TYPE_CHECKING:
    import torch

    from tilelang_gemm_wrapper.core.conditions import Conditions
    from tilelang_gemm_wrapper.core.device import Device
    from tilelang_gemm_wrapper.core.environment import Environment
    from tilelang_gemm_wrapper.core.timing import Recorder

logger = logging.getLogger(__name__)

RESULTS = Path(__file__).parent / "results"
TOUR = Path(__file__).parents[1] / "examples" / "tour"
STEPS = range(1, 7)

COPY_BYTES = tuple(2**power for power in range(16, 29))
# The last one is tall: its A exceeds L2, and the order of the tiles decides how often it is read.
FP16_SHAPES = (*((size, size, size) for size in (512, 1024, 2048, 4096)), (16384, 4096, 4096))
FP8_M = (16, 64, 256, 1024, 4096)


class RunFailed(Exception):
    """A provider computed something wrong, or faster than the hardware can: no figure of the run is kept."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape. Each call launches once with the data of copy i, and gives the output that it wrote."""

    part: str
    shape: str
    M: int = 0
    N: int = 0
    K: int = 0
    bytes: int
    cold_bytes: int  # those of `bytes` that no launch finds in L2
    copies: int
    calls: dict[str, Callable[[int], torch.Tensor]]
    error: Callable[[torch.Tensor, int], float]  # of an output, of copy i
    limit: float
    configs: Callable[[str], str] = lambda provider: ""
    reasons: dict[str, str] | None = None  # why providers without a call have none

    @property
    def flops(self) -> float:
        return gemm_flops(self.M, self.N, self.K)


@lru_cache
def load(step: int) -> ModuleType:
    """The example of a step: names that begin with a digit cannot be imported by a statement."""
    (path,) = TOUR.glob(f"{step}_*.py")
    if str(TOUR) not in sys.path:
        sys.path.insert(0, str(TOUR))  # where the examples find tour_checks
    spec = importlib.util.spec_from_file_location(f"tour_step_{step}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def selected(part: str, only: Sequence[int]) -> list[str]:
    """The providers of a part to measure: its steps out of `only` with all their peers, or nothing."""
    names = [name for name, provider in PROVIDERS.items() if provider.part == part]
    if not any(PROVIDERS[name].step in only for name in names):
        return []
    return [name for name in names if PROVIDERS[name].step in (0, *only)]


def copy_bytes(size: int) -> int:
    """What a copy of `size` bytes moves: each is read and each is written."""
    return 2 * size


def fp16_bytes(M: int, N: int, K: int) -> int:
    """A and B read once, C written once, two bytes each."""
    return 2 * (M * K + N * K + M * N)


def copy_case(size: int, wanted: Sequence[str], device: Device, where: str = "cuda") -> Case:
    import torch

    from tilelang_gemm_wrapper.core.timing import cold_copies

    copies = cold_copies(copy_bytes(size), device.l2_bytes)
    sources = torch.randint(-(2**31), 2**31, (copies, size // 4), dtype=torch.int32, device=where)
    targets = torch.zeros_like(sources)
    pairs = list(zip(sources.unbind(), targets.unbind(), strict=True))
    step = load(1)
    calls = {
        "copy": lambda i: step.copy(*pairs[i]),
        "torch_copy": lambda i: pairs[i][1].copy_(pairs[i][0]),
    }
    return Case(
        part="copy",
        shape=f"{size} B",
        bytes=copy_bytes(size),
        cold_bytes=copy_bytes(size),
        copies=copies,
        calls={name: calls[name] for name in wanted},
        error=lambda out, i: 0.0 if torch.equal(out, step.reference(sources[i])) else math.inf,
        limit=0.0,
    )


def fp16_case(
    shape: tuple[int, int, int], wanted: Sequence[str], device: Device, where: str = "cuda"
) -> Case:
    import torch

    from tilelang_gemm_wrapper.core import workload
    from tilelang_gemm_wrapper.core.timing import cold_copies

    M, N, K = shape
    copies = cold_copies(2 * N * K, device.l2_bytes)
    A = torch.randn((M, K), device=where).half()
    weights = torch.randn((N, K), device=where).half().expand(copies, N, K).contiguous().unbind()
    out = torch.empty((M, N), dtype=torch.float16, device=where)
    expected = load(2).reference(A, weights[0]).float()
    calls = {
        "naive": lambda i: load(2).matmul(A, weights[i], out),
        "grouped": lambda i: load(3).matmul(A, weights[i], out),
        "autotuned": lambda i: load(4).matmul(A, weights[i], out),
        "torch_mm": lambda i: torch.mm(A, weights[i].t(), out=out),
    }
    return Case(
        part="fp16",
        shape=f"{M} x {N} x {K}",
        M=M,
        N=N,
        K=K,
        bytes=fp16_bytes(M, N, K),
        cold_bytes=2 * N * K,
        copies=copies,
        calls={name: calls[name] for name in wanted},
        error=lambda out, i: workload.error(out, expected),
        limit=load(2).MAX_ERROR,
        configs=lambda name: (
            config_text(load(4).matmul_kernel.best_config) if name == "autotuned" and where == "cuda" else ""
        ),
    )


def config_text(config: Any) -> str:
    """A triton.Config of step 4 in a few words."""
    tile = "x".join(str(config.kwargs[f"BLOCK_{axis}"]) for axis in "MNK")
    return f"{tile}, {config.num_warps} warps, {config.num_stages} stages"


def fp8_case(M: int, wanted: Sequence[str], device: Device, where: str = "cuda") -> Case:
    import torch

    from tilelang_gemm_wrapper import explain, gemm_nt_f8f8bf16
    from tilelang_gemm_wrapper.backends import triton as package_triton
    from tilelang_gemm_wrapper.core import workload
    from tilelang_gemm_wrapper.core.timing import cold_copies

    N, K = FP8_N, FP8_K
    inputs = workload.random_workload(M, N, K, where)
    copies = cold_copies(N * K, device.l2_bytes)
    # Repeated as bytes: not every operation knows e4m3.
    weights = inputs.B.view(torch.uint8).expand(copies, N, K).contiguous().view(inputs.B.dtype).unbind()
    A, A_scale, B_scale, out = inputs.A, inputs.A_scale, inputs.B_scale, inputs.empty_output()
    expected = workload.Expected.of(inputs)

    def error(out: torch.Tensor, i: int) -> float:
        comparison = workload.compare(out, expected)
        if why_wrong := comparison.why_wrong():
            raise RunFailed(f"a result of M={M}, N={N}, K={K} is wrong: {why_wrong}")
        return comparison.error

    def by_package_triton(i: int) -> torch.Tensor:
        package_triton.gemm(A, A_scale, weights[i], B_scale, out)
        return out

    calls = {
        "triton_fp8": lambda i: load(5).matmul(A, A_scale, weights[i], B_scale, out),
        "tilelang_fp8": lambda i: load(6).matmul(A, A_scale, weights[i], B_scale, out),
        "package_triton": by_package_triton,
        "package": lambda i: gemm_nt_f8f8bf16((A, A_scale), (weights[i], B_scale), out),
    }
    reasons = {name: reason for name in wanted if (reason := why_not(name, device))}
    return Case(
        part="fp8",
        shape=str(M),
        M=M,
        N=N,
        K=K,
        bytes=int(gemm_bytes(M, N, K)),
        cold_bytes=N * K,
        copies=copies,
        calls={name: calls[name] for name in wanted if name not in reasons},
        error=error,
        limit=workload.MAX_ERROR,
        configs=lambda name: explain(M, N, K).kernel if name == "package" else "",
        reasons=reasons,
    )


def why_not(provider: str, device: Device) -> str:
    """Why a provider of the FP8 part cannot run on this device; "" where it can."""
    if provider == "tilelang_fp8" and not device.runs_tilelang:
        return f"needs Hopper or Ada; this is {device.arch}"
    if provider != "package" and device.capability < 89:
        return f"e4m3 in Triton needs sm_89 or newer; this is {device.arch}"
    return ""


def cases(only: Sequence[int], device: Device) -> Iterator[Callable[[], Case]]:
    """What makes each case: its tensors live only while it is measured."""
    builders: dict[str, tuple[Callable[..., Case], Sequence[Any]]] = {
        "copy": (copy_case, COPY_BYTES),
        "fp16": (fp16_case, FP16_SHAPES),
        "fp8": (fp8_case, FP8_M),
    }
    for part, (build, shapes) in builders.items():
        if wanted := selected(part, only):
            for shape in shapes:
                yield partial(build, shape, wanted, device)


def measure(
    case: Case,
    environment: Environment,
    conditions: Conditions,
    device: Device,
    *,
    budget_ms: float,
    recorder: Recorder | None = None,
) -> list[TourRow]:
    """Check every provider, then time all. Raises RunFailed for a wrong result or an impossible time."""
    from tilelang_gemm_wrapper.core.timing import time_interleaved

    common = TourRow(
        **environment.as_fields(),
        part=case.part,
        shape=case.shape,
        M=case.M,
        N=case.N,
        K=case.K,
        provider="",
        bytes=case.bytes,
        sm_clock_mhz=conditions.sm_clock_mhz,
        temperature_c=conditions.temperature_c,
        power_w=conditions.power_w,
    )
    errors = {name: max(_error(case, name, i) for i in (0, case.copies - 1)) for name in case.calls}
    timings = time_interleaved(case.calls, case.copies, budget_ms=budget_ms, recorder=recorder)
    rows = [
        with_rates(
            replace(
                common,
                provider=name,
                config=case.configs(name),
                p20_us=timing.p20_us,
                p50_us=timing.p50_us,
                p80_us=timing.p80_us,
                replays=timing.replays,
                launches=timing.launches,
                error=errors[name],
            )
        )
        for name, timing in timings.items()
    ]
    for row in rows:
        if reason := why_too_fast(row, case.cold_bytes, device):
            raise RunFailed(f"{case.part} {case.shape}, {row.provider}: {reason}")
    return rows + [
        replace(common, provider=name, reason=reason) for name, reason in (case.reasons or {}).items()
    ]


def _error(case: Case, name: str, i: int) -> float:
    out = case.calls[name](i)
    out.fill_(math.nan if out.is_floating_point() else 0)  # what is left unwritten must not pass
    value = case.error(case.calls[name](i), i)
    if not value <= case.limit:
        raise RunFailed(
            f"{case.part} {case.shape}, {name} is wrong: error {value:.3g} is above {case.limit:g}"
        )
    return value


def why_too_fast(row: TourRow, cold_bytes: int, device: Device) -> str | None:
    """Why the time of a row cannot be true, or None where it can, or where there is none.

    Tensor cores multiply FP16 at half the rate of FP8, so its operations count twice against FP8's peak.
    """
    if row.p50_us is None:
        return None
    share = PARTS[row.part].peak_share
    reason = why_impossible(row.p50_us, cold_bytes, gemm_flops(row.M, row.N, row.K) / share, device)
    return f"{reason} (FP16 counts {1 / share:.0f} times)" if reason and share < 1 else reason


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="The kernels of examples/tour beside PyTorch and this package, checked, then timed cold."
    )
    parser.add_argument(
        "--only",
        nargs="+",
        type=int,
        choices=STEPS,
        metavar="STEP",
        help="these steps of the tour with their peers; printed, and written only with --output",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="for tour.csv, .md and .png (default: results/<device>)"
    )
    parser.add_argument(
        "--budget-ms", type=float, default=25.0, help="replay time per provider and shape (default 25)"
    )
    parser.add_argument(
        "--from-csv",
        type=Path,
        help="measure nothing: write report and plot of this CSV again (needs no GPU)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0; 1 where a result was wrong or impossibly fast; 2 where it cannot start."""
    parser = _parser()
    options = parser.parse_args(argv)
    return ending_in_one_line(parser.prog, lambda: _main(parser, options))


def _main(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.from_csv:
        try:
            written = write_report(options.from_csv, read_rows(options.from_csv, TourRow))
        except (OSError, ValueError) as failure:
            stop(parser, failure)
        print("\n".join(f"written: {place}" for place in written))
        return 0
    if not 0 < options.budget_ms < math.inf:
        parser.error(f"--budget-ms {options.budget_ms}: must be above 0, and finite")
    reason = why_cannot_run()
    if reason:
        print(f"The benchmark cannot run here: {reason}; {FROM_CSV_HINT}", file=sys.stderr)
        return CANNOT_RUN
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    import torch
    from tqdm import tqdm

    from tilelang_gemm_wrapper import warmup
    from tilelang_gemm_wrapper.core.conditions import record_conditions
    from tilelang_gemm_wrapper.core.device import device_of
    from tilelang_gemm_wrapper.core.environment import Environment
    from tilelang_gemm_wrapper.core.timing import TimingError

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    device = device_of(torch.cuda.current_device())
    environment = Environment.here(device.name, record_conditions().driver)
    only = options.only or list(STEPS)
    if selected("fp8", only):
        warmup([(FP8_N, FP8_K)], m_max=max(FP8_M))
    rows: list[TourRow] = []
    try:
        for build in tqdm(list(cases(only, device)), unit="shape", desc="timing"):
            conditions = record_conditions()
            for warning in conditions.warnings():
                tqdm.write(warning, file=sys.stderr)
            rows += measure(build(), environment, conditions, device, budget_ms=options.budget_ms)
            torch.cuda.empty_cache()
    except (RunFailed, TimingError) as failure:
        print(f"FAILED, nothing is written: {failure}", file=sys.stderr)
        return 1
    print(tables(rows))
    if options.only and not options.output:
        return 0
    path = (options.output or RESULTS / device.name) / "tour.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, rows, TourRow)
    written = write_report(path, read_rows(path, TourRow))  # rounded as in the file: the report is of that
    print("\n".join(f"written: {place}" for place in (path, *written)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
