"""Measure a GEMV on this machine: the best TileLang configuration for a shape, and the best backend.

TileLang's own autotuner compiles the configurations, on all CPU cores, and ranks them; the winner then meets
the default one, Triton and cuBLAS in the package's timing, cold and interleaved. What is found is kept for
the class of shapes (`measured.shape_class`), the device and the versions of package, TileLang and torch, on
disk.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from ..core import compile_cache
from ..core.device import Device, device_of
from ..core.timing import cold_copies, time_interleaved
from . import measured
from .gemv import Operand, Problem, as_problem

logger = logging.getLogger(__name__)


def tune(x: Operand, W: Operand, *, save: bool = True) -> measured.Entry:
    """Find and keep what is fastest for gemv(x, W); the entry says which backend and which configuration.

    x and W as `gemv` takes them, on a CUDA device with room for copies of W four times as large as L2.
    Compiles dozens of kernels the first time. save: keep it on disk for later processes, and for this one.
    Raises RuntimeError while a CUDA graph is captured, and where TileLang does not run.
    """
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("a CUDA graph is being captured; tune before the capture")
    problem = as_problem(x, W)
    problem.implementation("tilelang")  # says so where it cannot run
    device = device_of(problem.out.get_device())
    with torch.cuda.device(problem.out.device):
        config = _best_config(problem, device.arch)
        backend, config = _race(problem, config, device.l2_bytes)
    entry = measured.Entry(
        "gemv",
        problem.dtype,
        problem.M,
        problem.N,
        problem.K,
        backend,
        config,
        measured.versions(),
    )
    if save:
        _keep(device, entry)
    return entry


def _keep(device: Device, entry: measured.Entry) -> None:
    what = f"{entry.backend} for N={entry.N}, K={entry.K}"
    try:
        logger.info("%s: kept in %s", what, measured.add(device, entry))
    except (OSError, ValueError) as error:  # measured is measured: the caller has it all the same
        logger.warning("%s is not kept for later processes: %s", what, error)


def _best_config(problem: Problem, arch: str) -> dict[str, int]:
    """The fastest of `ops.gemv.tilelang.CONFIGS`, as TileLang's autotuner finds it."""
    from tilelang.autotuner import AutoTuner, tuner

    from .gemv import tilelang as implementation
    from .simt import PASS_CONFIGS

    # It would write autotuner.log where the process happens to be.
    tuner._logger_handlers_initialized = True
    os.environ.setdefault("TILELANG_AUTO_TUNING_CPU_UTILITIES", "1.0")
    # The autotuner wants a function that closes over plain values alone.
    shape = implementation.shape_of(problem, implementation.CONFIGS[0])
    M, K, dtype, W_dtype, out_dtype, x_scaled, aligned, early, *_ = shape

    def kernel(lanes: int, groups: int, rows: int, steps: int) -> Any:
        from .gemv.tilelang import build_config

        return build_config(
            M, K, dtype, W_dtype, out_dtype, x_scaled, aligned, early, lanes, groups, rows, steps
        )

    autotuner = AutoTuner.from_kernel(kernel, [asdict(config) for config in implementation.CONFIGS])
    autotuner.set_compile_args(
        target={"kind": "cuda", "arch": arch},
        execution_backend="tvm_ffi",
        pass_configs=compile_cache.with_compiler(PASS_CONFIGS),
    )
    arguments = list(implementation.arguments_of(problem))
    autotuner.set_profile_args(supply_prog=lambda _: arguments, skip_check=True)
    # It reports on standard output, which is the calling program's.
    with compile_cache.alone("compile"), redirect_stdout(sys.stderr):
        return dict(autotuner.run(warmup=3, rep=30).config)


def _race(problem: Problem, found: dict[str, int], l2_bytes: int) -> tuple[str, dict[str, int]]:
    """The fastest backend, and the faster of the found and the default TileLang configuration."""
    from .gemv import tilelang as implementation

    copies = cold_copies(problem.W.numel() * problem.W.element_size(), l2_bytes)
    weights = [problem.W, *(problem.W.clone() for _ in range(copies - 1))]
    problems = [problem._replace(W=W) for W in weights]
    default = implementation.default_config(problem.M, problem.K, problem.is_fp8)
    configs = {"found": implementation.Config(**found), "default": default}
    launches: dict[str, Callable[[Problem], None]] = {
        name: partial(implementation.launch_config, config=config) for name, config in configs.items()
    }
    # PyTorch's own way with scales is the reference, no rival.
    for name in ("triton",) if problem.is_fp8 else ("triton", "torch"):
        launches[name] = problem.implementation(name).launch
    calls = {name: partial(_launch, problems, launch) for name, launch in launches.items()}
    times = {name: timing.p50_us for name, timing in time_interleaved(calls, copies).items()}
    best = min(times, key=times.__getitem__)
    config = configs[min(configs, key=times.__getitem__)]
    logger.info("gemv %s: %s", problem.dtype, ", ".join(f"{name} {us:.2f} us" for name, us in times.items()))
    return ("tilelang" if best in configs else best), asdict(config)


def _launch(problems: list[Problem], launch: Callable[[Problem], None], i: int) -> None:
    launch(problems[i])
