"""The driver of a tuning run: hands out work, writes the journal and the config files, and decides.

A shape goes through four steps: compile the first candidates, time them briefly, compile what these made
promising, decide. Shapes overlap, so that the CPUs compile for one while the GPUs time another. A shape whose
GPU or node is lost goes to another with what the journal has of it.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tilelang_gemm_wrapper.core.compile_cache import CompileFailure, CompileJob, WarmupJob
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.cost_model import CostModel
from tilelang_gemm_wrapper.core.device import Device
from tilelang_gemm_wrapper.core.failure_text import told
from tilelang_gemm_wrapper.core.tuner.candidates import first_candidates, more_candidates
from tilelang_gemm_wrapper.core.tuner.cluster import (
    Cluster,
    Compiled,
    CompilerLost,
    Finished,
    GpuLost,
    GpuWorker,
    Recorded,
    ShapeFailed,
)
from tilelang_gemm_wrapper.core.tuner.effort import Effort
from tilelang_gemm_wrapper.core.tuner.journal import Journal, environment_key
from tilelang_gemm_wrapper.core.tuner.records import Failure, Record, Timing
from tilelang_gemm_wrapper.core.tuner.search import DEEP_GEMM, ShapeRequest, deep_gemm_m
from tilelang_gemm_wrapper.core.tuner.shape_times import ShapeTimes
from tilelang_gemm_wrapper.core.tuner.tables import Tables

logger = logging.getLogger(__name__)

_AHEAD = 3  # shapes of a device that are in work beyond its number of GPUs: enough to keep the CPUs busy
_MOST_LOSSES = 2  # GPUs that one shape may lose before it is given up: it may be what kills them
_WARMED_TOGETHER = 24  # M a job: neighbours mostly share one of DeepGEMM's kernels, each seconds of nvcc
_RETURN_S = 0.5

Stage = Literal["compiling", "ready", "timing", "waiting"]


@dataclass(eq=False)
class Shape:
    """One (N, K) on one kind of device, on its way through the run."""

    N: int
    K: int
    device: Device
    node: str
    records: list[Record]
    previous: tuple[tuple[int, KernelConfig], ...]
    stage: Stage = "compiling"
    visit: Literal["explore", "decide"] = "explore"
    compiling: set[CompileJob] = field(default_factory=set)
    warming: set[WarmupJob] = field(default_factory=set)
    compiled: dict[KernelConfig, None] = field(default_factory=dict)
    losses: int = 0

    @property
    def name(self) -> str:
        return f"N={self.N}, K={self.K}"

    def result(self, path: Path | None) -> ShapeResult:
        return ShapeResult(self.N, self.K, self.device, tuple(self.records), path, self.previous)


@dataclass(frozen=True, slots=True)
class ShapeResult:
    """What a run knows of one (N, K) on one device when it is done with it."""

    N: int
    K: int
    device: Device
    records: tuple[Record, ...]
    path: Path | None  # the file written; None where nothing could be decided
    previous: tuple[tuple[int, KernelConfig], ...]


class Listener:
    """Told of progress; the default says nothing. The command's display derives from it."""

    def started(self, shapes: int, cells: int) -> None: ...
    def recorded(self, gpu: str, record: Record) -> None: ...
    def compiling(self, waiting: int) -> None: ...
    def finished(self, result: ShapeResult) -> None: ...
    def warned(self, message: str) -> None: ...


