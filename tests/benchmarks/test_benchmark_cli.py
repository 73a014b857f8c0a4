"""The benchmark command where it must not, or cannot, measure."""

from __future__ import annotations

import importlib.util
import lzma
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tilelang_gemm_wrapper.core import bench
from tilelang_gemm_wrapper.core.arguments import INTERRUPTED
from tilelang_gemm_wrapper.core.results import Row, read_rows, write_rows

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "benchmark_tilelang_gemm.py"


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def row(provider, M, **fields):
    environment = dict.fromkeys(("date", "driver", "package", "torch", "tilelang", "triton", "deep_gemm"), "")
    return Row(**environment, device="NVIDIA_H200", M=M, N=4096, K=8192, provider=provider, **fields)


def test_the_script_explains_itself():
    help_text = subprocess.check_output([sys.executable, SCRIPT, "--help"], text=True, timeout=60)
    for option in ("--N", "--K", "--shapes", "--m", "--providers", "--output", "--host-overhead", "--resume"):
        assert option in help_text


def test_without_a_gpu_it_says_why_and_exits_2(without_gpu, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert bench.main(["--N", "4096", "--K", "8192"]) == 2

    message = capsys.readouterr().err
    assert message.startswith("The benchmark cannot run here: torch ")
    assert "need an NVIDIA GPU" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --N and --K, or --shapes"),
        (["--N", "4096"], "give --N and --K, or --shapes"),
        (["--shapes", "public", "--N", "4096", "--K", "8192"], "not both"),
        (["--shapes", "qwen9"], "invalid choice: 'qwen9'"),
        (["--N", "0", "--K", "8192"], "--N 0 --K 8192: both must be at least 1"),
        (["--N", "3", "--K", "5"], "a multiple of 16"),
        (["--N", "4096", "--K", "8192", "--m", "1,x"], "'1,x' is no list of whole numbers"),
        (["--N", "4096", "--K", "8192", "--m", "0,8"], "holds a number below 1"),
        (["--N", "4096", "--K", "8192", "--providers", "triton,cutlass"], "unknown provider cutlass"),
        (["--N", "4096", "--K", "8192", "--budget-ms", "0"], "--budget-ms 0.0: must be above 0"),
        (
            ["--N", "4096", "--K", "8192", "--compile-workers", "-1"],
            "--compile-workers -1: must be 0 or more",
        ),
        (["--N", "99999999999999999999", "--K", "16"], "at most 2147483647"),
        (
            ["--N", "4096", "--K", "8192", "--budget-ms", "inf"],
            "inf: must be above 0, and finite",
        ),
        (["--from-csv", "no such file.csv"], "no such file.csv"),
        (["--from-csv", "x.csv", "--resume"], "--resume cannot be given with it: leave one out"),
        (["--from-csv", "x.csv", "--m", "1", "--output", "y.csv"], "so --m, --output cannot be given"),
        (["--shapes", "public", "--N", "0"], "not both"),
        (["--N", "4096", "--K", "8192", "--providers", "triton,"], "unknown provider '': choose"),
    ],
)
def test_wrong_arguments_are_told_before_anything_runs(arguments, message, without_gpu, capsys):
    with pytest.raises(SystemExit) as exit_:
        bench.main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("path", ["no such file.csv", "/", __file__])
def test_a_csv_that_is_none_is_told_in_one_line(path, without_gpu, capsys):
    with pytest.raises(SystemExit) as exit_:
        bench.main(["--from-csv", path], program="bench")
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bench: {path}") and len(line) < 300


