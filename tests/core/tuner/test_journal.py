"""The journal loses at most a cut line, and a directory has one writer at a time."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.tuner.journal import (
    DirectoryBusyError,
    Journal,
    directory_lock,
    environment_key,
)
from tilelang_gemm_wrapper.core.tuner.records import CellDone, Failure, Record, ShapeConditions, Timing

CONFIG = KernelConfig("swapAB", 64, 16, 128, 4, 128)
TIMING = Timing(4096, 2048, 16, CONFIG, "quick", 2.5, 2.6, 2.7, 9, 1.4e-6)
RECORDS: list[Record] = [
    TIMING,
    Failure(4096, 2048, None, CONFIG, "compile_error", "ptxas:\n\ttoo many “registers”"),
    ShapeConditions(4096, 2048, None, 1980.0, 40.5, None, ("another process uses the GPU",)),
    CellDone(4096, 2048, 16, "standard", probe=True),
]


def test_what_was_appended_is_read_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for record in RECORDS:
        journal.append("here", record)
    assert journal.records("here") == RECORDS  # before it is closed: a kill would leave no less
    journal.close()
    assert Journal(tmp_path).records("here") == Journal(tmp_path).records() == RECORDS


def test_records_of_another_environment_do_not_count(tmp_path: Path) -> None:
    one, other = ({"driver": driver, "gpu": "NVIDIA H200"} for driver in ("580.1", "580.2"))
    journal = Journal(tmp_path)
    journal.note_environment(one)
    journal.append(environment_key(one), TIMING)
    assert journal.records(environment_key(one)) == [TIMING]
    assert journal.records(environment_key(other)) == []
    assert environment_key(one) == environment_key(dict(reversed(one.items())))


def test_a_line_cut_anywhere_is_passed_over_and_not_glued_to_the_next(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("here", RECORDS[0])
    whole = journal.path.stat().st_size
    journal.append("here", RECORDS[1])
    journal.close()
    content = journal.path.read_bytes()
    for end in range(whole, len(content) + 1):
        journal.path.write_bytes(content[:end])
        again = Journal(tmp_path)
        again.append("here", RECORDS[2])
        again.close()
        # Without its end-of-line alone the record is whole.
        kept = [RECORDS[0], RECORDS[1]] if end >= len(content) - 1 else [RECORDS[0]]
        assert again.records() == [*kept, RECORDS[2]], f"cut after {end} bytes"


@pytest.mark.parametrize(
    "line", [b"[]", b"7", b'{"record": "timing"}', b'{"environment": "here", "record": "of a later version"}']
)
def test_a_line_of_another_version_is_passed_over(tmp_path: Path, line: bytes) -> None:
    journal = Journal(tmp_path)
    journal.path.write_bytes(line + b"\n")
    journal.append("here", TIMING)
    assert journal.records() == [TIMING]


def test_a_directory_without_locks_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with directory_lock(tmp_path):
        pass
    assert f"{tmp_path} cannot be locked" in caplog.text and "no other tuner" in caplog.text


HOLD = """
import sys, time
from pathlib import Path
from tilelang_gemm_wrapper.core.tuner.journal import directory_lock
with directory_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(3600)
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_told_who_holds_the_directory(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(DirectoryBusyError) as refusal, directory_lock(tmp_path):
        pass
    assert f"process {holder.pid} on {os.uname().nodename}" in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)
    assert "--wait" in str(refusal.value)


def test_a_killed_holder_frees_the_directory(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with directory_lock(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / ".tuning" / "lock").read_text()


def test_the_second_waits_where_asked_to_and_says_so(
    tmp_path: Path, holder: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    entered = threading.Event()

    def enter() -> None:
        with directory_lock(tmp_path, wait=True, poll_s=0.01):
            entered.set()

    waiting = threading.Thread(target=enter, daemon=True)
    waiting.start()
    assert not entered.wait(0.3)
    holder.kill()
    assert entered.wait(60)
    waiting.join(60)
    assert capsys.readouterr().out.count(f"waiting for another tuner (process {holder.pid} on ") == 1


def test_a_directory_is_free_again_after_a_run(tmp_path: Path) -> None:
    for _ in range(2):
        with directory_lock(tmp_path), pytest.raises(DirectoryBusyError), directory_lock(tmp_path):
            pass


def test_a_full_disk_costs_the_journal_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tilelang_gemm_wrapper.core.tuner import journal as module

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    journal = Journal(tmp_path)
    journal.append("here", RECORDS[0])
    with monkeypatch.context() as patch:
        patch.setattr(module, "append", full)
        for record in RECORDS[1:3]:
            journal.append("here", record)
    journal.append("here", RECORDS[3])
    assert journal.records() == [RECORDS[0], RECORDS[3]] and not journal.is_whole
    assert caplog.text.count("lacks what --resume would need: No space left") == 1


def test_another_users_journal_and_lock_stop_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a directory that a group shares: they can be read, and locked."""
    with directory_lock(tmp_path):
        Journal(tmp_path).append("here", TIMING)
    real = os.open

    def refuse(path: str, flags: int, *more: int) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, *more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with directory_lock(tmp_path), pytest.raises(DirectoryBusyError), directory_lock(tmp_path):
            pass
    path_open = Path.open

    def refuse_open(path: Path, mode: str = "r", *more: object, **options: object) -> object:
        if "a" in mode:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return path_open(path, mode, *more, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse_open)
    journal = Journal(tmp_path)
    journal.append("here", RECORDS[1])
    journal.close()
    assert journal.records() == [TIMING] and not journal.is_whole
    assert "lacks what --resume would need: Permission denied" in caplog.text
