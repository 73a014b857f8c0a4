"""Compare what is dispatched at M off the tuned grid with an exhaustive search at that very M.

    python benchmarks/check_choices.py explore --exhaustive CSV [--shapes public] [--count 5] [--cells 200]
    python benchmarks/check_choices.py compare --exhaustive CSV

`explore` draws weight shapes from a list, and M off the public grid, at random, and times every config of the
search space at each: no table is read or written. `compare` times the fastest of each cell again, DeepGEMM
and Triton too, interleaved in one process with what the config files dispatch; it writes `choices.csv` beside
the CSV and prints the geometric mean and the worst of dispatched ÷ best.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tqdm import tqdm

from tilelang_gemm_wrapper import models
from tilelang_gemm_wrapper.config_reports import describe
from tilelang_gemm_wrapper.core import kernel_registry
from tilelang_gemm_wrapper.core.arguments import ending_in_one_line
from tilelang_gemm_wrapper.core.bench import require_gpu
from tilelang_gemm_wrapper.core.compile_cache import CompileJob, compile_many
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.config_loader import choose, find_config
from tilelang_gemm_wrapper.core.device import Device, device_of
from tilelang_gemm_wrapper.core.report import geomean
from tilelang_gemm_wrapper.core.timing import MIN_ROUNDS
from tilelang_gemm_wrapper.core.tuner.bench import GpuBench
from tilelang_gemm_wrapper.core.tuner.child import Child
from tilelang_gemm_wrapper.core.tuner.driver import ShapeResult
from tilelang_gemm_wrapper.core.tuner.effort import EFFORTS
from tilelang_gemm_wrapper.core.tuner.report import CONFIG_FIELDS, write_csv
from tilelang_gemm_wrapper.core.tuner.search import PEERS, ShapeRequest, ShapeSearch
from tilelang_gemm_wrapper.core.whole_file import replacing
from tilelang_gemm_wrapper.models import PUBLIC_M

COLUMNS = ("N", "K", "M", "dispatched", "dispatched_us", "best", "best_us", "dispatched_over_best")
BEST = 5

Cells = dict[tuple[int, int], list[int]]


def random_cells(shapes: list[tuple[int, int]], count: int, cells: int, seed: int) -> Cells:
    """`cells` over `count` of the shapes: M evenly spread by their logarithm, none of the public ones.

    Raises ValueError where there are not as many shapes, or M.
    """
    each, off_grid = cells // max(count, 1), max(PUBLIC_M) - len(PUBLIC_M)
    if not (0 < count <= len(shapes) and 0 < each <= off_grid):
        raise ValueError(
            f"{cells} cells of {count} shapes: take 1 to {len(shapes)} shapes, 1 to {off_grid} cells each"
        )
    draw = random.Random(seed)
    drawn: Cells = {}
    for shape in draw.sample(shapes, count):
        m_values: set[int] = set()
        while len(m_values) < each:
            m_values |= {round(max(PUBLIC_M) ** draw.random())} - set(PUBLIC_M)
        drawn[shape] = sorted(m_values)
    return drawn


def explore(cells: Cells, path: Path) -> None:
    """Time every config at every cell, in a child process that may be killed."""
    child = Child()
    device = child.device
    results: list[ShapeResult] = []
    with ThreadPoolExecutor(1) as ahead:
        compiled = [(shape, ahead.submit(_compile_all, *shape, device)) for shape in cells]
        for (N, K), configs in tqdm(compiled, desc="exploring", unit="shape"):
            request = ShapeRequest(
                N, K, tuple(cells[N, K]), tuple(configs.result()), EFFORTS["full"], "explore"
            )
            records = tuple(ShapeSearch(request, child).run())
            results.append(ShapeResult(N, K, device, records, None, ()))
            write_csv(path, results)
    child.close()


def _compile_all(N: int, K: int, device: Device) -> list[KernelConfig]:
    configs = list(kernel_registry.search_space(N, K, device))
    for failure in compile_many([CompileJob.on(N, K, config, device) for config in configs]):
        tqdm.write(failure, file=sys.stderr)
    return configs


def read_exhaustive(path: Path) -> dict[tuple[int, int], dict[int, dict[KernelConfig, float]]]:
    """(N, K) -> M off the public grid -> TileLang config -> µs."""
    times: dict = defaultdict(lambda: defaultdict(dict))
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            values = [row["kernel_type"], *(int(row[name]) for name in CONFIG_FIELDS[1:])]
            kind, block_M, block_N, stages, threads, split = values
            config = KernelConfig(kind, block_M, block_N, num_stages=stages, threads=threads, split_k=split)
            if config.is_tilelang and row["p50_us"] and int(row["M"]) not in PUBLIC_M:
                times[int(row["N"]), int(row["K"])][int(row["M"])][config] = float(row["p50_us"])
    return times


def compare(exhaustive: Path, configs: Path | None, budget_ms: float) -> int:
    """Time what is dispatched beside the best of each cell; the exit status."""
    device = device_of(torch.cuda.current_device())
    cells: dict[tuple[int, int], dict[int, tuple[KernelConfig, list[KernelConfig]]]] = {}
    for (N, K), by_m in read_exhaustive(exhaustive).items():
        search = find_config(N, K, device, [configs] if configs else None)
        if search.file is None:
            print(f"N={N}, K={K} has no tuned file for {device.name}", file=sys.stderr)
            return 2
        cells[N, K] = {
            M: (choose(search.file.entries, M).config, sorted(times, key=times.get)[:BEST])
            for M, times in sorted(by_m.items())
        }
    wanted = {
        (N, K, config)
        for (N, K), by_m in cells.items()
        for dispatched, best in by_m.values()
        for config in (dispatched, *best)
    }
    compile_many([CompileJob.on(N, K, c, device) for N, K, c in wanted if c.is_tilelang])
    rows, ratios = [], []
    bench = GpuBench()
    for (N, K), by_m in cells.items():
        bench.open(N, K, max(by_m))
        for M, (dispatched, best) in tqdm(by_m.items(), desc=f"N={N}, K={K}", unit="cell"):
            candidates = list(dict.fromkeys([dispatched, *best, *PEERS]))
            for config in candidates:
                bench.check(config, M)
            timed = bench.time(candidates, M, budget_ms, MIN_ROUNDS)
            times = {config: one.p50_us for config, one in zip(candidates, timed, strict=True)}
            fastest = min(times, key=lambda config: times[config])
            ratios.append(times[dispatched] / times[fastest])
            rows.append(
                (N, K, M, describe(dispatched), f"{times[dispatched]:.3f}", describe(fastest),
                 f"{times[fastest]:.3f}", f"{ratios[-1]:.4f}")
            )  # fmt: skip
    path = exhaustive.with_name("choices.csv")
    with replacing(path) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(rows)
    print(f"{len(rows)} cells: dispatched ÷ best geomean {geomean(ratios):.4f}, worst {max(ratios):.3f}")
    for row in sorted(rows, key=lambda row: -float(row[-1]))[:12]:
        print(*row)
    print(f"written: {path}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("explore", "compare"))
    parser.add_argument("--exhaustive", type=Path, required=True, help="the CSV written, or read")
    parser.add_argument("--shapes", choices=models.shape_list_names(), default="public", help="to draw from")
    parser.add_argument("--count", type=int, default=5, help="how many shapes to draw (default 5)")
    parser.add_argument("--cells", type=int, default=200, help="in all (default 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--configs", type=Path, help="config files (default: as a call finds them)")
    parser.add_argument("--budget-ms", type=float, default=10.0)
    options = parser.parse_args()
    require_gpu()
    if options.step == "compare":
        return compare(options.exhaustive, options.configs, options.budget_ms)
    try:
        cells = random_cells(
            list(models.shapes_of(options.shapes)), options.count, options.cells, options.seed
        )
    except ValueError as error:
        parser.error(str(error))
    explore(cells, options.exhaustive)
    return 0


if __name__ == "__main__":
    sys.exit(ending_in_one_line(Path(__file__).name, main))
