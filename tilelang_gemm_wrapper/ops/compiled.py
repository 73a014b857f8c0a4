"""TileLang kernels of the ops, compiled once for each device and kept."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from typing import Any

import torch

from ..core import compile_cache
from ..core.device import device_of
from ..core.wrapper import on_device

_kernels: dict[tuple[Any, ...], Callable[..., None]] = {}
_lock = threading.Lock()


def compiled(
    build: Callable[..., Any], shape: tuple[Any, ...], index: int, pass_configs: dict[str, Any] | None = None
) -> Callable[..., None]:
    """The launcher of `build(shape)` on CUDA device `index`, which takes the PrimFunc's arguments in order.

    Compiled or loaded from TileLang's disk cache on first use. Raises RuntimeError if that would be while a
    CUDA graph is captured.
    """
    kernel = _kernels.get((build, shape, index))
    return kernel if kernel is not None else _compile(build, shape, index, pass_configs)


def _compile(
    build: Callable[..., Any], shape: tuple[Any, ...], index: int, pass_configs: dict[str, Any] | None
) -> Callable[..., None]:
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"the kernel for {shape} is not compiled and a CUDA graph is being captured; make the same call "
            f"once before the capture"
        )
    arch = device_of(index).arch
    with _lock, compile_cache.alone(_task(build, shape, arch)):
        kernel = compile_cache.compile_primfunc(build(shape), arch, pass_configs)
        return _kernels.setdefault((build, shape, index), on_device(kernel, index))


def _task(build: Callable[..., Any], shape: tuple[Any, ...], arch: str) -> str:
    """What processes do one at a time: the ranks of an engine compile a kernel once, others at once.

    A task has a lock file, which stays; so there are at most 256 tasks, and two kernels seldom share one.
    """
    kernel = f"{build.__module__}.{build.__qualname__} {shape} {arch}"
    return f"compile_op_{zlib.crc32(kernel.encode()) % 256:02x}"
