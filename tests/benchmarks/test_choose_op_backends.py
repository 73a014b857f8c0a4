"""From result rows to the tables by which the ops choose: the fastest, the tuned configuration, what is
left.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = sorted(path.parent for path in BENCHMARKS.glob("results/*/gemv.csv"))
FACTS = {
    "date": "2026-01-02",
    "driver": "580",
    "package": "0.1.0",
    "torch": "2.11",
    "tilelang": "0.1.15",
    "triton": "3.6",
    "deep_gemm": "",
    "peers": "",
    "device": "NVIDIA_H200",
}


@pytest.fixture(scope="module")
def modules():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("choose_op_backends"), importlib.import_module("op_rows").OpRow


@pytest.fixture
def rows(modules):
    def make(op, dtype="bfloat16", N=0, config="", **times):
        cell = {"op": op, "shape": "s", "M": 1, "N": N, "K": 4096, "dtype": dtype}
        return [
            modules[1](**FACTS, **cell, provider=name, p50_us=us, config=config if name == "tilelang" else "")
            for name, us in times.items()
        ]

    return make


def test_the_fastest_backend_is_taken_and_peers_are_not(modules, rows):
    (entry,) = modules[0].entries_of(rows("rmsnorm", triton=2.0, tilelang=1.5, torch=0.1, flashinfer=1.0))
    assert (entry.op, entry.backend, entry.M, entry.K) == ("rmsnorm", "tilelang", 1, 4096)


def test_cublas_is_a_backend_of_the_half_precision_gemv_alone(modules, rows):
    entries = modules[0].entries_of(
        rows("gemv", N=8, triton=2.0, tilelang=3.0, torch=1.0)
        + rows("gemv", "bfloat16 x float8_e4m3fn", N=8, triton=2.0, tilelang=3.0, torch=1.0)
    )
    assert [entry.backend for entry in entries] == ["torch", "triton"]


def test_the_tuned_configuration_comes_along(modules, rows):
    config = "tuned: lanes=64, groups=4, rows=1, steps=2"
    (entry,) = modules[0].entries_of(rows("gemv", N=8, config=config, triton=1.0, tilelang=2.0))
    assert entry.backend == "triton" and entry.config == {"lanes": 64, "groups": 4, "rows": 1, "steps": 2}
    (entry,) = modules[0].entries_of(rows("gemv", N=8, config="not tuned: rows=1", tilelang=2.0))
    assert entry.config == {}


def test_a_cell_without_times_has_no_entry(modules, rows):
    assert modules[0].entries_of(rows("rmsnorm", triton=None, tilelang=None, flashinfer=1.0)) == []


def test_a_folder_without_results_is_refused(modules, tmp_path, capsys):
    with pytest.raises(SystemExit):
        modules[0].main([str(tmp_path)])
    assert "holds none of gemv.csv" in capsys.readouterr().err


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_shipped_tables_are_those_of_the_results(modules, folder):
    assert modules[0].main([str(folder), "--check"]) == 0
