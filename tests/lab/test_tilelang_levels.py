"""TileLang kernels dumped at every level and compiled from each again, without a GPU, on every release."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tilelang_gemm_wrapper import configurer

pytest.importorskip("tilelang")
pytestmark = pytest.mark.skipif(configurer.find_nvcc() is None, reason="nvcc was not found")

from tilelang_gemm_wrapper.lab import compile_from, dump  # noqa: E402
from tilelang_gemm_wrapper.lab.dumps import LEVELS, level_path  # noqa: E402
from tilelang_gemm_wrapper.lab.resources import disassembly  # noqa: E402


def code(cubin: bytes) -> list[str]:
    """The instructions. The cubins differ: names of nvcc's own variables change from run to run."""
    sass = disassembly(cubin)
    if sass is None:
        pytest.skip("nvdisasm was not found")
    return re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", sass)


@pytest.mark.parametrize(
    ("kernel", "arch"),
    [
        ("swapAB", "sm_90a"),
        ("splitK", "sm_89"),  # two kernels in one cubin
        ("gemv_tilelang", "sm_100"),
        ("rmsnorm_tilelang", "sm_80"),
    ],
)
def test_every_level_leads_to_the_same_code(tmp_path: Path, kernel: str, arch: str) -> None:
    sizes = {} if kernel == "rmsnorm_tilelang" else {"N": 256}
    written = dump(kernel, tmp_path, arch=arch, K=512, **sizes)
    assert tuple(written.levels) == LEVELS["tilelang"]
    assert written.read_only == {}
    expected = code((tmp_path / "kernel.cubin").read_bytes())
    assert len(expected) > 50
    for level in written.levels:
        compiled = compile_from(level_path(tmp_path, level))
        assert code(compiled.built.cubin) == expected, level
        assert not compiled.edited


def test_the_code_is_what_tilelang_itself_compiles(tmp_path: Path) -> None:
    """The lab's nvcc and ptxas, one after the other, against TileLang's own callback."""
    import tvm_ffi
    from tilelang.jit.kernel import JITKernel

    from tilelang_gemm_wrapper.lab.builtin_cases import BUILTIN, parameters_of

    dump("swapAB", tmp_path)
    case = BUILTIN["swapAB"].make(parameters_of("swapAB", {}, {}, "sm_90a"), "sm_90a")
    usual = tvm_ffi.get_global_func("tilelang_callback_cuda_compile")
    cubins = []

    def keep(source, target, pass_config=None):
        cubin = usual(source, target, pass_config)
        cubins.append(bytes(cubin))
        return cubin

    tvm_ffi.register_global_func("tilelang_callback_cuda_compile", keep, override=True)
    try:
        JITKernel(
            case.function,
            target={"kind": "cuda", "arch": "sm_90a"},
            execution_backend="tvm_ffi",
            pass_configs=dict(case.pass_configs),
        )
    finally:
        tvm_ffi.register_global_func("tilelang_callback_cuda_compile", usual, override=True)
    assert code(cubins[0]) == code((tmp_path / "kernel.cubin").read_bytes())


PROMOTED = "scale_strip[k, j]"
EDITS = {
    "python": ("partial[i, j] * scale_strip[k, j]", "partial[i, j] + scale_strip[k, j]"),
    "tir": ("* scale_strip[k, j]", "+ scale_strip[k, j]"),
    "cu": ("store_share<units, First", "partial[0] = 0; store_share<units, First"),
    "ptx": ("cvt.rn.bf16x2.f32", "cvt.rz.bf16x2.f32"),
}


@pytest.fixture(scope="module")
def swap_ab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swap_ab")
    dump("swapAB", folder, N=256, K=512)
    return folder


@pytest.mark.parametrize("level", EDITS)
def test_an_edit_is_compiled(swap_ab: Path, level: str) -> None:
    """By content: an edit of the same length with the old time stamp counts."""
    module = "tilelang_gemm_wrapper.core.kernels.swapped.py"
    file = swap_ab / "python" / module if level == "python" else level_path(swap_ab, level)
    original, stamp = file.read_text(), file.stat()
    old, new = EDITS[level]
    assert old in original
    try:
        file.write_text(original.replace(old, new))
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        edited = compile_from(file)
    finally:
        file.write_text(original)
    assert edited.edited
    assert code(edited.built.cubin) != code((swap_ab / "kernel.cubin").read_bytes())


def test_compilers_reasons_are_passed_on(swap_ab: Path) -> None:
    for level, old, new, reason in (
        ("tir", "T.wait_wgmma(0)", "T.wait_wgmmas(0)", "cannot read the TIR"),
        ("cu", "__syncthreads();", "__syncthreadz();", "__syncthreadz"),
        ("ptx", "cvt.rn.bf16x2.f32", "cvt.rn.bf17x2.f32", "ptxas"),
    ):
        file = level_path(swap_ab, level)
        original = file.read_text()
        file.write_text(original.replace(old, new))
        try:
            with pytest.raises(RuntimeError, match=reason):
                compile_from(file)
        finally:
            file.write_text(original)


@pytest.mark.parametrize("arch", ["sm_100", "sm_120"])
def test_adas_gemm_compiles_for_newer_chips(tmp_path: Path, arch: str) -> None:
    (resources,) = dump("swapAB", tmp_path, arch=arch, N=256, K=512).resources
    assert "mma" in resources["instructions"]


def test_a_chip_without_the_instructions_is_refused(tmp_path: Path) -> None:
    from tilelang_gemm_wrapper.lab.builtin_cases import BUILTIN, parameters_of
    from tilelang_gemm_wrapper.lab.kernels import build

    case = BUILTIN["swapAB"].make(parameters_of("swapAB", {}, {}, "sm_90a"), "sm_90a")
    with pytest.raises(RuntimeError):
        build(case, "sm_89", "python", "", {})  # Hopper's source for Ada


def test_the_report_counts_what_the_kernel_is_built_from(swap_ab: Path) -> None:
    (resources,) = json.loads((swap_ab / "dump.json").read_text())["resources"]
    assert resources["threads"] == 288
    assert resources["dynamic_shared_bytes"] > 20000
    if resources["counted_in"] == "PTX":
        pytest.skip("nvdisasm was not found")
    assert resources["static_shared_bytes"] == 1024  # the barriers, with their alignment
    assert {"wgmma", "TMA load", "mbarrier"} <= set(resources["instructions"])
    assert not {"local load", "local store", "mma"} & set(resources["instructions"])
    assert resources["limited_by"] == "shared memory"
