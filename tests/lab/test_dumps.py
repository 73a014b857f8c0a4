"""What is refused, and why: other folders, levels, kernels, architectures, compilers; and what is said."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fresh_python import printed_by

pytest.importorskip("triton", reason="Triton is not installed on this platform")

from tilelang_gemm_wrapper.lab import compile_from, diff, dump, kernels, run_from
from tilelang_gemm_wrapper.lab.builtin_cases import BUILTIN
from tilelang_gemm_wrapper.lab.command import KERNELS, parsed_config
from tilelang_gemm_wrapper.lab.dumps import Dump, cubin_capability, ptx_parameters

from .lab_cases import write_add

FIELDS = {"block_M": 64, "block_N": 16, "num_stages": 4, "threads": 256}
TILE = {"block_M": 64, "block_N": 64, "group_M": 8, "num_warps": 4, "num_stages": 3}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dump of the user's kernel, beside the file with the kernel."""
    folder = tmp_path_factory.mktemp("add")
    dump(write_add(folder), folder / "dump")
    return folder / "dump"


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "dump"))


def change(folder: Path, **fields: Any) -> None:
    manifest = folder / "dump.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | fields))


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "file", "reason"),
    [
        (lambda d: (d / "dump.json").unlink(), "kernel.ptx", "is no dump: it has no dump.json; make one"),
        (lambda d: (d / "dump.json").write_text("{"), "kernel.ptx", "is no JSON"),
        (lambda d: (d / "dump.json").write_bytes(b"\xff"), "kernel.ptx", "dump.json is no JSON"),
        (lambda d: change(d, format=0), "kernel.ptx", "has format 0, expected 1"),
        (lambda d: change(d, colour="red"), "kernel.ptx", "dump.json is incomplete .*colour"),
        (lambda d: (d / "dump.json").write_text('{"format": 1}'), "kernel.ptx", "is incomplete .*kernel"),
        (lambda d: change(d, language="cutlass"), "kernel.ptx", "is of unknown 'cutlass', 'sm_90a'"),
        (lambda d: (d / "kernel.ptx").unlink(), "kernel.ptx", "does not exist"),
        (lambda d: None, "kernel.sass", "is no level of"),
        (lambda d: None, "dump.json", "is no level of"),
        (lambda d: change(d, compiler={"triton": "3.0.0"}), "kernel.ttir", "triton 3.0.0 and .* installed"),
        (lambda d: change(d, modules={"adding": "0"}), "kernel.cubin", "adding has changed since"),
        (lambda d: change(d, arch="sm_89"), "kernel.ptx", "compiled for sm_90 and this dump is of sm_89"),
        (lambda d: change(d, arch="sm_89"), "kernel.cubin", "compiled for sm_90 and this dump is of sm_89"),
        (lambda d: change(d, arch="sm_89"), "kernel.ttgir", "compiled for sm_90 and this dump is of sm_89"),
        (lambda d: (d / "kernel.cubin").write_bytes(b"\x7fELF"), "kernel.cubin", "does not define add"),
        (lambda d: replace(d / "kernel.ptx", "entry add", "entry sub"), "kernel.ptx", "does not define add"),
        (lambda d: replace(d / "kernel.ttir", "@add", "@sub"), "kernel.ttir", "does not define add"),
        (lambda d: replace(d / "kernel.llir", "@add(", "@sub("), "kernel.llir", "does not define add"),
        (lambda d: change(d, read_only={"ptx": "a reason"}), "kernel.ptx", "is for reading only: a reason"),
        (lambda d: (d / "python/adding.py").unlink(), "python", "adding.py is missing"),
    ],
)  # fmt: skip
def test_refusals(folder: Path, spoil: Callable[[Path], Any], file: str, reason: str) -> None:
    spoil(folder)
    with pytest.raises(ValueError, match=reason):
        compile_from(folder / file)


