"""`doctor` tells what is there and what is missing, and never fails because something is."""

from __future__ import annotations

import sys
import tempfile
from importlib import metadata
from pathlib import Path

import pytest
import torch
from fresh_python import printed_by

from tilelang_gemm_wrapper import configurer, doctor
from tilelang_gemm_wrapper.core.config_file import config_file_name
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES, cpu_device

H200 = KNOWN_DEVICES["NVIDIA_H200"]


def test_report_has_every_paragraph() -> None:
    titles = [paragraph.splitlines()[0] for paragraph in doctor.report().split("\n\n")]
    device = doctor.this_device()
    assert titles == [
        "Package",
        "GPU",
        "Versions",
        "Compilers",
        f"Backends on {device.name}",
        f"Tuned files for {device.name}",
        "Compiled kernels",
        "Environment",
    ]


def test_report_works_where_every_package_is_missing() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'tilelang', 'tvm_ffi', 'triton', 'deep_gemm', 'transformers',\n"
        "             'huggingface_hub', 'safetensors', 'ray'):\n"
        "    sys.modules[name] = None\n"
        "from tilelang_gemm_wrapper.cli import main\n"
        "sys.exit(main(['doctor']))\n"
    )
    printed = printed_by(code)
    assert "torch is not installed" in printed
    assert "\nEnvironment\n" in printed


