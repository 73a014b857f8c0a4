"""The kernel lab on a GPU: every level gives the package's bits, edits are seen, and nothing stays behind."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tilelang_gemm_wrapper.lab import compile_from, dump, launch_latency, run_from
from tilelang_gemm_wrapper.lab.dumps import level_path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
M, N, K = 13, 512, 512
GEMMS = ("base", "splitK", "splitK_swapAB")
OPS = ("gemv_triton", "gemv_tilelang", "rmsnorm_triton", "rmsnorm_tilelang")


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("benchmark_lab")


@pytest.mark.parametrize("kernel", ["swapAB", "triton_gemm"])
def test_levels_and_edits(script, kernel: str) -> None:
    """Each level unedited gives the bits of the package's own launch, each edit is seen."""
    environment = script.Environment.here("here", None)
    rows = script.rows_of(kernel, M, N, K, environment, bench=False)
    assert len(rows) >= 9
    assert [row for row in rows if not row.is_right] == []


@pytest.mark.parametrize("kernel", GEMMS + OPS)
def test_other_kernels(tmp_path: Path, kernel: str) -> None:
    sizes = {"M": M if "gemv" not in kernel else None, "N": None if "rmsnorm" in kernel else N, "K": K}
    written = dump(kernel, tmp_path, **sizes)
    results = [run_from(level_path(tmp_path, level)) for level in written.levels]
    for run in results:
        assert run.passed, (run.compiled.file.level, run.errors)
        for name, output in run.outputs.items():
            assert torch.equal(output, results[0].outputs[name])


USERS_KERNEL = """
import torch, triton
import triton.language as tl
from tilelang_gemm_wrapper.lab import Launch, TritonCase

@triton.jit
def add_one(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, mask=at < n) + 1.0, mask=at < n)

def case(arch):
    def launch(device):
        x = torch.arange(1000.0, device=device)
        arguments = {"x": x, "out": torch.full_like(x, torch.nan), "n": 1000, "BLOCK": 256}
        return Launch(arguments, ("out",), lambda: {"out": x + 1}, max_error=0.0)
    return TritonCase(add_one, (4,), launch, {"num_warps": 2})
"""


def test_a_kernel_of_the_users(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(USERS_KERNEL)
    folder = tmp_path / "dump"
    dump(f"{file}:case", folder)
    ttir = folder / "kernel.ttir"
    assert run_from(ttir, bench=True).passed
    ttir.write_text(ttir.read_text().replace("dense<1.0", "dense<2.0"))
    run = run_from(ttir)
    assert not run.passed
    assert torch.equal(run.outputs["out"], torch.arange(1000.0, device="cuda") + 2)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    dump("swapAB", tmp_path, arch="sm_89", N=N, K=K)
    compile_from(tmp_path / "kernel.ptx")
    with pytest.raises(ValueError, match="compiled for sm_89"):
        run_from(tmp_path / "kernel.ptx")


ORDINARY = """
import torch
from tilelang_gemm_wrapper import gemm_nt_f8f8bf16
from tilelang_gemm_wrapper.core.workload import random_workload, reference, error
w = random_workload({M}, {N}, {K}, "cuda")
C = gemm_nt_f8f8bf16((w.A, w.A_scale), (w.B, w.B_scale), w.empty_output())
print(error(C, reference(w)))
"""


def test_an_ordinary_process_gets_the_ordinary_kernel(
    script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one cache for the lab's run of a doubled kernel and the process after it."""
    cache = tmp_path / "cache"
    for variable in ("TILELANG_GEMM_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(variable, str(cache / variable))
    code = f"""
import sys; sys.path.insert(0, {str(BENCHMARKS)!r})
from pathlib import Path
import benchmark_lab
from tilelang_gemm_wrapper.lab import dump, run_from
for kernel in ("swapAB", "triton_gemm"):
    folder = Path({str(tmp_path)!r}, kernel)
    dump(kernel, folder, M={M}, N={N}, K={K})
    print(run_from(benchmark_lab.edited(folder, kernel, benchmark_lab.EDITS[kernel][0])).passed)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
    for fallback in ("0", "1"):
        monkeypatch.setenv("SGLANG_ENABLE_TILELANG_GEMM", fallback)
        monkeypatch.setenv("TILELANG_GEMM_FALLBACK", "triton")
        code = ORDINARY.format(M=M, N=N, K=K)
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert float(run.stdout) < 3e-6


def test_launch_latency() -> None:
    rows = launch_latency.launch_latency()
    timed = [row for row in rows if row.host_p50_us is not None]
    assert len(timed) >= 12
    assert all(0.5 < row.host_p50_us < 200 for row in timed)
    assert "TileLang: TVM-FFI function" in launch_latency.table(rows)