def test_other_parameters_are_refused(folder: Path) -> None:
    """The launcher hands over the original's: another kernel would read past them."""
    ptx = folder / "kernel.ptx"
    first = re.search(r"\.param [^,]*add_param_0,\n", ptx.read_text())
    assert first is not None
    extra = first[0].replace("add_param_0", "add_param_x")
    replace(ptx, first[0], first[0] + extra)
    with pytest.raises(ValueError, match=r"takes the parameters \(\.u64, \.u64, .* and is launched with"):
        compile_from(ptx)


def test_a_file_under_another_name_is_of_its_ending(folder: Path) -> None:
    shutil.copy(folder / "kernel.ptx", folder / "faster.ptx")
    assert compile_from(folder / "faster.ptx").file.level == "ptx"


def test_other_edits_are_named(folder: Path) -> None:
    replace(folder / "kernel.ttir", "dense<1.0", "dense<2.0")
    compiled = compile_from(folder / "kernel.ptx")
    assert not compiled.edited
    assert compiled.others_edited == ["ttir"]
    (folder / "python" / "adding.py").unlink()  # not needed from here on
    assert compile_from(folder / "kernel.ptx").others_edited == ["ttir"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_running_needs_a_gpu(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="needs a GPU of sm_90a to run, and torch sees none"):
        run_from(folder / "kernel.ptx")


@pytest.mark.parametrize(
    ("kernel", "options", "reason"),
    [
        ("swapBA", {}, r"kernel 'swapBA' is not known; did you mean swapAB\? Expected one of base"),
        ("splitk_swapab", {}, r"did you mean splitK_swapAB\?"),
        ("cutlass", {}, "kernel 'cutlass' is not known; expected one of base, swapAB"),
        ("missing.py:case", {}, "missing.py does not exist"),
        ("swapAB", {"arch": "sm_75"}, "arch is 'sm_75'; expected one of sm_80"),
        ("gemv_triton", {"M": 4}, "gemv_triton has no M; its sizes are N, K"),
        ("gemv_triton", {"config": {"block_M": 64}}, "gemv_triton has no config"),
        ("swapAB", {"config": FIELDS | {"block_M": 63}}, "block_M = 63"),
        ("swapAB", {"config": {"threads": 256}}, "has no block_M, block_N, num_stages; give every field"),
        ("splitK", {"config": FIELDS}, "the config has no split_k; give every field"),
        ("swapAB", {"N": 100}, "N = 100"),
        ("swapAB", {"config": {"blockM": 64}}, "has no field blockM; its fields are block_K, block_M"),
        ("triton_gemm", {"config": {"stages": 4}}, "the config has no field stages; its fields are block_M"),
        ("triton_gemm", {"config": {"block_M": 64}}, "has no block_N, group_M, num_stages, num_warps; give"),
        ("triton_gemm", {"config": TILE | {"block_M": 63}}, "block_M = 63; expected a power of 2 from 16"),
        ("triton_gemm", {"config": TILE | {"block_N": 256}}, "block_N = 256; expected a power of 2 from 16"),
        ("triton_gemm", {"config": TILE | {"num_warps": 3}}, "num_warps = 3; expected a power of 2 from 1"),
        ("triton_gemm", {"config": TILE | {"group_M": 0}}, "group_M = 0; expected at least 1"),
        ("swapAB", {"M": -4}, "M is -4, expected a whole number of at least 1"),
        ("base", {"M": 0}, "M is 0, expected a whole number of at least 1"),
        ("splitK", {"K": 100}, "K = 100 is not a multiple of 128, as the TileLang kernels need; triton_gemm"),
        ("gemv_triton", {"K": 0}, "K is 0, expected a whole number"),
        ("rmsnorm_tilelang", {"K": 2**40}, "K is 1099511627776, .* at most 2147483647"),
        ("triton_gemm", {"N": 16.0}, "N is 16.0, expected a whole number"),
    ],
)  # fmt: skip
def test_what_cannot_be_dumped(tmp_path: Path, kernel: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        dump(kernel, tmp_path / "dump", **options)
    assert not (tmp_path / "dump" / "dump.json").exists()


@pytest.mark.parametrize("place", ["/proc/x", "file/below", "file"])
def test_a_place_that_cannot_be_written_is_told_before_compiling(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "build", lambda *_: pytest.fail("compiled"))
    (tmp_path / "file").write_text("here")
    with pytest.raises(ValueError, match=r"cannot be written to|is a file; give a folder"):
        dump("rmsnorm_triton", tmp_path / place)


def test_a_dump_that_fails_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("the compiler refuses")

    monkeypatch.setattr(kernels, "build", refuse)
    with pytest.raises(RuntimeError, match="the compiler refuses"):
        dump("rmsnorm_triton", tmp_path / "some" / "where")
    assert not list(tmp_path.iterdir())


def test_options_that_triton_refuses_are_told(tmp_path: Path) -> None:
    kernel = write_add(tmp_path)
    replace(tmp_path / "adding.py", '{"num_warps": 2}', '{"num_warps": 3}')
    with pytest.raises(
        RuntimeError, match="refuses the kernel at its options: num_warps must be a power of 2"
    ):
        dump(kernel, tmp_path / "dump")


def test_help_needs_neither_torch_nor_a_compiler() -> None:
    code = (
        "import sys\n"
        "from tilelang_gemm_wrapper.cli import main\n"
        "for arguments in (['lab', '--help'], ['lab', 'dump', '--help'], ['lab', 'dump', '--M', '0']):\n"
        "    try:\n        main(arguments)\n"
        "    except SystemExit:\n        continue\n"
        "    raise AssertionError('no end')\n"
        "assert not {'torch', 'triton', 'tilelang', 'numpy'} & set(sys.modules)\n"
    )
    assert ", ".join(BUILTIN) in " ".join(printed_by(code).split())


def test_the_named_kernels_are_the_builtin_ones() -> None:
    assert tuple(BUILTIN) == KERNELS


def test_user_functions_that_are_no_cases(tmp_path: Path) -> None:
    file = write_add(tmp_path).removesuffix(":case")
    with pytest.raises(ValueError, match="has no function 'cases'"):
        dump(f"{file}:cases", tmp_path / "dump")
    with pytest.raises(ValueError, match=r"not_a_case .* returned a NoneType; expected a TritonCase or"):
        dump(f"{file}:not_a_case", tmp_path / "dump")
    with pytest.raises(ValueError, match="N cannot be given with"):
        dump(f"{file}:case", tmp_path / "dump", N=4)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def case(:\n", r"own\.py, line 1: SyntaxError: invalid syntax"),
        ("\n1 / 0\n", r"own\.py, line 2: ZeroDivisionError: division by zero; correct the file"),
        ("def case(arch):\n    return {}[arch]\n", r"own\.py, line 2: KeyError: 'sm_90a'"),
        ("def case():\n    pass\n", r"own\.py: TypeError: case\(\) takes 0 positional arguments"),
        ("import sys\nsys.exit(3)\n", r"own\.py, line 2: SystemExit: 3"),
        (b"\xff", r"own\.py is no Python source \(UnicodeDecodeError"),
    ],
)
def test_a_user_file_that_is_wrong_is_told_with_its_line(
    tmp_path: Path, source: str | bytes, reason: str
) -> None:
    file = tmp_path / "own.py"
    file.write_bytes(source if isinstance(source, bytes) else source.encode())
    with pytest.raises(ValueError, match=reason):
        dump(f"{file}:case", tmp_path / "dump")
    assert not (tmp_path / "dump").exists()


@pytest.mark.parametrize("name", ["json.py", "triton.py", "my-kernel.py"])
def test_a_file_named_like_another_module(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match="cannot be imported as"):
        dump(f"{tmp_path / name}:case", tmp_path / "dump")


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds other files than a dump; give an empty folder"):
        dump("rmsnorm_triton", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_dump_takes_the_place_of_an_earlier_one(folder: Path) -> None:
    dump("rmsnorm_triton", folder, K=512)
    assert Dump.read(folder).kernel == "rmsnorm_triton"
    assert not (folder / "python" / "adding.py").exists()
    with pytest.raises(RuntimeError, match="fp8e4nv not supported"):
        dump("triton_gemm", folder, arch="sm_80")
    assert Dump.read(folder).kernel == "rmsnorm_triton"  # one that fails takes nobody's place
    assert compile_from(folder / "kernel.ptx").built.launches


@pytest.mark.parametrize("file", ["kernel.ptx", "python/adding.py"])
def test_what_has_been_edited_is_not_overwritten(folder: Path, file: str) -> None:
    replace(folder / file, "add", "sub")
    level = "python" if "python" in file else "ptx"
    with pytest.raises(ValueError, match=f"whose {level} has been edited, which would be lost"):
        dump("rmsnorm_triton", folder)
    assert "sub" in (folder / file).read_text()


def test_modules_are_put_back(folder: Path) -> None:
    """Building from edited modules leaves the process's own as they were."""
    code = f"""
import sys
from tilelang_gemm_wrapper.backends import _triton_kernel
from tilelang_gemm_wrapper.lab import compile_from, dump
before = dict(sys.modules)
dump("triton_gemm", {str(folder / "gemm")!r})
compile_from({str(folder / "gemm/python")!r})
import tilelang_gemm_wrapper.backends as package
assert package._triton_kernel is _triton_kernel is sys.modules[_triton_kernel.__name__]
assert all(sys.modules[name] is module for name, module in before.items())
assert not [finder for finder in sys.meta_path if "lab" in type(finder).__module__]
print("as before")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "as before\n", run.stderr


def test_nothing_is_put_into_the_compilers_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by dumping nor by compiling an edit: an ordinary process compiles for itself."""
    names = ("TILELANG_CACHE_DIR", "TILELANG_GEMM_CACHE_DIR", "TRITON_CACHE_DIR")
    for name in names:
        monkeypatch.setenv(name, str(tmp_path / name))
    code = f"""
from pathlib import Path
from tilelang_gemm_wrapper import configurer
from tilelang_gemm_wrapper.lab import compile_from, dump
for kernel in ["triton_gemm"] + (["rmsnorm_tilelang"] if configurer.find_nvcc() else []):
    folder = Path({str(tmp_path)!r}, kernel)
    dump(kernel, folder)
    ptx = folder / "kernel.ptx"
    ptx.write_text(ptx.read_text().replace("cvt.rn.bf16x2.f32", "cvt.rz.bf16x2.f32"))
    assert compile_from(ptx).edited
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    kept = [path for name in names for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert [path for path in kept if path.suffix in (".cubin", ".ptx", ".cu", ".so", ".ttir")] == []


def test_diff(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    assert "python: the same\n\nttir: the same" in diff(folder, other)
    replace(other / "kernel.ttir", "dense<1.0", "dense<2.0")
    (other / "kernel.cubin").write_bytes(b"another")
    text = diff(folder, other)
    assert "registers a thread" in text
    assert re.search(r"spill loads, stores +\| 0, 0", text)
    assert "ttir: 2 lines differ" in text
    assert re.search(r"^\+.*dense<2.0", text, re.MULTILINE)
    assert "cubin: different" in text
    assert "ptx: the same" in text
    assert "ttgir" not in diff(folder, other, levels=["ttir"]).partition("\n\nttir: ")[2]
    assert "dense" not in diff(folder, other, levels=["ttir"], lines=1)
    with pytest.raises(ValueError, match="neither dump has such a level"):
        diff(folder, other, levels=["tir"])


@pytest.mark.parametrize(
    ("edit", "edited", "stale"),
    [
        (
            ("kernel.ttgir", "dense<1.0", "dense<2.0"),
            "ttgir",
            "llir, ptx, cubin, kernel.sass, the table above",
        ),
        (("kernel.ptx", "add.f32", "sub.f32"), "ptx", "cubin, kernel.sass, the table above"),
        (
            ("python/adding.py", "STEP = 1.0", "STEP = 2.0"),
            "python",
            "ttir, ttgir, llir, ptx, cubin, kernel.s",
        ),
    ],
)
def test_diff_says_what_does_not_show_an_edit(
    folder: Path, tmp_path: Path, edit: tuple[str, str, str], edited: str, stale: str
) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    assert "edited since the dump" not in diff(folder, other)
    file, old, new = edit
    replace(other / file, old, new)
    text = diff(folder, other)
    assert f"{other}: {edited} edited since the dump. Still of the kernel as it was dumped: {stale}" in text
    assert f"{folder}: " not in text


def test_ptx_parameters() -> None:
    ptx = """.visible .entry other(.param .u32 other_param_0)
.visible .entry add(
	.param .u64 .ptr .global .align 16 add_param_0,
	.param .align 64 .b8 add_param_1[128],
	.param .f32 add_param_2
)"""
    assert ptx_parameters(ptx, "add") == [".u64", ".b8[128]", ".f32"]
    assert ptx_parameters(ptx, "sub") == []


def test_cubin_capability() -> None:
    def header(abi: int, flags: int) -> bytes:
        return b"\x7fELF" + bytes(4) + bytes([abi]) + bytes(39) + flags.to_bytes(4, "little") + bytes(16)

    assert cubin_capability(header(7, 0x5A055A)) == 90
    assert cubin_capability(header(8, 0xA005904)) == 89
    assert cubin_capability(b"text") is None


def test_parsed_config() -> None:
    assert parsed_config("") == ({}, None)
    assert parsed_config("m=16") == ({}, 16)
    assert parsed_config("block_M=64, block_N=16") == ({"block_M": 64, "block_N": 16}, None)
    for text in ("m", "m=x", "m=16;n=3", "=4", "m=-1"):
        with pytest.raises(ValueError, match="is no FIELD=VALUE"):
            parsed_config(text)
    for text, complaint in (
        ("m=0", "a kernel is chosen for M of at least 1"),
        ("m=1,m=2", "gives m twice"),
        ("block_M=99999999999", "is out of all bounds"),
    ):
        with pytest.raises(ValueError, match=complaint):
            parsed_config(text)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tilelang_gemm_wrapper import cli

    folder = str(tmp_path / "dump")
    assert cli.main(["lab", "dump", "--kernel", "triton_gemm", "--config", "m=300", "--to", folder]) == 0
    printed = capsys.readouterr().out
    assert "M = 300, N = 4096, K = 2560" in printed
    assert re.search(r"\| wgmma +\| \d+", printed)
    assert cli.main(["lab", "diff", folder, folder]) == 0
    assert "llir: the same" in capsys.readouterr().out
    both = ["lab", "dump", "--kernel", "triton_gemm", "--config", "m=4", "--M", "5", "--to", folder]
    assert cli.main(both) == 2
    assert "--config m=4 and --M 5 differ" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert cli.main(["lab", "run", "--from", f"{folder}/kernel.ptx", "--check"]) == 2
        assert "needs a GPU" in capsys.readouterr().err
        assert cli.main(["lab", "launch-latency"]) == 2


@pytest.mark.parametrize("has_earlier", [True, False])
def test_a_full_disk_leaves_the_folder_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch, has_earlier: bool
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if not has_earlier:
        shutil.rmtree(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    kernel = write_add(folder.parent)
    with monkeypatch.context() as patch:
        patch.setattr(Dump, "write", full)  # the last of the files
        with pytest.raises(ValueError, match=r"cannot be written to \(No space left on device\); give anoth"):
            dump(kernel, folder)
    assert folder.exists() == has_earlier
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
