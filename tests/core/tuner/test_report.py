"""A run's table names what a call will get, also where the file keeps entries of an earlier run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tuning_runs import H200, written

from tilelang_gemm_wrapper.config_reports import describe
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.config_entry import Entry
from tilelang_gemm_wrapper.core.config_file import config_file_name, write_config_file
from tilelang_gemm_wrapper.core.config_loader import choose
from tilelang_gemm_wrapper.core.tuner.driver import ShapeResult
from tilelang_gemm_wrapper.core.tuner.entries import choose_entries, kept_m, merged
from tilelang_gemm_wrapper.core.tuner.records import CellDone, Record, Timing
from tilelang_gemm_wrapper.core.tuner.report import rows_of

N, K = 4096, 2048
FIRST, SECOND, OLD = (KernelConfig("swapAB", 64, tokens, 128, 4, 128) for tokens in (8, 16, 32))
# Alone the entry of 64 would serve 16 too; an entry of 32 in between keeps it from that.
TIMES = {16: {FIRST: 10.0, SECOND: 10.05}, 64: {FIRST: 11.0, SECOND: 10.0}}
KEPT = Entry(32, OLD, 0.02, 1.0)


@pytest.fixture
def result(tmp_path: Path) -> ShapeResult:
    """A run with 16 and 64 tokens over a file that had 32."""
    path = tmp_path / config_file_name(N, K, H200.name)
    new = choose_entries(TIMES, N, K, kept_m([KEPT], list(TIMES)))
    write_config_file(path, merged(new, [KEPT], list(TIMES)))
    records: list[Record] = []
    for M, by_config in TIMES.items():
        records += [Timing(N, K, M, config, "final", us, us, us, 5, 1e-6) for config, us in by_config.items()]
        records.append(CellDone(N, K, M, "standard", False))
    return ShapeResult(N, K, H200, tuple(records), path, ())


def test_the_table_names_what_the_merged_file_dispatches(result: ShapeResult, tmp_path: Path) -> None:
    file = written(tmp_path, N, K)
    dispatched = {M: entry.config for M in TIMES if (entry := choose(file.entries, M))}
    assert dispatched == {16: FIRST, 64: SECOND}
    rows = [row[:3] for row in rows_of(result)]
    assert rows == [(str(M), describe(dispatched[M]), "10.00") for M in TIMES]


@pytest.mark.parametrize("gone", ["never written", "deleted since"])
def test_without_a_file_the_table_names_what_the_timings_say(result: ShapeResult, gone: str) -> None:
    assert result.path is not None
    result.path.unlink()
    if gone == "never written":
        result = replace(result, path=None)
    assert [row[:3] for row in rows_of(result)] == [
        ("16", describe(SECOND), "10.05"),
        ("64", describe(SECOND), "10.00"),
    ]


def test_a_file_edited_since_is_shown_as_it_is_now(result: ShapeResult) -> None:
    assert result.path is not None
    write_config_file(result.path, [Entry(64, OLD, 0.02, 1.0)])
    assert [row[1:3] for row in rows_of(result)] == [(describe(OLD), "nan")] * 2
