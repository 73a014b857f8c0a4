"""What is tuned of all that a command line may name, what is left out, what the result files are called."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tuning_runs import BENCH, COMPILER, H200, written

from tilelang_gemm_wrapper import models
from tilelang_gemm_wrapper.core.tuner import command, wanted
from tilelang_gemm_wrapper.model_shapes.shapes_file import EngineShapes
from tilelang_gemm_wrapper.models import ModelShapes

Simulate = Callable[..., Path]

BUILT = EngineShapes(
    engine="sglang",
    engine_version="0.5.23",
    model="Org/Some Model",
    tp=2,
    layers={(100, 2560): 2, (128, 200): 1, (4096, 2048): 36},
    experts={(128, 768, 2048): 48},
    not_covered=("something else",),
)
LISTED = """\
       N        K  layers
     100     2560  2
     128      200  1
    4096     2048  36
Not covered: routed experts, a grouped GEMM of its own: 48 of (E=128, N=768, K=2048).
Not covered: something else."""
LEFT_OUT = """\
N=100 K=2560 is not tuned: N = 100 is not a multiple of 16, as the TileLang kernels need
N=128 K=200 is not tuned: K = 200 is not a multiple of 128, as the TileLang kernels need
"""


def test_shapes_that_an_engine_wrote_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    BUILT.write(tmp_path / "a.json")
    EngineShapes("vllm", "1", "Other", 1, {(256, 128): 1}).write(tmp_path / "b.json")
    files = ["--shapes-from", str(tmp_path / "a.json"), "--shapes-from", str(tmp_path / "b.json")]
    assert command.main([*files, "--N", "512", "--K", "1024", "--list-shapes"]) == 0
    captured = capsys.readouterr()
    a, b, single, left_out = captured.out.split("\n\n")
    head, _, rows = a.partition("\n")
    assert head == (
        f"Org/Some Model at tp 2: 3 shapes on a rank, from {tmp_path / 'a.json'}, written by sglang 0.5.23"
    )
    assert rows == LISTED
    assert b.startswith("Other at tp 1: 1 shapes on a rank") and "256      128  1" in b
    assert single == "N=512 K=1024"
    assert left_out == LEFT_OUT
    assert captured.err == ""


def test_shapes_that_an_engine_wrote_are_tuned(
    simulate: Simulate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate()
    BUILT.write(tmp_path / "shapes.json")
    options = ["--shapes-from", str(tmp_path / "shapes.json"), "--m", "16", "--no-ray", "--effort", "quick"]
    options += ["--bench", BENCH, "--compiler", COMPILER]
    options += ["--out", str(tmp_path / "out"), "--results-dir", str(tmp_path / "results")]
    assert command.main(options) == 0
    assert LEFT_OUT in capsys.readouterr().err
    assert written(tmp_path / "out", 4096, 2048).entries
    assert (tmp_path / "results" / H200.name / "tune_some_model_tp2.csv").is_file()


class FakeEngine:
    """Builds BUILT of every model at every tp, but for one that it refuses."""

    def __init__(self, name: str) -> None:
        assert name == "sglang"

    def shapes(self, directory: Path, model: str, tp: int) -> EngineShapes:
        assert (directory / "config.json").is_file()
        if tp == 3:
            raise ValueError(f"SGLang does not build {model} at tp 3")
        layers = {} if directory.name == "empty" else BUILT.layers
        return replace(BUILT, model=model, tp=tp, layers=layers)

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *exception: object) -> None: ...


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A model's directory that has no weights, which only an engine can build."""
    monkeypatch.setattr(wanted, "Engine", FakeEngine)

    def make(name: str) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        return str(tmp_path / name)

    return make


def test_an_engine_is_asked_for_each_model(
    model: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = model("one"), model("two")
    asked = ["--engine", "sglang", "--tp", "4", "--list-shapes"]
    assert command.main(["--model", one, "--model", two, *asked]) == 0
    first, second, left_out = capsys.readouterr().out.split("\n\n")
    for text, name in ((first, one), (second, two)):
        head, _, rows = text.partition("\n")
        assert head == f"{name} at tp 4: 3 shapes on a rank, from sglang 0.5.23, which built the model"
        assert rows == LISTED
    assert left_out == LEFT_OUT


@pytest.mark.parametrize(
    ("name", "tp", "complaint"),
    [
        ("one", "3", "SGLang does not build .*one at tp 3"),
        ("empty", "1", "no linear layer has FP8 weights .* 48 of .*; something else. Take a model"),
    ],
)
def test_an_engines_refusal_ends_in_one_line(
    model: Callable[[str], str], name: str, tp: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--model", model(name), "--engine", "sglang", "--tp", tp, "--list-shapes"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(complaint, line)


def test_what_an_engine_says_of_its_shapes_is_told_before_hours_of_tuning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clause = "4 of these layers would not run with --fp8-gemm-backend tilelang: the activations are float16"
    EngineShapes("e", "v", "m", 1, {(128, 128): 4}, not_covered=(clause,)).write(tmp_path / "a.json")
    monkeypatch.setattr(command, "_check_place", lambda options: None)
    monkeypatch.setattr(command, "_tune", lambda options, what: len(what.shapes))
    assert command.main(["--shapes-from", str(tmp_path / "a.json")]) == 1
    assert capsys.readouterr().err == f"m: not covered: {clause}\n"


def test_a_model_whose_experts_alone_are_fp8_is_refused_with_what_it_holds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experts = ModelShapes("m", "headers", 2, {}, ("routed experts (8 in each of 2 layers)",))
    monkeypatch.setattr(models, "weight_shapes", lambda *model, **how: experts)
    assert command.main(["--model", "Org/M", "--tp", "2", "--list-shapes"]) == 2
    assert re.search(
        r"Org/M at tp 2, from headers: no linear layer has FP8 .* Found: routed experts \(8",
        capsys.readouterr().err,
    )


def test_nothing_is_tuned_where_no_shape_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    EngineShapes("e", "v", "m", 1, {(100, 128): 1}).write(tmp_path / "a.json")
    assert command.main(["--shapes-from", str(tmp_path / "a.json")]) == 2
    assert "there is nothing to tune: N=100 K=128 is not tuned: N = 100" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--shapes", "public", "--shapes", "qwen3-0.6b"], "public_qwen3-0.6b"),
        (["--N", "128", "--K", "256"], "N128_K256"),
        (["--model", "qwen3-0.6b", "--tp", "2", "--N", "128", "--K", "256"], "qwen3-0.6b_tp2_N128_K256"),
        (["--shapes-from", "odd.json"], "_o_dd_"),
        (["--shapes-from", "root.json"], "model_tp8"),
        (["--shapes-from", "long.json"], "x" * 200),
    ],
)
def test_result_files_are_named_after_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for file, its_model, tp in (("odd", "a/\0 O*dd\n", 1), ("root", "/", 8), ("long", "x" * 300, 1)):
        EngineShapes("e", "v", its_model, tp, {(128, 128): 1}).write(f"{file}.json")
    parser = command._parser(None)
    assert wanted.wanted(parser, parser.parse_args(options)).name == name
