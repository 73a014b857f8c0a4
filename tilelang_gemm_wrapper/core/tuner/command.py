"""The tuning command: behind `tuning/tune_tilelang_gemm.py` and `tilelang-gemm tune`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from tilelang_gemm_wrapper import configurer, models
from tilelang_gemm_wrapper.core.arguments import (
    DONE,
    ending_in_one_line,
    whole_number,
    whole_numbers,
)
from tilelang_gemm_wrapper.core.bench import require_gpu
from tilelang_gemm_wrapper.core.compile_cache import COMPILER
from tilelang_gemm_wrapper.core.conditions import RUN_VARIABLE
from tilelang_gemm_wrapper.core.failure_text import told
from tilelang_gemm_wrapper.core.kernel_cache import why_unwritable
from tilelang_gemm_wrapper.core.tuner.child import GPU_BENCH
from tilelang_gemm_wrapper.core.tuner.cluster import Cluster, LocalCompiler, LocalGpu
from tilelang_gemm_wrapper.core.tuner.driver import Driver, Listener, ShapeResult
from tilelang_gemm_wrapper.core.tuner.effort import EFFORTS
from tilelang_gemm_wrapper.core.tuner.journal import directory_lock
from tilelang_gemm_wrapper.core.tuner.records import CellDone, Failure, Record, ShapeConditions, Timing
from tilelang_gemm_wrapper.core.tuner.wanted import Wanted, wanted
from tilelang_gemm_wrapper.model_shapes.engine import engine_names

INCOMPLETE = 1
_REACH_S = 10.0  # for a first answer from --ray-address: Ray itself would wait for minutes


def _parser(program: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Find the fastest right kernel for each M of each weight shape; write the config files.",
    )
    what = parser.add_argument_group("what to tune")
    what.add_argument("--model", action="append", default=[], help="Hugging Face id or directory; repeatable")
    what.add_argument(
        "--tp", type=whole_number, default=1, help="tensor-parallel size of --model (default 1)"
    )
    what.add_argument(
        "--ep",
        type=whole_number,
        default=1,
        help="expert-parallel size of --model: its experts are distributed that many ways (default 1)",
    )
    what.add_argument(
        "--engine",
        choices=engine_names(),
        help="take the layers that this engine, which must be installed, builds of --model; needs no weights",
    )
    what.add_argument(
        "--shapes-from",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="the layers of a served model, written with TILELANG_GEMM_SHAPES_OUT=FILE; repeatable",
    )
    what.add_argument(
        "--shapes",
        action="append",
        default=[],
        choices=models.shape_list_names(),
        metavar="LIST",
        help=f"one of {', '.join(models.shape_list_names())}; repeatable",
    )
    what.add_argument("--N", type=int, help="rows of one weight matrix (output features); with --K")
    what.add_argument("--K", type=int, help="columns of one weight matrix (input features); with --N")
    what.add_argument(
        "--m",
        type=whole_numbers,
        default=models.PUBLIC_M,
        metavar="1,8,64",
        help="default: the 23 public ones",
    )
    what.add_argument("--list-shapes", action="store_true", help="print the weight shapes and stop")
    how = parser.add_argument_group("how")
    how.add_argument("--effort", choices=tuple(EFFORTS), default="standard")
    how.add_argument(
        "--kernels", type=whole_number, help="most kernels compiled for one (N, K), instead of the effort's"
    )
    how.add_argument(
        "--num-gpus", type=whole_number, help="GPUs to use (default: all of Ray's; 1 without Ray)"
    )
    how.add_argument(
        "--ray-address", help="a Ray cluster, e.g. auto or ray://host:10001 (default: this machine)"
    )
    how.add_argument(
        "--no-ray", action="store_true", help="one GPU, in this process, even where Ray is installed"
    )
    how.add_argument("--resume", action="store_true", help="go on from the journal in --out")
    how.add_argument("--wait", action="store_true", help="where another tuner writes into --out: wait for it")
    where = parser.add_argument_group("where the results go")
    where.add_argument("--out", type=Path, default=Path("configs"), help="config files (default: configs)")
    where.add_argument(
        "--results-dir",
        type=Path,
        default=Path("benchmarks/results"),
        help="CSV, report and plot go to <this>/<device>/tune_<what>.* (default: benchmarks/results)",
    )
    how.add_argument("--bench", default=GPU_BENCH, help=argparse.SUPPRESS)  # tests bring simulated ones
    how.add_argument("--compiler", default=COMPILER, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Tune; the exit status is 0, 1 where a shape could not be finished, 2 if nothing could start."""
    parser = _parser(program)
    options = parser.parse_args(argv)
    return ending_in_one_line(parser.prog, lambda: _main(parser, options))


