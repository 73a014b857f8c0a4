"""Compile what a benchmark will call before its first timing, in parallel, into caches on disk."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

logger = logging.getLogger(__name__)

_COMPILED_BACKENDS = ("deep_gemm", "triton")


def compile_ahead(
    cells: Mapping[tuple[int, int], Sequence[int]], providers: Sequence[str], workers: int
) -> None:
    """Compile for every (N, K) and its M, with `workers` processes for the backends, on the current device.

    DeepGEMM compiles a kernel per shape and tile with nvcc, seconds each: one after the other that would take
    longer than the timing itself. A failure here is only logged; the timing meets it again and records it.
    """
    # One process has all M of a shape: two that compile one kernel would race for its place in the cache.
    tasks = [
        (name, N, K, ms) for name in _COMPILED_BACKENDS if name in providers for (N, K), ms in cells.items()
    ]
    if tasks:
        _in_processes(tasks, min(workers, len(tasks)))
    if cells and any(name.startswith("tilelang_gemm") for name in providers):
        from tilelang_gemm_wrapper import warmup

        # After the backends: where a table names one of them, its kernels are found compiled.
        warmup(cells, m_max=max(map(max, cells.values())))


def _in_processes(tasks: Sequence[tuple[str, int, int, Sequence[int]]], workers: int) -> None:
    context = multiprocessing.get_context("spawn")  # a forked child could not use CUDA
    with (
        ProcessPoolExecutor(workers, context) as pool,
        tqdm(total=len(tasks), unit="shape", desc="compiling peers") as progress,
    ):
        futures = {pool.submit(_warm_backend, *task): task for task in tasks}
        for future in as_completed(futures):
            progress.update()
            try:
                future.result()
            except BrokenProcessPool:
                logger.warning("a compile worker died; what is missing compiles as it is timed")
                return
            except Exception as error:
                logger.debug("compiling ahead for %s failed: %s", futures[future], error)


def _warm_backend(name: str, N: int, K: int, ms: Sequence[int]) -> None:
    import torch

    from ..backends import backend
    from .device import device_of

    module = backend(name)
    if not (module.why_unavailable(device_of(torch.cuda.current_device())) or module.why_unsupported(N, K)):
        module.warmup(N, K, ms)
        torch.cuda.synchronize()
