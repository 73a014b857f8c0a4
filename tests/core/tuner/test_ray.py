"""The real Ray with two nodes of two simulated GPUs each: work is shared, and what is lost goes to others."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tuning_runs import BENCH, COMPILER, H200, Recorder, written

from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES
from tilelang_gemm_wrapper.core.tuner.child import ChildLimits
from tilelang_gemm_wrapper.core.tuner.cluster import Cluster
from tilelang_gemm_wrapper.core.tuner.driver import Driver, ShapeResult
from tilelang_gemm_wrapper.core.tuner.effort import EFFORTS
from tilelang_gemm_wrapper.core.tuner.ray_workers import ray_cluster
from tilelang_gemm_wrapper.core.tuner.records import Failure, Record, Timing

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster as Nodes  # noqa: E402

# Starting Ray costs seconds: one process runs these tests, in order, the one that takes a node away last.
pytestmark = pytest.mark.xdist_group("ray")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
M_VALUES = (16, 512)
SHAPES = [(512 * i, 1024) for i in range(1, 13)]


class Lab:
    """Two nodes, "a" and "b", and what their four GPUs simulate."""

    def __init__(self, directory: Path) -> None:
        self._settings = directory / "settings.json"
        self.log = directory / "log"
        os.environ["SIMULATED_GPU"] = str(self._settings)
        os.environ["PYTHONPATH"] = os.pathsep.join((str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")))
        self.nodes = Nodes()
        self._by_name = {}
        for name in ("a", "b"):
            os.environ["SIMULATED_NODE"] = name  # Ray's processes of the node inherit it
            self._by_name[name] = self.nodes.add_node(num_cpus=1, num_gpus=2, include_dashboard=False)
        self.nodes.wait_for_nodes()
        self.simulate()
        ray.init(address=self.nodes.address, log_to_driver=False, logging_level="ERROR")

    def simulate(self, **settings: Any) -> None:
        self.log.write_text("")
        self._settings.write_text(json.dumps({"speed": 100.0, "log": str(self.log), **settings}))

    def remove(self, name: str) -> None:
        self.nodes.remove_node(self._by_name.pop(name))

    def visits(self) -> Counter[str]:
        """How many times each GPU opened a shape."""
        lines = (line.split() for line in self.log.read_text().splitlines())
        return Counter(line[0] for line in lines if line[1] == "open")

    def close(self) -> None:
        ray.shutdown()
        self.nodes.shutdown()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    before = dict(os.environ)
    it = Lab(tmp_path_factory.mktemp("ray"))
    yield it
    it.close()
    os.environ.clear()
    os.environ.update(before)


class Interrupter(Recorder):
    """Does something once, when a GPU that `chooses` names has been timing for a while."""

    def __init__(self, act: Callable[[str], None], chooses: Callable[[str], bool] = lambda gpu: True) -> None:
        super().__init__()
        self._act, self._chooses = act, chooses
        self.acted_on: str | None = None

    def recorded(self, gpu: str, record: Record) -> None:
        super().recorded(gpu, record)
        ready = len(self.records) > 40 and isinstance(record, Timing)
        if self.acted_on is None and ready and self._chooses(gpu):
            self.acted_on = gpu
            self._act(gpu)


def tune(
    workers: Cluster, shapes: Sequence[tuple[int, int]], out: Path, listener: Recorder | None = None
) -> list[ShapeResult]:
    try:
        return Driver(workers, shapes, M_VALUES, EFFORTS["quick"], out, listener=listener).run()
    finally:
        workers.close()


def workers_of(count: int | None = None) -> Cluster:
    limits = ChildLimits(start_s=120.0, open_s=60.0, step_s=60.0)
    return ray_cluster(count, bench=BENCH, compiler=COMPILER, limits=limits, compilers_a_gpu=1)


def test_unequal_gpus_share_the_shapes_by_their_speed(lab: Lab, tmp_path: Path) -> None:
    # So slow that Ray's own work does not count, on a busy machine either.
    speeds = {"a0": 0.3, "a1": 0.06, "b0": 0.2, "b1": 0.04}
    lab.simulate(by_gpu={name: {"speed": speed} for name, speed in speeds.items()})
    results = tune(workers_of(), SHAPES, tmp_path)
    assert sorted((r.N, r.K) for r in results) == SHAPES
    for N, K in SHAPES:
        assert written(tmp_path, N, K).entries
    visits = lab.visits()
    assert set(visits) == set(speeds), "a GPU had nothing to do"
    assert sum(visits.values()) == 2 * len(SHAPES)
    assert visits["a0"] + visits["b0"] > visits["a1"] + visits["b1"], visits


def test_each_kind_of_gpu_gets_its_files(lab: Lab, tmp_path: Path) -> None:
    h20 = KNOWN_DEVICES["NVIDIA_H20"]
    lab.simulate(by_gpu={name: {"device": h20.name} for name in ("b0", "b1")})
    shapes = SHAPES[:3]
    results = tune(workers_of(), shapes, tmp_path)
    assert sorted((r.device.name, r.N, r.K) for r in results) == sorted(
        (device.name, N, K) for device in (H200, h20) for N, K in shapes
    )
    for device in (H200, h20):
        for N, K in shapes:
            file = written(tmp_path, N, K, device)
            assert file.metadata["gpu"] == device.name
            assert file.entries


def test_faults_behind_ray_are_what_they_are_without(lab: Lab, tmp_path: Path) -> None:
    lab.simulate(
        cannot_open=list(SHAPES[1]),
        faults={
            "crash": {"block_N": 64},
            "compile_error": {"num_stages": 8},
            "illegal_access": {"block_M": 128},
        },
    )
    listener = Recorder()
    results = {(r.N, r.K): r for r in tune(workers_of(2), SHAPES[:3], tmp_path, listener)}
    assert results[SHAPES[1]].path is None
    assert results[SHAPES[0]].path
    assert results[SHAPES[2]].path
    failures = [r for result in results.values() for r in result.records if isinstance(r, Failure)]
    by_kind = {
        "crash": ("block_N", 64),
        "compile_error": ("num_stages", 8),
        "illegal_access": ("block_M", 128),
    }
    assert {failure.kind for failure in failures} == set(by_kind)
    for failure in failures:
        name, value = by_kind[failure.kind]
        assert getattr(failure.config, name) == value
    (warning,) = listener.warnings
    assert "the weights do not fit" in warning
    assert "Traceback" not in warning


def test_more_gpus_than_ray_has_are_refused(lab: Lab) -> None:
    with pytest.raises(RuntimeError, match="5 GPUs are wanted and Ray has 4"):
        workers_of(5)


def test_a_gpu_worker_that_does_not_start_is_told(lab: Lab) -> None:
    lab.simulate(start="dies")
    with pytest.raises(RuntimeError, match=r"(?s)a GPU worker did not start: .*no device is visible"):
        workers_of(1)


def test_the_shape_of_a_killed_worker_goes_to_another(lab: Lab, tmp_path: Path) -> None:
    lab.simulate(speed=0.5)
    workers = workers_of(2)

    def kill(name: str) -> None:
        (gpu,) = (gpu for gpu in workers.gpus if gpu.name == name)
        gpu.close()

    listener = Interrupter(kill)
    results = tune(workers, SHAPES[:4], tmp_path, listener)
    assert listener.acted_on
    assert any(f"{listener.acted_on} is lost while timing" in warning for warning in listener.warnings)
    assert sorted((r.N, r.K) for r in results) == SHAPES[:4]
    for N, K in SHAPES[:4]:
        assert written(tmp_path, N, K).entries
    last_of_lost = max(i for i, (gpu, _) in enumerate(listener.records) if gpu == listener.acted_on)
    others = {gpu for gpu, _ in listener.records[last_of_lost + 1 :]} - {"compiler"}
    assert others, "the other did not go on"


def test_the_work_of_a_lost_node_goes_to_the_other(lab: Lab, tmp_path: Path) -> None:
    lab.simulate(speed=0.5)
    workers = workers_of()
    on_b = {gpu.name for gpu in workers.gpus if gpu.node != lab.nodes.head_node.node_id}
    assert len(on_b) == len(workers.gpus) / 2
    listener = Interrupter(lambda gpu: lab.remove("b"), lambda gpu: gpu in on_b)
    results = tune(workers, SHAPES[:6], tmp_path, listener)
    assert listener.acted_on
    assert sorted((r.N, r.K) for r in results) == SHAPES[:6]
    assert not [r for result in results for r in result.records if isinstance(r, Failure)], (
        "nobody was to blame"
    )
    for N, K in SHAPES[:6]:
        assert written(tmp_path, N, K).entries
