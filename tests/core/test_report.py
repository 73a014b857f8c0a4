"""Rows to CSV and back, and what the report makes of them: means, gaps, and times that cannot be true."""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import struct

import pytest

from tilelang_gemm_wrapper.core import report
from tilelang_gemm_wrapper.core.results import (
    HostRow,
    Row,
    append_rows,
    by_cell,
    gemm_bytes,
    gemm_flops,
    read_rows,
    with_ratios,
    write_rows,
)

ENVIRONMENT = {
    "date": "2026-01-02",
    "device": "NVIDIA_H200",
    "driver": "580.1",
    "package": "0.1.0",
    "torch": "2.11.0",
    "tilelang": "0.1.15",
    "triton": "3.6.0",
    "deep_gemm": "0.1.5",
}
N, K = 2560, 4096  # 10.5 MB of weights: 2.2 us at the data sheet's 4.8 TB/s


def row(provider, M=8, us=10.0, n=N, k=K, **fields):
    times = {} if us is None else {"p20_us": us * 0.99, "p50_us": us, "p80_us": us * 1.01}
    filled = {"floor_us": 4.0, "ideal_us": 5.0, "error": 1.4e-6, **times, **fields}
    return Row(**ENVIRONMENT, M=M, N=n, K=k, provider=provider, **filled)


def cells_of(table):
    """A Markdown table as a list of {column: text}."""
    lines = [line.strip("|\n ").split("|") for line in table.splitlines() if line.startswith("|")]
    header, _, *body = [[text.strip() for text in line] for line in lines]
    return [dict(zip(header, line, strict=True)) for line in body]


def test_rows_survive_the_csv(tmp_path):
    path = tmp_path / "deep" / "rows.csv"
    rows = [
        row("tilelang_gemm", kernel="swapAB", config="block_M=64 (a, b.json)", replays=20, launches=48),
        row("cublas", us=None, error=None, reason='RuntimeError: "M" must be > 1, got\t1'),
    ]

    write_rows(path, rows[:1], Row)
    append_rows(path, rows[1:])

    assert read_rows(path, Row) == rows
    assert [file.name for file in path.parent.iterdir()] == ["rows.csv"]


def test_appended_rows_are_on_disk_and_in_one_write(tmp_path, monkeypatch):
    """Of a run that is killed, or loses its power, either all rows of a cell are there or none."""
    path = tmp_path / "rows.csv"
    write_rows(path, [], Row)
    empty, synced = path.stat().st_size, []
    whole_sync = os.fsync

    def fsync(descriptor):
        synced.append(os.fstat(descriptor).st_size)
        whole_sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    append_rows(path, [row("tilelang_gemm", reason="a" * 100_000), row("cublas")])
    assert synced == [path.stat().st_size]
    assert synced[0] > empty + 100_000
    assert len(read_rows(path, Row)) == 2


def test_host_rows_survive_the_csv(tmp_path):
    rows = [HostRow(**ENVIRONMENT, M=8, N=N, K=K, provider="deep_gemm", p50_us=15.0, batches=101)]
    write_rows(tmp_path / "host.csv", rows, HostRow)
    assert read_rows(tmp_path / "host.csv", HostRow) == rows


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("M,N,K\n1,2,3\n")
    with pytest.raises(ValueError, match=r"other\.csv lacks the columns date, device, \w+ and \d+ more"):
        read_rows(path, Row)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"M,N\n" + b"x" * 200_000 + b"\n", b"\x00,\x00\n"])
def test_a_file_that_is_no_table_is_refused_by_name(tmp_path, content):
    path = tmp_path / "other.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.csv (is no CSV file|lacks the columns)"):
        read_rows(path, Row)


@pytest.mark.parametrize("damage", [lambda line: line[:40], lambda line: line.replace(",2560,", ",many,")])
def test_a_damaged_line_is_named(tmp_path, damage):
    path = tmp_path / "rows.csv"
    write_rows(path, [row("triton"), row("cublas")], Row)
    header, first, second = path.read_text().splitlines()
    path.write_text("\n".join((header, first, damage(second))) + "\n")
    with pytest.raises(ValueError, match=r"rows\.csv, line 3"):
        read_rows(path, Row)


@pytest.mark.parametrize(
    ("field", "text", "reason"),
    [
        ("M", "1.5", "M is '1.5', expected a whole number of at least 0"),
        ("M", "-4", "M is '-4'"),
        ("K", "9" * 5000, "K is '9{12}"),
        ("p50_us", "nan", "p50_us is 'nan', expected a time above 0, and finite"),
        ("p50_us", "0", "p50_us is '0'"),
        ("ideal_us", "-1", "ideal_us is '-1'"),
        ("floor_us", "inf", "floor_us is 'inf'"),
        ("tflops", "nan", "tflops is 'nan', expected a finite number"),
        ("p50_us", "fast", "p50_us is 'fast', expected a number"),
    ],
)
def test_what_cannot_have_been_measured_is_refused_by_line_and_column(tmp_path, field, text, reason):
    path = tmp_path / "rows.csv"
    timed = row("triton", p50_us=2.0, ideal_us=1.0, floor_us=1.0, tflops=3.0)
    write_rows(path, [row("cublas"), timed], Row)
    header, first, second = csv.reader(path.read_text().splitlines())
    second[header.index(field)] = text
    path.write_text("\n".join(",".join(cells) for cells in (header, first, second)) + "\n")
    with pytest.raises(ValueError, match=rf"rows\.csv, line 3: {reason}.*; correct or delete that line"):
        read_rows(path, Row)