def _main(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    what = wanted(parser, options)
    if options.list_shapes:
        print(what.listing)
        return DONE
    _check_place(options)
    for line in (*what.left_out, *what.notes):  # such as that no call of these layers runs a tuned kernel
        print(line, file=sys.stderr)
    return _tune(options, what)


def _check_place(options: argparse.Namespace) -> None:
    """Raise RuntimeError, before anything starts, where no GPU can be there or --out takes no file."""
    _check_gpu(options)
    why = why_unwritable(options.out)
    if why is not None:
        raise RuntimeError(f"{options.out} cannot be written ({why}); give another --out")


def _check_gpu(options: argparse.Namespace) -> None:
    address = options.ray_address or os.environ.get("RAY_ADDRESS")
    if address is None:
        if options.bench == GPU_BENCH:
            require_gpu()
        return
    place = re.fullmatch(r"(?:ray://)?\[?([^/\[\]]+?)\]?:([0-9]{1,5})", address)
    if place is not None:
        try:
            socket.create_connection((place[1], int(place[2])), timeout=_REACH_S).close()
        except (OSError, OverflowError, UnicodeError) as failure:
            raise RuntimeError(
                f"no Ray cluster answers at {address} ({failure}): correct --ray-address, or start it there"
            ) from failure


def _tune(options: argparse.Namespace, what: Wanted) -> int:
    effort = EFFORTS[options.effort]
    if options.kernels is not None:
        effort = replace(effort, name=f"{effort.name}, {options.kernels} kernels", kernels=options.kernels)
    display = Display()
    started = time.monotonic()
    with ExitStack() as scope:
        # Before the lock: where Ray has not what is wanted, nothing is left in --out.
        with_ray = _connects_to_ray(options, scope)
        scope.enter_context(directory_lock(options.out, wait=options.wait))
        cluster = _cluster(options, with_ray)
        scope.callback(cluster.close)
        devices = sorted({gpu.device.name for gpu in cluster.gpus})
        gpus = len(cluster.gpus)
        driver = Driver(
            cluster, what.shapes, options.m, effort, options.out,
            resume=options.resume, listener=display,
        )  # fmt: skip
        try:
            results = driver.run()
        except KeyboardInterrupt:
            print(f"\nstopped; --resume goes on from {options.out}", file=sys.stderr)
            return INCOMPLETE
        finally:
            display.close()
    head = [
        f"{len(what.shapes)} shapes, {len(options.m)} M, effort {effort.name}, {gpus} × {', '.join(devices)}",
        f"{time.monotonic() - started:.0f} s from start to end, compiling included"
        + (", with a journal to resume from" if options.resume else ""),
    ]
    reports = [
        _report(options, what.name, [result for result in results if result.device.name == device], head)
        for device in devices
    ]
    print("\n".join(reports))  # after all are written: whoever reads this may have ended
    return DONE if all(result.path for result in results) else INCOMPLETE


def _connects_to_ray(options: argparse.Namespace, scope: ExitStack) -> bool:
    """Whether Ray has the workers; it is connected then, for as long as `scope`.

    Raises RuntimeError where it is needed and not installed, or has fewer GPUs than wanted.
    """
    os.environ[RUN_VARIABLE] = f"{os.getpid()}-{time.time_ns()}"
    has_ray = importlib.util.find_spec("ray") is not None
    wants_ray = options.ray_address is not None or (options.num_gpus or 1) > 1
    if wants_ray and (not has_ray or options.no_ray):
        raise RuntimeError(
            "several GPUs, or --ray-address, need Ray: pip install 'tilelang-gemm-wrapper[tune]'"
            + (" and leave --no-ray out" if options.no_ray else "")
        )
    if not has_ray or options.no_ray:
        return False
    import ray

    from tilelang_gemm_wrapper.core.tuner.ray_workers import gpu_count

    # Workers find the package where this process found it.
    path = os.pathsep.join(entry for entry in sys.path if entry)
    ray.init(
        address=options.ray_address,
        log_to_driver=False,
        include_dashboard=False if options.ray_address is None else None,
        runtime_env={"env_vars": {"PYTHONPATH": path, RUN_VARIABLE: os.environ[RUN_VARIABLE]}},
        logging_level="ERROR",
    )
    scope.callback(ray.shutdown)
    gpu_count(options.num_gpus)
    return True


def _cluster(options: argparse.Namespace, with_ray: bool) -> Cluster:
    if not with_ray:
        gpu = LocalGpu(bench=options.bench)
        return Cluster(
            [LocalCompiler(module=options.compiler) for _ in range(configurer.compile_workers())], [gpu]
        )
    from tilelang_gemm_wrapper.core.tuner.ray_workers import ray_cluster

    return ray_cluster(options.num_gpus, bench=options.bench, compiler=options.compiler)


def _report(
    options: argparse.Namespace, name: str, results: Sequence[ShapeResult], head: Sequence[str]
) -> str:
    """Write the CSV, report and plot of one device; returns what is printed of it."""
    from tilelang_gemm_wrapper.config_reports import columns
    from tilelang_gemm_wrapper.core.tuner import report

    if not results:
        return ""
    lines = []
    for result in results:
        lines.append(f"\nN={result.N}, K={result.K}: {result.path or 'no file written'}")
        lines.append(columns([report.HEADER, *report.rows_of(result)]))
        lines += [f"  left out: {failure}" for failure in report.failures_of(result)]
    path = options.results_dir / results[0].device.name / f"tune_{name}.csv"
    written: list[Path] = []
    try:
        report.write_csv(path, results)
        written.append(path)
        path.with_suffix(".md").write_text(report.markdown(results, head), encoding="utf-8")
        written.append(path.with_suffix(".md"))
        with suppress(ImportError):  # matplotlib is in the bench extra
            report.write_plot(path.with_suffix(".png"), results)
            written.append(path.with_suffix(".png"))
    except OSError as failure:  # the config files are there, and the tables get printed
        print(f"the report is not written: {told(failure)}", file=sys.stderr)
    return "\n".join([*lines, "", *head, *(f"written: {place}" for place in written)])


class Display(Listener):
    """One progress bar over the cells, with what was found last; warnings above it."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._shapes = self._finished = self._waiting = 0
        self._best: dict[tuple[int, int, int], float] = {}
        self._peer: dict[tuple[int, int, int], float] = {}
        self._warned: set[str] = set()

    def started(self, shapes: int, cells: int) -> None:
        self._shapes = shapes
        self._bar = tqdm(total=cells, unit="cell", desc=f"shapes 0/{shapes}", dynamic_ncols=True)

    def recorded(self, gpu: str, record: Record) -> None:
        if isinstance(record, Timing):
            cell = record.N, record.K, record.M
            if record.config.kernel_type == "deep_gemm":
                self._peer[cell] = record.p50_us
            elif record.stage == "final":
                self._best[cell] = min(record.p50_us, self._best.get(cell, record.p50_us))
        elif isinstance(record, Failure):
            config = record.config
            self.warned(f"N={record.N}, K={record.K}: {config} is left out: {record.kind}: {record.message}")
        elif isinstance(record, ShapeConditions):
            for warning in record.warnings:
                self.warned(f"{gpu}: {warning}: timings taken now are doubtful")
        elif isinstance(record, CellDone) and self._bar is not None:
            if not record.probe:
                self._bar.update()
            self._show(record)

    def _show(self, record: CellDone) -> None:
        cell = record.N, record.K, record.M
        text = f"{self._waiting} kernels to compile"
        if cell in self._best:
            text = f"N={record.N} K={record.K} M={record.M} {self._best[cell]:.2f} µs, {text}"
            if cell in self._peer:
                text = f"{text}, {self._peer[cell] / self._best[cell]:.2f}× DeepGEMM"
        assert self._bar is not None
        self._bar.set_postfix_str(text)

    def compiling(self, waiting: int) -> None:
        self._waiting = waiting

    def finished(self, result: ShapeResult) -> None:
        self._finished += 1
        if self._bar is not None:
            self._bar.set_description(f"shapes {self._finished}/{self._shapes}")

    def warned(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            tqdm.write(message, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
