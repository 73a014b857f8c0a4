"""Compiling kernels: one at a time, or many in parallel worker processes that share TileLang's disk cache.

What is written down beside the kernels (locks, markers) saves time and is never needed: where it cannot be
had, work goes on without it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import select
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tilelang_gemm_wrapper import configurer
from tilelang_gemm_wrapper.core import (
    child_process,
    cuda_toolchain,
    kernel_cache,
    kernel_registry,
    locks,
    temporary_directory,
)
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.device import Device
from tilelang_gemm_wrapper.core.environment import installed_version
from tilelang_gemm_wrapper.core.failure_text import first_line
from tilelang_gemm_wrapper.core.kernel_cache import cache_directory
from tilelang_gemm_wrapper.core.whole_file import replacing

logger = logging.getLogger(__name__)

COMPILER = "tilelang_gemm_wrapper.core.compile_cache"  # this file, as a process
COMPILE_TIMEOUT_S = 240.0  # a job of DeepGEMM's compiles several kernels one after the other
LOCK_TIMEOUT_S = 2 * COMPILE_TIMEOUT_S  # then a process compiles what it waits for by itself


@dataclass(frozen=True, slots=True)
class CompileJob:
    """One kernel to compile: problem, config, architecture ("sm_90a" or "sm_89") and what else is built in.

    `static_weights` and `sm_count` are those of `kernel_registry.build`.
    """

    N: int
    K: int
    config: KernelConfig
    arch: str
    static_weights: bool = False
    sm_count: int = kernel_registry.FULL_HOPPER_SMS

    @classmethod
    def on(
        cls, N: int, K: int, config: KernelConfig, device: Device, static_weights: bool | None = None
    ) -> CompileJob:
        """The job for a call on `device`; where `static_weights` is None, as the environment wants it."""
        if static_weights is None:
            static_weights = configurer.static_weights()
        return cls(N, K, config, device.arch, static_weights, device.sm_count)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> CompileJob:
        fields = json.loads(text)
        return cls(**{**fields, "config": KernelConfig(**fields["config"])})


def compile_kernel(job: CompileJob) -> Callable[..., None]:
    """Compile (or load from TileLang's disk cache) and return the launcher.

    The launcher takes the PrimFunc's tensors positionally and launches on the current stream. It is the raw
    TVM-FFI function: TileLang's own call wrapper walks the parameter list in Python on every call.
    """
    tilelang_module()
    if job in _timed_out:
        raise TimeoutError(_timed_out[job])
    function = kernel_registry.build(job.N, job.K, job.config, job.arch, job.static_weights, job.sm_count)
    launcher = compile_primfunc(function, job.arch, kernel_registry.pass_configs(job.arch))
    if kernel_cache.why_not_kept() is None:
        _note(_marker(job))
    return launcher


def compile_primfunc(
    function: Any, arch: str, pass_configs: Mapping[str, Any] | None = None
) -> Callable[..., None]:
    """The launcher of a TileLang PrimFunc for `arch`, compiled or loaded from TileLang's disk cache."""
    try:
        launcher = entry_function(_compile(function, arch, pass_configs or {}))
    except Exception as problem:
        # TileLang keeps a kernel before it gives it: a disk that has filled up since costs it the kernel.
        if not (
            kernel_cache.given_up_for(problem) or temporary_directory.moved_from_unfit(cache_directory())
        ):
            raise
        launcher = entry_function(_compile(function, arch, pass_configs or {}))
    _note_compiler()
    return launcher


def _compile(function: Any, arch: str, pass_configs: Mapping[str, Any]) -> Any:
    tilelang = tilelang_module()
    os.environ["TILELANG_CACHE_DIR"] = str(cache_directory())
    return tilelang.compile(
        function,
        target={"kind": "cuda", "arch": arch},
        execution_backend="tvm_ffi",
        pass_configs=with_compiler(pass_configs),
    )


@dataclass(frozen=True, slots=True)
class WarmupJob:
    """A backend's kernels to compile ahead, for a (N, K) and the M that will be asked for; needs the GPU."""

    backend: str
    N: int
    K: int
    m_values: tuple[int, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self))


AnyJob = CompileJob | WarmupJob


@dataclass(frozen=True, slots=True)
class CompileFailure:
    """Why a job has no kernel: what the compiler raised, its death, or that it took too long."""

    job: AnyJob
    message: str
    timed_out: bool = False

    def __str__(self) -> str:
        return f"{self.job}: {self.message}"


_timed_out: dict[CompileJob, str] = {}  # not compiled again in this process, which they could hang for ever


def is_compiled(job: CompileJob) -> bool:
    """Whether an earlier process has put this very kernel into the cache."""
    # Unlike Path.exists never raises.
    return kernel_cache.why_not_kept() is None and os.path.exists(_marker(job))


