"""The DeepGEMM backend with a stand-in for the library: when it says no, and what it passes on."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tilelang_gemm_wrapper.backends import deep_gemm
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES, cpu_device
from tilelang_gemm_wrapper.core.workload import Workload, integer_workload, reference

H200 = KNOWN_DEVICES["NVIDIA_H200"]

# Computes what the library would, refuses what it would misread, and keeps a record.
STAND_IN = """
import torch
from tilelang_gemm_wrapper.backends import torch_reference

calls = []

def get_mn_major_tma_aligned_tensor(sf):
    calls.append("transpose")
    assert sf.is_contiguous()
    rows, groups = sf.shape
    return torch.zeros(groups, -(-rows // 4) * 4).t()[:rows].copy_(sf)

def fp8_gemm_nt(a, b, d, *, disable_ue8m0_cast):
    assert disable_ue8m0_cast
    assert a[1].stride() == (1, -(-a[0].shape[0] // 4) * 4) and a[1].data_ptr() % 16 == 0
    calls.append("gemm")
    torch_reference.gemm(*a, *b, d)
"""


def forget() -> None:
    deep_gemm.why_unavailable.cache_clear()
    deep_gemm._deep_gemm.cache_clear()
    sys.modules.pop("deep_gemm", None)
    importlib.invalidate_caches()


@pytest.fixture(autouse=True)
def no_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hides an installed library, and what the machine has of a CUDA toolkit."""
    for variable in ("CUDA_HOME", "CUDA_PATH", "DG_JIT_USE_NVRTC", "DG_JIT_NVCC_COMPILER"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(deep_gemm.shutil, "which", lambda name: None)
    forget()
    yield
    forget()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """install(source) makes `import deep_gemm` run that source, with a CUDA toolkit beside it."""

    def write(source: str) -> None:
        (tmp_path / "deep_gemm.py").write_text(source)
        (tmp_path / "cuda" / "bin").mkdir(parents=True)
        (tmp_path / "cuda" / "bin" / "nvcc").touch()
        monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()

    return write


def gemm(workload: Workload) -> torch.Tensor:
    C = workload.empty_output()
    deep_gemm.gemm(workload.A, workload.A_scale, workload.B, workload.B_scale, C)
    return C


@pytest.mark.parametrize("device", [cpu_device(), KNOWN_DEVICES["NVIDIA_L40S"], replace(H200, arch="sm_100")])
def test_hopper_only(device, install: Callable[[str], None]) -> None:
    install(STAND_IN)
    assert f"Hopper (sm_90a) only; {device.name} is {device.arch}" in deep_gemm.why_unavailable(device)


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep_gemm.importlib.util, "find_spec", lambda name: None)
    assert "not installed: pip install sgl-deep-gemm" in deep_gemm.why_unavailable(H200)


def test_import_that_fails_is_quoted(install: Callable[[str], None]) -> None:
    install("raise RuntimeError('undefined symbol: _ZN3c10')")
    reason = deep_gemm.why_unavailable(H200)
    assert "RuntimeError: undefined symbol: _ZN3c10" in reason
    assert f"torch {torch.__version__}" in reason


def test_no_compiler(install: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(STAND_IN)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "elsewhere"))
    assert f"there is no {tmp_path}/elsewhere/bin/nvcc: set CUDA_HOME" in deep_gemm.why_unavailable(H200)
    deep_gemm.why_unavailable.cache_clear()
    monkeypatch.setenv("DG_JIT_USE_NVRTC", "1")
    assert f"there is no {tmp_path}/elsewhere: set CUDA_HOME" in deep_gemm.why_unavailable(H200)


def test_compiler_on_the_path_will_do(
    install: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(STAND_IN)
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setattr(deep_gemm.shutil, "which", lambda name: str(tmp_path / "cuda" / "bin" / name))
    assert deep_gemm.why_unavailable(H200) is None
    deep_gemm.why_unavailable.cache_clear()
    monkeypatch.setattr(deep_gemm.shutil, "which", lambda name: f"/nowhere/bin/{name}")
    assert "there is no /nowhere/bin/nvcc" in deep_gemm.why_unavailable(H200)


def test_available(install: Callable[[str], None]) -> None:
    install(STAND_IN)
    assert deep_gemm.why_unavailable(H200) is None


def test_shapes() -> None:
    assert deep_gemm.why_unsupported(2112, 7168) is None
    assert deep_gemm.why_unsupported(24, 128) is None
    assert "N to be a multiple of 8, N is 20" in deep_gemm.why_unsupported(20, 128)
    assert "multiples of 128 for K, K is 144" in deep_gemm.why_unsupported(24, 144)


@pytest.mark.parametrize("M", [1, 3, 4, 130])
@pytest.mark.parametrize(
    ("scale_layout", "calls"), [("row", ["transpose", "gemm"]), ("column_tma", ["gemm"])]
)
def test_scales_are_transposed_only_where_needed(
    M: int, scale_layout: str, calls: list[str], install: Callable[[str], None]
) -> None:
    install(STAND_IN)
    workload = integer_workload(M, 24, 256, scale_layout=scale_layout)
    assert torch.equal(gemm(workload), reference(workload).bfloat16())
    assert sys.modules["deep_gemm"].calls == calls


def test_column_scales_off_a_16_byte_address_are_transposed(install: Callable[[str], None]) -> None:
    install(STAND_IN)
    whole = integer_workload(8, 24, 256, scale_layout="column_tma")
    part = Workload(whole.A[1:7], whole.A_scale[1:7], whole.B, whole.B_scale)  # 8 apart, as 6 rows should be
    assert torch.equal(gemm(part), reference(part).bfloat16())
    assert sys.modules["deep_gemm"].calls == ["transpose", "gemm"]


@pytest.mark.parametrize(("M", "N"), [(0, 16), (16, 0)])
def test_empty_output_needs_no_library(M: int, N: int) -> None:
    assert gemm(integer_workload(M, N, 128)).shape == (M, N)
