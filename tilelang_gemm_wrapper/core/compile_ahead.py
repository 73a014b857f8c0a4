"""Compile what a benchmark will call before its first timing, in parallel, into caches on disk."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

from .compile_cache import WarmupJob, compile_many, run_jobs
from .progress import progress_bar

logger = logging.getLogger(__name__)

_COMPILED_BACKENDS = ("deep_gemm", "triton")


def compile_ahead(
    cells: Mapping[tuple[int, int], Collection[int]], providers: Collection[str], workers: int
) -> None:
    """Compile for every (N, K) and its M, with `workers` processes for the backends, on the current device.

    DeepGEMM compiles a kernel per shape and tile with nvcc, seconds each: one after the other that would take
    longer than the timing itself. A failure here is only logged; the timing meets it again and records it.
    """
    # One process has all M of a shape: most share a kernel with others, which two would compile twice.
    jobs = [
        WarmupJob(name, N, K, tuple(ms))
        for name in _COMPILED_BACKENDS
        if name in providers
        for (N, K), ms in cells.items()
    ]
    if jobs:
        _in_processes(jobs, min(workers, len(jobs)))
    if cells and any(name.startswith("tilelang_gemm") for name in providers):
        from tilelang_gemm_wrapper import warmup

        # After the backends: where a table names one of them, its kernels are found compiled.
        warmup(cells, m_max=max(map(max, cells.values())))
    if cells:
        from .bench_providers import static_weights_job, untuned_job

        job_of = {"tilelang_gemm_static_weights": static_weights_job, "tilelang_gemm_untuned": untuned_job}
        wanted = [job_of[name] for name in job_of if name in providers]
        jobs_of_ours = (job(M, N, K) for job in wanted for (N, K), ms in cells.items() for M in ms)
        _log(compile_many(job for job in jobs_of_ours if job is not None))


def _in_processes(jobs: Sequence[WarmupJob], workers: int) -> None:
    with progress_bar("compiling peers", "shape") as show:
        failures = run_jobs(jobs, workers, show)
    _log(failures)


def _log(failures: Sequence[str]) -> None:
    for failure in failures:
        logger.debug("compiling ahead failed: %s", failure)
