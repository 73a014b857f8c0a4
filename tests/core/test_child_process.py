"""core/child_process.py: no process outlives its work, whoever is killed; nor does what it has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from processes import is_running, wait_until

from tilelang_gemm_wrapper.core import child_process

ROOT = Path(__file__).resolve().parents[2]
SOON_S = 20.0  # the watch takes half a second; a loaded machine its time

# Stands in for a compiler and a GPU bench, and hangs in a process of its own as one would in nvcc.
HANGING = """
import os, subprocess
from pathlib import Path
from tilelang_gemm_wrapper.core import compile_cache
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES

def hang(*_):
    nvcc = subprocess.Popen(["sleep", "3600"])
    Path("pids").write_text(f"{os.getpid()} {nvcc.pid} end")
    nvcc.wait()

class Bench:
    def device(self):
        return KNOWN_DEVICES["NVIDIA_H200"]
    def environment(self):
        return {}
    open = hang

if __name__ == "__main__":
    compile_cache.compile_kernel = hang
    compile_cache._serve_jobs()
"""

COMPILING = """
from tilelang_gemm_wrapper.core.compile_cache import CompileJob, CompileWorker
from tilelang_gemm_wrapper.core.config import KernelConfig
job = CompileJob(16, 128, KernelConfig("swapAB", 64, 16, 128, 2, 128), "sm_90a")
CompileWorker(module="hanging").compile(job)
"""

MEASURING = """
from tilelang_gemm_wrapper.core.tuner.child import Child
Child("hanging:Bench").open(16, 128, 1)
"""


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory from which the module `hanging` can be run; what it leaves behind is killed."""
    (tmp_path / "hanging.py").write_text(HANGING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for pid in hung(tmp_path):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def hung(directory: Path) -> list[int]:
    """The process that hangs and the one it has started, once both are there."""
    path = directory / "pids"
    words = path.read_text().split() if path.exists() else []
    return [int(word) for word in words[:2]] if words[2:] == ["end"] else []


@pytest.mark.parametrize("parent", [COMPILING, MEASURING], ids=["compiler", "GPU child"])
def test_nothing_outlives_a_killed_parent(hanging: Path, parent: str) -> None:
    """Nobody else would end them: they have a session of their own, and a hung one reads no input."""
    process = subprocess.Popen([sys.executable, "-c", parent])
    try:
        wait_until(lambda: bool(hung(hanging)) or process.poll() is not None)
        child, grandchild = hung(hanging)
        assert is_running(child) and is_running(grandchild)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not is_running(child), SOON_S)
    wait_until(lambda: not is_running(grandchild), SOON_S)


def test_what_is_killed_takes_along_what_it_has_started(hanging: Path) -> None:
    process = child_process.start("hanging", environment={**os.environ}, stderr=subprocess.DEVNULL)
    assert process.stdin is not None and process.stdout is not None
    config = '{"kernel_type": "swapAB"}'
    process.stdin.write(f'{{"N": 16, "K": 128, "config": {config}, "arch": "sm_90a"}}\n'.encode())
    process.stdin.flush()
    wait_until(lambda: bool(hung(hanging)) or process.poll() is not None)
    child, grandchild = hung(hanging)
    child_process.kill(process)
    assert process.returncode == -signal.SIGKILL
    assert not is_running(child)
    wait_until(lambda: not is_running(grandchild), SOON_S)
    assert process.stdin.closed and process.stdout.closed


ORPHAN = """
import os, sys, time
from tilelang_gemm_wrapper.core import child_process
child_process.begin()
open(sys.argv[1], "w").write(f"{os.getpid()}")
time.sleep(3600)
"""


def test_a_process_whose_parent_was_gone_before_it_looked_ends(tmp_path: Path) -> None:
    """Its parent by then is another, which stays."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    environment = {**os.environ, child_process._PARENT: str(gone.pid), "PYTHONPATH": str(ROOT)}
    orphan = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(tmp_path / "pid")], env=environment, start_new_session=True
    )
    try:
        assert orphan.wait(SOON_S) == -signal.SIGKILL
    finally:
        orphan.kill()


def test_killing_what_has_ended_is_no_error() -> None:
    process = child_process.start("this", environment={**os.environ}, stderr=subprocess.DEVNULL)
    process.wait()
    child_process.kill(process)
    assert process.returncode == 0
    assert process.stdin is not None and process.stdin.closed
