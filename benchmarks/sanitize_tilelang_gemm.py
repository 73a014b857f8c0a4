"""Run one small case of every kernel variant under compute-sanitizer's memcheck and racecheck.

    python benchmarks/sanitize_tilelang_gemm.py

Writes what the tools print to benchmarks/results/<device>/sanitizer.txt; ends with status 1 where they find
anything. Under racecheck every lane arrives at the barriers for itself, for the reason that stands in
core/kernels/build_settings.py; all else is as it is shipped.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

LANES_THAT_ARRIVE = {"memcheck": 1, "racecheck": 32}
N, K, M = 192, 1024, 21


def set_lanes(lanes: int) -> None:
    from tilelang_gemm_wrapper.core.kernels import build_settings

    build_settings.lanes_that_arrive = lanes


def compile_variant(job) -> None:
    from tilelang_gemm_wrapper.core.compile_cache import compile_kernel

    compile_kernel(job)


def run_variants(lanes: int) -> None:
    """Launch each variant once and compare with the reference; this is what the tools watch."""
    set_lanes(lanes)
    import torch

    from tilelang_gemm_wrapper.core.compile_cache import compile_kernel
    from tilelang_gemm_wrapper.core.workload import integer_workload, reference

    workload = integer_workload(M, N, K, "cuda")
    right = reference(workload).to(torch.bfloat16)
    for job in _jobs():
        C = workload.empty_output()
        compile_kernel(job)(workload.A, workload.A_scale, workload.B, workload.B_scale, C)
        torch.cuda.synchronize()
        verdict = "right" if torch.equal(C, right) else "WRONG"
        weights = "static" if job.static_weights else "as written by the kernel before"
        print(f"{job.config}: M={M}, N={N}, K={K}, weights {weights}: {verdict}", flush=True)


def _jobs():
    from tilelang_gemm_wrapper.core.compile_cache import CompileJob
    from tilelang_gemm_wrapper.core.config import KernelConfig

    configs = (
        KernelConfig("base", 64, 64, 128, 3, 128),
        KernelConfig("base", 64, 48, 128, 4, 256),
        KernelConfig("base", 128, 144, 128, 3, 256),
        KernelConfig("base", 192, 96, 128, 3, 384),
        KernelConfig("base", 256, 128, 128, 2, 256),
        KernelConfig("swapAB", 64, 16, 128, 4, 256),
        KernelConfig("swapAB", 128, 32, 128, 4, 256),
        KernelConfig("splitK", 64, 64, 128, 3, 128, 4),
        KernelConfig("splitK", 64, 80, 128, 3, 384, 2),
        KernelConfig("splitK_swapAB", 64, 16, 128, 2, 128, 4),
    )
    # Said to have one SM, the persistent kernel gives a CTA several tiles.
    return [CompileJob(N, K, config, "sm_90a", static, 1) for config in configs for static in (False, True)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<device>/sanitizer.txt")
    parser.add_argument("--run-variants", type=int, metavar="LANES", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run_variants:
        run_variants(options.run_variants)
        return 0
    from tilelang_gemm_wrapper.core.bench import require_gpu
    from tilelang_gemm_wrapper.core.device import device_of

    require_gpu()
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        print("compute-sanitizer is not on the PATH; it comes with the CUDA toolkit", file=sys.stderr)
        return 2
    for lanes in LANES_THAT_ARRIVE.values():  # compilers need no watching
        with ProcessPoolExecutor(
            mp_context=get_context("spawn"), initializer=set_lanes, initargs=(lanes,)
        ) as pool:
            list(pool.map(compile_variant, _jobs()))
    path = options.output or Path(__file__).parent / "results" / device_of(0).name / "sanitizer.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    clean = True
    with path.open("w") as file:
        for tool, lanes in LANES_THAT_ARRIVE.items():
            command = [sanitizer, "--tool", tool, "--error-exitcode", "9"]
            command += [sys.executable, __file__, "--run-variants", str(lanes)]
            finished = subprocess.run(command, capture_output=True, text=True, check=False)
            lines = [
                line for line in finished.stdout.splitlines() if line.startswith("====") or "weights" in line
            ]
            report = (
                f"compute-sanitizer --tool {tool}: status {finished.returncode}\n" + "\n".join(lines) + "\n"
            )
            file.write(report)
            print(report)
            clean &= (
                finished.returncode == 0 and "WRONG" not in report and report.count(": right") == len(_jobs())
            )
            if finished.returncode not in (0, 9):
                print(finished.stderr[-2000:], file=sys.stderr)
    return 0 if clean else 1


if __name__ == "__main__":
    from tilelang_gemm_wrapper.core.arguments import ending_in_one_line

    sys.exit(ending_in_one_line(Path(__file__).name, main))
