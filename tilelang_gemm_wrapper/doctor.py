"""`tilelang-gemm doctor`: what this machine can run, what it cannot, and why.

Nothing here may fail because something is missing: what is missing is the answer. Versions are read from
package metadata; of the packages that run kernels only torch is imported, to ask the driver.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches
from importlib import metadata, util
from pathlib import Path

from tilelang_gemm_wrapper import __version__, configurer
from tilelang_gemm_wrapper.config_reports import columns, files_in, why_unreadable
from tilelang_gemm_wrapper.core import kernel_cache, temporary_directory
from tilelang_gemm_wrapper.core.conditions import RUN_VARIABLE
from tilelang_gemm_wrapper.core.device import Device, canonical_name, cpu_device, device_of

# Distribution names, the oldest release that works, and what it is for.
PACKAGES: tuple[tuple[tuple[str, ...], tuple[int, ...], str], ...] = (
    (("torch",), (2, 9), "tensors"),
    (("tilelang",), (0, 1, 11), "our kernels on Hopper and Ada"),
    (("apache-tvm-ffi",), (0, 1, 11), "launches TileLang's kernels"),
    (("triton",), (3, 4), "fallback on any GPU"),
    (("sgl-deep-gemm", "deep-gemm", "deep_gemm"), (), "fallback on Hopper"),
    (("numpy",), (), ""),
    (("ray",), (), "tuning on several GPUs"),
    (("transformers",), (), "demo"),
    (("huggingface_hub",), (0, 25), "model shapes from the Hugging Face hub or its cache"),
    (("safetensors",), (0, 4, 3), "model shapes from a checkpoint's files"),
)
# Variables of others that change what compiles or runs; ours are listed by configurer.
OTHER_VARIABLES = (
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDA_VISIBLE_DEVICES",
    "TILELANG_CACHE_DIR",
    "TILELANG_DEFAULT_TARGET",
    "TILELANG_DISABLE_CACHE",
    "TILELANG_EXECUTION_BACKEND",
    "TRITON_CACHE_DIR",
    "TRITON_INTERPRET",
)


def this_device() -> Device:
    """The CUDA device that a call would run on now, or the CPU where torch has none."""
    if util.find_spec("torch") is None:
        return cpu_device()
    import torch

    return device_of(torch.cuda.current_device()) if torch.cuda.is_available() else cpu_device()


def report() -> str:
    """The whole account as text, a paragraph per subject."""
    try:
        device = this_device()
    except (
        RuntimeError,
        OSError,
        ImportError,
    ):  # a broken torch or driver: the GPU paragraph says what is wrong
        device = cpu_device()
    sections: tuple[tuple[str, Callable[[], str]], ...] = (
        ("Package", _package),
        ("GPU", _gpus),
        ("Versions", _versions),
        ("Compilers", _compilers),
        (f"Backends on {device.name}", lambda: _backends(device)),
        (f"Tuned files for {device.name}", lambda: _config_directories(device)),
        ("Compiled kernels", _cache),
        ("Environment", _environment),
    )
    return "\n\n".join(f"{title}\n{_answer(section)}" for title, section in sections)


def _answer(section: Callable[[], str]) -> str:
    try:
        return section()
    except (
        ValueError,
        RuntimeError,
        OSError,
        ImportError,
    ) as error:  # a setting that is wrong is part of the account
        return f"  {error}"


def _package() -> str:
    where = Path(__file__).resolve().parent
    return columns(
        (
            ("tilelang-gemm-wrapper", __version__, where),
            ("Python", platform.python_version(), sys.executable),
            ("platform", platform.system(), platform.platform()),
        )
    )


def _gpus() -> str:
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    lines = [
        f"  driver {driver.splitlines()[0]}" if driver else "  no NVIDIA driver: nvidia-smi does not answer"
    ]
    if util.find_spec("torch") is None:
        return "\n".join(
            [*lines, "  torch is not installed, so no GPU can be used: pip install 'torch>=2.9'"]
        )
    import torch

    if not torch.cuda.is_available():
        build = f"torch {torch.__version__} is built for CUDA {torch.version.cuda} and finds no GPU"
        if torch.version.cuda is None:
            build = f"torch {torch.__version__} is built without CUDA"
        return "\n".join([*lines, f"  {build}: calls run on the PyTorch reference, slowly"])
    for index in range(torch.cuda.device_count()):
        device = device_of(index)
        dram = f"{device.dram_bytes_per_s / 1e12:.2f} TB/s" if device.dram_bytes_per_s else "unknown to us"
        lines.append(
            f"  {index}: {device.name}  {device.arch}  {device.sm_count} SMs  "
            f"{device.shared_memory_per_block / 1024:.0f} KiB shared memory a block  "
            f"{device.l2_bytes / 2**20:.0f} MiB L2  DRAM {dram}"
        )
    return "\n".join(lines)


def _versions() -> str:
    rows: list[tuple[str, str, str]] = []
    for names, oldest, purpose in PACKAGES:
        name, version = next(((n, v) for n in names if (v := _version(n))), (names[0], None))
        needed = ".".join(map(str, oldest))
        if version is None:
            note = f"{purpose}; not installed" if purpose else "not installed"
        elif _release(version) < oldest:
            note = f"{purpose}; TOO OLD, {needed} or newer is needed"
        else:
            note = purpose
        rows.append((name, version or "-", note))
    return columns(rows)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"[0-9]+(\.[0-9]+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _compilers() -> str:
    nvcc = configurer.find_nvcc()
    if nvcc is None:
        first = (
            "nvcc",
            "not found",
            "TileLang kernels cannot compile: install CUDA, or pip install 'tilelang[nvcc]'",
        )
    else:
        release = re.search(r"release ([0-9.]+)", _output(str(nvcc), "--version") or "")
        first = ("nvcc", release[1] if release else "does not answer", str(nvcc))
    host = shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++") or shutil.which("clang++")
    second = (
        ("C++", "found", host) if host else ("C++", "not found", "nvcc needs a host compiler: install g++")
    )
    why = temporary_directory.why_unfit_for_compilers()
    third = ("temporary files", "cannot be used", f"{why}; set TMPDIR to another directory")
    return columns((first, second) if why is None else (first, second, third))


def _backends(device: Device) -> str:
    from tilelang_gemm_wrapper import backends

    def why_unavailable(name: str) -> str | None:
        try:
            return backends.backend(name).why_unavailable(device)
        except ImportError as error:  # torch itself is missing
            return str(error)

    reasons = {"tilelang": configurer.why_tilelang_unavailable(device)}
    reasons |= {name: why_unavailable(name) for name in backends.BACKENDS}
    rows = [(name, "no" if reason else "yes", reason or "") for name, reason in reasons.items()]
    return f"{columns(rows)}\n{_answer(lambda: f'  fallback: {configurer.fallback_backend(device)[1]}')}"


def _config_directories(device: Device) -> str:
    lines = []
    for directory in configurer.config_directories():
        why_not = why_unreadable(directory)
        if why_not is not None:
            lines.append(f"  {directory}: {why_not}")
            continue
        found = files_in(directory)
        ours = sum(canonical_name(file.device_name) == canonical_name(device.name) for file in found)
        lines.append(f"  {directory}: {ours} for this device, {len(found) - ours} for others")
    return "\n".join(lines)


def _cache() -> str:
    why = kernel_cache.why_not_kept()
    if why is not None:
        return f"  {why}: no kernel is kept, and every process compiles its own; unset it"
    try:
        directory = kernel_cache.wanted_directory()
    except RuntimeError:
        return f"  {kernel_cache.NO_HOME} to keep kernels in: {_without_a_cache()}"
    except ValueError as error:
        return f"  {error}: {_without_a_cache()}"
    why = kernel_cache.why_unwritable(directory)
    if not os.path.isdir(directory):
        if why:
            return f"  {directory}: {_absence(directory)} ({why}): {_without_a_cache()}"
        return f"  {directory}: does not exist yet and can be created"
    count, size = _contents(directory)
    has = f"{count} files, {size / 2**20:.1f} MiB"
    if why:
        return f"  {directory}: NOT WRITABLE ({why}), {has}: {_without_a_cache()}"
    return f"  {directory}: writable, {has}"


def _absence(directory: Path) -> str:
    """What is wrong with a cache that is none and cannot be made."""
    try:
        os.lstat(directory)
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist and CANNOT be created"
    except OSError:
        return "CANNOT be reached"
    return "is there and CANNOT be used"


def _without_a_cache() -> str:
    """What becomes of kernels that the cache has not and does not take."""
    try:
        where = tempfile.gettempdir()
    except FileNotFoundError as error:
        return f"what is not there cannot be compiled, for want of a place ({error.strerror})"
    return f"every program compiles what is not there anew, below {where}; {kernel_cache.REMEDY}"


def _contents(directory: Path) -> tuple[int, int]:
    """How many files there are, and their bytes."""
    sizes = []
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):  # another process tidies up
                sizes.append(os.stat(os.path.join(folder, name)).st_size)
    return len(sizes), sum(sizes)


def _environment() -> str:
    rows = []
    for name, read in configurer.READERS.items():
        if name not in os.environ:
            continue
        try:
            read()
            rows.append((name, repr(os.environ[name]), ""))
        except (ValueError, RuntimeError) as error:  # the latter for a ~ where there is no home
            rows.append((name, repr(os.environ[name]), f"WRONG: {error}"))
    rows += [(name, repr(os.environ[name]), f"UNKNOWN: {why}") for name, why in _unknown_variables()]
    rows += [(name, repr(os.environ[name]), "") for name in OTHER_VARIABLES if name in os.environ]
    return columns(rows) or "  none of the variables that matter here is set"


def _unknown_variables() -> list[tuple[str, str]]:
    """Variables that are set, that nothing reads, and that ours may be meant by: name and remark."""
    found = []
    known = {*configurer.READERS, *OTHER_VARIABLES, RUN_VARIABLE}
    for name in sorted(os.environ.keys() - known):
        near = get_close_matches(name.upper(), configurer.READERS, n=1, cutoff=0.8)
        if near:
            found.append((name, f"nothing reads it; did you mean {near[0]}?"))
        elif name.upper().startswith("TILELANG_GEMM_"):
            found.append((name, f"nothing reads it; there are {', '.join(configurer.READERS)}"))
    return found


def _output(*command: str) -> str | None:
    """What a tool prints, or None where it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