class Driver:
    """One run over `shapes` on the GPUs of `cluster`, into `out`. The caller holds the directory's lock."""

    def __init__(
        self,
        cluster: Cluster,
        shapes: Sequence[tuple[int, int]],
        m_values: Sequence[int],
        effort: Effort,
        out: Path,
        *,
        resume: bool = False,
        listener: Listener | None = None,
        make_model: Callable[[Device], CostModel] = CostModel,
    ) -> None:
        self._cluster = cluster
        self._m_values = tuple(sorted(set(m_values)))
        self._effort = effort
        self._tables = Tables(out, self._m_values, effort)
        self._listener = listener or Listener()
        self._journal = Journal(out)
        self._environments = {gpu.device.name: gpu.environment for gpu in cluster.gpus}
        self._models = {gpu.device.name: make_model(gpu.device) for gpu in cluster.gpus}
        self._idle: list[GpuWorker] = list(cluster.gpus)
        self._active: list[Shape] = []
        self._results: list[ShapeResult] = []
        self._visits: dict[GpuWorker, Shape] = {}
        self._queues: dict[str, deque[tuple[int, int]]] = {
            # The largest first: a long one must not be left for the end.
            name: deque(sorted(dict.fromkeys(shapes), key=lambda s: -s[0] * s[1]))
            for name in self._environments
        }
        self._known = self._known_records(resume)

    def run(self) -> list[ShapeResult]:
        """Tune; returns a result per shape and device. Raises RuntimeError where all GPUs are lost."""
        for environment in self._environments.values():
            self._journal.note_environment(environment)
        total = sum(map(len, self._queues.values()))
        self._listener.started(total, total * len(self._m_values))
        try:
            while True:
                self._admit()
                self._dispatch()
                if not self._active:
                    break
                event = self._cluster.next_event(_RETURN_S)
                if isinstance(event, Recorded):
                    self._record(self._visits[event.gpu], event.record, event.gpu.name)
                elif isinstance(event, Compiled):
                    self._compiled(event)
                elif isinstance(event, Finished):
                    self._visited(event.gpu)
                elif isinstance(event, ShapeFailed):
                    self._shape_failed(event)
                elif isinstance(event, GpuLost):
                    self._gpu_lost(event)
                elif isinstance(event, CompilerLost):
                    self._compiler_lost(event)
                self._listener.compiling(self._cluster.waiting_jobs())
        finally:
            self._journal.close()
        return self._results

    # Admission: a shape starts when its device has room for it.

    def _admit(self) -> None:
        for gpu in self._cluster.gpus:
            name = gpu.device.name
            gpus = sum(other.device.name == name for other in self._cluster.gpus)
            while self._queues[name] and self._in_work(name) < gpus + _AHEAD:
                N, K = self._queues[name].popleft()
                self._start(N, K, gpu.device, self._node_for(name))

    def _in_work(self, device_name: str) -> int:
        return sum(shape.device.name == device_name for shape in self._active)

    def _node_for(self, device_name: str) -> str:
        """The node with most GPUs of that name for each shape that it already has."""
        nodes = [gpu.node for gpu in self._cluster.gpus if gpu.device.name == device_name]
        return min(
            dict.fromkeys(nodes), key=lambda n: sum(s.node == n for s in self._active) / nodes.count(n)
        )

    def _start(self, N: int, K: int, device: Device, node: str) -> None:
        records = list(self._known.get((N, K, device.name), ()))
        shape = Shape(N, K, device, node, records, self._tables.choices(N, K, device))
        self._active.append(shape)
        times = ShapeTimes(records)
        if all(times.is_done(M, self._effort) for M in self._m_values):
            self._conclude(shape)
            return
        self._begin_compiling(shape)

    def _begin_compiling(self, shape: Shape) -> None:
        """Queue the first candidates, or, where the journal has those, what came after them."""
        shape.compiled.clear()
        shape.visit = "explore"
        times = ShapeTimes(shape.records)
        model = self._models[shape.device.name]
        first = first_candidates(shape.N, shape.K, self._m_values, shape.device, model, self._effort)
        timed = {config for by_config in times.quick.values() for config in by_config}
        before = [config for _, config in shape.previous if config.is_tilelang]
        wanted = dict.fromkeys(c for c in (*first, *timed, *before) if c.is_tilelang)
        self._compile(shape, [c for c in wanted if c not in times.failures])
        # Behind ours: DeepGEMM's kernels are needed last.
        m_values = sorted({*self._m_values, *deep_gemm_m(self._m_values)})
        parts = [
            m_values[start : start + _WARMED_TOGETHER] for start in range(0, len(m_values), _WARMED_TOGETHER)
        ]
        jobs = [WarmupJob(DEEP_GEMM.kernel_type, shape.N, shape.K, tuple(part)) for part in parts]
        shape.warming = set(jobs)
        self._cluster.compile(shape.node, jobs)

    def _compile(self, shape: Shape, configs: Sequence[KernelConfig]) -> None:
        jobs = [CompileJob.on(shape.N, shape.K, config, shape.device) for config in configs]
        shape.stage = "compiling"
        shape.compiling = set(jobs)
        self._cluster.compile(shape.node, jobs)
        if not jobs:
            self._next_step(shape)

    # Events.

    def _compiled(self, event: Compiled) -> None:
        for shape in self._active:
            if shape.node == event.node and event.job in shape.warming:
                assert isinstance(event.job, WarmupJob)
                shape.warming.discard(event.job)
                if shape.stage == "waiting" and not shape.warming:
                    shape.stage = "ready"
            elif shape.node == event.node and event.job in shape.compiling:
                assert isinstance(event.job, CompileJob)
                shape.compiling.discard(event.job)
                if event.failure is None:
                    shape.compiled[event.job.config] = None
                else:
                    self._record(shape, _compile_failure(event.job, event.failure), "compiler")
                if not shape.compiling:
                    self._next_step(shape)

    def _next_step(self, shape: Shape) -> None:
        """Our kernels are compiled: a GPU may take the shape, but decide with DeepGEMM's compiled as well."""
        shape.stage = "waiting" if shape.visit == "decide" and shape.warming else "ready"

    def _dispatch(self) -> None:
        for gpu in list(self._idle):
            ready = [
                shape
                for shape in self._active
                if shape.stage == "ready" and (shape.node, shape.device.name) == (gpu.node, gpu.device.name)
            ]
            if ready:
                # What is further goes first: its file is written sooner, and a new one is admitted.
                shape = next((s for s in ready if s.visit == "decide"), ready[0])
                shape.stage = "timing"
                self._idle.remove(gpu)
                self._visits[gpu] = shape
                self._cluster.tune(gpu, self._request(shape))

    def _request(self, shape: Shape) -> ShapeRequest:
        return ShapeRequest(
            shape.N,
            shape.K,
            self._m_values,
            tuple(shape.compiled),
            self._effort,
            shape.visit,
            tuple(shape.records),
            shape.previous,
        )

    def _visited(self, gpu: GpuWorker) -> None:
        shape = self._end_visit(gpu)
        if shape.visit == "decide":
            self._conclude(shape)
            return
        if gpu not in self._cluster.gpus:  # its node has lost its compilers meanwhile
            self._move(shape)
            return
        times = ShapeTimes(shape.records)
        self._refit(shape)
        shape.visit = "decide"
        model = self._models[shape.device.name]
        self._compile(
            shape,
            more_candidates(shape.N, shape.K, self._m_values, shape.device, model, self._effort, times),
        )

    def _end_visit(self, gpu: GpuWorker) -> Shape:
        if gpu in self._cluster.gpus:
            self._idle.append(gpu)
        return self._visits.pop(gpu)

    def _record(self, shape: Shape, record: Record, worker: str) -> None:
        shape.records.append(record)
        self._journal.append(environment_key(self._environments[shape.device.name]), record)
        self._listener.recorded(worker, record)

    def _shape_failed(self, event: ShapeFailed) -> None:
        self._give_up(self._end_visit(event.gpu), event.reason)

    def _gpu_lost(self, event: GpuLost) -> None:
        shape = self._visits.pop(event.gpu)
        if event.gpu in self._cluster.gpus:
            self._cluster.gpus.remove(event.gpu)
        self._listener.warned(f"{event.gpu.name} is lost while timing {shape.name}: {event.reason}")
        shape.losses += 1
        self._move(shape)
        self._move_stranded()

    def _compiler_lost(self, event: CompilerLost) -> None:
        if not event.last:
            return
        self._listener.warned(f"no compiler is left on node {event.node}: {event.reason}")
        for gpu in [gpu for gpu in self._cluster.gpus if gpu.node == event.node]:
            self._cluster.gpus.remove(gpu)
            if gpu in self._idle:
                self._idle.remove(gpu)
        self._move_stranded()

    def _move_stranded(self) -> None:
        """A shape that waits for a node where no GPU of its kind is left would wait for ever."""
        homes = {(gpu.node, gpu.device.name) for gpu in self._cluster.gpus}
        for shape in [s for s in self._active if s.stage != "timing"]:
            if (shape.node, shape.device.name) not in homes:
                self._move(shape)

    def _move(self, shape: Shape) -> None:
        """Have another GPU, perhaps of another node, take the shape from what is known of it."""
        if not any(gpu.device.name == shape.device.name for gpu in self._cluster.gpus):
            self._abandon(shape.device)
            return
        if shape.losses > _MOST_LOSSES:
            self._give_up(shape, f"it has lost {shape.losses} GPUs")
            return
        shape.node = self._node_for(shape.device.name)
        self._begin_compiling(shape)

    def _abandon(self, device: Device) -> None:
        """The last GPU of a device is lost: its shapes are given up, and those of other devices go on."""
        why = f"no GPU of {device.name} is left; --resume goes on from the journal {self._journal.path}"
        if not self._cluster.gpus:
            written = sum(result.path is not None for result in self._results)
            raise RuntimeError(f"{why}; {written} shapes are written")
        for shape in [shape for shape in self._active if shape.device == device]:
            self._give_up(shape, why)
        while self._queues[device.name]:
            N, K = self._queues[device.name].popleft()
            records = tuple(self._known.get((N, K, device.name), ()))
            self._results.append(ShapeResult(N, K, device, records, None, ()))

    def _give_up(self, shape: Shape, why: str) -> None:
        self._listener.warned(f"{shape.name} is given up, and its file left as it was: {why}")
        self._active.remove(shape)
        self._results.append(shape.result(None))

    # What a finished shape leaves.

    def _conclude(self, shape: Shape) -> None:
        self._active.remove(shape)
        environment = self._environments[shape.device.name]
        try:
            path = self._tables.write(shape.N, shape.K, shape.device, shape.records, environment)
        except OSError as failure:
            path = None
            why = f"its file cannot be written ({told(failure)})"
            if self._journal.is_whole:
                why += "; --resume writes it from the journal"
        else:
            why = "no candidate could be timed, so its file is left as it was"
        if path is None:
            self._listener.warned(f"{shape.name}: {why}")
        result = shape.result(path)
        self._results.append(result)
        self._listener.finished(result)

    def _known_records(self, resume: bool) -> dict[tuple[int, int, str], list[Record]]:
        """Fit the cost models on the whole journal; return what to resume from, by shape and device."""
        known: dict[tuple[int, int, str], list[Record]] = {}
        for name, environment in self._environments.items():
            try:
                records = self._journal.records(environment_key(environment))
            except OSError:
                if resume:
                    raise
                records = []  # the journal has said so
            self._fit(name, records)
            if resume:
                for record in records:
                    known.setdefault((record.N, record.K, name), []).append(record)
        return known

    def _refit(self, shape: Shape) -> None:
        name = shape.device.name
        finished = (result.records for result in self._results if result.device.name == name)
        self._fit(name, [*shape.records, *(record for records in finished for record in records)])

    def _fit(self, device_name: str, records: Sequence[Record]) -> None:
        quick = [r for r in records if isinstance(r, Timing) and r.stage == "quick"]
        started = time.monotonic()
        self._models[device_name].fit((r.config, r.M, r.N, r.K, r.p50_us) for r in quick[-20_000:])
        logger.debug("cost model fitted on %d timings in %.1f s", len(quick), time.monotonic() - started)


def _compile_failure(job: CompileJob, failure: CompileFailure) -> Failure:
    kind: Literal["compile_timeout", "compile_error"] = (
        "compile_timeout" if failure.timed_out else "compile_error"
    )
    return Failure(job.N, job.K, None, job.config, kind, failure.message[:300])
