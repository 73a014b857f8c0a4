"""The killable child: a faulty candidate costs itself alone; what happens to the process is survived."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import is_running, wait_until

from tilelang_gemm_wrapper import configurer
from tilelang_gemm_wrapper.core import kernel_cache
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.tuner.child import (
    Child,
    ChildFailedError,
    ChildLimits,
    Outcome,
    ShapeSetupError,
)

BENCH = "simulated_gpu:SimulatedGpu"
N, K, M = 4096, 2048, 64
CONFIGS = [KernelConfig("swapAB", 64, tokens, 128, 4, 128) for tokens in (8, 16, 32, 64, 128)]
FAULTY = CONFIGS[2]
BEFALLS_FAULTY = {"block_N": FAULTY.block_N}
# What no candidate is to blame for may take its time on a loaded machine.
STEP_S = 1.0

Simulate = Callable[..., Path]


@contextmanager
def child(*, step_s: float = STEP_S, shapes: int = 6) -> Iterator[Child]:
    it = Child(BENCH, limits=ChildLimits(start_s=60.0, open_s=60.0, step_s=step_s, shapes=shapes))
    try:
        yield it
    finally:
        it.close()


def pids(log: Path, what: str = "start") -> list[int]:
    return [int(line.split()[-1]) for line in log.read_text().splitlines() if line.split()[0] == what]


def by_config(outcomes: list[Outcome]) -> dict[KernelConfig, Outcome]:
    assert len({outcome.config for outcome in outcomes}) == len(outcomes), "a candidate has two outcomes"
    return {outcome.config: outcome for outcome in outcomes}


def true_time(config: KernelConfig) -> float:
    from simulated_gpu import device, true_us

    return true_us(config, M, N, K, device())


def assert_right_times(outcomes: dict[KernelConfig, Outcome], configs: list[KernelConfig]) -> None:
    for config in configs:
        timed = outcomes[config].timed
        assert timed is not None, f"{config} was not timed: {outcomes[config]}"
        assert timed.p50_us == pytest.approx(true_time(config)), f"{config} has another one's time"


@pytest.mark.parametrize(
    ("fault", "kind", "message", "starts"),
    [
        ("hang", "hang", "no answer for", 2),
        ("crash", "crash", "SIGSEGV", 2),
        ("illegal_access", "illegal_access", "illegal memory access", 2),
        ("out_of_memory", "out_of_memory", "out of memory", 1),
        ("wrong", "wrong", "above 3e-06", 1),
        # All are timed together: only timing each alone finds the culprit.
        ("hang_when_timed", "hang", "no answer for", 3),
        ("error_when_timed", "error", "a capture failed", 1),
    ],
)
def test_a_fault_costs_its_candidate_alone(
    simulate: Simulate, fault: str, kind: str, message: str, starts: int
) -> None:
    log = simulate(faults={fault: BEFALLS_FAULTY})
    with child() as it:
        it.open(N, K, M)
        outcomes = by_config(list(it.measure(M, CONFIGS, 1.0, 2)))
        again = by_config(list(it.measure(M, CONFIGS[:2], 1.0, 2)))
    assert set(outcomes) == set(CONFIGS)
    assert outcomes[FAULTY].timed is None
    assert outcomes[FAULTY].kind == kind
    assert message in outcomes[FAULTY].message
    right = [config for config in CONFIGS if config != FAULTY]
    assert_right_times(outcomes, right)
    assert_right_times(again, CONFIGS[:2])
    started = pids(log)
    assert len(started) == starts
    for pid in started:  # none is left behind, on a GPU that others want to use
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_child_that_died_between_requests_is_replaced_and_nobody_is_blamed(simulate: Simulate) -> None:
    log = simulate()
    with child() as it:
        it.open(N, K, M)
        for request in ("open", "measure"):
            process = it._process
            assert process is not None
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            if request == "open":
                it.open(N, K, M)
            else:
                outcomes = by_config(list(it.measure(M, CONFIGS[:1], 1.0, 2)))
    assert_right_times(outcomes, CONFIGS[:1])
    assert len(pids(log)) == 3


def test_a_child_that_cannot_start_says_why(simulate: Simulate) -> None:
    simulate(start="dies")
    with pytest.raises(ChildFailedError, match="no device is visible"):
        Child(BENCH, limits=ChildLimits(start_s=60.0))


def test_a_bench_that_does_not_exist_is_named(simulate: Simulate) -> None:
    with pytest.raises(ChildFailedError, match="no_such_bench"):
        Child("no_such_bench:Bench", limits=ChildLimits(start_s=60.0))


def test_a_shape_that_does_not_fit_leaves_the_child_of_use(simulate: Simulate) -> None:
    simulate(cannot_open=[N, K])
    with child() as it:
        with pytest.raises(ShapeSetupError, match=r"N=4096, K=2048.*the weights do not fit"):
            it.open(N, K, M)
        opened = it.open(N, 2 * K, M)
        assert opened["sm_clock_mhz"] == 1980.0
        assert all(outcome.timed for outcome in it.measure(M, CONFIGS, 1.0, 2))


def test_a_child_is_replaced_after_so_many_shapes(simulate: Simulate) -> None:
    log = simulate()
    with child(shapes=2) as it:
        for i in range(1, 6):
            it.open(128 * i, K, M)
        assert all(outcome.timed for outcome in it.measure(M, CONFIGS, 1.0, 2))
    opened = pids(log, "open")
    assert [opened.count(pid) for pid in dict.fromkeys(opened)] == [2, 2, 1]


def test_a_new_child_opens_the_shape_again(simulate: Simulate) -> None:
    log = simulate(faults={"crash": BEFALLS_FAULTY})
    with child() as it:
        it.open(N, K, M)
        list(it.measure(M, CONFIGS, 1.0, 2))
    assert [line.split()[1:3] for line in log.read_text().splitlines() if line.split()[0] == "open"] == [
        [str(N), str(K)],
        [str(N), str(K)],
    ]


def test_a_hung_child_does_not_outlive_its_killed_parent(simulate: Simulate) -> None:
    """Else it would keep the GPU from the run that resumes: in a session of its own, nothing else ends it."""
    log = simulate(faults={"hang": BEFALLS_FAULTY})
    code = (
        "from tilelang_gemm_wrapper.core.config import KernelConfig\n"
        "from tilelang_gemm_wrapper.core.tuner.child import Child\n"
        f"it = Child({BENCH!r})\n"
        f"it.open({N}, {K}, {M})\n"
        f"list(it.measure({M}, [{FAULTY!r}], 1.0, 2))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: "check" in log.read_text())
    (pid,) = pids(log)
    os.kill(pid, 0)
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_running(pid))


def test_it_finds_kernels_where_the_compilers_leave_them(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where a temporary directory of this session stands in: the child has a session of its own."""
    simulate()
    monkeypatch.setattr(kernel_cache, "_in_use", {Path("/dev/null/cache"): tmp_path})
    monkeypatch.setenv(configurer.CACHE_DIR, "/dev/null/cache")
    with child() as it:
        assert it._process is not None
        environment = Path(f"/proc/{it._process.pid}/environ").read_bytes().split(b"\0")
        assert f"{configurer.CACHE_DIR}={tmp_path}".encode() in environment
