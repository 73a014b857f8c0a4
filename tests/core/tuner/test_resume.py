"""The real command, killed at any moment: --resume finishes and times nothing twice that the journal has."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tuning_runs import BENCH, COMPILER, assert_near_optimum, written

from tilelang_gemm_wrapper.core.tuner.journal import Journal
from tilelang_gemm_wrapper.core.tuner.records import CellDone, Record, Timing

Simulate = Callable[..., Path]

COMMAND = Path(__file__).resolve().parents[3] / "tuning" / "tune_tilelang_gemm.py"
N, K = 4096, 2048
M_VALUES = (1, 16, 128, 1024)
QUICK_MS, FINAL_MS = 1.0, 10.0  # of the standard effort
SLOW, FAST = 0.4, 1000.0
_TIMED = re.compile(r"timed \((\d+), (\d+)\) (\d+) ([\d.]+) (.*)")


def start(tmp_path: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, str(COMMAND), "--N", str(N), "--K", str(K), "--no-ray"),
            *("--m", ",".join(map(str, M_VALUES)), "--bench", BENCH, "--compiler", COMPILER),
            *("--out", str(tmp_path / "out"), "--results-dir", str(tmp_path / "results"), *more),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def journal_of(tmp_path: Path) -> list[Record]:
    path = tmp_path / "out" / ".tuning" / "journal.jsonl"
    if not path.exists():
        return []
    journal = Journal.__new__(Journal)  # opened to read alone: __init__ would end a cut line
    journal.path = path
    return journal.records()


def wait_until(holds: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.005)


def wait_for_records(
    process: subprocess.Popen[str], tmp_path: Path, records: int, log: Path, log_before: int
) -> None:
    """Until the process does something on the GPU and the journal has so many records, or it has ended."""
    wait_until(
        lambda: (
            process.poll() is not None
            or (len(log.read_text()) > log_before and len(journal_of(tmp_path)) >= records)
        )
    )


def timed_in(text: str) -> list[tuple[int, float, str]]:
    """(M, replay time, config) of each timing that the simulated GPU did."""
    return [(int(M), float(ms), config) for _, _, M, ms, config in _TIMED.findall(text)]


def keep_from_repeating(records: list[Record]) -> set[tuple[int, float, str]]:
    """What no later run may time again: quick timings, and the final ones of finished cells."""
    done = {record.M for record in records if isinstance(record, CellDone)}
    timings = [record for record in records if isinstance(record, Timing)]
    quick = {(t.M, QUICK_MS, str(t.config)) for t in timings if t.stage == "quick"}
    return quick | {(t.M, FINAL_MS, str(t.config)) for t in timings if t.stage == "final" and t.M in done}


def test_a_run_killed_again_and_again_goes_on_where_it_was(simulate: Simulate, tmp_path: Path) -> None:
    log = simulate(speed=SLOW)
    seen: set[tuple[int, float, str]] = set()
    kills = 0
    # Before the first record, in the first timings, between the two visits, among the finished cells.
    for records in (0, 20, 70, 130, 165):
        before = len(log.read_text())
        process = start(tmp_path, "--resume")
        wait_for_records(process, tmp_path, records, log, before)
        kills += process.poll() is None
        kill(process)
        assert not seen & set(timed_in(log.read_text()[before:])), "it was in the journal and is timed again"
        seen = keep_from_repeating(journal_of(tmp_path))
    assert kills >= 4, "the runs are over too soon to be killed"

    simulate(speed=FAST)
    before = len(log.read_text())
    process = start(tmp_path, "--resume")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    last = timed_in(log.read_text()[before:])
    assert not seen & set(last)
    assert last, "nothing was left for the last run"
    assert_near_optimum(written(tmp_path / "out", N, K), M_VALUES)
    repeats = len(timed_in(log.read_text())) - len(set(timed_in(log.read_text())))
    assert repeats <= 24 * kills, "a kill costs more than the timing in flight"


def test_resuming_a_finished_run_times_nothing(simulate: Simulate, tmp_path: Path) -> None:
    log = simulate()
    first, _ = start(tmp_path).communicate(timeout=60)
    file = written(tmp_path / "out", N, K)
    before = len(log.read_text())
    process = start(tmp_path, "--resume")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, first + output
    assert not timed_in(log.read_text()[before:])
    assert written(tmp_path / "out", N, K).entries == file.entries


def test_the_second_of_two_commands_on_one_directory_refuses(simulate: Simulate, tmp_path: Path) -> None:
    log = simulate(speed=0.02)
    first = start(tmp_path)
    try:
        wait_until(lambda: "check" in log.read_text())
        second = start(tmp_path)
        output, _ = second.communicate(timeout=60)
        assert second.returncode == 2
        assert f"another tuner (process {first.pid} on " in output
        assert str(tmp_path / "out") in output
        assert first.poll() is None
    finally:
        kill(first)
