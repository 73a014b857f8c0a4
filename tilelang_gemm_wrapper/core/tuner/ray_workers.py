"""Workers of a Ray cluster, of this machine by default: an actor a GPU, and compilers on each node of a GPU.

Kernels are compiled on the node that runs them, because each node has its own cache on disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from tilelang_gemm_wrapper.core.compile_cache import COMPILER, AnyJob, CompileFailure, CompileWorker
from tilelang_gemm_wrapper.core.device import Device
from tilelang_gemm_wrapper.core.failure_text import last_line
from tilelang_gemm_wrapper.core.tuner.child import GPU_BENCH, ChildLimits
from tilelang_gemm_wrapper.core.tuner.cluster import Cluster, LocalGpu, WorkerLostError
from tilelang_gemm_wrapper.core.tuner.records import Record
from tilelang_gemm_wrapper.core.tuner.search import ShapeRequest

COMPILERS_A_GPU = 16
_START_S = 300.0


class _GpuActor:
    def __init__(self, name: str, bench: str, limits: ChildLimits | None) -> None:
        import ray

        self._node = ray.get_runtime_context().get_node_id()
        self._gpu = LocalGpu(name, self._node, bench, limits)

    def hello(self) -> tuple[str, str, Device, dict[str, Any]]:
        return (
            self._node,
            os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            self._gpu.device,
            self._gpu.environment,
        )

    def tune(self, request: ShapeRequest) -> Iterator[Record]:
        yield from self._gpu.tune(request)


class _CompileActor:
    def __init__(self, visible_gpu: str, module: str) -> None:
        # Ray hides the GPUs from an actor that asked for none; DeepGEMM compiles on one.
        self._worker = CompileWorker({"CUDA_VISIBLE_DEVICES": visible_gpu}, module)

    def compile(self, job: AnyJob, timeout_s: float | None) -> CompileFailure | None:
        return self._worker.compile(job, timeout_s)


class RayGpu:
    """The driver's end of a GPU actor."""

    def __init__(self, actor: Any, name: str) -> None:
        import ray

        self._actor = actor
        self.name = name
        self.node, self.visible, self.device, self.environment = ray.get(
            actor.hello.remote(), timeout=_START_S
        )

    def tune(self, request: ShapeRequest) -> Iterator[Record]:
        import ray

        try:
            for reference in self._actor.tune.options(num_returns="streaming").remote(request):
                yield ray.get(reference)
        except ray.exceptions.RayActorError as lost:
            raise WorkerLostError(f"{self.name}: {lost}") from lost

    def close(self) -> None:
        import ray

        with suppress(Exception):  # it may be gone with its node
            ray.kill(self._actor)


class RayCompiler:
    """The driver's end of a compiler actor."""

    def __init__(self, actor: Any, node: str) -> None:
        self._actor = actor
        self.node = node

    def compile(self, job: AnyJob, timeout_s: float | None = None) -> CompileFailure | None:
        import ray

        try:
            return ray.get(self._actor.compile.remote(job, timeout_s))
        except ray.exceptions.RayActorError as lost:
            raise WorkerLostError(f"a compiler: {lost}") from lost

    def close(self) -> None:
        import ray

        with suppress(Exception):
            ray.kill(self._actor)


def gpu_count(wanted: int | None) -> int:
    """How many GPUs of the Ray that is connected to will work: `wanted`, all where None.

    Raises RuntimeError where it has fewer, or none.
    """
    import ray

    has = int(ray.cluster_resources().get("GPU", 0))
    count = has if wanted is None else wanted
    if has == 0:
        raise RuntimeError("Ray has no GPU here: give the --ray-address of a cluster that has")
    if not 0 < count <= has:
        raise RuntimeError(
            f"{count} GPUs are wanted and Ray has {has}: give --num-gpus at most that, or --ray-address of a "
            f"cluster with more"
        )
    return count


def ray_cluster(
    num_gpus: int | None = None,
    *,
    bench: str = GPU_BENCH,
    compiler: str = COMPILER,
    limits: ChildLimits | None = None,
    compilers_a_gpu: int = COMPILERS_A_GPU,
) -> Cluster:
    """Workers on the Ray that this process is connected to: `num_gpus` of its GPUs, all where None.

    Raises RuntimeError where Ray has fewer GPUs, or one does not start.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    count = gpu_count(num_gpus)
    # No CPU of Ray's: the actor waits for its child, and compilers may have every core.
    actor_of = ray.remote(num_gpus=1, num_cpus=0, max_restarts=0)(_GpuActor)
    actors = [
        actor_of.options(scheduling_strategy="SPREAD").remote(f"GPU {i}", bench, limits) for i in range(count)
    ]
    try:
        gpus = [RayGpu(actor, f"GPU {i}") for i, actor in enumerate(actors)]
    except Exception as problem:
        for actor in actors:
            ray.kill(actor)
        raise RuntimeError(f"a GPU worker did not start: {last_line(problem)}") from problem
    cpus = {node["NodeID"]: int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"]}
    compiler_of = ray.remote(num_cpus=1, max_restarts=0)(_CompileActor)
    compilers = []
    for node in dict.fromkeys(gpu.node for gpu in gpus):
        here = [gpu for gpu in gpus if gpu.node == node]
        for i in range(max(1, min(cpus.get(node, 1), compilers_a_gpu * len(here)))):
            affinity = NodeAffinitySchedulingStrategy(node, soft=False)
            actor = compiler_of.options(scheduling_strategy=affinity).remote(
                here[i % len(here)].visible, compiler
            )
            compilers.append(RayCompiler(actor, node))
    return Cluster(compilers, gpus)
