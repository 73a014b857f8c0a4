"""The benchmark command: behind `benchmarks/benchmark_tilelang_gemm.py` and `tilelang-gemm bench`."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ..models import PUBLIC_M, shape_list_names, shapes_of
from . import report
from .arguments import CANNOT_RUN, DONE, ending_in_one_line, names_among, stop, whole_numbers
from .conditions import record_conditions
from .config_file import LARGEST_M
from .failure_text import told
from .kernel_cache import why_unwritable
from .results import CellFile, HostRow, Row, by_cell, read_rows, write_rows

# Named here, not read from bench_providers: --help and wrong arguments are answered without loading torch.
PROVIDER_NAMES = (
    "tilelang_gemm",
    "tilelang_gemm_column_major",
    "tilelang_gemm_static_weights",
    "tilelang_gemm_untuned",
    "deep_gemm",
    "deep_gemm_row_major",
    "cublas",
    "triton",
)


def _parser(program: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Time the FP8 GEMM beside DeepGEMM, cuBLAS and Triton on one GPU: cold weights, CUDA "
        "graphs, every provider in one process and checked against float32 first.",
    )
    what = parser.add_argument_group("what to measure")
    what.add_argument("--N", type=int, help="rows of the weight matrix (output features); with --K")
    what.add_argument("--K", type=int, help="columns of the weight matrix (input features); with --N")
    what.add_argument(
        "--shapes",
        choices=shape_list_names(),
        metavar="LIST",
        help=f"well-known (N, K) instead: {', '.join(shape_list_names())}",
    )
    what.add_argument(
        "--m",
        type=whole_numbers,
        default=PUBLIC_M,
        metavar="1,8,16",
        help="token counts (default: the public 23)",
    )
    what.add_argument(
        "--providers",
        type=names_among(PROVIDER_NAMES, "provider"),
        default=PROVIDER_NAMES,
        metavar="A,B",
        help=f"default: {','.join(PROVIDER_NAMES)}",
    )
    what.add_argument(
        "--host-overhead", action="store_true", help="also time what an eager call costs the host, at M=8"
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--budget-ms", type=float, default=25.0, help="replay time per provider and cell (default 25)"
    )
    how.add_argument(
        "--compile-workers",
        type=int,
        default=os.cpu_count() or 1,
        help="processes that compile all kernels before the first timing; 0: compile as they come",
    )
    where = parser.add_argument_group("where the results go")
    where.add_argument("--output", type=Path, help="CSV file; the report and the plot go beside it")
    where.add_argument(
        "--results-dir",
        type=Path,
        default=Path("benchmarks/results"),
        help="without --output: <this>/<device>/gemm_<shapes>.csv (default benchmarks/results)",
    )
    where.add_argument("--resume", action="store_true", help="keep the cells that the CSV already holds")
    where.add_argument(
        "--from-csv",
        type=Path,
        help="measure nothing: write report and plot of this CSV again (needs no GPU)",
    )
    return parser


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the benchmark; the exit status is 0, 1 where the GPU was lost on the way, 2 if it cannot start."""
    parser = _parser(program)
    options = parser.parse_args(argv)
    return ending_in_one_line(parser.prog, lambda: _main(parser, options))


