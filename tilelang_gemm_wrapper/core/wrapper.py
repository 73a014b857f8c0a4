"""Launching: one `Gemm` for each (N, K, device) holds its dispatch table and the compiled kernels."""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable

import torch

from tilelang_gemm_wrapper import backends
from tilelang_gemm_wrapper.core import kernel_registry
from tilelang_gemm_wrapper.core.compile_cache import CompileJob, compile_kernel
from tilelang_gemm_wrapper.core.device import cpu_device, device_of
from tilelang_gemm_wrapper.core.dispatch import Choice, DispatchTable, build_table, fallback_choice, log_notes
from tilelang_gemm_wrapper.core.failure_text import first_line
from tilelang_gemm_wrapper.core.problem import lies_right

logger = logging.getLogger(__name__)

Launch = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]


class Gemm:
    """All that calls with one (N, K) on one device share."""

    __slots__ = ("_index", "_launches", "_lock", "choices", "kernels", "switches", "table")

    def __init__(self, table: DispatchTable, index: int) -> None:
        self.table = table
        self.choices: list[Choice] = list(table.choices)
        self._index = index
        self._launches: list[Launch | None] = [None] * len(table.choices)
        self.kernels: list[Launch | None] = [None] * len(table.choices)  # those of TileLang alone
        self.switches = table.bounds[:-1]  # the last choice has no bound
        self._lock = threading.Lock()

    def __call__(self, M: int, A, A_scale, B, B_scale, C) -> None:
        """Launch on checked tensors; the first call of each choice compiles or loads its kernel."""
        position = self.table.index(M)
        launch = self._launches[position] or self.prepare(position)
        launch(A, A_scale, B, B_scale, C)

    def prepare(self, position: int) -> Launch:
        """The launcher of one choice, compiled if need be. Raises RuntimeError under CUDA graph capture."""
        if self._index >= 0 and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"the kernel for N={self.table.N}, K={self.table.K} is not compiled and a CUDA graph is "
                f"being captured; call warmup([({self.table.N}, {self.table.K})]) before the capture"
            )
        with self._lock:
            launch = self._launches[position]
            if launch is None:
                launch = self._launches[position] = self._load(position)
                if self.choices[position].config is not None:
                    self.kernels[position] = launch
            return launch

    def reachable(self, m_max: int) -> Iterable[int]:
        """Positions of the choices that serve some M up to `m_max`."""
        return range(self.table.index(m_max) + 1)

    def _load(self, position: int) -> Launch:
        choice = self.choices[position]
        if choice.config is not None:
            job = CompileJob.on(self.table.N, self.table.K, choice.config, self.table.device)
            try:
                return tilelang_launch(job, self._index)
            except Exception as problem:  # any compiler failure: the call must still give its result
                choice = self.choices[position] = fallback_choice(
                    self.table.N,
                    self.table.K,
                    self.table.device,
                    f"{choice.config} did not compile ({first_line(problem)})",
                )
                logger.warning("N=%d, K=%d: %s", self.table.N, self.table.K, choice.reason)
        return backends.backend(choice.kernel).gemm


def tilelang_launch(job: CompileJob, index: int) -> Launch:
    kernel = compile_kernel(job)
    if kernel_registry.needs_workspace(job.config, job.arch):
        kernel = _with_workspace(kernel, job.N, job.config.split_k)
    return on_device(kernel, index)


def _with_workspace(kernel: Callable[..., None], N: int, split_k: int) -> Launch:
    """Allocate the float32 partials per call: from PyTorch's pool of the current stream, or of the graph."""

    def launch(A, A_scale, B, B_scale, C):
        partials = torch.empty((split_k, A.shape[0], N), dtype=torch.float32, device=A.device)
        kernel(A, A_scale, B, B_scale, C, partials)

    return launch


def on_device(kernel: Callable[..., None], index: int) -> Callable[..., None]:
    """With several GPUs: launch on device `index`, the tensors', and leave the current device as it was."""
    if torch.cuda.device_count() == 1:
        return kernel

    def launch(*tensors):
        if torch.cuda.current_device() == index:
            kernel(*tensors)
        else:
            with torch.cuda.device(index):
                kernel(*tensors)

    return launch


_gemms: dict[tuple[int, int, int], Gemm] = {}
_gemms_lock = threading.Lock()


def run_compiled(A, A_scale, B, B_scale, C) -> bool:
    """Launch the kernel of a call, if it is compiled and takes these tensors; else nothing has been written.

    The path of every call but the first. A compiled TileLang kernel checks dtypes, shapes, strides and
    devices itself before it launches: only what it does not see is left to look at here.
    """
    try:
        M, K = A.shape
        N = B.shape[0]
        gemm = _gemms[N, K, A.get_device()]
        kernel = gemm.kernels[bisect_left(gemm.switches, M)]
        if kernel is None or not M or not lies_right(A, A_scale, B, B_scale, C, M, N, K):
            return False
        kernel(A, A_scale, B, B_scale, C)
    except Exception:  # a call that fails is made once more with every check, which says best what is wrong
        return False
    return True


def run(M: int, N: int, K: int, index: int, A, A_scale, B, B_scale, C) -> None:
    """Launch a checked problem on device `index` (-1: CPU)."""
    gemm = _gemms.get((N, K, index))
    if gemm is None:
        gemm = gemm_for(N, K, index)
    gemm(M, A, A_scale, B, B_scale, C)


def gemm_for(N: int, K: int, index: int) -> Gemm:
    """The shared `Gemm` of (N, K) on device `index`, built and its notes logged on first use."""
    with _gemms_lock:
        gemm = _gemms.get((N, K, index))
        if gemm is None:
            table = build_table(N, K, device_of(index) if index >= 0 else cpu_device())
            log_notes(table)
            gemm = _gemms[N, K, index] = Gemm(table, index)
        return gemm


def forget() -> None:
    """Drop every table and kernel, so that changed files or settings count from the next call on."""
    with _gemms_lock:
        _gemms.clear()
