"""SGLang's benchmark without an engine: what it makes of results, and how a run goes on in pieces."""

from __future__ import annotations

import importlib
import json
import subprocess
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FACTS = {"device": "NVIDIA_H200", "date": "2026-01-02", "driver": "580"}


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module("benchmark_sglang")


@pytest.fixture
def run(benchmark, tmp_path, monkeypatch):
    """A run whose jobs give how many were executed, on the device that `run.device` names."""
    run = benchmark.Run(tmp_path, timeout=1, own_triton_cache=False)
    run.executed = []
    run.device = "NVIDIA_H200"

    def execute(name, job, caches):
        run.executed.append((name, caches.name))
        result = {"job": job, "facts": {**FACTS, "device": run.device}, "value": len(run.executed)}
        Path(job["out"]).write_text(json.dumps(result))

    monkeypatch.setattr(run, "_execute", execute)
    return run


PUBLISHED = sorted(BENCHMARKS.glob("results/*/sglang_*.csv"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_reports_are_those_of_their_figures(benchmark, path):
    assert path.with_suffix(".md").read_text(encoding="utf-8") == benchmark.report(path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: "", "lacks the columns K, M, N, backend"),
        (lambda text: "a,b\n1,2\n", "lacks the columns"),
        (lambda text: text.splitlines()[0] + "\n", "holds no rows"),
        (lambda text: text[: text.rindex(",")], r"line \d+: it is cut short"),
        (lambda text: text.replace("\ndecode,", "\ndecode,,,,,0,0,0,", 1), "0, 0, 0 are no figures"),
        (lambda text: "\udcff", "is no CSV file"),
    ],
)
def test_a_file_without_figures_is_refused_by_name(benchmark, tmp_path, damage, reason):
    path = tmp_path / "sglang_x.csv"
    text = damage(PUBLISHED[0].read_text(encoding="utf-8"))
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=rf"sglang_x\.csv.* {reason}"):
        benchmark.report(path)


def test_log_probabilities_count_until_the_tokens_part(benchmark):
    ours = [[[-1.0, 7], [-2.0, 8], [-9.0, 1], [-9.0, 3]], [[-1.0, 5]]]
    theirs = [[[-1.5, 7], [-2.0, 8], [-1.0, 2], [-1.0, 3]], [[-2.0, 5]]]

    found = benchmark.distance(ours, theirs)

    assert found["count"] == 3
    assert found["value"] == pytest.approx((0.5 + 0.0 + 1.0) / 3)
    assert found["low"] < found["value"] < found["high"]


def test_answers_without_a_common_token_have_no_distance(benchmark):
    assert benchmark.distance([[[-1.0, 7]]], [[[-1.0, 8]]]) == {"count": 0}


def test_a_job_that_is_done_is_not_run_again(run, capsys):
    assert run.result("cold", {"task": "engine"}, "triton")["value"] == 1
    assert run.result("cold", {"task": "engine"}, "triton")["value"] == 1
    assert run.executed == [("cold", "caches-triton")]
    assert capsys.readouterr().out == "cold: done\ncold: was done\n"


def test_the_result_of_another_job_is_refused(run):
    run.result("cold", {"task": "engine", "tokens": 256}, "triton")
    with pytest.raises(SystemExit, match=r"cold\.json is of another job .*'tokens': 256.*remove it"):
        run.result("cold", {"task": "engine", "tokens": 64}, "triton")


def test_results_of_two_machines_do_not_mix(run):
    run.result("cold", {"task": "engine"}, "triton")
    run.device = "NVIDIA_L40S"
    with pytest.raises(SystemExit, match=r"measured on .*NVIDIA_L40S.*the jobs before it on .*NVIDIA_H200"):
        run.result("cached", {"task": "engine"}, "triton")


def test_a_cached_start_needs_the_caches_of_the_cold_one(run):
    run.result("cold", {"task": "engine"}, "triton")
    with pytest.raises(SystemExit, match=r"caches-triton is gone.*remove .*cold\.json"):
        run.result("cached", {"task": "engine"}, "triton", after="cold")


def test_a_job_that_fails_shows_the_end_of_its_log(benchmark, tmp_path):
    run = benchmark.Run(tmp_path, timeout=60, own_triton_cache=True)
    with pytest.raises(
        SystemExit, match=r"(?s)weights gave no result; the end of .*KeyError: 'no such task'"
    ):
        run.result("weights", {"task": "no such task"}, "none")


def test_an_interrupted_run_leaves_no_engine_behind(benchmark, tmp_path, monkeypatch):
    """An engine that goes on takes the GPU from the next one, which then looks slow."""
    started = []

    class Interrupted(subprocess.Popen):
        def wait(self, timeout=None):
            if timeout is not None:
                started.append(self)
                raise SystemExit("terminated")
            return super().wait()

    endless = tmp_path / "endless.py"
    endless.write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(benchmark, "JOB", endless)
    monkeypatch.setattr(benchmark.subprocess, "Popen", Interrupted)
    with pytest.raises(SystemExit, match="terminated"):
        benchmark.Run(tmp_path, 60, own_triton_cache=True).result("cold", {"task": "engine"}, "triton")
    assert [process.returncode for process in started] == [-9]
