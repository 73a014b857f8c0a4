"""Triton kernels dumped at every level and compiled from each again, without a GPU, on several releases."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed on this platform")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton compiles nothing in a process that interprets", allow_module_level=True)

from tilelang_gemm_wrapper.lab import compile_from, dump  # noqa: E402
from tilelang_gemm_wrapper.lab.dumps import LEVELS, level_path  # noqa: E402

from .lab_cases import write_add  # noqa: E402

HAS_PDL = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 5)  # the ops' kernels use it on Hopper


@pytest.mark.parametrize("arch", ["sm_89", "sm_90a", "sm_100", "sm_120"])
@pytest.mark.parametrize("kernel", ["triton_gemm", "gemv_triton", "rmsnorm_triton"])
def test_every_level_leads_to_the_same_cubin(tmp_path: Path, kernel: str, arch: str) -> None:
    if not HAS_PDL and kernel != "triton_gemm" and arch != "sm_89":
        pytest.skip(f"Triton {triton.__version__} has no programmatic dependent launch")
    written = dump(kernel, tmp_path, arch=arch)
    assert tuple(written.levels) == LEVELS["triton"]
    cubin = (tmp_path / "kernel.cubin").read_bytes()
    for level in written.levels:
        compiled = compile_from(level_path(tmp_path, level))
        assert compiled.built.cubin == cubin, level
        assert not compiled.edited
        assert compiled.built.launches == {
            resources["entry"]: (resources["threads"], resources["dynamic_shared_bytes"])
            for resources in written.resources
        }


@pytest.mark.parametrize("arch", ["sm_80", "sm_86"])
def test_older_chips(tmp_path: Path, arch: str) -> None:
    """RMSNorm runs there; e4m3 does not, and the compiler's reason is passed on."""
    assert dump("rmsnorm_triton", tmp_path / "norm", arch=arch).resources[0]["registers"] > 0
    with pytest.raises(RuntimeError, match="fp8e4nv not supported"):
        dump("triton_gemm", tmp_path / "gemm", arch=arch)


EDITS = {
    "python": ("+ STEP", "+ 2 * STEP"),
    "ttir": ("dense<1.0", "dense<3.0"),
    "ttgir": ("dense<1.0", "dense<3.0"),
    "llir": ("1.000000e+00", "3.000000e+00"),
    "ptx": ("0f3F800000", "0f40400000"),
}


@pytest.mark.parametrize("level", EDITS)
def test_an_edit_of_a_users_kernel_is_compiled(tmp_path: Path, level: str) -> None:
    """By content: an edit of the same length with the old time stamp counts, and so does taking it back."""
    folder = tmp_path / "dump"
    dump(write_add(tmp_path), folder)
    file = folder / "python" / "adding.py" if level == "python" else level_path(folder, level)
    original, stamp = file.read_text(), file.stat()
    old, new = EDITS[level]
    cubin = compile_from(file).built.cubin
    assert old in original
    file.write_text(original.replace(old, new))
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    edited = compile_from(file)
    assert edited.edited
    assert edited.built.cubin != cubin
    file.write_text(original)
    assert compile_from(file).built.cubin == cubin


def test_the_number_of_warps_of_an_edited_ttgir_counts(tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    dump(write_add(tmp_path), folder)
    ttgir = folder / "kernel.ttgir"
    text = ttgir.read_text().replace('"ttg.num-warps" = 2', '"ttg.num-warps" = 4')
    ttgir.write_text(text.replace("warpsPerCTA = [2]", "warpsPerCTA = [4]"))
    assert compile_from(ttgir).built.launches == {"add": (128, 0)}


def test_a_stage_that_refuses_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "dump"
    dump(write_add(tmp_path), folder)
    ptx = folder / "kernel.ptx"
    ptx.write_text(ptx.read_text().replace("add.f32", "add.f33").replace("add.rn.f32", "add.f33"))
    with pytest.raises(RuntimeError, match="refuses the kernel at cubin"):
        compile_from(ptx)
    assert "Repro command" not in capfd.readouterr().out  # with the whole PTX, as Triton prints it


def test_arguments_are_specialised_as_tritons_jit_does(tmp_path: Path) -> None:
    """The lab's source has the types, constants and alignments that a launch through Triton has."""
    from tilelang_gemm_wrapper.lab.builtin_cases import BUILTIN, parameters_of
    from tilelang_gemm_wrapper.lab.triton_levels import source_of

    parameters = parameters_of("triton_gemm", {"M": 16, "N": 4096, "K": 2560}, {}, "sm_90a")
    case = BUILTIN["triton_gemm"].make(parameters, "sm_90a")
    source = source_of(case)
    assert source.signature["A"] == "*fp8e4nv"
    assert source.signature["M"] == source.signature["stride_am"] == "i32"  # although the stride is 1
    aligned = {case.kernel.arg_names[index] for (index,) in source.attrs}
    assert aligned == {"A", "B", "C", "N", "K", "stride_cm"}  # as the kernel's do_not_specialize lists leave
    assert source.constants[case.kernel.arg_names.index("WHOLE_K"),] is True