def test_a_report_that_cannot_be_written_is_told_in_one_line(without_gpu, capsys, tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(13, "Permission denied", "old.md")

    path = tmp_path / "old.csv"
    write_rows(path, [row("tilelang_gemm", 1, p20_us=19.0, p50_us=20.0, p80_us=21.0, ideal_us=10.0)], Row)
    monkeypatch.setattr(bench.report, "write_report", refused)
    assert bench.main(["--from-csv", str(path)], program="bench") == 2
    assert capsys.readouterr().err == "bench: old.md: Permission denied\n"


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("benchmark_lab", []),
        ("benchmark_sglang", []),
        ("accuracy_tilelang_gemm", []),
        ("check_choices", ["explore", "--exhaustive", "cells.csv"]),
        ("check_choices", ["compare", "--exhaustive", "cells.csv"]),
        ("sanitize_ops", []),
        ("sanitize_tilelang_gemm", []),
        ("benchmark_gemv", []),
        ("benchmark_tour", []),
    ],
)
def test_without_a_gpu_every_script_says_why_in_one_line(
    script, arguments, without_gpu, run_script, tmp_path
):
    status, line = run_script(script, *arguments)
    assert status == 2
    assert "cannot run here: torch " in line and "need an NVIDIA GPU" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("benchmark_sglang", ["--report", "none.csv"]),
        ("journal_by_band", ["none.jsonl.xz"]),
        ("benchmark_gemv", ["--from-csv", "none.csv"]),
        ("benchmark_tour", ["--from-csv", "none.csv"]),
    ],
)
def test_a_file_that_is_missing_is_one_line(script, arguments, run_script):
    status, line = run_script(script, *arguments)
    assert status == 2
    assert line == f"{script}.py: {arguments[-1]}: No such file or directory"


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        lzma.compress(b""),
        lzma.compress(b"[]\n"),
        lzma.compress(b'{"device": "NVIDIA_H200"}\n')[:-4],
        lzma.compress(b'{"device": "an abacus"}\n'),
        lzma.compress(b'{"device": "NVIDIA_H200"}\n'),
    ],
)
def test_a_journal_that_is_none_is_one_line(content, run_script, tmp_path):
    path = tmp_path / "journal.jsonl.xz"
    path.write_bytes(content)
    status, line = run_script("journal_by_band", str(path))
    assert status == 2
    assert line.startswith(f"journal_by_band.py: {path} ")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--backends", "deep_gemm,"], "--backends '': choose from"),
        (["--repeat", "-1"], "--repeat -1: must be 0 or more"),
        (["--timeout", "nan"], "--timeout nan: must be above 0"),
        (["--engine-args", "[]"], "--engine-args []: must be a JSON object"),
        (["--name", "a/b"], "--name 'a/b': must be a name"),
    ],
)
def test_wrong_arguments_of_the_sglang_benchmark_are_told_before_anything_runs(
    arguments, complaint, monkeypatch, capsys
):
    path = SCRIPT.with_name("benchmark_sglang.py")
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code == 2
    assert complaint in capsys.readouterr().err


def test_without_sglang_its_benchmark_says_so(run_script, monkeypatch):
    monkeypatch.setattr(bench, "require_gpu", lambda: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run_script("benchmark_sglang") == (
        2,
        "benchmark_sglang.py: SGLang is not installed in this environment: pip install sglang",
    )


@pytest.fixture
def run_script(monkeypatch, capsys, tmp_path):
    """Runs a script as `python benchmarks/NAME.py` does; gives its status and the one line that it says."""

    def run(name, *arguments):
        path = SCRIPT.with_name(f"{name}.py")
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(path.parent))
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(path), run_name="__main__")
        (line,) = capsys.readouterr().err.splitlines()
        return end.value.code, line

    return run


@pytest.mark.parametrize("command", ["bench", "tune"])
def test_help_names_the_command(command):
    line = [sys.executable, "-m", "tilelang_gemm_wrapper", command, "--help"]
    assert subprocess.check_output(line, text=True, timeout=60).startswith(f"usage: tilelang-gemm {command} ")


