"""Every environment variable, typed, in one place; what this machine can run, and why not.

The functions read the environment when they are called; a value that cannot be meant raises ValueError with
variable, value and expectation. Callers on the hot path keep the answer.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from tilelang_gemm_wrapper.core.device import Device

CONFIG_DIR = "SGLANG_TILELANG_GEMM_CONFIG_DIR"
ENABLE = "SGLANG_ENABLE_TILELANG_GEMM"
CACHE_DIR = "TILELANG_GEMM_CACHE_DIR"
FALLBACK = "TILELANG_GEMM_FALLBACK"
COMPILE_WORKERS = "TILELANG_GEMM_COMPILE_WORKERS"
STATIC_WEIGHTS = "TILELANG_GEMM_STATIC_WEIGHTS"
SHAPES_OUT = "TILELANG_GEMM_SHAPES_OUT"

FALLBACK_CHOICES = ("auto", "deep_gemm", "triton", "torch")
TILELANG_VERSIONS = ((0, 1, 11), (0, 2))  # at least, below

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


def config_directories() -> tuple[Path, ...]:
    """Where tuned files are looked for, in order: SGLANG_TILELANG_GEMM_CONFIG_DIR (several, separated by the
    path separator), then the files shipped with the package. They need not exist."""
    named = [_path(CONFIG_DIR, part) for part in _value(CONFIG_DIR).split(os.pathsep) if part.strip()]
    return tuple(dict.fromkeys((*named, shipped_config_directory())))


def shipped_config_directory() -> Path:
    """The tuned files that come with the package: inside the wheel, or `configs/` of a source checkout."""
    package = Path(__file__).resolve().parent
    installed, checkout = package / "configs", package.parent / "configs"
    return checkout if checkout.is_dir() and not installed.is_dir() else installed


def tilelang_enabled() -> bool:
    """SGLANG_ENABLE_TILELANG_GEMM, on by default; off sends every call to the fallback."""
    return _switch(ENABLE, default=True)


def static_weights(default: bool = False) -> bool:
    """TILELANG_GEMM_STATIC_WEIGHTS, else `default`: whether kernels may read the weights ahead of their turn.

    On Hopper a GEMM then loads its first weights while kernels before it in the stream still run. Whoever
    sets it promises: between the last write of B or B_scale and the GEMM that reads it, the stream has a
    launch that waits for all before it. Any kernel of PyTorch's, a copy, an event that is waited for, the
    start of a CUDA graph or a synchronisation is one. A kernel that starts early by programmatic dependent
    launch, as this package's own do, is none: a chain of those may reach back to the writer. Where the
    promise is broken, results may be of the old weights, without an error.
    """
    return _switch(STATIC_WEIGHTS, default=default)


def shapes_out() -> Path | None:
    """TILELANG_GEMM_SHAPES_OUT, the file into which an engine's plugin writes what its layers really are."""
    value = _value(SHAPES_OUT)
    return _path(SHAPES_OUT, value) if value else None


def cache_directory() -> Path | None:
    """TILELANG_GEMM_CACHE_DIR, where compiled kernels are kept; None leaves it to TileLang's own setting."""
    value = _value(CACHE_DIR)
    return _path(CACHE_DIR, value) if value else None


def compile_workers() -> int:
    """TILELANG_GEMM_COMPILE_WORKERS, the processes that warm-up uses; default: usable CPUs, at most 16."""
    value = _value(COMPILE_WORKERS)
    if not value:
        return min(_usable_cpus(), 16)
    if not re.fullmatch(r"[0-9]{1,4}", value) or int(value) < 1:
        raise _bad_value(COMPILE_WORKERS, "a whole number from 1 to 9999")
    return int(value)


