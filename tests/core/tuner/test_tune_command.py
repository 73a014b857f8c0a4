"""The tuning command: its arguments, what it refuses and why, and the table, CSV and report it leaves."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fresh_python import printed_by
from tuning_runs import BENCH, COMPILER, H200, written

from tilelang_gemm_wrapper.core import bench
from tilelang_gemm_wrapper.core.arguments import CANNOT_RUN
from tilelang_gemm_wrapper.core.tuner import command
from tilelang_gemm_wrapper.core.tuner.report import HEADER

Simulate = Callable[..., Path]

N, K = 4096, 2048


def arguments(tmp_path: Path, *more: str) -> list[str]:
    return [
        *("--N", str(N), "--K", str(K), "--m", "16,64,512", "--no-ray", "--effort", "quick"),
        *("--bench", BENCH, "--compiler", COMPILER),
        *("--out", str(tmp_path / "out"), "--results-dir", str(tmp_path / "results"), *more),
    ]


def test_help_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys\n"
        "from tilelang_gemm_wrapper.core.tuner.command import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'ray', 'tilelang', 'matplotlib'} & set(sys.modules)\n"
    )
    printed = printed_by(code)
    for option in ("--model", "--tp", "--num-gpus", "--resume", "--effort", "--out", "--ray-address"):
        assert option in printed
    assert "--bench" not in printed


def test_list_shapes_prints_and_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert command.main(["--N", "4096", "--K", "2048", "--list-shapes", "--out", str(out)]) == 0
    assert capsys.readouterr().out == "N=4096 K=2048\n"
    assert not out.exists()
    assert command.main(["--shapes", "public", "--list-shapes"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 25


def test_experts_are_divided_or_distributed(capsys: pytest.CaptureFixture[str]) -> None:
    tune = ["--model", "qwen3-235b-a22b", "--tp", "8", "--list-shapes"]
    assert command.main(tune) == CANNOT_RUN
    error = capsys.readouterr().err
    assert "routed experts" in error and "192 of its 1536 rows" in error and "they fit: ep 2, 4, 8" in error
    assert command.main([*tune, "--ep", "2"]) == command.DONE
    assert "at tp 8, ep 2: 2 shapes on each rank" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ([], "say what to tune: --model, --shapes-from, --shapes, or --N and --K"),
        (["--N", "4096"], "give both --N and --K"),
        (["--N", "4097", "--K", "2048"], "N in multiples of 16 and K of 128"),
        (["--N", "4096", "--K", "2000"], "N in multiples of 16 and K of 128"),
        (["--engine", "sglang", "--N", "4096", "--K", "2048"], "--engine, --tp and --ep are about --model"),
        (["--tp", "2", "--shapes", "public"], "--engine, --tp and --ep are about --model"),
        (["--engine", "no such engine", "--model", "m"], "invalid choice: 'no such engine'"),
        (["--N", "4096", "--K", "2048", "--m", "1,x"], "'1,x' is no list of whole numbers"),
        (["--N", "4096", "--K", "2048", "--m", "0,8"], "'0,8' holds a number below 1"),
        (["--shapes", "no such list"], "invalid choice"),
        (["--N", "4096", "--K", "2048", "--effort", "immense"], "invalid choice: 'immense'"),
        (["--N", "4096", "--K", "2048", "--kernels", "0"], "'0' holds a number below 1"),
        (["--N", "4096", "--K", "2048", "--kernels", "8,16"], "'8,16' is 2 numbers where one is meant"),
        (
            ["--N", "4096", "--K", "2048", "--num-gpus", "0"],
            "--num-gpus: '0' holds a number below 1",
        ),
        (["--N", "4096", "--K", "2048", "--num-gpus", "-1"], "--num-gpus: '-1' holds a number below 1"),
        (["--N", "4096", "--K", "2048", "--tp", "0"], "argument --tp: '0' holds a number below 1"),
        (["--N", "4096", "--K", "2048", "--m", "9999999999"], "'9999999999' holds a number above 2147483647"),
        (["--N", str(16 * 2**40), "--K", "2048"], "both from 1 to 2147483647"),
    ],
)
def test_wrong_arguments_are_named(
    wrong: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(wrong)
    assert end.value.code == 2
    assert complaint in capsys.readouterr().err


def test_several_gpus_without_ray_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else found(name))
    with_ray = [argument for argument in arguments(tmp_path, "--num-gpus", "2") if argument != "--no-ray"]
    assert command.main(with_ray) == 2
    assert "pip install 'tilelang-gemm-wrapper[tune]'" in capsys.readouterr().err


def test_no_ray_and_several_gpus_exclude_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments(tmp_path, "--num-gpus", "2")) == 2
    assert "leave --no-ray out" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--no-ray"], ["--num-gpus", "2"], ["--out", "/proc/x"]])
def test_without_a_gpu_nothing_starts_and_nothing_is_left(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(command, "_tune", lambda *_: pytest.fail("started"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert command.main(["--shapes", "qwen3-4b", *more], program="tune") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"tune: cannot run here: {bench.why_cannot_run()}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_does_not_answer_is_told_before_anything_is_written(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_ray = [argument for argument in arguments(tmp_path) if argument != "--no-ray"]
    assert command.main([*with_ray, "--ray-address", address]) == 2
    assert f"no Ray cluster answers at {address}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_gpu_that_does_not_answer_is_told(
    simulate: Simulate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate(start="dies")
    assert command.main(arguments(tmp_path)) == 2
    assert "no device is visible" in capsys.readouterr().err


def test_a_run_leaves_table_csv_and_report(
    simulate: Simulate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate(faults={"wrong": {"num_stages": 4}}, warnings=["another process uses the GPU"])
    assert command.main(arguments(tmp_path)) == 0
    captured = capsys.readouterr()
    assert "another process uses the GPU" in captured.err
    for title in HEADER:
        assert title in captured.out
    rows = [
        line.split() for line in captured.out.splitlines() if line.split()[:1] in (["16"], ["64"], ["512"])
    ]
    assert len(rows) == 3
    choices = written(tmp_path / "out", N, K).entries
    assert all(entry.config.num_stages != 4 for entry in choices)
    assert "wrong: error 0.1 is above 3e-06" in captured.out

    results = tmp_path / "results" / H200.name
    report = (results / "tune_N4096_K2048.md").read_text()
    assert "## N=4096, K=2048 on NVIDIA_H200" in report
    assert "another process uses the GPU" in report
    for cells in rows:
        assert f"| {cells[0]} | " in report
    with (results / "tune_N4096_K2048.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    timings = [row for row in table if row["stage"]]
    failures = [row for row in table if row["failure"]]
    assert len(timings) + len(failures) == len(table)
    assert {row["stage"] for row in timings} == {"quick", "final"}
    assert {row["failure"] for row in failures} == {"wrong"}
    assert {row["num_stages"] for row in failures} == {"4"}
    assert {row["M"] for row in timings} == {"16", "64", "512"}
    for row in timings:
        assert float(row["p20_us"]) <= float(row["p50_us"]) <= float(row["p80_us"])
    for cells in rows:  # the table's time is that of a final timing
        finals = [float(row["p50_us"]) for row in timings if row["M"] == cells[0]]
        shown = [float(cell) for cell in cells if cell.replace(".", "").isdigit()]
        assert any(abs(cell - us) < 0.006 for cell in shown for us in finals)
    assert not [path for path in results.iterdir() if path.name.startswith(".")]


def test_a_report_that_cannot_be_written_costs_no_table(
    simulate: Simulate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate()
    (tmp_path / "results").write_text("no folder")
    assert command.main(arguments(tmp_path)) == 0
    assert written(tmp_path / "out", N, K).entries
    captured = capsys.readouterr()
    assert "the report is not written: " in captured.err and "written: " not in captured.out


class Unwritable(io.StringIO):
    """As a file on a full disk, or a pipe whose reader has ended."""

    def __init__(self, failure: OSError) -> None:
        super().__init__()
        self.failure = failure

    def write(self, text: str) -> int:
        raise self.failure


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), BrokenPipeError()])
def test_a_progress_that_cannot_be_shown_costs_nothing(
    failure: OSError, simulate: Simulate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Unwritable(failure))
    assert command.main(arguments(tmp_path)) == 0
    assert written(tmp_path / "out", N, K).entries


def test_tables_that_cannot_be_printed_cost_no_report(
    simulate: Simulate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Unwritable(OSError(28, "No space left on device")))
    assert command.main(arguments(tmp_path)) == 2
    folder = tmp_path / "results" / H200.name
    assert {path.suffix for path in folder.iterdir()} >= {".csv", ".md"}


def test_a_second_run_shows_the_gain_over_the_file_in_place(
    simulate: Simulate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate()
    command.main(arguments(tmp_path))
    first = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["64"]]
    command.main(arguments(tmp_path))
    second = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["64"]]
    assert first[0].split()[-1] == "-"
    assert 1.0 <= float(second[0].split()[-1]) < 1.05, "with the first run's timings it may look further"


def test_the_kernels_of_a_shape_can_be_bounded(simulate: Simulate, tmp_path: Path) -> None:
    log = simulate()
    assert command.main(arguments(tmp_path, "--kernels", "6")) == 0
    checked = {line.split(" KernelConfig")[1] for line in log.read_text().splitlines() if "check " in line}
    ours = [config for config in checked if not {"deep_gemm", "triton"} & set(config.split("'"))]
    assert 4 <= len(ours) <= 6
    assert written(tmp_path / "out", N, K).metadata["effort"] == "quick, 6 kernels"


def test_a_shape_that_could_not_be_finished_shows_in_the_status(
    simulate: Simulate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate(cannot_open=[N, K])
    assert command.main(arguments(tmp_path)) == 1
    captured = capsys.readouterr()
    assert "the weights do not fit" in captured.err
    assert "no file written" in captured.out


def test_the_script_runs_from_a_checkout(simulate: Simulate, tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[3] / "tuning" / "tune_tilelang_gemm.py"
    done = subprocess.run(
        [sys.executable, str(script), *arguments(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    assert written(tmp_path / "out", N, K).entries
    assert "shapes 1/1" in done.stderr


def test_a_file_that_cannot_be_written_costs_no_table_and_resume_writes_it(
    simulate: Simulate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tilelang_gemm_wrapper.core.tuner import tables

    def full(path: Path, *_: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    log = simulate()
    with monkeypatch.context() as patch:
        patch.setattr(tables, "write_config_file", full)
        assert command.main(arguments(tmp_path)) == 1
    captured = capsys.readouterr()
    assert "its file cannot be written (" in captured.err and "No space left on device" in captured.err
    assert "--resume writes it from the journal" in captured.err
    assert "no file written" in captured.out and "swapAB" in captured.out
    before = log.read_text()
    assert command.main(arguments(tmp_path, "--resume")) == 0
    assert written(tmp_path / "out", N, K).entries
    assert "check" not in log.read_text().removeprefix(before)


def test_a_place_that_takes_no_file_is_told_before_anything_starts(
    simulate: Simulate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate()
    assert command.main(arguments(tmp_path, "--out", "/proc/no"), program="tune") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tune: /proc/no cannot be written (") and line.endswith("; give another --out")


def test_a_log_on_a_full_disk_stops_nothing(
    simulate: Simulate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate()
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert command.main(arguments(tmp_path)) == 0
        monkeypatch.undo()
        full.buffer.raw.close()


def test_a_full_standard_output_costs_no_report(
    simulate: Simulate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    simulate()
    monkeypatch.setattr(sys, "stdout", Full())
    assert command.main(arguments(tmp_path)) == 2
    assert (tmp_path / "results" / H200.name / "tune_N4096_K2048.csv").is_file()
