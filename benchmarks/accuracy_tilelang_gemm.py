"""How far every kernel variant and every peer is off on every public shape, as CSV.

    python benchmarks/accuracy_tilelang_gemm.py

Twice, on outputs filled with NaN beforehand: on fresh random inputs whose scales span a factor of 64, beside
a reference in float64, and on integers, of which every element must be exact. `error` is the mean,
1 - 2<x, y> / (<x, x> + <y, y>); `of_bound` is the worst element's distance from the reference over what
rounding may make of it (`core.workload.compare`). Ends with status 1 where the tuner and the benchmark would
refuse a result.
"""

from __future__ import annotations

import argparse
import csv
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from tilelang_gemm_wrapper.core import kernel_registry
from tilelang_gemm_wrapper.core.arguments import ending_in_one_line
from tilelang_gemm_wrapper.core.bench import require_gpu
from tilelang_gemm_wrapper.core.bench_providers import PROVIDERS, Case, Matrix, Refused
from tilelang_gemm_wrapper.core.compile_cache import CompileJob, compile_kernel, compile_many
from tilelang_gemm_wrapper.core.config import TILELANG_KERNELS, KernelConfig
from tilelang_gemm_wrapper.core.device import Device, device_of
from tilelang_gemm_wrapper.core.workload import Comparison, compare
from tilelang_gemm_wrapper.models import PUBLIC_SHAPES, QWEN3_4B_FP8

Run = Callable[[Case], torch.Tensor]

PEERS = ("deep_gemm", "cublas", "triton")
TOKENS = (1, 17, 64, 300, 1024)
COLUMNS = (
    "device", "N", "K", "M", "seed", "kernel", "block_M", "block_N", "split_k",
    "error", "of_bound", "integers_exact",
)  # fmt: skip


def one_of_each(N: int, K: int, device: Device) -> dict[str, KernelConfig]:
    """A config of each variant for this shape, a different one from shape to shape."""
    space = list(kernel_registry.search_space(N, K, device))
    by_kind = {kind: [c for c in space if c.kernel_type == kind] for kind in TILELANG_KERNELS}
    return {
        kind: configs[(N // 64 + K // 128) % len(configs)] for kind, configs in by_kind.items() if configs
    }


@dataclass
class Worst:
    """The largest figures of one kernel over all cells."""

    error: float = 0.0
    of_bound: float = 0.0
    refused: int = 0

    def add(self, comparison: Comparison, why_wrong: str | None) -> None:
        self.error = max(self.error, comparison.error)
        self.of_bound = max(self.of_bound, comparison.excess)
        self.refused += why_wrong is not None


def run_of(config: KernelConfig, N: int, K: int, device: Device) -> Run:
    launch = compile_kernel(CompileJob.on(N, K, config, device))

    def run(case: Case) -> torch.Tensor:
        launch(case.A, case.A_scale, *case.matrix.weights[0], case.C)
        return case.C

    return run


def compared(run: Run, case: Case) -> Comparison:
    case.C.fill_(torch.nan)
    return compare(run(case), case.expected)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<device>/accuracy.csv")
    options = parser.parse_args()
    require_gpu()
    device = device_of(torch.cuda.current_device())
    path = options.output or Path(__file__).parent / "results" / device.name / "accuracy.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = list(dict.fromkeys((*PUBLIC_SHAPES, *QWEN3_4B_FP8)))
    jobs = [CompileJob.on(N, K, c, device) for N, K in shapes for c in one_of_each(N, K, device).values()]
    for failure in compile_many(jobs):
        print(failure, file=sys.stderr)
    worst: dict[str, Worst] = {}
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for N, K in tqdm(shapes, unit="shape"):
            configs = one_of_each(N, K, device)
            runs = {kind: run_of(config, N, K, device) for kind, config in configs.items()}
            runs |= {name: lambda case, name=name: PROVIDERS[name](case)(0) for name in PEERS}
            seed = secrets.randbelow(2**31)
            matrix = Matrix.random(max(TOKENS), N, K, device, seed)
            integers = Matrix.integers(max(TOKENS), N, K, device, seed)
            for M in TOKENS:
                for kind, run in runs.items():
                    try:
                        comparison = compared(run, matrix.case(M))
                        on_integers = compared(run, integers.case(M)).why_wrong() if integers else None
                    except Refused:
                        continue
                    why_wrong = comparison.why_wrong() or on_integers
                    if why_wrong:
                        print(f"{kind}, M={M}, N={N}, K={K}, seed {seed}: {why_wrong}", file=sys.stderr)
                    worst.setdefault(kind, Worst()).add(comparison, why_wrong)
                    config = configs.get(kind, KernelConfig(kind))
                    tile = (config.block_M, config.block_N, config.split_k)
                    figures = (f"{comparison.error:.3e}", f"{comparison.excess:.3f}", on_integers is None)
                    table.writerow((device.name, N, K, M, seed, kind, *tile, *figures))
    for kind, figures in worst.items():
        print(
            f"{kind:14} largest error {figures.error:.2e}, worst element at {figures.of_bound:.2f} of its "
            f"bound, {figures.refused} cells refused"
        )
    return int(any(figures.refused for figures in worst.values()))


if __name__ == "__main__":
    sys.exit(ending_in_one_line(Path(__file__).name, main))
