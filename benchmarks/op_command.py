"""The command line of the benchmarks of memory-bound ops."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import op_report
from op_report import About
from op_rows import Cell, OpRow, bugs, by_cell
from tqdm import tqdm

from tilelang_gemm_wrapper.core.arguments import CANNOT_RUN, ending_in_one_line, names_among, stop
from tilelang_gemm_wrapper.core.bench import FROM_CSV_HINT, why_cannot_run
from tilelang_gemm_wrapper.core.results import append_rows, read_rows, write_rows

if TYPE_CHECKING:
    from op_benchmark import Case, Session

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Suite(About):
    """A benchmark: its cells, and what makes a case of one."""

    cells: tuple[Cell, ...]
    providers: tuple[str, ...]
    build: Callable[[Cell, Session, argparse.Namespace], Case]
    add_arguments: Callable[[argparse.ArgumentParser], object] = lambda parser: None


def _parser(suite: Suite) -> argparse.ArgumentParser:
    shapes = [cell.shape.split(" ")[0] for cell in suite.cells]
    ops = [cell.op for cell in suite.cells]
    parser = argparse.ArgumentParser(
        prog=f"benchmark_{suite.name}.py",
        description=f"{suite.title}: cold, in CUDA graphs, every provider in one process and checked first.",
    )
    parser.add_argument(
        "--shapes", type=names_among(shapes, "shape"), metavar="4096x4096,…", help="only these"
    )
    parser.add_argument("--ops", type=names_among(ops, "op"), metavar="A,B", help="only these")
    parser.add_argument(
        "--providers",
        type=names_among(suite.providers, "provider"),
        metavar="A,B",
        help=f"only these; without the reference there is no speedup (default: {','.join(suite.providers)})",
    )
    parser.add_argument(
        "--budget-ms", type=float, default=25.0, help="replay time per provider and shape (default 25)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help=f"CSV; report and plot go beside it (default: benchmarks/results/<device>/{suite.name}.csv)",
    )
    parser.add_argument("--resume", action="store_true", help="keep the shapes that the CSV already holds")
    parser.add_argument(
        "--from-csv",
        type=Path,
        help="measure nothing: write report and plot of this CSV again (needs no GPU)",
    )
    suite.add_arguments(parser)
    return parser


def main(suite: Suite, argv: Sequence[str] | None = None) -> int:
    """Run a benchmark. The exit status is 0; 1 where the GPU was lost or a row is faster than memory can be;
    2 where it cannot start.
    """
    parser = _parser(suite)
    options = parser.parse_args(argv)
    return ending_in_one_line(parser.prog, lambda: _main(suite, parser, options))


def _main(suite: Suite, parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.from_csv:
        try:
            rows = read_rows(options.from_csv, OpRow)
            _print_report(suite, options.from_csv, rows)
        except (OSError, ValueError) as failure:
            stop(parser, failure)
        return 0
    if not 0 < options.budget_ms < math.inf:
        parser.error(f"--budget-ms {options.budget_ms}: must be above 0, and finite")
    cells = [
        cell
        for cell in suite.cells
        if (not options.shapes or cell.shape.split(" ")[0] in options.shapes)
        and (not options.ops or cell.op in options.ops)
    ]
    if not cells:
        parser.error(
            f"--ops {','.join(options.ops)} has no shape {','.join(options.shapes)}: leave one of them out"
        )
    reason = why_cannot_run()
    if reason:
        print(f"The benchmark cannot run here: {reason}; {FROM_CSV_HINT}", file=sys.stderr)
        return CANNOT_RUN
    return _run(suite, cells, options)


def _run(suite: Suite, cells: Sequence[Cell], options: argparse.Namespace) -> int:
    import torch
    from op_benchmark import Session, measure_ceilings

    from tilelang_gemm_wrapper.core.bench_measure import DeviceLostError
    from tilelang_gemm_wrapper.core.conditions import record_conditions
    from tilelang_gemm_wrapper.core.device import device_of
    from tilelang_gemm_wrapper.core.environment import Environment

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    device = device_of(torch.cuda.current_device())
    path = options.output or RESULTS / device.name / f"{suite.name}.csv"
    rows = read_rows(path, OpRow) if options.resume and path.exists() else []
    done = by_cell(rows)
    session = Session(
        environment=Environment.here(device.name, record_conditions().driver),
        device=device,
        ceilings=measure_ceilings(),
        budget_ms=options.budget_ms,
    )
    write_rows(path, rows, OpRow)
    print(f"copy {session.ceilings.copy:.0f} GB/s, read {session.ceilings.read:.0f} GB/s")
    status = 0
    try:
        for cell in tqdm([cell for cell in cells if cell not in done], unit="shape", desc="timing"):
            session.conditions = record_conditions()
            for warning in session.conditions.warnings():
                tqdm.write(f"{cell.op} {cell.shape}: {warning}", file=sys.stderr)
            measured = session.measure(suite.build(cell, session, options), options.providers)
            rows += measured
            append_rows(path, measured)
            # The graphs of thousands of small launches leave pools that no other shape can use.
            torch.cuda.empty_cache()
    except DeviceLostError as lost:
        print(lost, file=sys.stderr)
        status = 1
    if rows:
        _print_report(suite, path, rows)
    for bug in dict.fromkeys([*bugs(rows), *session.bugs]):
        print(f"FAILED: {bug}", file=sys.stderr)
        status = 1
    return status


def _print_report(suite: Suite, path: Path, rows: Sequence[OpRow]) -> None:
    written = op_report.write_report(path, suite, rows)
    print(op_report.tables(rows))
    print("\n".join(f"written: {place}" for place in (path, *written)))
