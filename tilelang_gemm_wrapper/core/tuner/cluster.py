"""The machines of a run behind one queue of events: compilers on the CPUs, and one worker a GPU.

Each compiler and each GPU is a thread that blocks on its worker, here in a process of this machine, with Ray
anywhere. The driver only reads events, so it alone decides and it alone writes.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tilelang_gemm_wrapper.core.compile_cache import (
    COMPILE_TIMEOUT_S,
    AnyJob,
    CompileFailure,
    CompileWorker,
)
from tilelang_gemm_wrapper.core.device import Device
from tilelang_gemm_wrapper.core.failure_text import first_line
from tilelang_gemm_wrapper.core.tuner.child import (
    GPU_BENCH,
    Child,
    ChildFailedError,
    ChildLimits,
    ShapeSetupError,
)
from tilelang_gemm_wrapper.core.tuner.records import Record
from tilelang_gemm_wrapper.core.tuner.search import ShapeRequest, ShapeSearch


class WorkerLostError(RuntimeError):
    """A worker, or the node it was on, is gone; its work has to be done by another."""


class Compiler(Protocol):
    """Compiles one job at a time into the cache of its node. Raises WorkerLostError."""

    node: str

    def compile(self, job: AnyJob, timeout_s: float | None = None) -> CompileFailure | None: ...
    def close(self) -> None: ...


class GpuWorker(Protocol):
    """One GPU. `tune` blocks between records and raises WorkerLostError."""

    name: str
    node: str
    device: Device
    environment: dict[str, Any]

    def tune(self, request: ShapeRequest) -> Iterator[Record]: ...
    def close(self) -> None: ...


class LocalCompiler(CompileWorker):
    """A compiler process of this machine."""

    node = "local"


class LocalGpu:
    """A GPU of this machine, or, inside a Ray actor, of the actor's."""

    def __init__(
        self,
        name: str = "GPU 0",
        node: str = "local",
        bench: str = GPU_BENCH,
        limits: ChildLimits | None = None,
    ) -> None:
        self.name, self.node = name, node
        self._child = Child(bench, limits=limits)
        self.device = self._child.device
        self.environment = self._child.environment

    def tune(self, request: ShapeRequest) -> Iterator[Record]:
        try:
            yield from ShapeSearch(request, self._child).run()
        except ChildFailedError as problem:
            raise WorkerLostError(f"{self.name}: {problem}") from problem

    def close(self) -> None:
        self._child.close()


@dataclass(frozen=True, slots=True)
class Compiled:
    node: str
    job: AnyJob
    failure: CompileFailure | None


@dataclass(frozen=True, slots=True)
class Recorded:
    gpu: GpuWorker
    record: Record


@dataclass(frozen=True, slots=True)
class Finished:
    gpu: GpuWorker
    request: ShapeRequest


@dataclass(frozen=True, slots=True)
class ShapeFailed:
    gpu: GpuWorker
    request: ShapeRequest
    reason: str


@dataclass(frozen=True, slots=True)
class GpuLost:
    gpu: GpuWorker
    request: ShapeRequest
    reason: str


@dataclass(frozen=True, slots=True)
class CompilerLost:
    """`last`: no compiler of that node is left, so what it had to compile never will be."""

    node: str
    reason: str
    last: bool


Event = Compiled | Recorded | Finished | ShapeFailed | GpuLost | CompilerLost


class Cluster:
    """Compilers and GPUs at work; `next_event` tells what happened."""

    def __init__(self, compilers: Sequence[Compiler], gpus: Sequence[GpuWorker]) -> None:
        self.gpus = list(gpus)
        self._compilers = list(compilers)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._jobs: dict[str, deque[AnyJob]] = {compiler.node: deque() for compiler in compilers}
        self._left = {node: sum(c.node == node for c in compilers) for node in self._jobs}
        self._wake = threading.Condition()
        self._closed = False
        for compiler in compilers:
            threading.Thread(target=self._compile, args=(compiler,), daemon=True).start()

    def compile(self, node: str, jobs: Sequence[AnyJob]) -> None:
        """Queue jobs on a node: one `Compiled` event each."""
        with self._wake:
            self._jobs[node].extend(jobs)
            self._wake.notify_all()

    def waiting_jobs(self) -> int:
        return sum(map(len, self._jobs.values()))

    def tune(self, gpu: GpuWorker, request: ShapeRequest) -> None:
        """Start a visit on an idle GPU: `Recorded` events, then `Finished` or `GpuLost`."""
        threading.Thread(target=self._tune, args=(gpu, request), daemon=True).start()

    def next_event(self, timeout_s: float) -> Event | None:
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Stop everything, at once."""
        with self._wake:
            self._closed = True
            for jobs in self._jobs.values():
                jobs.clear()
            self._wake.notify_all()
        for compiler in self._compilers:
            compiler.close()
        for gpu in self.gpus:
            gpu.close()

    def _tune(self, gpu: GpuWorker, request: ShapeRequest) -> None:
        try:
            for record in gpu.tune(request):
                self._events.put(Recorded(gpu, record))
            self._events.put(Finished(gpu, request))
        except ShapeSetupError as problem:
            self._events.put(ShapeFailed(gpu, request, str(problem)))
        except Exception as problem:  # a thread that died silently would leave the driver waiting for ever
            self._events.put(GpuLost(gpu, request, first_line(problem)))

    def _compile(self, compiler: Compiler) -> None:
        jobs = self._jobs[compiler.node]
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closed or bool(jobs))
                if self._closed:
                    return
                job = jobs.popleft()
            try:
                failure = compiler.compile(job, COMPILE_TIMEOUT_S)
            except WorkerLostError as lost:
                with self._wake:
                    jobs.appendleft(job)
                    self._left[compiler.node] -= 1
                    self._wake.notify_all()
                self._events.put(CompilerLost(compiler.node, str(lost), not self._left[compiler.node]))
                return
            except Exception as problem:
                if self._closed:
                    return
                failure = CompileFailure(job, first_line(problem))
            self._events.put(Compiled(compiler.node, job, failure))