def test_versions_tell_missing_and_old(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch": "2.8.1+cpu", "triton": "3.4.0", "huggingface_hub": "0.24.7"}

    def version(name: str) -> str:
        if name in installed:
            return installed[name]
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    lines = {line.split()[0]: line for line in doctor._versions().splitlines()}
    assert "2.8.1+cpu" in lines["torch"] and "TOO OLD, 2.9 or newer" in lines["torch"]
    assert "3.4.0" in lines["triton"] and "TOO OLD" not in lines["triton"]
    assert "not installed" in lines["sgl-deep-gemm"] and "not installed" in lines["numpy"]
    assert "TOO OLD, 0.25 or newer" in lines["huggingface_hub"] and "not installed" in lines["safetensors"]


def test_gpu_paragraph_describes_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(doctor, "device_of", lambda index: (H200, KNOWN_DEVICES["NVIDIA_L4"])[index])
    monkeypatch.setattr(doctor, "_output", lambda *command: "580.65.06\n580.65.06")
    driver, first, second = doctor._gpus().splitlines()
    assert driver == "  driver 580.65.06"
    assert (
        first.split()[:4] == ["0:", "NVIDIA_H200", "sm_90a", "132"]
        and "227 KiB" in first
        and "4.80 TB/s" in first
    )
    assert second.split()[:4] == ["1:", "NVIDIA_L4", "sm_89", "58"] and "99 KiB" in second


def test_gpu_paragraph_survives_a_broken_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(index: int) -> None:
        raise RuntimeError("CUDA unknown error")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(doctor, "device_of", broken)
    text = doctor.report()
    assert "GPU\n  CUDA unknown error" in text and "Backends on cpu" in text


def test_backends_give_a_reason_for_each_that_cannot_run() -> None:
    lines = {line.split()[0]: line for line in doctor._backends(cpu_device()).splitlines()}
    assert lines["tilelang"].split()[1] == "no" and "cpu" in lines["tilelang"]
    assert lines["deep_gemm"].split()[1] == "no" and lines["triton"].split()[1] == "no"
    assert all(len(lines[name].split()) > 4 for name in ("tilelang", "deep_gemm", "triton"))
    assert lines["torch"].split() == ["torch", "yes"]
    assert "torch runs on cpu" in lines["fallback:"]


def test_config_directories_are_counted_by_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NVIDIA_H200", "NVIDIA_H100_80GB_HBM3", "NVIDIA_L4"):
        (tmp_path / config_file_name(512, 1024, name)).write_text("{}")
    absent = tmp_path / "absent"
    monkeypatch.setenv("SGLANG_TILELANG_GEMM_CONFIG_DIR", f"{tmp_path}:{absent}")
    lines = doctor._config_directories(H200).splitlines()
    assert lines[:2] == [f"  {tmp_path}: 1 for this device, 2 for others", f"  {absent}: does not exist"]
    # The device's other documented name counts as its own.
    h100 = KNOWN_DEVICES["NVIDIA_H100_80GB_HBM3"]
    (tmp_path / config_file_name(512, 1024, "NVIDIA_H100")).write_text("{}")
    assert (
        doctor._config_directories(h100).splitlines()[0] == f"  {tmp_path}: 2 for this device, 2 for others"
    )


def test_cache_directory_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILELANG_GEMM_CACHE_DIR", str(tmp_path / "cache"))
    assert doctor._cache() == f"  {tmp_path / 'cache'}: does not exist yet and can be created"
    (tmp_path / "cache" / "kernel").mkdir(parents=True)
    (tmp_path / "cache" / "kernel" / "k.so").write_bytes(bytes(3 << 20))
    assert doctor._cache() == f"  {tmp_path / 'cache'}: writable, 1 files, 3.0 MiB"
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert "NOT WRITABLE" in doctor._cache()


@pytest.mark.parametrize("place", ["/proc/foo", "/dev/null/foo", "/proc/self/task/foo"])
def test_a_cache_that_cannot_be_made_is_not_said_to_be_possible(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bits of /proc allow root to write there, which it refuses all the same."""
    monkeypatch.setenv("TILELANG_GEMM_CACHE_DIR", place)
    said = doctor._cache()
    assert said.startswith(f"  {place}: does not exist and CANNOT be created (")
    assert "can be created" not in said and "set TILELANG_GEMM_CACHE_DIR to" in said


def test_a_cache_that_cannot_be_written_says_what_will_happen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "k.so").write_bytes(bytes(1 << 20))
    monkeypatch.setenv("TILELANG_GEMM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    said = doctor._cache()
    assert "NOT WRITABLE (No space left on device), 1 files, 1.0 MiB: every program compiles" in said
    assert f"below {tempfile.gettempdir()}; set TILELANG_GEMM_CACHE_DIR to" in said
    monkeypatch.setattr(tempfile, "gettempdir", lambda: (_ for _ in ()).throw(FileNotFoundError(2, "none")))
    assert "cannot be compiled, for want of a place (none)" in doctor._cache()


def test_a_cache_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("TILELANG_GEMM_CACHE_DIR", "TILELANG_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert doctor._cache().startswith("  there is no home directory to keep kernels in: ")


def test_looking_at_the_cache_leaves_it_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILELANG_GEMM_CACHE_DIR", str(tmp_path / "not" / "there"))
    doctor._cache()
    assert list(tmp_path.iterdir()) == []


def test_environment_shows_what_is_set_and_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*doctor.OTHER_VARIABLES, "SGLANG_ENABLE_TILELANG_GEMM", "TILELANG_GEMM_COMPILE_WORKERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TILELANG_GEMM_FALLBACK", "cutlass")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/somewhere")
    lines = {line.split()[0]: line for line in doctor._environment().splitlines()}
    assert "WRONG: TILELANG_GEMM_FALLBACK='cutlass'" in lines["TILELANG_GEMM_FALLBACK"]
    assert "'/somewhere'" in lines["TRITON_CACHE_DIR"]
    assert "SGLANG_ENABLE_TILELANG_GEMM" not in lines


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("TILELANG_GEMM_FALBACK", "did you mean TILELANG_GEMM_FALLBACK?"),
        ("TILELANG_FALLBACK", "did you mean TILELANG_GEMM_FALLBACK?"),
        ("tilelang_gemm_cache_dir", "did you mean TILELANG_GEMM_CACHE_DIR?"),
        ("SGLANG_TILELANG_CONFIG_DIR", "did you mean SGLANG_TILELANG_GEMM_CONFIG_DIR?"),
        ("SGLANG_ENABLE_TILELANG_FP8_GEMM", "did you mean SGLANG_ENABLE_TILELANG_GEMM?"),
        ("SGLANG_ENABLE_TILELANG", "did you mean SGLANG_ENABLE_TILELANG_GEMM?"),
        ("TILELANG_GEMM_STATIC_WEIGHT", "did you mean TILELANG_GEMM_STATIC_WEIGHTS?"),
        ("TILELANG_GEMM_VERBOSITY", "there are SGLANG_TILELANG_GEMM_CONFIG_DIR, "),
    ],
)
def test_a_misspelt_variable_is_flagged(name: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    # As wide as a column is with whatever else is set where the tests run.
    lines = {line.split()[0]: " ".join(line.split()) for line in doctor._environment().splitlines()}
    assert f"'1' UNKNOWN: nothing reads it; {meant}".strip() in lines[name]


@pytest.mark.parametrize(
    "name",
    ["TILELANG_CACHE_DIR", "TILELANG_DISABLE_CACHE", "SGLANG_OPT_USE_TILELANG_INDEXER", "TILELANG_VERBOSE"],
)
def test_variables_of_others_are_not_flagged(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert "UNKNOWN" not in doctor._environment()


def test_every_variable_of_ours_has_a_reader() -> None:
    constants = {name: value for name, value in vars(configurer).items() if name.isupper()}
    named = {value for value in constants.values() if isinstance(value, str) and "TILELANG_GEMM" in value}
    assert named == configurer.READERS.keys(), "list a new variable in configurer.READERS"


def test_a_config_directory_that_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SGLANG_TILELANG_GEMM_CONFIG_DIR", str(tmp_path / "file"))
    assert doctor._config_directories(H200).splitlines()[0] == f"  {tmp_path / 'file'}: is no directory"


def test_a_wrong_setting_does_not_hide_the_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILELANG_GEMM_FALLBACK", "cutlass")
    text = doctor._backends(cpu_device())
    assert "torch" in text and "TILELANG_GEMM_FALLBACK='cutlass'" in text


def test_nvcc_is_looked_for_where_tilelang_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("home", "path"):
        nvcc = tmp_path / folder / "bin" / "nvcc"
        nvcc.parent.mkdir(parents=True)
        nvcc.write_text("#!/bin/sh\n")
        nvcc.chmod(0o755)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path" / "bin"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert configurer.find_nvcc() == tmp_path / "home" / "bin" / "nvcc"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    assert configurer.find_nvcc() is None  # TileLang takes CUDA_HOME's word too
    monkeypatch.delenv("CUDA_HOME")
    assert configurer.find_nvcc() == tmp_path / "path" / "bin" / "nvcc"


def test_a_tool_that_is_missing_or_fails_gives_none() -> None:
    assert doctor._output("no-such-tool-here") is None
    assert doctor._output(sys.executable, "-c", "print('half'); raise SystemExit(3)") is None
    assert doctor._output(sys.executable, "-c", "print('whole')") == "whole"


@pytest.mark.parametrize(
    ("name", "said"),
    [("file", "is there and CANNOT be used (Not a directory)"), ("x" * 300, "CANNOT be reached (File name")],
)
def test_what_cannot_be_a_cache_is_told_as_it_is(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TILELANG_GEMM_CACHE_DIR", str(tmp_path / name))
    assert doctor._cache().startswith(f"  {tmp_path / name}: {said}")


def test_a_cache_in_a_home_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILELANG_GEMM_CACHE_DIR", "~no such user/kernels")
    said = doctor._cache()
    assert said.startswith("  TILELANG_GEMM_CACHE_DIR='~no such user/kernels': expected a path without ~")
    assert "compiles what is not there anew" in said


def test_a_cache_that_tilelang_does_not_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILELANG_DISABLE_CACHE", "yes")
    assert doctor._cache().startswith("  TILELANG_DISABLE_CACHE='yes' is set: no kernel is kept")
    monkeypatch.setenv("TILELANG_DISABLE_CACHE", "0")
    assert "no kernel is kept" not in doctor._cache()


def test_a_temporary_directory_that_compilers_cannot_use_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    assert f"{tmp_path / 'missing'} cannot be written (No such file or directory); set TMPDIR" in (
        doctor._compilers()
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert "temporary" not in doctor._compilers()