def test_the_error_of_nan_is_read_again(tmp_path):
    write_rows(tmp_path / "rows.csv", [row("triton", error=math.inf, reason="wrong")], Row)
    assert read_rows(tmp_path / "rows.csv", Row)[0].error == math.inf


def test_flops_and_bytes_of_a_gemm():
    assert gemm_flops(3, 5, 7) == 210
    # A and B one byte an element, C two, one float32 scale per token and 128 of K, and per 128 x 128 weights.
    assert gemm_bytes(4, 256, 300) == 4 * 300 + 256 * 300 + 4 * (4 * 3 + 2 * 3) + 2 * 4 * 256


def test_ratios_say_how_many_times_as_fast():
    ours, deep, triton = with_ratios(
        [row("tilelang_gemm", us=10.0), row("deep_gemm", us=15.0), row("triton", us=40.0)]
    )
    assert (ours.x_deep_gemm, ours.x_triton) == pytest.approx((1.5, 4.0))
    assert (deep.x_deep_gemm, triton.x_deep_gemm) == pytest.approx((1.0, 0.375))


def test_ratios_against_a_peer_without_a_time_are_none():
    (ours, _) = with_ratios([row("tilelang_gemm"), row("deep_gemm", us=None)])
    assert ours.x_deep_gemm is None
    assert ours.x_triton is None


def test_of_two_rows_for_a_cell_and_provider_the_later_counts():
    cells = by_cell([row("triton", us=10.0), row("triton", us=11.0)])
    assert cells[8, N, K]["triton"].p50_us == 11.0


def test_geomean():
    assert report.geomean([1.0, 4.0, 16.0]) == pytest.approx(4.0)
    assert report.geomean([]) is None


TWO_CELLS = [
    row("tilelang_gemm", M=1, us=5.0),  # 1.0 x ideal, 0.5 x best peer
    row("deep_gemm", M=1, us=10.0),
    row("tilelang_gemm", M=1, us=20.0, n=5120),  # 4.0 x ideal, 2.0 x best peer
    row("deep_gemm", M=1, us=60.0, n=5120),
    row("cublas", M=1, us=10.0, n=5120),
]


def test_band_means_are_geometric_and_name_the_worst_cell():
    bands = {line["M"]: line for line in cells_of(report.band_table(TWO_CELLS))}

    assert bands["1"] == {
        "M": "1",
        "cells": "2",
        "this package ÷ ideal": "2.00 (4.00)",
        "DeepGEMM ÷ ideal": "4.90 (12.00)",
        "cuBLAS ÷ ideal": "2.00 (2.00, of 1)",
    }
    assert bands["1, 8, 16"] == {**bands["1"], "M": "1, 8, 16"}
    assert set(bands) == {"1", "1, 8, 16"}  # bands without a cell have no line


def test_the_best_peer_is_taken_cell_by_cell_and_the_worst_speedup_is_the_smallest():
    (line, _) = cells_of(report.versus_table(TWO_CELLS))

    assert line["this package ÷ best peer"] == "1.00 (2.00)"
    assert line["× DeepGEMM"] == "2.45 (2.00)"
    assert "× Triton" not in line


def test_scale_layouts_are_compared_like_with_like():
    times = {
        "tilelang_gemm": 5.0,
        "tilelang_gemm_column_major": 4.0,
        "deep_gemm": 10.0,
        "deep_gemm_row_major": 15.0,
        "triton": 20.0,
    }
    (line,) = cells_of(report.versus_table([row(name, M=4, us=us) for name, us in times.items()]))

    assert line == {
        "M": "2–16",
        "cells": "1",
        "this package ÷ best peer": "0.50 (0.50)",
        "this package, column-major scales ÷ best peer": "0.40 (0.40)",
        "× DeepGEMM": "2.00 (2.00)",
        "× DeepGEMM, both row-major": "3.00 (3.00)",
        "× DeepGEMM, both column-major": "2.50 (2.50)",
        "× Triton": "4.00 (4.00)",
    }


def test_every_m_of_the_public_grid_is_in_one_band():
    from tilelang_gemm_wrapper.models import PUBLIC_M

    *bands, _ = report.BANDS  # the last is a selection across bands
    for M in PUBLIC_M:
        assert sum(holds(M) for _, holds in bands) == 1


def test_a_run_without_peers_makes_a_report():
    rows = [row("tilelang_gemm", M=1), row("tilelang_gemm", M=4096, us=900.0)]
    (first, *_) = cells_of(report.versus_table(rows))
    assert first["this package ÷ best peer"] == "–"
    assert "nan" not in report.markdown(rows)


