"""Compiling kernels: one at a time, or many in parallel worker processes that share TileLang's disk cache."""

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
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from filelock import FileLock, Timeout

from tilelang_gemm_wrapper import configurer
from tilelang_gemm_wrapper.core import child_process, kernel_registry
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.device import Device
from tilelang_gemm_wrapper.core.failure_text import first_line

logger = logging.getLogger(__name__)

COMPILER = "tilelang_gemm_wrapper.core.compile_cache"  # this file, as a process


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
    def on(cls, N: int, K: int, config: KernelConfig, device: Device) -> CompileJob:
        """The job for a call on `device`, as the environment wants it."""
        return cls(N, K, config, device.arch, configurer.static_weights(), device.sm_count)

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
    function = kernel_registry.build(job.N, job.K, job.config, job.arch, job.static_weights, job.sm_count)
    launcher = compile_primfunc(function, job.arch, kernel_registry.pass_configs(job.arch))
    _marker(job).touch()
    return launcher


def compile_primfunc(
    function: Any, arch: str, pass_configs: Mapping[str, Any] | None = None
) -> Callable[..., None]:
    """The launcher of a TileLang PrimFunc for `arch`, compiled or loaded from TileLang's disk cache."""
    kernel = tilelang_module().compile(
        function,
        target={"kind": "cuda", "arch": arch},
        execution_backend="tvm_ffi",
        pass_configs=dict(pass_configs or {}),
    )
    return entry_function(kernel)


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


def is_compiled(job: CompileJob) -> bool:
    """Whether an earlier process has put this very kernel into the cache."""
    return _marker(job).exists()


class CompileWorker:
    """A compiler process that is started when first needed and replaced after it died or hung."""

    def __init__(self, environment: Mapping[str, str] | None = None, module: str = COMPILER) -> None:
        """`module` is what the process runs: it answers each job of its input with a line of JSON."""
        self._module = module
        self._environment = {**os.environ, **(environment or {})}
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
    with alone("compile"):
        missing = [job for job in missing if not is_compiled(job)]
        workers = min(configurer.compile_workers(), len(missing))
        return run_jobs(missing, workers, progress) if missing else []


@contextmanager
def alone(task: str) -> Iterator[None]:
    """Keep other processes that share the cache out of `task`: they wait, and then mostly find it done.

    The operating system frees the lock of a process that dies.
    """
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / f"tilelang_gemm_{task}.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        logger.info("waiting for another process (%s); its lock is %s", task, lock.lock_file)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


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
            failure = worker.compile(job)
            finished.put(str(failure) if failure else None)
        except Exception as problem:  # no process to be had, say: the one who waits must hear of it
            finished.put(f"{job}: {first_line(problem)}")
    worker.close()


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
    """Import TileLang with its cache where the user wants it and its per-compile INFO lines off."""
    directory = configurer.cache_directory()
    if directory is not None:
        os.environ["TILELANG_CACHE_DIR"] = str(directory)
    import tilelang

    logging.getLogger("tilelang").setLevel(logging.ERROR)
    # Sets its own level, and warns of every kernel that is asked for twice.
    logging.getLogger("tilelang.cache.kernel_cache").disabled = True
    return tilelang


def cache_directory() -> Path:
    """Where compiled kernels are kept between processes."""
    own = configurer.cache_directory()
    return (
        own
        if own is not None
        else Path(os.environ.get("TILELANG_CACHE_DIR", Path.home() / ".tilelang" / "cache"))
    )


def _marker(job: CompileJob) -> Path:
    """An empty file that says: this job's kernel is in the cache. Named by all that decides the binary."""
    directory = cache_directory() / "tilelang_gemm_compiled"
    directory.mkdir(parents=True, exist_ok=True)
    return directory / hashlib.sha256(f"{code_version()} {job.to_json()}".encode()).hexdigest()[:32]


@lru_cache(maxsize=1)
def code_version() -> str:
    """Names TileLang's version and the kernels' sources: two runs with the same have the same kernels."""
    sources = sorted(Path(kernel_registry.__file__).with_name("kernels").glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    return f"tilelang {version('tilelang')} kernels {digest}"


if __name__ == "__main__":
    _serve_jobs()
