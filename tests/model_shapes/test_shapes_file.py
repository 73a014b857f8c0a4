"""The file of an engine's layers: what is written is read again, every other file is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fresh_python import printed_by

from tilelang_gemm_wrapper.model_shapes.shapes_file import EngineShapes, read_shapes_file

SHAPES = EngineShapes(
    engine="sglang",
    engine_version="0.5.23",
    model="Org/Modèl",
    tp=2,
    layers={(3072, 2560): 36, (2560, 2048): 36},
    experts={(128, 768, 2048): 48},
    not_covered=("FP8 weights of another kind",),
)
NO_EXPERTS = EngineShapes("sglang", "0.5.23", "m", 1, {(128, 128): 1})


@pytest.mark.parametrize("shapes", [SHAPES, NO_EXPERTS, EngineShapes("e", "v", "m", 8, {})])
def test_what_is_written_is_read_again(tmp_path: Path, shapes: EngineShapes) -> None:
    path = tmp_path / "new folder" / "shapes.json"
    shapes.write(path)
    assert read_shapes_file(path) == shapes
    assert [file.name for file in path.parent.iterdir()] == ["shapes.json"]


def test_the_file_is_for_people_too(tmp_path: Path) -> None:
    SHAPES.write(tmp_path / "shapes.json")
    lines = (tmp_path / "shapes.json").read_text().splitlines()
    assert lines[1] == '  "format": 1,'
    assert '    {"N": 3072, "K": 2560, "layers": 36}' in lines
    assert '    {"E": 128, "N": 768, "K": 2048, "layers": 48}' in lines


def test_an_older_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "shapes.json"
    SHAPES.write(path)
    NO_EXPERTS.write(path)
    assert read_shapes_file(path) == NO_EXPERTS


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"engine": ""}, "engine is ''"),
        ({"model": None}, "model is None"),
        ({"tp": 0}, "tp is 0"),
        ({"tp": True}, "tp is True"),
        ({"tp": 2.0}, "tp is 2.0"),
        ({"layers": {(128, 0): 1}}, "K of (128, 0) in layers is 0"),
        ({"layers": {(128, 128): 0}}, "layers of (128, 128) in layers is 0"),
        ({"layers": {(128, 128, 128): 1}}, "layers has the shape (128, 128, 128): expected (N, K)"),
        ({"experts": {(128, 128): 1}}, "experts has the shape (128, 128): expected (E, N, K)"),
        ({"experts": {(-1, 128, 128): 1}}, "E of (-1, 128, 128) in experts is -1"),
    ],
)
def test_shapes_that_no_engine_can_have_are_not_made(fields: dict[str, Any], why: str) -> None:
    right = {"engine": "e", "engine_version": "v", "model": "m", "tp": 1, "layers": {}}
    with pytest.raises(ValueError) as error:
        EngineShapes(**right | fields)
    assert str(error.value).startswith(why) and "expected" in str(error.value)


def changed(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda written: written | fields


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda written: {key: value for key, value in written.items() if key != name}


ROW = {"N": 128, "K": 128, "layers": 1}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda written: [written], "expected an object"),
        (lambda written: None, "it holds None"),
        (changed(format=2), "format = 2: this version reads format 1 alone; a newer"),
        (changed(format=True), "format = True"),
        (changed(format="1"), "format = '1'"),
        (without("format"), "format = None"),
        (without("engine"), "it has no engine"),
        (without("tp"), "it has no tp"),
        (without("layers"), "it has no layers"),
        (without("experts"), "it has no experts"),
        (without("not_covered"), "it has no not_covered"),
        (changed(tp="2"), "tp is '2'"),
        (changed(tp=-1), "tp is -1: expected a whole number, 1 or more"),
        (changed(model=7), "model is 7: expected a text"),
        (changed(layers={}), "layers = {}: expected a list"),
        (
            changed(layers=[[128, 128, 1]]),
            "layers has [128, 128, 1]: expected an object with N, K and layers",
        ),
        (changed(layers=[{"N": 128, "K": 128}]), "expected an object with N, K and layers"),
        (changed(layers=[ROW | {"N": 128.0}]), "N of {'N': 128.0"),
        (changed(layers=[ROW | {"K": "128"}]), "in layers is '128': expected a whole number, 1 or more"),
        (changed(layers=[ROW | {"layers": 0}]), "in layers is 0"),
        (changed(layers=[ROW | {"layers": None}]), "in layers is None"),
        (changed(layers=[ROW, ROW]), "twice: expected each shape once"),
        (changed(experts=[ROW]), "experts has {'N': 128"),
        (changed(experts=[ROW | {"E": False}]), "in experts is False"),
        (changed(not_covered="x"), "not_covered = 'x': expected a list of texts"),
        (changed(not_covered=[1]), "not_covered is 1: expected a text"),
        (changed(layers=["x" * 10_000]), "..."),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], why: str
) -> None:
    path = tmp_path / "shapes.json"
    SHAPES.write(path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError) as error:
        read_shapes_file(path)
    message = str(error.value)
    assert message.startswith(f"{path} is no file of an engine's shapes: ") and why in message
    assert message.endswith("Let the engine write it again, or give N and K")
    assert "\n" not in message and len(message) < 400 + len(str(path))


@pytest.mark.parametrize(
    "content",
    [b"", b"not JSON", b"{", b"\xff\xfe", b'{"format": 1', b"[" * 100_000],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "shapes.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no file of an engine's shapes: it is no JSON text"):
        read_shapes_file(path)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_a_path_without_a_file_is_told(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "shapes.json")
    with pytest.raises(
        ValueError, match=r"shapes\.json cannot be read \(.*\); give one that an engine wrote"
    ):
        read_shapes_file(tmp_path / "shapes.json")


def test_it_needs_no_torch() -> None:
    code = "import sys, tilelang_gemm_wrapper.model_shapes.shapes_file; print('torch' in sys.modules)"
    assert printed_by(code) == "False\n"
