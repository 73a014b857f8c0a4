"""core/results.py: rows that were said to be on disk are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tilelang_gemm_wrapper.core.results import append_rows, read_rows, write_rows


@dataclass(frozen=True)
class Row:
    name: str
    us: float


def test_appended_rows_have_left_this_process_and_its_machines_memory(tmp_path, monkeypatch):
    path, synced = tmp_path / "rows.csv", []
    write_rows(path, [Row("a", 1.5)], Row)
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    append_rows(path, [Row("b", 2.5)])
    assert synced == [path.stat().st_size]
    assert read_rows(path, Row) == [Row("a", 1.5), Row("b", 2.5)]


def test_rows_go_to_a_device_too():
    append_rows(Path(os.devnull), [Row("a", 1.5)])
