"""Error of every kernel variant on every public shape, beside DeepGEMM's, as CSV.

    python benchmarks/accuracy_tilelang_gemm.py

Fresh random inputs whose scales span a factor of 64, outputs filled with NaN beforehand, reference in
float64. The error is 1 - 2<x, y> / (<x, x> + <y, y>). Ends with status 1 where a kernel is above 3e-6.
"""

from __future__ import annotations

import argparse
import csv
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from tilelang_gemm_wrapper import backends
from tilelang_gemm_wrapper.core import kernel_registry
from tilelang_gemm_wrapper.core.arguments import ending_in_one_line
from tilelang_gemm_wrapper.core.bench import require_gpu
from tilelang_gemm_wrapper.core.compile_cache import CompileJob, compile_kernel, compile_many
from tilelang_gemm_wrapper.core.config import TILELANG_KERNELS, KernelConfig
from tilelang_gemm_wrapper.core.device import Device, device_of
from tilelang_gemm_wrapper.core.workload import MAX_ERROR, error, random_workload, reference
from tilelang_gemm_wrapper.models import PUBLIC_SHAPES, QWEN3_4B_FP8

TOKENS = (1, 17, 64, 300, 1024)


def one_of_each(N: int, K: int, device: Device) -> dict[str, KernelConfig]:
    """A config of each variant for this shape, a different one from shape to shape."""
    space = list(kernel_registry.search_space(N, K, device))
    by_kind = {kind: [c for c in space if c.kernel_type == kind] for kind in TILELANG_KERNELS}
    return {
        kind: configs[(N // 64 + K // 128) % len(configs)] for kind, configs in by_kind.items() if configs
    }


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
    deep_gemm = backends.backend("deep_gemm")
    worst: dict[str, float] = {}
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("device", "N", "K", "M", "seed", "kernel", "block_M", "block_N", "split_k", "error"))
        for N, K in tqdm(shapes, unit="shape"):
            configs = one_of_each(N, K, device)
            calls: dict[str, Callable[..., None]] = {
                kind: compile_kernel(CompileJob.on(N, K, config, device)) for kind, config in configs.items()
            }
            if deep_gemm.why_unavailable(device) is None:
                calls["deep_gemm"] = deep_gemm.gemm
            for M in TOKENS:
                seed = secrets.randbelow(2**31)
                workload = random_workload(M, N, K, "cuda", seed)
                right = reference(workload)
                for kind, call in calls.items():
                    C = workload.empty_output()
                    call(workload.A, workload.A_scale, workload.B, workload.B_scale, C)
                    wrong = error(C, right)
                    config = configs.get(kind, KernelConfig(kind))
                    tile = (config.block_M, config.block_N, config.split_k)
                    table.writerow((device.name, N, K, M, seed, kind, *tile, f"{wrong:.3e}"))
                    worst[kind] = max(worst.get(kind, 0.0), wrong)
    for kind, wrong in worst.items():
        print(f"{kind:14} largest error {wrong:.2e}")
    return int(any(wrong > MAX_ERROR for kind, wrong in worst.items() if kind != "deep_gemm"))


if __name__ == "__main__":
    sys.exit(ending_in_one_line(Path(__file__).name, main))
