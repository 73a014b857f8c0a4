"""What a lost GPU or compiler held goes to others, on whatever node; nothing is waited for in vain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tuning_runs import BENCH, COMPILER, Recorder, written

from tilelang_gemm_wrapper.core.compile_cache import CompileFailure
from tilelang_gemm_wrapper.core.tuner.cluster import (
    AnyJob,
    Cluster,
    LocalCompiler,
    LocalGpu,
    WorkerLostError,
)
from tilelang_gemm_wrapper.core.tuner.driver import Driver, ShapeResult
from tilelang_gemm_wrapper.core.tuner.effort import EFFORTS
from tilelang_gemm_wrapper.core.tuner.records import Failure, Record
from tilelang_gemm_wrapper.core.tuner.search import ShapeRequest

Simulate = Callable[..., Path]

SHAPES = [(512 * i, 1024) for i in range(1, 6)]
M_VALUES = (16, 512)


class Gpu(LocalGpu):
    """A GPU of a node that is lost for good after so many records."""

    def __init__(self, name: str, node: str, lost_after: int | None = None) -> None:
        super().__init__(name, node, BENCH)
        self._left = lost_after

    def tune(self, request: ShapeRequest) -> Iterator[Record]:
        for record in super().tune(request):
            if self._left is not None:
                if self._left == 0:
                    raise WorkerLostError("its node is gone")
                self._left -= 1
            yield record


class Compiler(LocalCompiler):
    """A compiler of a node that is lost for good after so many jobs."""

    def __init__(self, node: str, lost_after: int | None = None) -> None:
        super().__init__(module=COMPILER)
        self.node = node
        self._left = lost_after

    def compile(self, job: AnyJob, timeout_s: float | None = None) -> CompileFailure | None:
        if self._left is not None:
            if self._left == 0:
                raise WorkerLostError("its node is gone")
            self._left -= 1
        return super().compile(job, timeout_s)


def tune(
    out: Path, compilers: Sequence[Compiler], gpus: Sequence[Gpu], listener: Recorder
) -> list[ShapeResult]:
    cluster = Cluster(compilers, gpus)
    try:
        return Driver(cluster, SHAPES, M_VALUES, EFFORTS["quick"], out, listener=listener).run()
    finally:
        cluster.close()


def assert_complete(out: Path, results: Sequence[ShapeResult]) -> None:
    assert sorted((r.N, r.K) for r in results) == SHAPES
    assert not [r for result in results for r in result.records if isinstance(r, Failure)], (
        "nobody was to blame"
    )
    for N, K in SHAPES:
        assert written(out, N, K).entries


@pytest.mark.parametrize("lost_after", [0, 5, 30, 100])
def test_shapes_of_a_node_that_lost_its_only_gpu_go_to_another_node(
    simulate: Simulate, tmp_path: Path, lost_after: int
) -> None:
    """The one that was timed, and those that were being compiled there or waited for that GPU."""
    listener = Recorder()
    gpus = [Gpu("GPU 0", "one", lost_after), Gpu("GPU 1", "two")]
    assert_complete(tmp_path, tune(tmp_path, [Compiler("one"), Compiler("two")], gpus, listener))
    (warning,) = listener.warnings
    assert "GPU 0 is lost while timing" in warning


@pytest.mark.parametrize("lost_after", [0, 10, 40, 60])
def test_shapes_of_a_node_that_lost_its_compilers_go_to_another_node(
    simulate: Simulate, tmp_path: Path, lost_after: int
) -> None:
    listener = Recorder()
    gpus = [Gpu("GPU 0", "one"), Gpu("GPU 1", "two")]
    compilers = [Compiler("one", lost_after), Compiler("one", lost_after), Compiler("two")]
    assert_complete(tmp_path, tune(tmp_path, compilers, gpus, listener))
    assert [w for w in listener.warnings if "no compiler is left on node one" in w] == listener.warnings


def test_another_gpu_of_the_node_goes_on(simulate: Simulate, tmp_path: Path) -> None:
    listener = Recorder()
    gpus = [Gpu("GPU 0", "one", 30), Gpu("GPU 1", "one")]
    assert_complete(tmp_path, tune(tmp_path, [Compiler("one")], gpus, listener))


def test_with_no_gpu_left_the_run_ends_and_names_the_way_on(simulate: Simulate, tmp_path: Path) -> None:
    gpus = [Gpu("GPU 0", "one", 30), Gpu("GPU 1", "one", 40)]
    with pytest.raises(RuntimeError, match=r"no GPU of NVIDIA_H200 is left.*--resume"):
        tune(tmp_path, [Compiler("one")], gpus, Recorder())


def test_shapes_of_another_device_go_on_where_the_last_gpu_of_one_is_lost(
    simulate: Simulate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate(by_gpu={"other": {"device": "NVIDIA_H100_80GB_HBM3"}})
    h200 = Gpu("GPU 0", "one", 5)
    monkeypatch.setenv("SIMULATED_NODE", "other")
    h100 = Gpu("GPU 1", "other")
    listener = Recorder()
    results = tune(tmp_path, [Compiler("one"), Compiler("other")], [h200, h100], listener)
    assert sorted((r.N, r.K) for r in results if r.device == h100.device and r.path) == SHAPES
    assert sorted((r.N, r.K) for r in results if r.device == h200.device and not r.path) == SHAPES
    assert any("no GPU of NVIDIA_H200 is left" in warning for warning in listener.warnings)
