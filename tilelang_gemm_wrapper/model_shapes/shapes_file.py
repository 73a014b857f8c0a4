"""The file in which an engine's layers stand as they were built: (N, K), how many, for which model and tp.

    {"format": 1, "engine": "sglang", "engine_version": "0.5.23", "model": "Qwen/Qwen3-4B-FP8", "tp": 2,
     "layers": [{"N": 3072, "K": 2560, "layers": 36}, ...],
     "experts": [{"E": 128, "N": 768, "K": 2048, "layers": 48}, ...],
     "not_covered": ["FP8 weights that are ..."]}

Importing this needs no torch: the tuner reads such a file where no engine is installed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.failure_text import first_line
from ..core.whole_file import replacing

FORMAT = 1
_TEXTS = ("engine", "engine_version", "model")
_DENSE, _STACKED = ("N", "K"), ("E", "N", "K")


@dataclass(frozen=True, slots=True)
class EngineShapes:
    """The block-FP8 layers that an engine built on one of `tp` ranks.

    layers: (N, K) of a rank's weight -> how many layers have it.
    experts: (E, N, K) of the stacked weights of a layer's routed experts -> how many layers have them.
    not_covered: what else in FP8 the engine built or the shapes leave open, as clauses.

    ValueError for an empty text or a number that is not whole and positive.
    """

    engine: str
    engine_version: str
    model: str  # as it was given to the engine
    tp: int
    layers: Mapping[tuple[int, int], int]
    experts: Mapping[tuple[int, int, int], int] = field(default_factory=dict)
    not_covered: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in _TEXTS:
            _check_text(name, getattr(self, name))
        for clause in self.not_covered:
            _check_text("an item of not_covered", clause)
        _check_positive("tp", self.tp)
        for what, names, counts in (("layers", _DENSE, self.layers), ("experts", _STACKED, self.experts)):
            for shape, count in counts.items():
                if len(shape) != len(names):
                    raise ValueError(f"{what} has the shape {shape}: expected ({', '.join(names)})")
                for name, value in (*zip(names, shape, strict=True), ("layers", count)):
                    _check_positive(f"{name} of {shape} in {what}", value)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file, or replace it as a whole. OSError where that cannot be done."""
        fields: dict[str, Any] = {"format": FORMAT} | {name: getattr(self, name) for name in (*_TEXTS, "tp")}
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in fields.items()]
        lines.append(f'  "layers": {_rows(_DENSE, self.layers)}')
        lines.append(f'  "experts": {_rows(_STACKED, self.experts)}')
        lines.append(f'  "not_covered": {json.dumps(self.not_covered)}')
        with replacing(Path(path)) as file:
            file.write("{\n" + ",\n".join(lines) + "\n}\n")


def read_shapes_file(path: str | os.PathLike[str]) -> EngineShapes:
    """What `EngineShapes.write` wrote. ValueError says what is wrong with any other file, and what to do."""
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"shapes file {path} cannot be read ({error.strerror or error}); give one that an engine wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise _malformed(path, f"it is no JSON text ({first_line(error)})") from error
    try:
        return _from_fields(fields)
    except ValueError as error:
        raise _malformed(path, str(error)) from error


def _from_fields(fields: Any) -> EngineShapes:
    if not isinstance(fields, dict):
        raise ValueError(
            f"it holds {_short(fields)}: expected an object with format, engine, layers and so on"
        )
    if fields.get("format") != FORMAT or isinstance(fields["format"], bool):
        raise ValueError(
            f"format = {_short(fields.get('format'))}: this version reads format {FORMAT} alone; a newer "
            f"tilelang-gemm-wrapper may read it"
        )
    return EngineShapes(
        **{name: _field(fields, name) for name in (*_TEXTS, "tp")},
        layers=_counts(fields, "layers", _DENSE),
        experts=_counts(fields, "experts", _STACKED),
        not_covered=tuple(_list(fields, "not_covered", "texts")),
    )


def _counts(fields: Mapping[str, Any], what: str, names: tuple[str, ...]) -> dict[Any, int]:
    wanted = f"{', '.join(names)} and layers"
    counts: dict[tuple[int, ...], int] = {}
    for row in _list(fields, what, f"objects with {wanted}"):
        if not isinstance(row, dict) or not {*names, "layers"} <= row.keys():
            raise ValueError(f"{what} has {_short(row)}: expected an object with {wanted}")
        for name in (*names, "layers"):
            _check_positive(f"{name} of {_short(row)} in {what}", row[name])
        shape = tuple(row[name] for name in names)
        if shape in counts:
            raise ValueError(f"{what} has {_short(row)} twice: expected each shape once, with all its layers")
        counts[shape] = row["layers"]
    return counts


def _list(fields: Mapping[str, Any], what: str, of: str) -> list[Any]:
    value = _field(fields, what)
    if not isinstance(value, list):
        raise ValueError(f"{what} = {_short(value)}: expected a list of {of}")
    return value


def _field(fields: Mapping[str, Any], name: str) -> Any:
    if name not in fields:
        raise ValueError(f"it has no {name}")
    return fields[name]


def _check_text(what: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{what} is {_short(value)}: expected a text")


def _check_positive(what: str, value: object) -> None:
    if type(value) is not int or value < 1:  # not isinstance: True is an int to Python
        raise ValueError(f"{what} is {_short(value)}: expected a whole number, 1 or more")


def _malformed(path: str | os.PathLike[str], why: str) -> ValueError:
    return ValueError(
        f"{path} is no file of an engine's shapes: {why}. Let the engine write it again, or give N and K"
    )


def _rows(names: tuple[str, ...], counts: Mapping[Any, int]) -> str:
    """A line for each shape, sorted, so that two files can be compared."""
    rows = (
        json.dumps({**dict(zip(names, shape, strict=True)), "layers": n})
        for shape, n in sorted(counts.items())
    )
    text = ",\n    ".join(rows)
    return f"[\n    {text}\n  ]" if text else "[]"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
