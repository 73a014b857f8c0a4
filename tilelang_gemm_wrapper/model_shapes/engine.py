"""What a serving engine builds for a model on one rank: asked of the engine itself, in a process of its own.

The process builds the model's class without a GPU and without weights. It may fail in any way: it is killed
with all that it started, and its reason becomes the error.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..core import child_process
from .shapes_file import EngineShapes

LIMIT_S = 600.0  # for an answer; the first includes the engine's imports, maybe from a slow disk

# It sees no GPU, so that it takes none from others, and config.json is all that it gets of the model.
_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True, slots=True)
class _Known:
    title: str  # as people write it
    package: str
    module: str  # run with -m it answers questions, a line of JSON each
    classes: str = ""  # the folder in the package with the sources of its models' classes


_ENGINES = {
    "sglang": _Known("SGLang", "sglang", "tilelang_gemm_wrapper.integrations.sglang_shapes", "srt/models")
}


def engine_names() -> tuple[str, ...]:
    return tuple(_ENGINES)


def engines_without_class(architectures: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(name, title) of each installed engine whose sources speak of none of a model's classes.

    Such an engine takes the class of transformers, if that. Sources are read, because imports take long.
    """
    words = [architecture.encode() for architecture in architectures]
    for name, known in _ENGINES.items():
        sources = [file for folder in _folders(known) for file in (Path(folder) / known.classes).glob("*.py")]
        with suppress(OSError):
            texts = (source.read_bytes() for source in sources)
            if words and sources and known.classes and not any(w in text for text in texts for w in words):
                yield name, known.title


def _folders(known: _Known) -> list[str]:
    """Where the engine is installed; nowhere if it is not."""
    try:
        spec = importlib.util.find_spec(known.package)
    except (ImportError, ValueError):  # something else of its name is in the way
        return []
    return list(spec.submodule_search_locations or ()) if spec else []


class Engine:
    """An engine that tells its shapes; a context manager, which ends the process."""

    def __init__(self, name: str, limit_s: float = LIMIT_S) -> None:
        """name: one of `engine_names`. limit_s: seconds without an answer after which it is killed.

        RuntimeError where the engine is not installed.
        """
        self.name = name
        self._known = _ENGINES[name]
        self._limit_s = limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        if importlib.util.find_spec(self._known.package) is None:
            raise RuntimeError(
                f"{self._known.title} is not installed in this environment (pip install "
                f"{self._known.package}). Without --engine the checkpoint is read instead"
            )

    def shapes(self, directory: Path, model: str, tp: int) -> EngineShapes:
        """The layers of the model whose config.json lies in `directory`, on rank 0 of `tp`.

        model: how the user calls it. ValueError where the engine refuses or fails, with its reason.
        """
        if type(tp) is not int or tp < 1:  # not isinstance: True is an int to Python
            raise ValueError(f"tp = {tp!r}: expected a whole number of ranks, 1 or more")
        try:
            answer = self._ask({"directory": str(directory.resolve()), "tp": tp})
        except _NoAnswer as failure:
            answer = {"step": "was asked", "why": str(failure)}
        if "why" in answer:
            why = answer["why"]  # may end with a full stop, or with the dots of what was cut off
            raise ValueError(
                f"{self._known.title} does not build {model} at tp {tp}. While it {answer['step']}: "
                f"{why}{'' if why.endswith('.') else '.'} Without --engine the checkpoint is read instead"
            )
        return EngineShapes(
            engine=self.name,
            engine_version=answer["engine_version"],
            model=model,
            tp=tp,
            layers={(N, K): count for N, K, count in answer["layers"]},
            experts={(E, N, K): count for E, N, K, count in answer["experts"]},
            not_covered=tuple(answer["not_covered"]),
        )

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):  # it is dead: reading its answer says how
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
        # One question at a time and one line an answer: nothing behind the line is read.
        line, deadline = b"", time.monotonic() + self._limit_s
        while not line.endswith(b"\n"):
            if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self.close()
                raise _NoAnswer(f"no answer for {self._limit_s:g} s; its process was killed")
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                how = child_process.ending(process.wait())
                said = self._last_line_of_log()
                self.close()
                raise _NoAnswer(f"its process ended with {how}{said and ': '}{said}")
            line += chunk
        return json.loads(line)

    def _start(self) -> subprocess.Popen[bytes]:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._process = child_process.start(
            self._known.module, environment={**os.environ, **_ENVIRONMENT}, stderr=self._log.fileno()
        )
        return self._process

    def _last_line_of_log(self) -> str:
        assert self._log is not None
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip()[:300] if lines else ""

    def close(self) -> None:
        """End the process, with all that it has started; the next question starts another."""
        process, self._process = self._process, None
        if process is not None:
            child_process.kill(process)
        if self._log is not None:
            self._log.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _NoAnswer(Exception):
    """The engine's process died or was killed; the message is a clause that says how."""