def _main(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.from_csv is not None:
        _require_no_measuring(parser, options)
        try:
            rows = read_rows(options.from_csv, Row)
        except (OSError, ValueError) as failure:
            stop(parser, failure)
        _print_report(options.from_csv, rows)
        return DONE
    if not 0 < options.budget_ms < math.inf:
        parser.error(f"--budget-ms {options.budget_ms}: must be above 0, and finite")
    if options.compile_workers < 0:
        parser.error(f"--compile-workers {options.compile_workers}: must be 0 or more")
    shapes = _shapes(parser, options)
    reason = why_cannot_run()
    if reason:
        print(f"The benchmark cannot run here: {reason}; {FROM_CSV_HINT}", file=sys.stderr)
        return CANNOT_RUN
    return _run(options, shapes)


_MEASURING = ("N", "K", "shapes", "m", "providers", "host_overhead", "output", "resume")


def _require_no_measuring(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends the program where --from-csv stands beside what it would leave undone without a word."""
    given = [name for name in _MEASURING if getattr(options, name) != parser.get_default(name)]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        parser.error(f"--from-csv measures nothing, so {names} cannot be given with it: leave one out")


def _shapes(parser: argparse.ArgumentParser, options: argparse.Namespace) -> tuple[tuple[int, int], ...]:
    if options.shapes:
        if options.N is not None or options.K is not None:
            parser.error("give either --shapes or --N and --K, not both")
        return shapes_of(options.shapes)
    if options.N is None or options.K is None:
        parser.error("give --N and --K, or --shapes")
    fits = min(options.N, options.K) >= 1 and max(options.N, options.K) <= LARGEST_M
    if not fits or options.N * options.K % 16:
        parser.error(
            f"--N {options.N} --K {options.K}: both must be at least 1 and at most {LARGEST_M}, and N*K a "
            f"multiple of 16, because the weight copies are read with 16-byte loads"
        )
    return ((options.N, options.K),)


FROM_CSV_HINT = "--from-csv writes a report from results that exist"


def why_cannot_run() -> str | None:
    """Why this machine cannot measure, with what to do, as one clause; None where it can."""
    from .device import why_no_cuda

    reason = why_no_cuda()
    if reason is None:
        return None
    return (
        f"{reason}, and timings need an NVIDIA GPU (Hopper or Ada for all kernels): run it on a machine with "
        f"one; `tilelang-gemm explain` says here what would be chosen there"
    )


def require_gpu() -> None:
    """Raise RuntimeError where `why_cannot_run` has a reason."""
    reason = why_cannot_run()
    if reason is not None:
        raise RuntimeError(f"cannot run here: {reason}")


def _run(options: argparse.Namespace, shapes: tuple[tuple[int, int], ...]) -> int:
    import torch

    from .bench_measure import DeviceLostError, measure_shape
    from .compile_ahead import compile_ahead
    from .device import device_of
    from .environment import Environment
    from .host_overhead import host_overhead

    device = device_of(torch.cuda.current_device())
    environment = Environment.here(device.name, record_conditions().driver)
    stem = options.shapes or f"N{options.N}_K{options.K}"
    path = options.output or options.results_dir / device.name / f"gemm_{stem}.csv"
    _check_output(path)
    results = CellFile(path, read_rows(path, Row) if options.resume and _has_content(path) else ())
    todo = _todo(shapes, options.m, options.providers, results.rows)
    if options.compile_workers:
        needed = {name for by_m in todo.values() for names in by_m.values() for name in names}
        compile_ahead(todo, needed, options.compile_workers)
    status, unwritten = 0, None
    try:
        with tqdm(total=sum(map(len, todo.values())), unit="cell", desc="timing") as progress:
            for (N, K), by_m in todo.items():
                progress.set_postfix_str(f"N={N} K={K}")
                for cell_rows in measure_shape(N, K, by_m, environment, budget_ms=options.budget_ms):
                    before, unwritten = unwritten, _why_unwritten(results, cell_rows)
                    if unwritten is not None and before is None:
                        tqdm.write(
                            f"{path} lacks cells until it can be written: {unwritten}", file=sys.stderr
                        )
                    progress.update()
        if options.host_overhead:
            host_rows = host_overhead(*shapes[0], environment)
            write_rows(report.host_csv(path), host_rows, HostRow)
            print(report.host_table(host_rows))
    except DeviceLostError as lost:
        print(lost, file=sys.stderr)
        status = 1
    if results.rows:
        try:
            _print_report(path, results.rows)
        except OSError as failure:  # the tables are printed
            print(f"the report is not written: {told(failure)}", file=sys.stderr)
            status = 1
    if unwritten is not None:
        print(f"{path} lacks what is printed above: {unwritten}", file=sys.stderr)
        status = 1
    return status


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _check_output(path: Path) -> None:
    """Raise RuntimeError where the CSV cannot be written: before anything is compiled or timed for it."""
    if path.is_dir():
        raise RuntimeError(f"--output {path} is a directory; give the name of a CSV file")
    why = None if os.access(path, os.W_OK) else why_unwritable(path.parent)
    if why is not None:
        raise RuntimeError(f"{path} cannot be written ({why}); give another --output or --results-dir")


def _why_unwritten(results: CellFile, rows: Sequence[Row]) -> str | None:
    """Add rows; why the file lacks them, or None. What was measured is not given up for a full disk."""
    try:
        results.add(rows)
    except OSError as failure:
        return told(failure)
    return None


def _todo(
    shapes: Sequence[tuple[int, int]], ms: Sequence[int], wanted: Sequence[str], rows: Sequence[Row]
) -> dict[tuple[int, int], dict[int, tuple[str, ...]]]:
    """(N, K) -> M -> the providers to measure there, of all cells that lack one of the wanted.

    Providers are compared within one run only: a cell that lacks one is measured anew with all that it has.
    """
    done = by_cell(rows)
    todo: dict[tuple[int, int], dict[int, tuple[str, ...]]] = {}
    for N, K in shapes:
        for M in ms:
            has = done.get((M, N, K), {}).keys()
            if not has >= set(wanted):
                names = tuple(name for name in PROVIDER_NAMES if name in has or name in wanted)
                todo.setdefault((N, K), {})[M] = names
    return todo


def _print_report(path: Path, rows: Sequence[Row]) -> None:
    """Write the report and print its tables, each even where the other cannot be. Raises OSError for it."""
    written: tuple[Path, ...] = ()
    failure: OSError | None = None
    try:
        written = report.write_report(path, rows)
    except OSError as error:
        failure = error
    print(report.cell_table(rows))
    print(report.band_table(rows))
    print(report.versus_table(rows))
    if failure is not None:
        raise failure
    print("\n".join(f"written: {place}" for place in (path, *written)))
