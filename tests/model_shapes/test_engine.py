"""The process that is asked for an engine's shapes: what it answers, and every way in which it may fail."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tilelang_gemm_wrapper import models
from tilelang_gemm_wrapper.model_shapes import engine as engine_module
from tilelang_gemm_wrapper.model_shapes.engine import Engine, engine_names, engines_without_class
from tilelang_gemm_wrapper.model_shapes.shapes_file import EngineShapes

from .release import Release, mlp

HERE = Path(__file__).resolve().parent


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Installs `fake_engine` as SGLang; returns what makes a directory that tells it what to do."""
    fake = engine_module._Known("SGLang", "tilelang_gemm_wrapper", "fake_engine")
    monkeypatch.setitem(engine_module._ENGINES, "sglang", fake)
    path = [str(HERE), str(HERE.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")

    def make(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    return make


def test_the_engines_answer_becomes_its_shapes(folder: Callable[[str], Path]) -> None:
    directory = folder("answers")
    with Engine("sglang") as engine:
        assert engine.shapes(directory, "Org/Model", 2) == EngineShapes(
            engine="sglang",
            engine_version="1.2",
            model="Org/Model",
            tp=2,
            layers={(3072, 2560): 36, (100, 2560): 2},
            experts={(8, 512, 256): 4},
            not_covered=("something else",),
        )
        first = json.loads((directory / "seen.json").read_text())
        engine.shapes(directory, "Org/Model", 4)
        assert json.loads((directory / "seen.json").read_text()) == first, "one process answers all"
    assert first["CUDA_VISIBLE_DEVICES"] == "", "it may take no GPU from others"
    assert first["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(ProcessLookupError):
        os.kill(first["pid"], 0)


def test_an_engine_without_the_models_class_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_engine" / "models").mkdir(parents=True)
    (tmp_path / "some_engine" / "__init__.py").write_text("raise RuntimeError('imports take long')")
    (tmp_path / "some_engine" / "models" / "own.py").write_text("class OwnForCausalLM: ...")
    monkeypatch.syspath_prepend(tmp_path)
    known = engine_module._Known("SomeEngine", "some_engine", "some_module", "models")
    absent = engine_module._Known("Absent", "no_such_engine", "some_module", "models")
    monkeypatch.setattr(engine_module, "_ENGINES", {"some": known, "absent": absent})
    assert not list(engines_without_class(["OwnForCausalLM"]))
    assert not list(engines_without_class([]))
    assert list(engines_without_class(["OtherForCausalLM"])) == [("some", "SomeEngine")]
    for architectures, said in ((["OtherForCausalLM"], True), (["OwnForCausalLM"], False), (None, False)):
        checkpoint = Release({"architectures": architectures}, mlp("m.layers.0.mlp", 256, 256), ()).checkpoint
        monkeypatch.setattr(models, "from_shipped", lambda _, checkpoint=checkpoint: checkpoint)
        notes = models.weight_shapes("qwen3-4b").not_covered
        assert any("SomeEngine, which has no class OtherForCausalLM" in note for note in notes) == said


def test_a_refusal_is_told_with_its_step(folder: Callable[[str], Path]) -> None:
    with Engine("sglang") as engine:
        with pytest.raises(ValueError) as error:
            engine.shapes(folder("refuses"), "Org/Model", 4)
        assert str(error.value) == (
            "SGLang does not build Org/Model at tp 4. While it built the model: ValueError: 300 is no "
            "multiple of 128 over 4 ranks. Without --engine the checkpoint is read instead"
        )
        with pytest.raises(ValueError, match=r"update it with \.\.\. Without --engine the checkpoint"):
            engine.shapes(folder("is_cut_off"), "Org/Model", 4)
        assert engine.shapes(folder("answers"), "Org/Model", 2).layers, "it goes on after a refusal"


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("is_killed", "its process ended with SIGKILL: a library's print"),
        ("exits", "its process ended with status 3: no memory left for this"),
    ],
)
def test_a_death_is_told_and_costs_one_answer(
    folder: Callable[[str], Path], behaviour: str, reason: str
) -> None:
    with Engine("sglang") as engine:
        with pytest.raises(ValueError, match=reason):
            engine.shapes(folder(behaviour), "Org/Model", 1)
        assert engine.shapes(folder("answers"), "Org/Model", 1).layers


def test_a_hang_ends_with_all_that_it_started(folder: Callable[[str], Path]) -> None:
    directory = folder("hangs")
    with Engine("sglang", limit_s=3.0) as engine, pytest.raises(ValueError, match="no answer for 3 s"):
        engine.shapes(directory, "Org/Model", 1)
    for pid in map(int, (directory / "pids").read_text().split()):
        assert _is_gone(pid)


def _is_gone(pid: int) -> bool:
    """Killed: it is no process any more, or a zombie that waits for a parent of its own."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("tp", [0, -2, True, 1.5])
def test_tp_is_a_whole_number_of_ranks(folder: Callable[[str], Path], tp: int) -> None:
    with Engine("sglang") as engine, pytest.raises(ValueError, match="expected a whole number of ranks"):
        engine.shapes(folder("answers"), "Org/Model", tp)


def test_an_engine_that_is_not_installed_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in engine_names():
        known = engine_module._ENGINES[name]
        absent = engine_module._Known(known.title, "no_such_package", known.module)
        monkeypatch.setitem(engine_module._ENGINES, name, absent)
        with pytest.raises(RuntimeError, match=f"{known.title} is not installed .*Without --engine"):
            Engine(name)
