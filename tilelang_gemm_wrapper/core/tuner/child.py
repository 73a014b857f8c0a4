"""The killable child process of one GPU, and the parent's end of it.

A hung kernel cannot be stopped from within its process and an illegal access poisons the CUDA context, so
candidates run in a child: it says what it is about to do, one JSON line a step; the parent kills it when no
line comes in time, blames the candidate named last, and starts another.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from tilelang_gemm_wrapper.core import child_process
from tilelang_gemm_wrapper.core.compile_cache import worker_environment
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.device import Device
from tilelang_gemm_wrapper.core.failure_text import first_line
from tilelang_gemm_wrapper.core.tuner.bench import Timed, measure
from tilelang_gemm_wrapper.core.tuner.records import FailureKind

GPU_BENCH = "tilelang_gemm_wrapper.core.tuner.bench:GpuBench"


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """Seconds without a line after which the child is taken for hung; a check may compile with Triton."""

    start_s: float = 180.0
    open_s: float = 180.0
    step_s: float = 60.0
    shapes: int = 6  # opened before the child is replaced, so that what libraries retain cannot pile up


@dataclass(frozen=True, slots=True)
class Outcome:
    """One candidate's result: `timed` with its `error`, or the kind and message of its failure."""

    config: KernelConfig
    timed: Timed | None = None
    error: float = 0.0
    kind: FailureKind | None = None
    message: str = ""


class ShapeSetupError(RuntimeError):
    """The data of a shape cannot be made on the GPU, for want of memory, say: other shapes may do."""


class ChildFailedError(RuntimeError):
    """The child cannot do even what involves no candidate: this GPU is of no use."""


class _ChildDied(Exception):
    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind


class Child:
    """The parent's end. Methods block; a dead or hung child is replaced by the next call."""

    def __init__(
        self,
        bench: str = GPU_BENCH,
        environment: Mapping[str, str] | None = None,
        limits: ChildLimits | None = None,
    ) -> None:
        self._bench = bench
        self._environment = {**worker_environment(), **(environment or {})}
        self._limits = limits or ChildLimits()
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._opened = 0
        self._shape: tuple[int, int, int] | None = None
        self.device: Device
        self.environment: dict[str, Any]
        self._start()

    def open(self, N: int, K: int, m_max: int) -> dict[str, Any]:
        """Open a shape; returns the fields of `ShapeConditions` but N and K. Raises ShapeSetupError."""
        if self._opened >= self._limits.shapes:
            self.close()
        self._shape = (N, K, m_max)
        return self._open()

    def measure(
        self, M: int, configs: Sequence[KernelConfig], budget_ms: float, rounds: int
    ) -> Iterator[Outcome]:
        """Check and time candidates of the open shape; one outcome each, as it is known.

        Those that pass the check are timed interleaved. Where that kills the child nobody can say whose fault
        it was: then each is timed alone.
        """
        waiting = deque(configs)
        alone = False
        while waiting:
            batch = [waiting[0]] if alone else list(waiting)
            settled: set[int] = set()
            at: int | None = None
            together: _ChildDied | None = None
            try:
                if not self._is_alive():
                    self._open()
                for answer in self._ask(
                    {
                        "measure": [asdict(c) for c in batch],
                        "M": M,
                        "budget_ms": budget_ms,
                        "rounds": rounds,
                    },
                    self._limits.step_s,
                ):
                    if "at" in answer:
                        at = answer["at"]
                    elif "timed" in answer:
                        i = answer["timed"]
                        settled.add(i)
                        timed = Timed(*(answer[name] for name in Timed.__dataclass_fields__))
                        yield Outcome(batch[i], timed, answer["error"])
                    else:
                        i = answer["failed"]
                        if i is None:  # all of them together
                            together = _ChildDied(answer["kind"], answer["message"])
                        else:
                            settled.add(i)
                            yield Outcome(batch[i], kind=answer["kind"], message=answer["message"])
                        if answer["lost"]:
                            self.close()
                            break
                if together is not None:  # raised here: what the child had still to say has been read
                    raise together
            except _ChildDied as death:
                if at is None and len(batch) - len(settled) > 1:
                    alone = True
                else:
                    left = [i for i in range(len(batch)) if i not in settled]
                    culprit = at if at is not None else left[0]
                    settled.add(culprit)
                    yield Outcome(batch[culprit], kind=death.kind, message=str(death))
            for i in settled:
                waiting.remove(batch[i])

    def close(self) -> None:
        """Kill the child; the next call starts another."""
        process, self._process, self._buffer = self._process, None, b""
        if process is not None:
            child_process.kill(process)

    def _is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _start(self) -> None:
        self._opened = 0
        self._process = child_process.start(__name__, self._bench, environment=self._environment)
        try:
            hello = next(self._answers(self._limits.start_s))
        except _ChildDied as death:
            raise ChildFailedError(f"the process that measures did not start: {death}") from None
        if "fatal" in hello:
            self.close()
            raise ChildFailedError(f"the process that measures did not start: {hello['fatal']}")
        self.device = Device(**hello["device"])
        self.environment = hello["environment"]

    def _open(self) -> dict[str, Any]:
        assert self._shape is not None
        if not self._is_alive():
            self.close()
            self._start()
        N, K, m_max = self._shape
        opened: dict[str, Any] = {}
        try:
            for answer in self._ask({"open": [N, K, m_max]}, self._limits.open_s):
                if "fatal" in answer:  # the child has ended: reading on would only tell that
                    self.close()
                    raise ShapeSetupError(f"N={N}, K={K} cannot be set up on the GPU: {answer['fatal']}")
                opened = answer["opened"]
        except _ChildDied as death:
            raise ShapeSetupError(f"N={N}, K={K} cannot be set up on the GPU: {death}") from None
        self._opened += 1
        return opened

    def _ask(self, request: dict[str, Any], limit_s: float) -> Iterator[dict[str, Any]]:
        assert self._process is not None and self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is dead: reading its answer says how
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        for answer in self._answers(limit_s):
            if "done" in answer:
                return
            yield answer

    def _answers(self, limit_s: float) -> Iterator[dict[str, Any]]:
        """Lines of the child as they come; kills it and raises where none comes for `limit_s`."""
        process = self._process
        assert process is not None and process.stdout is not None
        deadline = time.monotonic() + limit_s
        while True:
            line, separator, rest = self._buffer.partition(b"\n")
            if separator:
                self._buffer = rest
                yield json.loads(line)
                deadline = time.monotonic() + limit_s
                continue
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.close()
                raise _ChildDied("hang", f"no answer for {limit_s:g} s; its process was killed")
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                how = child_process.ending(process.wait())
                self.close()
                raise _ChildDied("crash", f"its process ended with {how}")
            self._buffer += chunk


def _serve(bench_name: str) -> None:
    """The child: one request a line on standard input, answers on what was standard output."""
    answers = child_process.begin()

    def say(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")

    try:
        module, _, name = bench_name.partition(":")
        bench = getattr(import_module(module), name)()
        say(device=asdict(bench.device()), environment=bench.environment())
    except Exception as problem:
        say(fatal=first_line(problem))
        return
    for line in sys.stdin:
        request = json.loads(line)
        if "open" in request:
            try:
                say(opened=bench.open(*request["open"]))
            except Exception as problem:
                say(fatal=first_line(problem))
                return
        else:
            configs = [KernelConfig(**fields) for fields in request["measure"]]
            sampling = request["budget_ms"], request["rounds"]
            for answer in measure(bench, request["M"], configs, *sampling):
                say(**answer)
                if answer.get("lost"):
                    os._exit(3)  # the CUDA context is gone: ending in order would only raise
        say(done=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
