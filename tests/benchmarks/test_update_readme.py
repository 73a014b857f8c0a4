"""benchmarks/update_readme.py: the README's table with and without timings of static weights."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from published_results import needs_results

from tilelang_gemm_wrapper.core.report import OURS_COLUMN_MAJOR, OURS_STATIC
from tilelang_gemm_wrapper.core.results import Row, read_rows

pytestmark = needs_results
SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks/update_readme.py"))


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    timed = read_rows(SCRIPT["RESULTS"], Row)
    return [row for row in timed if row.provider != OURS_STATIC]


def table(rows: list[Row]) -> list[list[str]]:
    lines = SCRIPT["block"](rows, "results.md").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_without_static_weights_no_word_of_them(rows: list[Row]) -> None:
    assert "static" not in SCRIPT["block"](rows, "results.md").lower()
    assert {len(line) for line in table(rows)} == {7}


def test_static_weights_get_columns_of_their_own(rows: list[Row]) -> None:
    """5 % faster than the default in every cell, but for a fallback at M = 128."""
    faster = [
        replace(row, provider=OURS_STATIC, p50_us=row.p50_us / 1.05)
        for row in rows
        if row.provider == OURS_COLUMN_MAJOR and row.p50_us and row.M != 128
    ]
    heading, _, *lines = table([*rows, *faster])
    assert heading[-2:] == ["× DeepGEMM, static weights", "% of ideal, static weights"]
    assert len(lines) == len(SCRIPT["TOKENS"])
    for line in lines:
        if line[0] == "128":
            assert line[-2:] == ["–", "–"]
        else:
            assert float(line[-2]) == pytest.approx(1.05 * float(line[-4]), abs=0.011)
            assert int(line[-1]) == pytest.approx(1.05 * int(line[-3]), abs=1.1)


def test_bands_take_the_faster_peer_of_each_cell(rows: list[Row]) -> None:
    """Ours is made 0.9 of DeepGEMM's time, and cuBLAS from M = 1024 on as fast as ours."""
    made = [row for row in rows if row.provider == "deep_gemm"]
    made += [
        replace(row, provider=name, p50_us=row.p50_us * 0.9)
        for row in made
        if row.p50_us
        for name in (OURS_COLUMN_MAJOR, "cublas")
        if name == OURS_COLUMN_MAJOR or row.M >= 1024
    ]
    lines = [line for line in SCRIPT["bands"](made, "grid.md").splitlines() if line.startswith("|")]
    figures = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in lines[: len(lines) // 2]}
    assert figures["2–16"] == "0.90 (0.90)"
    assert figures["above 1024"] == "1.00 (1.00)"
    assert figures["257–1024"].endswith("(1.00)")
    assert not any("static" in line for line in lines), "nothing was timed with static weights"


def test_readme_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["update_readme.py", "--check"])
    assert SCRIPT["main"]() == 0