class CompileWorker:
    """A compiler process that is started when first needed and replaced after it died or hung."""

    def __init__(self, environment: Mapping[str, str] | None = None, module: str = COMPILER) -> None:
        """`module` is what the process runs: it answers each job of its input with a line of JSON."""
        self._module = module
        self._environment = {**worker_environment(), **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def compile(self, job: AnyJob, timeout_s: float | None = None) -> CompileFailure | None:
        """Compile one job into the disk cache; at most `timeout_s` seconds, then the process is killed."""
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = child_process.start(
                self._module, environment=self._environment, stderr=subprocess.DEVNULL
            )
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(job.to_json().encode() + b"\n")
            process.stdin.flush()
        # One job at a time and one short line an answer: no pipe can fill up, no line comes in parts.
        if timeout_s is not None and not select.select([process.stdout], [], [], timeout_s)[0]:
            self.close()
            return CompileFailure(job, f"no result after {timeout_s:g} s; the compiler was killed", True)
        line = process.stdout.readline()
        if line.endswith(b"\n"):
            error = json.loads(line)["error"]
            return CompileFailure(job, error) if error else None
        return CompileFailure(job, f"the compiler process ended with status {process.wait()}")

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            child_process.kill(process)


def compile_many(jobs: Iterable[CompileJob], progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Compile `jobs` into the disk cache with parallel processes; `progress(done, total)` as they finish.

    Jobs that an earlier process finished are skipped, and of several processes with the same cache one
    compiles at a time: the ranks of an engine compile everything once. Returns one sentence for each job that
    failed; a crash of a compiler costs that job alone.
    """
    missing = [job for job in dict.fromkeys(jobs) if not is_compiled(job)]
    if not missing:
        return []
    if why := kernel_cache.why_not_kept():
        logger.warning("%s: no kernel is kept, and each process compiles its own, one after the other", why)
        return []
    with alone("compile"):
        missing = [job for job in missing if not is_compiled(job)]
        workers = min(configurer.compile_workers(), len(missing))
        return run_jobs(missing, workers, progress) if missing else []


def worker_environment() -> dict[str, str]:
    """That of this process, for one that is to find and leave kernels where this one does."""
    # Absolute: a name that starts with ~ would be a home's there.
    return {**os.environ, configurer.CACHE_DIR: str(cache_directory().absolute())}


@contextmanager
def alone(task: str) -> Iterator[None]:
    """Keep other processes that share the cache out of `task`: they wait, and then mostly find it done.

    Nobody waits for ever, and where no lock is to be had (a file system without, another user's file) nobody
    waits at all: work is then done twice.
    """
    path = cache_directory() / f"{kernel_cache.OWN_FOLDERS}{task}.lock"
    lock = None
    try:
        lock = locks.take(
            path,
            LOCK_TIMEOUT_S,
            lambda: logger.info("waiting for another process (%s); its lock is %s", task, path),
        )
    except TimeoutError as error:
        logger.warning("%s: this process goes on by itself (%s); end the other if it hangs", error, task)
    except OSError as error:
        logger.info("no lock for %s (%s): other processes may do the same work", task, error)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def run_jobs(
    jobs: Sequence[AnyJob], workers: int, progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """Run every one of `jobs` in one of `workers` processes; progress and failures as in `compile_many`."""
    failures: list[str] = []
    waiting, finished = deque(jobs), SimpleQueue[str | None]()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for _ in range(workers):
                pool.submit(_run_worker, waiting, finished)
            for done in range(1, len(jobs) + 1):
                failure = finished.get()
                if failure is not None:
                    failures.append(failure)
                if progress is not None:
                    progress(done, len(jobs))
        finally:
            waiting.clear()  # after Ctrl-C no further job starts
    return failures


def _run_worker(waiting: deque[AnyJob], finished: SimpleQueue[str | None]) -> None:
    """Take jobs until none waits; put one item a job into `finished`, whatever happens to the process."""
    worker = CompileWorker()
    while True:
        try:
            job = waiting.popleft()
        except IndexError:
            break
        try:
            failure = worker.compile(job, COMPILE_TIMEOUT_S)
            if isinstance(job, CompileJob):
                _remember(job, failure)
            finished.put(str(failure) if failure else None)
        except Exception as problem:  # no process to be had, say: the one who waits must hear of it
            finished.put(f"{job}: {first_line(problem)}")
    worker.close()


def _remember(job: CompileJob, failure: CompileFailure | None) -> None:
    if failure is not None and failure.timed_out:
        _timed_out[job] = failure.message
    else:
        _timed_out.pop(job, None)


def _serve_jobs() -> None:
    """Worker process: compile each job of standard input, answer one JSON line each."""
    answers = child_process.begin()
    for line in sys.stdin:
        error = None
        try:
            fields = json.loads(line)
            if "backend" in fields:
                _warm_backend(WarmupJob(**{**fields, "m_values": tuple(fields["m_values"])}))
            else:
                compile_kernel(CompileJob.from_json(line))
        except Exception as problem:  # whatever a compiler raises is this job's failure, not the worker's
            error = first_line(problem)
        answers.write(json.dumps({"error": error}) + "\n")


def _warm_backend(job: WarmupJob) -> None:
    import torch

    from tilelang_gemm_wrapper import backends
    from tilelang_gemm_wrapper.core.device import device_of

    backend = backends.backend(job.backend)
    device = device_of(torch.cuda.current_device())
    if not (backend.why_unavailable(device) or backend.why_unsupported(job.N, job.K)):
        backend.warmup(job.N, job.K, job.m_values)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def entry_function(kernel: Any) -> Callable[..., None]:
    """The TVM-FFI function behind a compiled TileLang kernel."""
    adapter = kernel.adapter
    executable = adapter.executable if adapter.executable is not None else adapter.get_exportable_executable()
    module = executable.jit() if hasattr(executable, "jit") else executable
    return module["main"]


@lru_cache(maxsize=1)
def tilelang_module() -> Any:
    """Import TileLang with its cache where ours is and its per-compile INFO lines off."""
    os.environ["TILELANG_CACHE_DIR"] = str(cache_directory())  # it makes folders there when it is imported
    os.environ.setdefault("TILELANG_COMPILE_TIMEOUT_SECONDS", f"{COMPILE_TIMEOUT_S:g}")
    import tilelang

    logging.getLogger("tilelang").setLevel(logging.ERROR)
    # Sets its own level, and warns of every kernel that is asked for twice.
    logging.getLogger("tilelang.cache.kernel_cache").disabled = True
    return tilelang


def with_compiler(pass_configs: Mapping[str, Any]) -> dict[str, Any]:
    """TileLang's compiler options, with the compiler named in them.

    TileLang's cache tells kernels apart by their options, not by what nvcc made of them: without its name an
    update of nvcc would change nothing, and timings would be of the earlier one's kernels.
    """
    name = f"-DTILELANG_GEMM_COMPILER=0x{_digest(compiler_version())[:8]}"
    flags = [*pass_configs.get(_FLAGS, ()), name]
    return {**pass_configs, _FLAGS: flags}


_FLAGS = "tl.device_compile_flags"


def _marker(job: CompileJob) -> Path:
    """An empty file that says: this job's kernel is in the cache. Named by all that decides the binary."""
    options = kernel_registry.build_options(job.arch)
    identity = [code_version(), compiler_version(), options, job.to_json()]
    return cache_directory() / kernel_cache.NOTES / _digest(identity)[:32]


def _note(path: Path, text: str = "") -> None:
    """Write a note for later processes, as far as that is possible: whole, or as it was."""
    with suppress(OSError):
        if not path.is_file() or path.read_bytes() != text.encode():
            with replacing(path) as file:
                file.write(text)


@lru_cache(maxsize=1)
def _note_compiler() -> None:
    """For processes that have no nvcc themselves."""
    if _compiler() is not None:
        _note(_nvcc_note(), compiler_version())


def _nvcc_note() -> Path:
    return cache_directory() / kernel_cache.NOTES / "nvcc"


@lru_cache(maxsize=1)
def code_version() -> str:
    """Names TileLang's version and all of ours that decides a kernel: sources, compiler options.

    Two runs with the same have the same kernels, as far as nvcc (`compiler_version`) is the same too. A
    comment or a change of layout does not change it.
    """
    options = [kernel_registry.build_options(arch) for arch in kernel_registry.ARCHITECTURES]
    tilelang = installed_version("tilelang") or "none"
    return f"tilelang {tilelang} kernels {_digest([kernel_registry.sources(), options])}"


def _digest(identity: Any) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=1)
def compiler_version() -> str:
    """nvcc's version and options from the environment: all that decides what it makes of a source.

    Where there is no nvcc, that of the nvcc that filled the cache: its kernels are then found.
    """
    compiler = _compiler()
    if compiler is None:
        with suppress(OSError, UnicodeDecodeError):
            return _nvcc_note().read_text(encoding="utf-8") or "none"
    return compiler or "none"


def _compiler() -> str | None:
    try:
        version = cuda_toolchain.nvcc_version()
    except (RuntimeError, OSError):
        return None
    options = (os.environ.get(name, "") for name in ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"))
    return " ".join((version, *filter(None, options)))


if __name__ == "__main__":
    _serve_jobs()
