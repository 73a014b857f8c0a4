"""Compare what is dispatched at M off the tuned grid with an exhaustive search at that very M.

    python benchmarks/check_choices.py --exhaustive CSV

CSV is what `tuning/tune_tilelang_gemm.py --effort full --m ...` writes for M off the public grid: every
config of the search space at each M. The five fastest of each cell, DeepGEMM and Triton are timed again,
interleaved in one process with what the config files dispatch. Writes `choices.csv` beside the CSV and prints
the geometric mean and the worst of dispatched ÷ best.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path

import torch
from tqdm import tqdm

from tilelang_gemm_wrapper.config_reports import describe
from tilelang_gemm_wrapper.core.compile_cache import CompileJob, compile_many
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.config_loader import choose, find_config
from tilelang_gemm_wrapper.core.device import device_of
from tilelang_gemm_wrapper.core.report import geomean
from tilelang_gemm_wrapper.core.timing import MIN_ROUNDS
from tilelang_gemm_wrapper.core.tuner.bench import GpuBench
from tilelang_gemm_wrapper.core.tuner.report import CONFIG_FIELDS
from tilelang_gemm_wrapper.core.tuner.search import PEERS
from tilelang_gemm_wrapper.models import PUBLIC_M

COLUMNS = ("N", "K", "M", "dispatched", "dispatched_us", "best", "best_us", "dispatched_over_best")
BEST = 5


def read_exhaustive(path: Path) -> dict[tuple[int, int], dict[int, dict[KernelConfig, float]]]:
    """(N, K) -> M off the public grid -> TileLang config -> µs."""
    times: dict = defaultdict(lambda: defaultdict(dict))
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            numbers = {name: int(row[name]) for name in CONFIG_FIELDS if name != "kernel_type"}
            config = KernelConfig(row["kernel_type"], **numbers)
            if config.is_tilelang and row["p50_us"] and int(row["M"]) not in PUBLIC_M:
                times[int(row["N"]), int(row["K"])][int(row["M"])][config] = float(row["p50_us"])
    return times


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--exhaustive", type=Path, required=True)
    parser.add_argument("--configs", type=Path, help="config files (default: as a call finds them)")
    parser.add_argument("--budget-ms", type=float, default=10.0)
    options = parser.parse_args()
    device = device_of(torch.cuda.current_device())
    shapes = read_exhaustive(options.exhaustive)
    cells: dict[tuple[int, int], dict[int, tuple[KernelConfig, list[KernelConfig]]]] = {}
    for (N, K), by_m in shapes.items():
        search = find_config(N, K, device, [options.configs] if options.configs else None)
        if search.file is None:
            print(f"N={N}, K={K} has no tuned file for {device.name}", file=sys.stderr)
            return 2
        cells[N, K] = {
            M: (choose(search.file.entries, M).config, sorted(times, key=times.get)[:BEST])
            for M, times in sorted(by_m.items())
        }
    configs = {
        (N, K, config)
        for (N, K), by_m in cells.items()
        for dispatched, best in by_m.values()
        for config in (dispatched, *best)
    }
    compile_many([CompileJob(N, K, c, device.arch) for N, K, c in configs if c.is_tilelang])
    rows, ratios = [], []
    bench = GpuBench()
    for (N, K), by_m in cells.items():
        bench.open(N, K, max(by_m))
        for M, (dispatched, best) in tqdm(by_m.items(), desc=f"N={N}, K={K}", unit="cell"):
            candidates = list(dict.fromkeys([dispatched, *best, *PEERS]))
            for config in candidates:
                bench.check(config, M)
            timed = bench.time(candidates, M, options.budget_ms, MIN_ROUNDS)
            times = {config: one.p50_us for config, one in zip(candidates, timed, strict=True)}
            fastest = min(times, key=lambda config: times[config])
            ratios.append(times[dispatched] / times[fastest])
            rows.append(
                (N, K, M, describe(dispatched), f"{times[dispatched]:.3f}", describe(fastest),
                 f"{times[fastest]:.3f}", f"{ratios[-1]:.4f}")
            )  # fmt: skip
    path = options.exhaustive.with_name("choices.csv")
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(rows)
    print(f"{len(rows)} cells: dispatched ÷ best geomean {geomean(ratios):.4f}, worst {max(ratios):.3f}")
    for row in sorted(rows, key=lambda row: -float(row[-1]))[:12]:
        print(*row)
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
