"""What a serving engine builds for a model on one rank: asked of the engine itself, in a process of its own.

The process builds the model's class without a GPU and without weights. It may fail in any way: it is killed with
all that it started, and its reason becomes the error.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilelang_gemm_wrapper.core import child_process
from tilelang_gemm_wrapper.model_shapes.shapes_file import EngineShapes

LIMIT_S = 600.0  # for an answer; the first includes the engine's imports, from a disk that may be slow

# No GPU of this machine is touched, and config.json is all that the engine gets.
_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True, slots=True)
class _Known:
    title: str  # as people write it
    package: str
    module: str  # answers questions; see `sglang_shapes`


_ENGINES = {"sglang": _Known("SGLang", "sglang", "tilelang_gemm_wrapper.integrations.sglang_shapes")}


def engine_names() -> tuple[str, ...]:
    return tuple(_ENGINES)


class Engine:
    """An engine that tells its shapes; a context manager that ends the process.

    RuntimeError where the engine is not installed.
    """

    def __init__(self, name: str, limit_s: float = LIMIT_S) -> None:
        """name: one of `engine_names`. limit_s: after that many seconds without an answer it is killed."""
        self.name = name
        self._known = _ENGINES[name]
        self._limit_s = limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        if importlib.util.find_spec(self._known.package) is None:
            raise RuntimeError(
                f"{self._known.title} is not installed in this environment, so it cannot build the model: "
                f"pip install {self._known.package}, or leave --engine out: the checkpoint is read then"
            )

    def shapes(self, directory: Path, model: str, tp: int) -> EngineShapes:
        """The layers of the model whose config.json lies in `directory`, on rank 0 of `tp`.

        model: how the user calls it. ValueError where the engine refuses or fails, with its reason.
        """
        answer = self._ask({"directory": str(directory.resolve()), "tp": tp}, f"{model} at tp {tp}")
        if "why" in answer:
            raise ValueError(
                f"{self._known.title} does not build {model} at tp {tp}; when it {answer['step']}: {answer['why']}"
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

    def _ask(self, question: Mapping[str, Any], what: str) -> dict[str, Any]:
        if self._process is None:
            self._process = child_process.start(
                self._known.module, environment={**os.environ, **_ENVIRONMENT}, stderr=self._log.fileno()
            )
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):  # it is dead: reading its answer says how
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
        line, deadline = b"", time.monotonic() + self._limit_s
        while not line.endswith(b"\n"):
            if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self._end()
                raise ValueError(
                    f"{self._known.title} gave no shapes of {what} in {self._limit_s:g} s; it was ended"
                )
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                status = process.wait()
                self._end()
                raise ValueError(
                    f"{self._known.title} ended with status {status} when it was asked for {what}{self._last_words()}"
                )
            line += chunk
        return json.loads(line)

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return f": {said[-1][:300]}" if said else ""

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            child_process.kill(process)

    def close(self) -> None:
        self._end()
        self._log.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
