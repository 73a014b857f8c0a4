"""Measure a short list of configs on each (N, K) and M, and write the dispatch tables.

    python tuning/sweep.py --shapes public qwen3-4b --out configs

A plain sweep in one process: compile, check against float32, time interleaved, keep the fastest; an M where
DeepGEMM is faster names it. Writes one config file a shape and the CSV of every timing.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm import tqdm

from tilelang_gemm_wrapper import backends, configurer
from tilelang_gemm_wrapper.core.bench_providers import Matrix
from tilelang_gemm_wrapper.core.compile_ahead import compile_ahead
from tilelang_gemm_wrapper.core.compile_cache import CompileJob, compile_kernel, compile_many
from tilelang_gemm_wrapper.core.conditions import record_conditions
from tilelang_gemm_wrapper.core.config import KernelConfig, splits_of, why_invalid
from tilelang_gemm_wrapper.core.config_entry import Entry
from tilelang_gemm_wrapper.core.config_file import config_file_name, write_config_file
from tilelang_gemm_wrapper.core.device import Device, device_of
from tilelang_gemm_wrapper.core.timing import time_interleaved
from tilelang_gemm_wrapper.core.workload import error
from tilelang_gemm_wrapper.models import shape_list_names, shapes_of
from tilelang_gemm_wrapper.quantize import convert_scale_layout

TUNED_M = (2, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048, 4096, 8192)
MAX_ERROR = 3e-6
TILE_FIELDS = ("kernel_type", "block_M", "block_N", "num_stages", "threads", "split_k")
DEEP_GEMM = KernelConfig("deep_gemm")
# DeepGEMM takes an entry where it is faster by more than this: it needs column-major scales to be so.
MARGIN = 1.02


def candidates(N: int, K: int, device: Device) -> list[KernelConfig]:
    """Configs worth timing: tiles and depths that won somewhere, splits that fill the SMs about once."""
    configs: list[KernelConfig] = []
    for split in _splits(K, -(-N // 64), device.sm_count):
        kind = "swapAB" if split == 1 else "splitK_swapAB"
        configs += [KernelConfig(kind, 64, 8, 128, stages, 128, split) for stages in (4, 6, 8)]
        configs += [KernelConfig(kind, 64, 16, 128, stages, 128, split) for stages in (4, 6, 8)]
        configs += [KernelConfig(kind, 64, 32, 128, stages, 128, split) for stages in (4, 6)]
        configs.append(KernelConfig(kind, 64, 64, 128, 4, 128, split))
    for split in _splits(K, -(-N // 128), device.sm_count):
        kind = "swapAB" if split == 1 else "splitK_swapAB"
        configs += [KernelConfig(kind, 128, tokens, 128, 4, 256, split) for tokens in (64, 128)]
        kind = "base" if split == 1 else "splitK"
        configs += [
            KernelConfig(kind, 64, 64, 128, 3, 128, split),
            KernelConfig(kind, 64, 128, 128, 4, 128, split),
            KernelConfig(kind, 128, 64, 128, 4, 256, split),
            KernelConfig(kind, 128, 128, 128, 4, 256, split),
        ]
    return [config for config in configs if why_invalid(config, N, K, device) is None]


def _splits(K: int, tiles: int, sm_count: int) -> list[int]:
    """No split, and the splits that bring one row of tiles near one to two CTAs an SM."""
    dividing = splits_of(K)[1:]
    near = [split for split in dividing if 0.5 * sm_count <= tiles * split <= 2.4 * sm_count]
    return [1, *near[:3]] if near else [1, *dividing[-1:]]


def suits(config: KernelConfig, M: int) -> bool:
    """Whether a token tile is in proportion to M: not mostly padding, not read again and again."""
    tokens = config.tile_tokens
    least = 8 if config.is_swap_ab else 64
    if config.is_swap_ab and M > 256:
        return False
    if config.is_split_k and M > 512:
        return False
    if M >= 1024 and config.block_M * config.block_N < 128 * 64:
        return False
    return tokens <= max(2 * M, least) and tokens * (4 if config.is_swap_ab else 10**6) >= M


def sweep_shape(
    N: int, K: int, device: Device, m_values: tuple[int, ...], budget_ms: float
) -> Iterator[tuple[int, KernelConfig, float]]:
    """Yield (M, config, p50 in µs) for every candidate that gives the right result."""
    matrix = Matrix.random(max(m_values), N, K, device)
    kernels: dict[KernelConfig, Callable[..., None]] = {
        config: compile_kernel(CompileJob(N, K, config, device.arch)) for config in candidates(N, K, device)
    }
    deep_gemm = backends.backend("deep_gemm")
    if deep_gemm.why_unavailable(device) is None and deep_gemm.why_unsupported(N, K) is None:
        kernels[DEEP_GEMM] = deep_gemm.gemm
    for M in m_values:
        case = matrix.case(M)
        scale = convert_scale_layout(case.A_scale, "column_tma")
        calls: dict[KernelConfig, Callable[[int], None]] = {}
        for config, kernel in kernels.items():
            if config.is_tilelang and not suits(config, M):
                continue

            def call(i: int, kernel=kernel, case=case, scale=scale) -> None:
                kernel(case.A, scale, *matrix.weights[i], case.C)

            case.C.fill_(torch.nan)
            call(0)
            wrong = error(case.C, case.reference)
            if wrong <= MAX_ERROR:
                calls[config] = call
            else:
                print(f"N={N} K={K} M={M} {config}: error {wrong:.2e}, left out", file=sys.stderr)
        names = {str(position): config for position, config in enumerate(calls)}
        timings = time_interleaved(
            {name: calls[config] for name, config in names.items()}, len(matrix.weights), budget_ms=budget_ms
        )
        for name, timing in timings.items():
            yield M, names[name], timing.p50_us


def winners(timed: list[tuple[int, KernelConfig, float]], N: int, K: int) -> list[Entry]:
    """The fastest config of each M, DeepGEMM only where it leads by the margin."""
    entries = []
    for M in sorted({M for M, _, _ in timed}):
        rows = [(us, config) for m, config, us in timed if m == M]
        us, config = min(rows, key=lambda row: row[0])
        if config == DEEP_GEMM:
            own = [row for row in rows if row[1].is_tilelang]
            if own and (best := min(own, key=lambda row: row[0]))[0] <= MARGIN * us:
                us, config = best
        entries.append(Entry(M, config, round(us / 1e3, 6), round(2 * M * N * K / us / 1e6, 1)))
    return entries


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=["public"], choices=shape_list_names())
    parser.add_argument("--m", type=int, nargs="+", default=list(TUNED_M))
    parser.add_argument("--out", type=Path, default=Path("configs"))
    parser.add_argument("--csv", type=Path, help="default: benchmarks/results/<device>/sweep.csv")
    parser.add_argument("--budget-ms", type=float, default=4.0, help="replay time a candidate (default: 4)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("sweep.py times kernels and this machine has no CUDA device", file=sys.stderr)
        return 2
    device = device_of(torch.cuda.current_device())
    shapes = list(dict.fromkeys(shape for name in options.shapes for shape in shapes_of(name)))
    jobs = [CompileJob(N, K, config, device.arch) for N, K in shapes for config in candidates(N, K, device)]
    started = time.perf_counter()
    with tqdm(total=len(jobs), desc="compile", unit="kernel") as bar:
        for failure in compile_many(jobs, lambda done, total: bar.update(1)):
            print(failure, file=sys.stderr)
    compile_ahead({shape: options.m for shape in shapes}, ("deep_gemm",), configurer.compile_workers())
    print(f"{len(jobs)} kernels compiled in {time.perf_counter() - started:.0f} s")

    path = options.csv or Path("benchmarks/results") / device.name / "sweep.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    conditions = record_conditions()
    metadata = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "method": "tuning/sweep.py: cold weights, CUDA graph, interleaved, median, column-major A_scale",
        "gpu": torch.cuda.get_device_name(),
        "driver": conditions.driver,
        **{name: version(name) for name in ("torch", "tilelang", "triton")},
    }
    started = time.perf_counter()
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("N", "K", "M", *TILE_FIELDS, "p50_us"))
        for N, K in tqdm(shapes, desc="sweep", unit="shape"):
            timed = list(sweep_shape(N, K, device, tuple(options.m), options.budget_ms))
            for M, c, us in timed:
                table.writerow((N, K, M, *(getattr(c, field) for field in TILE_FIELDS), f"{us:.3f}"))
            file.flush()
            write_config_file(
                options.out / config_file_name(N, K, device.name), winners(timed, N, K), metadata
            )
    seconds = time.perf_counter() - started
    print(f"{len(shapes)} shapes in {seconds:.0f} s; tables in {options.out}, timings in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
