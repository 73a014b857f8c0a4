"""Compile what a benchmark will call, in parallel processes, into the disk cache of each provider."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

logger = logging.getLogger(__name__)

# The others have nothing to compile, or share what these compile.
_COMPILED = ("tilelang_gemm", "deep_gemm", "triton")


def compile_ahead(
    cells: Mapping[tuple[int, int], Sequence[int]], providers: Sequence[str], workers: int
) -> None:
    """Call every provider once on every cell, (N, K) -> its M, in `workers` processes of their own.

    DeepGEMM compiles a kernel per shape and tile with nvcc, seconds each: one after the other that would take
    longer than the timing itself. A failure here is only logged; the timing meets it again and records it.
    """
    # Large M first: they differ in kernel most. The many small M that share one then find it compiled.
    longest = max((len(ms) for ms in cells.values()), default=0)
    tasks = [
        (N, K, sorted(ms, reverse=True)[rank], provider)
        for rank in range(longest)
        for (N, K), ms in cells.items()
        if rank < len(ms)
        for provider in providers
        if provider in _COMPILED
    ]
    if not tasks:
        return
    # A forked child could not use CUDA.
    pool = ProcessPoolExecutor(
        min(workers, len(tasks)),
        multiprocessing.get_context("spawn"),
        # What there is to say about a shape, the timing says once, not every worker.
        initializer=logging.disable,
        initargs=(logging.WARNING,),
    )
    with pool, tqdm(total=len(tasks), unit="kernel", desc="compiling") as progress:
        futures = {pool.submit(_call_once, *task): task for task in tasks}
        for future in as_completed(futures):
            progress.update()
            try:
                future.result()
            except BrokenProcessPool:
                logger.warning("a compile worker died; what is missing compiles as it is timed")
                return
            except Exception as error:
                logger.debug("compiling ahead for %s failed: %s", futures[future], error)


def _call_once(N: int, K: int, M: int, provider: str) -> None:
    import torch

    from .bench_providers import PROVIDERS, Matrix
    from .device import device_of

    def zeros(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(rows, columns, dtype=dtype, device="cuda")

    groups = -(-K // 128)
    C = zeros(M, N, torch.bfloat16)
    matrix = Matrix(
        device_of(torch.cuda.current_device()),
        N,
        K,
        A=zeros(M, K, torch.float8_e4m3fn),
        A_scale=zeros(M, groups, torch.float32),
        weights=((zeros(N, K, torch.float8_e4m3fn), zeros(-(-N // 128), groups, torch.float32)),),
        C=C,
        reference=C,
    )
    PROVIDERS[provider](matrix.case(M))(0)
    torch.cuda.synchronize()