def find_nvcc() -> Path | None:
    """The nvcc that TileLang would use, in its order: CUDA_HOME, PATH, the pip package, /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        nvcc = Path(home, "bin", "nvcc")
        return nvcc if nvcc.is_file() else None  # TileLang looks no further either
    on_path = shutil.which("nvcc")
    if on_path:
        return Path(on_path)
    with suppress(metadata.PackageNotFoundError):
        for file in metadata.files("nvidia-cuda-nvcc") or ():
            if file.name == "nvcc":
                return Path(str(file.locate()))
    usual = Path("/usr/local/cuda/bin/nvcc")
    return usual if usual.is_file() else None


def fallback_choice() -> str:
    """TILELANG_GEMM_FALLBACK: auto (the default), deep_gemm, triton or torch."""
    value = _value(FALLBACK).lower() or "auto"
    if value not in FALLBACK_CHOICES:
        raise _bad_value(FALLBACK, f"one of {', '.join(FALLBACK_CHOICES)}")
    return value


def why_tilelang_unavailable(device: Device) -> str | None:
    """Why our TileLang kernels do not run here (switched off, chip, package), or None. Does not import it."""
    if not tilelang_enabled():
        return f"{ENABLE}={_value(ENABLE)} switches the TileLang kernels off; unset it to use them"
    if not device.runs_tilelang:
        return f"the TileLang kernels need sm_90a (Hopper) or sm_89 (Ada) and {device.name} is {device.arch}"
    return why_tilelang_unfit()


def fallback_backend(device: Device, N: int | None = None, K: int | None = None) -> tuple[str, str]:
    """The backend for what TileLang does not run on `device`, and the reason as a sentence.

    DeepGEMM where it is available (Hopper), else Triton on any CUDA device, else the PyTorch reference.
    TILELANG_GEMM_FALLBACK puts another first; where that one cannot run, the order above goes on, and the
    reason says so. With N and K given, a backend that does not take that shape is passed over too.
    """
    choice = fallback_choice()
    order: tuple[str, ...] = ("deep_gemm", "triton", "torch") if device.is_cuda else ("torch",)
    if choice != "auto":
        order = (choice, *(name for name in order if name != choice))
    passed_over: list[str] = []
    for name in order:
        why = _why_backend_unfit(name, device, N, K)
        if why is None:
            return name, _fallback_reason(name, device, choice, passed_over)
        passed_over.append(f"{name} cannot: {why}")
    raise RuntimeError(f"no fallback backend runs on {device.name}: {'; '.join(passed_over)}")


def _why_backend_unfit(name: str, device: Device, N: int | None, K: int | None) -> str | None:
    from tilelang_gemm_wrapper import backends

    backend = backends.backend(name)
    why = backend.why_unavailable(device)
    if why is None and N is not None and K is not None:
        why = backend.why_unsupported(N, K)
    return why


def _fallback_reason(name: str, device: Device, choice: str, passed_over: list[str]) -> str:
    if name == choice:
        return f"{name} runs on {device.name}, as {FALLBACK}={choice} asks."
    asked = f"{FALLBACK}={choice} asks for another, but " if choice != "auto" else ""
    because = f"{asked}{'; '.join(passed_over)}" if passed_over else "it is the first choice there"
    return f"{name} runs on {device.name}: {because}."


@lru_cache(maxsize=1)
def why_tilelang_unfit() -> str | None:
    at_least, below = TILELANG_VERSIONS
    expected = f"{'.'.join(map(str, at_least))} or newer, below {'.'.join(map(str, below))}"
    remedy = f"pip install 'tilelang>={'.'.join(map(str, at_least))},<{'.'.join(map(str, below))}'"
    try:
        version = metadata.version("tilelang")
    except metadata.PackageNotFoundError:
        return f"tilelang is not installed; {remedy}"
    release = re.match(r"[0-9]+(\.[0-9]+)*", version)
    if release is None or not at_least <= tuple(map(int, release[0].split("."))) < below:
        return f"tilelang is {version} and the kernels are tested with {expected}; {remedy}"
    return None


def _usable_cpus() -> int:
    # Not os.cpu_count(): a container or taskset may allow fewer, and each worker compiles at full tilt.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _switch(variable: str, *, default: bool) -> bool:
    value = _value(variable).lower()
    if not value:
        return default
    if value in _TRUE + _FALSE:
        return value in _TRUE
    raise _bad_value(variable, f"one of {', '.join(_TRUE + _FALSE)}")


def _value(variable: str) -> str:
    return os.environ.get(variable, "").strip()


def _path(variable: str, text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise _bad_value(variable, "a path without ~, as that home directory is not known") from None


def _bad_value(variable: str, expected: str) -> ValueError:
    return ValueError(f"{variable}={_value(variable)!r}: expected {expected}; correct it or unset it")


# Every variable of ours with its reader, which raises ValueError for a value that cannot be meant.
READERS: dict[str, Callable[[], object]] = {
    CONFIG_DIR: config_directories,
    ENABLE: tilelang_enabled,
    CACHE_DIR: cache_directory,
    FALLBACK: fallback_choice,
    COMPILE_WORKERS: compile_workers,
    STATIC_WEIGHTS: static_weights,
    SHAPES_OUT: shapes_out,
}
