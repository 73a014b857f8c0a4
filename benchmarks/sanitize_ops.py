"""Run the ops' kernels on small odd shapes under compute-sanitizer's memcheck and racecheck.

    python benchmarks/sanitize_ops.py

Writes what the tools print to benchmarks/results/<device>/sanitizer_ops.txt; ends with status 1 where they
find anything. Every tensor has memory of its own, so that an access beside it is one beside all memory.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TOOLS = ("memcheck", "racecheck")


def cases() -> Iterator[tuple[str, Callable[[str], Any]]]:
    """Name and call of each case; the call takes the backend and returns a tensor or several."""
    import torch

    from tilelang_gemm_wrapper import ops, per_block_quant_fp8, per_token_group_quant_fp8

    torch.manual_seed(0)

    def random(*shape):
        return torch.randint(-3, 4, shape, device="cuda").bfloat16()

    for M, K in ((5, 7), (3, 2560), (9, 4099), (2, 40001)):
        x, weight = random(M, K), random(K)
        yield f"rmsnorm {M}x{K}", lambda backend, x=x, w=weight: ops.rmsnorm(x, w, backend=backend)
    qkv, weight = random(6, 10 * 128), random(128)
    heads = qkv[:, 256 : 256 + 3 * 128].unflatten(1, (3, 128))
    yield "rmsnorm of heads", lambda backend, w=weight: ops.rmsnorm(heads, w, backend=backend)
    for M, K in ((3, 128), (5, 2560), (2, 33024)):
        x, residual, weight = random(M, K), random(M, K), random(K)

        def fused(backend, x=x, residual=residual, weight=weight):
            stream = residual.clone()
            q, scale = ops.fused_add_rmsnorm_quant_fp8(
                x, stream, weight, scale_layout="column_tma", backend=backend
            )
            return stream, q.float(), scale

        yield f"fused_add_rmsnorm_quant_fp8 {M}x{K}", fused
    for M, K in ((1, 128), (7, 1152), (5, 1003), (65, 4096)):
        x = random(M, K)
        yield (
            f"per_token_group_quant_fp8 {M}x{K}",
            lambda backend, x=x: [t.float() for t in ops.per_token_group_quant_fp8(x, backend=backend)],
        )
        yield (
            f"per_token_group_quant_fp8 {M}x{K}, SGLang's rounding",
            lambda backend, x=x: [
                t.float() for t in ops.per_token_group_quant_fp8(x, rounding="sglang", backend=backend)
            ],
        )
    for M, N, K in ((1, 5, 7), (1, 129, 2560), (3, 50, 1003), (8, 33, 4096)):
        x, W = random(M, K), random(N, K)
        yield f"gemv {M}x{N}x{K}", lambda backend, x=x, W=W: ops.gemv(x, W, backend=backend)
        scaled = per_block_quant_fp8(W)
        pair = per_token_group_quant_fp8(x)
        yield (
            f"gemv {M}x{N}x{K} e4m3",
            lambda backend, x=pair, W=scaled: ops.gemv(x, W, backend=backend),
        )


def run_cases() -> None:
    """Launch each once with each backend and compare with PyTorch; this is what the tools watch."""
    import torch

    for name, call in cases():
        wanted = call("torch")
        for backend in ("triton", "tilelang"):
            result = call(backend)
            torch.cuda.synchronize()
            pairs = zip(*(r if isinstance(r, list | tuple) else [r] for r in (result, wanted)), strict=True)
            close = all(torch.allclose(a.float(), b.float(), rtol=1e-2, atol=0.1) for a, b in pairs)
            print(f"{name}, {backend}: {'right' if close else 'WRONG'}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<device>/sanitizer_ops.txt")
    parser.add_argument("--run-cases", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run_cases:
        run_cases()
        return 0
    from tilelang_gemm_wrapper.core.bench import require_gpu
    from tilelang_gemm_wrapper.core.device import device_of

    require_gpu()
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        print("compute-sanitizer is not on the PATH; it comes with the CUDA toolkit", file=sys.stderr)
        return 2
    run = [sys.executable, __file__, "--run-cases"]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL)  # compilers need no watching
    path = options.output or Path(__file__).parent / "results" / device_of(0).name / "sanitizer_ops.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    clean = True
    with path.open("w") as file:
        for tool in TOOLS:
            finished = subprocess.run(
                [sanitizer, "--tool", tool, "--error-exitcode", "9", *run],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            )
            lines = [line for line in finished.stdout.splitlines() if line.startswith("====") or ": " in line]
            report = f"compute-sanitizer --tool {tool}: status {finished.returncode}\n"
            report += "\n".join(lines) + "\n"
            file.write(report)
            print(report)
            clean &= finished.returncode == 0 and "WRONG" not in report and ": right" in report
            if finished.returncode not in (0, 9):
                print(finished.stderr[-2000:], file=sys.stderr)
    return 0 if clean else 1


if __name__ == "__main__":
    from tilelang_gemm_wrapper.core.arguments import ending_in_one_line

    sys.exit(ending_in_one_line(Path(__file__).name, main))
