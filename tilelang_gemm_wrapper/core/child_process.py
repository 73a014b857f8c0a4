"""Processes that end with all they have started: when they are killed, and when their parent is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TextIO

_WATCH_S = 0.5  # between a child's looks at whether its parent is there
_PARENT = "TILELANG_GEMM_PARENT"  # process id, for the child: one that asks may ask after its parent's death


def start(
    module: str, *arguments: str, environment: Mapping[str, str], stderr: int | None = None
) -> subprocess.Popen[bytes]:
    """Run a module of Python with pipes to its standard input and output."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**environment, _PARENT: str(os.getpid())},
        start_new_session=True,  # it leads a process group, by which it is killed with what it has started
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill what `start` gave, with all that it has started; it is gone and its pipes are closed on return."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def ending(status: int) -> str:
    """What a process ended with, by its `Popen.wait`: "SIGKILL", or "status 3"."""
    return signal.Signals(-status).name if status < 0 else f"status {status}"


def begin() -> TextIO:
    """Called first in a process of `start`; returns where its answers go, a line each.

    Compilers and libraries print, so only answers reach the pipe that was standard output. And the process
    ends, with all that it has started, when its parent does. A killed parent kills nobody: a hung candidate
    would keep the GPU from the run that resumes, and a hung nvcc would stay for ever.
    """
    parent = int(os.environ.pop(_PARENT, os.getppid()))
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os.killpg(os.getpid(), signal.SIGKILL)
