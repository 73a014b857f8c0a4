from __future__ import annotations

from pathlib import Path

import pytest

from tilelang_gemm_wrapper import cli
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.config_entry import Entry
from tilelang_gemm_wrapper.core.config_file import config_file_name, write_config_file

NARROW = KernelConfig("swapAB", 64, 8, 128, 4, 128)
WIDE = KernelConfig("swapAB", 64, 16, 128, 4, 128)


def write(directory: Path, N: int, *entries: Entry) -> None:
    write_config_file(directory / config_file_name(N, 2048, "NVIDIA_H200"), entries)


def test_diff_names_the_m_that_are_served_differently(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    write(before, 4096, Entry(8, NARROW, 0.005), Entry(64, WIDE, 0.007))
    write(after, 4096, Entry(8, NARROW, 0.004), Entry(16, NARROW, 0.006), Entry(64, WIDE, 0.007))
    write(before, 1024, Entry(8, NARROW))
    write(after, 1024, Entry(8, NARROW))
    write(after, 2048, Entry(8, NARROW))
    assert cli.main(["configs", "diff", str(before), str(after)]) == cli.DONE
    printed = capsys.readouterr().out
    assert "2 weight shapes differ, 1 choose the same" in printed
    # M 16 was served by the entry for 64, whose time is not that of M 16; M 8 and 64 are as before.
    (row,) = [line.split() for line in printed.splitlines() if line.split()[:1] == ["16"]]
    assert row == ["16", "swapAB", "64x16", "s4", "t128", "-", "swapAB", "64x8", "s4", "t128", "6.00"]
    assert "no file" in printed


def test_far_above_the_last_tuned_m_the_default_choice_is_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    write(before, 4096, Entry(16, NARROW, 0.005))
    write(after, 4096, Entry(16, NARROW, 0.005), Entry(24, WIDE), Entry(8192, NARROW, 0.9))
    assert cli.main(["configs", "diff", str(before), str(after)]) == cli.DONE
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:-2]]
    assert [row[0] for row in rows] == ["24", "8192"]
    assert rows[0][1:6] == ["swapAB", "64x8", "s4", "t128", "-"], "less than twice the last tuned M"
    assert rows[1][1] == "base", "what a call of 8192 tokens runs"


def test_diff_of_what_is_no_directory_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["configs", "diff", str(tmp_path), str(tmp_path / "nowhere")]) == cli.CANNOT_RUN
    assert "nowhere does not exist: give two directories" in capsys.readouterr().err