def test_a_csv_alone_gives_the_report_again(without_gpu, capsys, tmp_path):
    path = tmp_path / "old.csv"
    write_rows(path, [row("tilelang_gemm", 1, p20_us=19.0, p50_us=20.0, p80_us=21.0, ideal_us=10.0)], Row)

    assert bench.main(["--from-csv", str(path)]) == 0

    assert "20.00 (19.00–21.00)" in (tmp_path / "old.md").read_text()
    assert "2.00 (2.00)" in capsys.readouterr().out


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Runs the command, every provider made to take 20 us. Gives (status, cells measured, rows written)."""
    from tilelang_gemm_wrapper.core import bench_measure
    from tilelang_gemm_wrapper.core.bench_measure import DeviceLostError
    from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES

    path = tmp_path / "results.csv"

    def run(*arguments, lost_at=None, interrupted_at=None):
        cells = []

        def measure_shape(N, K, providers, environment, *, budget_ms):
            for M, names in providers.items():
                if lost_at == M:
                    raise DeviceLostError("cublas has left the CUDA context unusable")
                if interrupted_at == M:
                    raise KeyboardInterrupt
                cells.append((M, N, K))
                yield [row(name, M, p20_us=20.0, p50_us=20.0, p80_us=20.0, ideal_us=10.0) for name in names]

        monkeypatch.setattr(bench_measure, "measure_shape", measure_shape)
        monkeypatch.setattr(
            "tilelang_gemm_wrapper.core.device.device_of", lambda i: KNOWN_DEVICES["NVIDIA_H200"]
        )
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        status = bench.main(
            ["--N", "4096", "--K", "8192", "--compile-workers", "0", "--output", str(path), *arguments]
        )
        return status, cells, read_rows(path, Row)

    run.path = path
    return run


def test_every_m_is_measured_and_written(measured, capsys):
    status, cells, rows = measured("--m", "1,16", "--providers", "tilelang_gemm,triton")

    assert status == 0
    assert cells == [(1, 4096, 8192), (16, 4096, 8192)]
    assert [(row.provider, row.M) for row in rows] == [
        ("tilelang_gemm", 1),
        ("triton", 1),
        ("tilelang_gemm", 16),
        ("triton", 16),
    ]
    assert f"written: {measured.path}" in capsys.readouterr().out
    assert measured.path.with_suffix(".md").exists()


def test_resume_keeps_whole_cells_and_measures_incomplete_ones_anew(measured):
    times = {"p20_us": 99.0, "p50_us": 99.0, "p80_us": 99.0}
    old = [row("tilelang_gemm", 1, **times), row("triton", 1, **times), row("triton", 8, **times)]
    write_rows(measured.path, old, Row)

    _, cells, rows = measured("--m", "1,8,16", "--providers", "tilelang_gemm,triton", "--resume")

    assert cells == [(8, 4096, 8192), (16, 4096, 8192)]
    assert {(row.provider, row.M): row.p50_us for row in rows} == {
        ("tilelang_gemm", 1): 99.0,
        ("triton", 1): 99.0,
        ("tilelang_gemm", 8): 20.0,
        ("triton", 8): 20.0,  # not the 99 of another run beside it
        ("tilelang_gemm", 16): 20.0,
        ("triton", 16): 20.0,
    }


def old_row(provider, M):
    return row(provider, M, p20_us=99.0, p50_us=99.0, p80_us=99.0)


def times_by_cell(rows):
    return {(row.provider, row.M): row.p50_us for row in rows}


def test_resume_with_another_provider_measures_the_others_of_its_cells_too(measured):
    """Within one run, as they are compared; no row is lost, and cells that lack nothing are left alone."""
    old = [old_row(name, M) for M in (1, 8, 512) for name in ("tilelang_gemm", "triton")]
    old += [row("cublas", 8, reason="not installed"), row("a provider of old", 1, p50_us=7.0)]
    write_rows(measured.path, old, Row)

    _, cells, rows = measured("--m", "1,8,16", "--providers", "cublas", "--resume")

    assert cells == [(1, 4096, 8192), (16, 4096, 8192)]
    assert times_by_cell(rows) == {
        ("a provider of old", 1): 7.0,
        **{(name, 1): 20.0 for name in ("tilelang_gemm", "triton", "cublas")},
        **{(name, 8): 99.0 for name in ("tilelang_gemm", "triton")},
        ("cublas", 8): None,
        ("cublas", 16): 20.0,
        **{(name, 512): 99.0 for name in ("tilelang_gemm", "triton")},
    }
    assert len(rows) == len(times_by_cell(rows))


@pytest.mark.parametrize("interrupted_at", [1, 8, 16])
@pytest.mark.parametrize("arguments", [("--resume",), ()])
def test_an_interrupt_at_any_time_loses_nothing_that_no_new_row_replaces(measured, arguments, interrupted_at):
    old = [old_row(name, M) for M in (1, 8, 512) for name in ("tilelang_gemm", "triton")]
    write_rows(measured.path, old, Row)
    before = measured.path.read_bytes()
    providers = "tilelang_gemm,triton,cublas"

    status, _, rows = measured(
        "--m", "1,8,16", "--providers", providers, *arguments, interrupted_at=interrupted_at
    )
    assert status == INTERRUPTED

    new = {(name, M): 20.0 for M in (1, 8) if interrupted_at > M for name in providers.split(",")}
    kept = times_by_cell(old) if arguments or not new else {}
    assert times_by_cell(rows) == {**kept, **new}
    if not new:
        assert measured.path.read_bytes() == before


def test_without_resume_old_rows_are_gone(measured):
    write_rows(measured.path, [row("triton", 512, p50_us=99.0)], Row)
    _, _, rows = measured("--m", "1", "--providers", "triton")
    assert [row.M for row in rows] == [1]


def test_a_lost_device_keeps_and_reports_what_was_measured(measured, capsys):
    status, _, rows = measured("--m", "1,8,16", "--providers", "triton", lost_at=8)

    assert status == 1
    assert [row.M for row in rows] == [1]
    assert "cublas has left the CUDA context unusable" in capsys.readouterr().err
    assert measured.path.with_suffix(".md").exists()


def test_results_of_a_list_go_to_the_folder_of_the_device(measured, tmp_path, monkeypatch):
    # --output is given by the fixture first; a second one with the default rule is what this test is about.
    monkeypatch.chdir(tmp_path)
    measured("--m", "1", "--providers", "triton")  # patches the measuring
    assert (
        bench.main(["--shapes", "qwen3-4b", "--m", "1", "--providers", "triton", "--compile-workers", "0"])
        == 0
    )
    folder = tmp_path / "benchmarks" / "results" / "NVIDIA_H200"
    assert {"gemm_qwen3-4b.csv", "gemm_qwen3-4b.md"} <= {file.name for file in folder.iterdir()}


def test_a_disk_that_is_full_for_a_while_costs_no_cell(measured, monkeypatch, capsys):
    from tilelang_gemm_wrapper.core import results

    write, calls = results.replacing, []

    def full_at_first(path):
        calls.append(path)
        if len(calls) < 3:
            raise OSError(28, "No space left on device", str(path))
        return write(path)

    monkeypatch.setattr(results, "replacing", full_at_first)
    status, cells, rows = measured("--m", "1,8,16", "--providers", "triton")
    assert status == 0 and len(cells) == 3
    assert [row.M for row in rows] == [1, 8, 16]
    error = capsys.readouterr().err
    assert error.count("lacks cells until it can be written") == 1 and "No space left" in error


def test_a_full_disk_costs_no_table(measured, monkeypatch, capsys):
    from tilelang_gemm_wrapper.core import report, results

    def full(path, *_):
        raise OSError(28, "No space left on device", str(path))

    write_rows(measured.path, [old_row("triton", 512)], Row)
    monkeypatch.setattr(results, "replacing", full)
    monkeypatch.setattr(report, "write_report", full)
    status, cells, rows = measured("--m", "1,8", "--providers", "triton", "--resume")
    captured = capsys.readouterr()
    assert status == 1 and len(cells) == 2
    assert rows == [old_row("triton", 512)]
    assert "20.0" in captured.out and f"{measured.path} lacks what is printed above" in captured.err
    assert "the report is not written" in captured.err


@pytest.mark.parametrize("output", ["folder", "/proc/no/rows.csv"])
def test_an_output_that_takes_no_file_is_told_before_anything_is_measured(
    measured, monkeypatch, tmp_path, capsys, output
):
    from tilelang_gemm_wrapper.core import compile_ahead

    (tmp_path / "folder").mkdir()
    measured.path.touch()
    write_rows(measured.path, [old_row("triton", 512)], Row)
    monkeypatch.setattr(compile_ahead, "compile_ahead", lambda *_: pytest.fail("compiles"))
    status, cells, _ = measured("--m", "1", "--output", str(tmp_path / output), "--compile-workers", "1")
    assert status == 2 and not cells
    (line,) = capsys.readouterr().err.splitlines()
    assert "give " in line and str(tmp_path / output) in line


def test_resume_starts_from_an_empty_file(measured):
    measured.path.touch()
    status, _, rows = measured("--m", "1", "--providers", "triton", "--resume")
    assert status == 0 and [row.M for row in rows] == [1]


def test_resume_goes_on_behind_a_line_without_an_end(measured):
    """As some editors leave it."""
    write_rows(measured.path, [old_row("triton", 512)], Row)
    measured.path.write_text(measured.path.read_text().rstrip())
    _, _, rows = measured("--m", "1", "--providers", "triton", "--resume")
    assert [row.M for row in rows] == [512, 1]