def test_a_run_without_ours_makes_a_report():
    assert report.versus_table([row("deep_gemm", us=12.5)]) == ""
    (line,) = cells_of(report.cell_table([row("deep_gemm", us=12.5)]))
    assert line["DeepGEMM µs"] == "12.50"
    assert line["µs (p20–p80)"] == "–"


def test_the_table_of_a_shape_is_sorted_by_m_and_shows_every_peer():
    rows = [
        row("tilelang_gemm", M=64, us=12.0, kernel="base", tflops=111.8, gb_per_s=900.0, pct_of_floor=33.3),
        row("triton", M=64, us=24.0),
        row("tilelang_gemm", M=1, us=6.0, kernel="swapAB"),
        row("triton", M=1, us=None, reason="RuntimeError: no"),
    ]
    one, many = cells_of(report.cell_table(rows))
    assert (one["M"], one["kernel"], one["µs (p20–p80)"]) == ("1", "swapAB", "6.00 (5.94–6.06)")
    assert one["Triton µs"] == "–"
    assert (many["M"], many["TFLOPS"], many["% of floor"], many["× Triton"]) == ("64", "111.8", "33", "2.00")


def test_an_impossible_time_is_taken_out_with_its_reason_and_its_ratios():
    rows = with_ratios([row("tilelang_gemm", us=10.0), row("deep_gemm", us=1.0)])  # 10.5 MB in 1 us
    assert rows[0].x_deep_gemm == pytest.approx(0.1)

    ours, deep = report.checked(rows)

    assert deep.p50_us is None
    assert deep.reason.startswith("measurement bug: 1.00 us for 10.5 MB of cold weights")
    assert ours.x_deep_gemm is None
    text = report.markdown(rows)
    assert "measurement bug" in text
    assert cells_of(report.versus_table(rows))[0]["× DeepGEMM"] == "–"


def test_the_report_states_versions_conditions_chosen_kernels_and_what_was_left_out():
    rows = [
        row("tilelang_gemm", M=8, kernel="swapAB", sm_clock_mhz=1980.0, temperature_c=41.0),
        row("tilelang_gemm", M=16, kernel="deep_gemm", sm_clock_mhz=1755.0, temperature_c=41.0, error=2e-6),
        row("cublas", M=8, us=None, reason="RuntimeError: a | b"),
        row("cublas", M=16, us=None, reason="RuntimeError: a | b"),
    ]
    text = report.markdown(
        rows, [HostRow(**ENVIRONMENT, M=8, N=N, K=K, provider="x", p20_us=6, p50_us=7, p80_us=8)]
    )
    for expected in (
        "# FP8 block-scaled GEMM on NVIDIA_H200",
        "torch 2.11.0, tilelang 0.1.15, triton 3.6.0, deep_gemm 0.1.5",
        "driver 580.1",
        "1755–1980 MHz, 41 °C",
        "Largest error of this package: 2.0e-06",
        "swapAB 1, deep_gemm 1",
        "7.00 (6.00–8.00)",
    ):
        assert expected in text
    (left_out,) = cells_of(text.split("## Not timed")[1].split("##")[0])
    assert left_out == {
        "provider": "cuBLAS",
        "cells": "2",
        "first": f"M=8 N={N} K={K}",
        "why": "RuntimeError: a / b",
    }


def png_size(path):
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", data[16:24])


def test_page_and_plot_lie_beside_the_csv(tmp_path):
    pytest.importorskip("matplotlib")
    shapes = [(512, 1024), (1024, 2048)]
    rows = [
        row(provider, M=M, us=20.0 * math.sqrt(M), n=n, k=k)
        for n, k in shapes
        for M in (1, 64, 1024)
        for provider in ("tilelang_gemm", "deep_gemm")
    ]
    rows.append(row("cublas", M=1, us=None, n=512, k=1024, reason="refused"))
    path = tmp_path / "gemm_public.csv"
    write_rows(
        report.host_csv(path), [HostRow(**ENVIRONMENT, M=8, N=N, K=K, provider="bare", reason="no")], HostRow
    )

    page, picture = report.write_report(path, rows)

    assert (page.name, picture.name) == ("gemm_public.md", "gemm_public.png")
    assert "### N = 1024, K = 2048" in page.read_text()
    assert "| bare" in page.read_text()
    width, height = png_size(picture)
    assert width > height > 200  # two shapes and the summary side by side


def test_without_matplotlib_the_page_is_still_written(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "tilelang_gemm_wrapper.core.plot", None)

    assert report.write_report(tmp_path / "a.csv", [row("triton")]) == (tmp_path / "a.md",)
    assert "tilelang-gemm-wrapper[bench]" in caplog.text


def test_no_rows_are_no_report(tmp_path):
    with pytest.raises(ValueError, match="holds no rows"):
        report.write_report(tmp_path / "a.csv", [])


def test_rows_are_values():
    with pytest.raises(dataclasses.FrozenInstanceError):
        row("triton").M = 3
