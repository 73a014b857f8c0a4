"""From result rows to tables, a Markdown report and a plot. Needs no GPU: a CSV is enough."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .device import KNOWN_DEVICES, canonical_name
from .results import Cell, HostRow, Row, by_cell, gemm_flops, read_rows, with_ratios
from .timing import L2_MULTIPLE, why_impossible

logger = logging.getLogger(__name__)

OURS = "tilelang_gemm"
OURS_COLUMN_MAJOR = "tilelang_gemm_column_major"
OURS_STATIC = "tilelang_gemm_static_weights"
OURS_UNTUNED = "tilelang_gemm_untuned"
PEERS = ("deep_gemm", "cublas")  # what a user could take instead, at its best: scales prepared beforehand
LABELS = {
    "tilelang_gemm": "this package",
    "tilelang_gemm_column_major": "this package, column-major scales",
    "tilelang_gemm_static_weights": "this package, column-major scales, static weights",
    "tilelang_gemm_untuned": "the same without a tuned file",
    "deep_gemm": "DeepGEMM",
    "deep_gemm_row_major": "DeepGEMM, row-major scales",
    "cublas": "cuBLAS",
    "triton": "Triton",
}
BANDS: tuple[tuple[str, Callable[[int], bool]], ...] = (
    ("1", lambda M: M == 1),
    ("2–16", lambda M: 2 <= M <= 16),
    ("17–64", lambda M: 17 <= M <= 64),
    ("65–256", lambda M: 65 <= M <= 256),
    ("257–1024", lambda M: 257 <= M <= 1024),
    ("above 1024", lambda M: M > 1024),
    ("1, 8, 16", lambda M: M in {1, 8, 16}),
)
# (column, faster, slower): how many times as fast the first provider is as the second, scales alike or not.
SPEEDUPS = (
    ("× DeepGEMM", OURS, "deep_gemm"),
    ("× DeepGEMM, both row-major", OURS, "deep_gemm_row_major"),
    ("× DeepGEMM, both column-major", OURS_COLUMN_MAJOR, "deep_gemm"),
    ("× DeepGEMM, both column-major, static weights", OURS_STATIC, "deep_gemm"),
    ("× Triton", OURS, "triton"),
)
_METHOD = (
    "Method: every provider on the same tensors in one process, each checked against float32 before it is "
    "timed. One CUDA graph per provider walks over copies of the weights that exceed L2 "
    f"{L2_MULTIPLE} times, so each launch reads them from DRAM; replays of the providers alternate; a time "
    "is the median replay over its launches, with the 20th and 80th percentile. *Floor* is the fastest plain "
    "read of the N·K weight bytes in the same harness; *ideal* is the larger of the floor and the FLOPs at "
    "the best rate seen on the chip (1450 TFLOPS on a full Hopper). This package and Triton read row-major "
    "activation scales, DeepGEMM and cuBLAS get theirs transposed beforehand, unless it says otherwise. "
    "*Static weights* is TILELANG_GEMM_STATIC_WEIGHTS=1, its kernels alone, no fallbacks; *untuned* is "
    "the default choice with the same setting. A "
    "mean is geometric, with the worst cell in brackets; × is how many times as fast, ÷ a quotient of times. "
    "Best peer is the faster of DeepGEMM and cuBLAS, cell by cell.\n"
)


# Header, times above and below the line by cell, and which of the quotients is the worst.
_Column = tuple[str, Mapping[Cell, float], Mapping[Cell, float], Callable[[Sequence[float]], float]]


def geomean(values: Iterable[float]) -> float | None:
    logs = [math.log(value) for value in values]
    return math.exp(math.fsum(logs) / len(logs)) if logs else None


def checked(rows: Iterable[Row]) -> list[Row]:
    """The rows with every impossible time taken out, the reason put in its place, and ratios made anew.

    Of two rows for one cell and provider the later one counts.
    """
    cells = by_cell(map(_checked, rows))
    return [row for by_provider in cells.values() for row in with_ratios(list(by_provider.values()))]


def _checked(row: Row) -> Row:
    device = KNOWN_DEVICES.get(canonical_name(row.device))
    if row.p50_us is None or device is None:
        return row
    impossible = why_impossible(row.p50_us, row.N * row.K, gemm_flops(*row.cell), device)
    if impossible is None:
        return row
    return replace(
        row,
        p20_us=None,
        p50_us=None,
        p80_us=None,
        tflops=None,
        gb_per_s=None,
        pct_of_floor=None,
        reason=f"measurement bug: {impossible}",
    )


def _times(cells: dict[Cell, dict[str, Row]], provider: str) -> dict[Cell, float]:
    return {
        cell: row.p50_us
        for cell, rows in cells.items()
        if (row := rows.get(provider)) is not None and row.p50_us is not None
    }


def _providers(rows: Sequence[Row]) -> list[str]:
    present = {row.provider for row in rows}
    return [name for name in LABELS if name in present]


def band_table(rows: Sequence[Row]) -> str:
    """Per band of M: each provider's time over ideal, geometric mean and worst cell (Markdown).

    Where a provider lacks cells of the band the figure is over those that it has, and says how many.
    """
    cells = by_cell(checked(rows))
    providers = _providers(rows)
    times = {name: _times(cells, name) for name in providers}
    ideal = {cell: us for cell, row in cells.items() if (us := next(iter(row.values())).ideal_us) is not None}
    return _by_band(cells, [(f"{LABELS[name]} ÷ ideal", times[name], ideal, max) for name in providers])


def versus_table(rows: Sequence[Row]) -> str:
    """Per band of M: this package against its peers, cell by cell, as in `band_table`; "" if it has none."""
    cells = by_cell(checked(rows))
    times = {name: _times(cells, name) for name in _providers(rows)}
    if OURS not in times and OURS_COLUMN_MAJOR not in times:
        return ""
    peers = [times[name] for name in PEERS if name in times]
    best = {
        cell: min(us[cell] for us in peers if cell in us) for cell in cells if any(cell in us for us in peers)
    }
    columns: list[_Column] = [
        (f"{LABELS[name]} ÷ best peer", times[name], best, max)
        for name in (OURS, OURS_COLUMN_MAJOR, OURS_STATIC)
        if name in times
    ]
    if OURS_STATIC in times and OURS_UNTUNED in times:
        columns.append(("untuned ÷ tuned, static weights", times[OURS_UNTUNED], times[OURS_STATIC], max))
    columns += [
        (label, times[slower], times[faster], min)
        for label, faster, slower in SPEEDUPS
        if faster in times and slower in times
    ]
    return _by_band(cells, columns)


def _by_band(cells: Iterable[Cell], columns: Sequence[_Column]) -> str:
    lines = []
    for label, holds in BANDS:
        band = [cell for cell in cells if holds(cell[0])]
        if band:
            figures = (
                _mean_and_worst(
                    [top[c] / bottom[c] for c in band if c in top and c in bottom], len(band), worst
                )
                for _, top, bottom, worst in columns
            )
            lines.append([label, str(len(band)), *figures])
    return markdown_table(["M", "cells", *(header for header, *_ in columns)], lines)


def _mean_and_worst(values: Sequence[float], expected: int, worst: Callable[[Sequence[float]], float]) -> str:
    mean = geomean(values)
    if mean is None:
        return "–"
    count = "" if len(values) == expected else f", of {len(values)}"
    return f"{mean:.2f} ({worst(values):.2f}{count})"


def cell_table(rows: Sequence[Row]) -> str:
    """A table per (N, K), a line per M: ours in full, the peers' µs, and how they compare (Markdown)."""
    cells = by_cell(checked(rows))
    peers = [name for name in _providers(rows) if name != OURS]
    header = ["M", "kernel", "µs (p20–p80)", "TFLOPS", "GB/s", "% of floor", "floor µs"]
    header += [f"{LABELS[name]} µs" for name in peers]
    header += ["× DeepGEMM", "× Triton", "error"]
    parts = []
    for N, K in dict.fromkeys((N, K) for _, N, K in cells):
        lines = []
        for cell in sorted(cell for cell in cells if cell[1:] == (N, K)):
            by_provider = cells[cell]
            ours = by_provider.get(OURS)
            some = ours or next(iter(by_provider.values()))
            line = [str(cell[0])]
            if ours is not None and ours.p50_us is not None:
                line += [
                    ours.kernel,
                    f"{ours.p50_us:.2f} ({ours.p20_us:.2f}–{ours.p80_us:.2f})",
                    figure_text(ours.tflops, ".1f"),
                    figure_text(ours.gb_per_s, ".0f"),
                    figure_text(ours.pct_of_floor, ".0f"),
                ]
            else:
                line += [ours.kernel if ours else "–", "–", "–", "–", "–"]
            line.append(figure_text(some.floor_us, ".2f"))
            line += [
                figure_text(peer.p50_us if (peer := by_provider.get(name)) else None, ".2f") for name in peers
            ]
            line += [
                figure_text(ours.x_deep_gemm if ours else None, ".2f"),
                figure_text(ours.x_triton if ours else None, ".2f"),
                figure_text(ours.error if ours else None, ".1e"),
            ]
            lines.append(line)
        parts.append(f"### N = {N}, K = {K}\n\n{markdown_table(header, lines)}")
    return "\n".join(parts)


def host_table(rows: Sequence[HostRow]) -> str:
    """Host microseconds of an eager call, a line per provider (Markdown)."""
    lines = [
        [row.provider, f"{row.p50_us:.2f} ({row.p20_us:.2f}–{row.p80_us:.2f})" if row.p50_us else row.reason]
        for row in rows
    ]
    return markdown_table(["eager call, in inference mode", "host µs (p20–p80)"], lines)


def figure_text(value: float | None, form: str) -> str:
    """A figure as a table has it; a dash where there is none."""
    return "–" if value is None else format(value, form)


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up in a terminal."""
    widths = [max(len(line[i]) for line in (header, *lines)) for i in range(len(header))]

    def row(texts: Sequence[str]) -> str:
        return (
            "| " + " | ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True)) + " |\n"
        )

    return (
        row(header) + "|" + "|".join("-" * (width + 2) for width in widths) + "|\n" + "".join(map(row, lines))
    )


def markdown(rows: Sequence[Row], host_rows: Sequence[HostRow] = ()) -> str:
    """The whole report, from the rows of one or several runs on one kind of device."""
    clean = checked(rows)
    parts = [
        f"# FP8 block-scaled GEMM on {joined(row.device for row in rows)}\n",
        _method(clean),
        _chosen(clean),
    ]
    parts.append("\n## By band of M\n\n" + "\n".join(filter(None, (versus_table(clean), band_table(clean)))))
    if host_rows:
        parts.append("\n## Host time of an eager call, M = 8\n\n" + host_table(host_rows))
    parts.append(_left_out(clean))
    parts.append("\n## By shape\n\n" + cell_table(clean))
    return "\n".join(part for part in parts if part)


def _method(rows: Sequence[Row]) -> str:
    versions = ", ".join(
        f"{name} {joined(getattr(row, name) for row in rows)}"
        for name in ("torch", "tilelang", "triton", "deep_gemm")
    )
    readings = [
        text
        for name, unit in (("sm_clock_mhz", "MHz"), ("temperature_c", "°C"), ("power_w", "W"))
        if (text := range_text([getattr(row, name) for row in rows], unit))
    ]
    errors = [row.error for row in rows if row.provider.startswith(OURS) and row.error is not None]
    return (
        f"Written by `benchmarks/benchmark_tilelang_gemm.py` from the CSV beside it. Package "
        f"{joined(row.package for row in rows)}, {versions}, driver {joined(row.driver for row in rows)}, "
        f"{joined(row.date for row in rows)}."
        + (f" GPU while measuring: {', '.join(readings)}." if readings else "")
        + (f" Largest error of this package: {max(errors):.1e}." if errors else "")
        + f"\n\n{_METHOD}"
    )


def _chosen(rows: Sequence[Row]) -> str:
    kernels = Counter(row.kernel for row in rows if row.provider == OURS and row.p50_us is not None)
    if not kernels:
        return ""
    return "Kernels chosen: " + ", ".join(f"{name} {count}" for name, count in kernels.most_common()) + ".\n"


def _left_out(rows: Sequence[Row]) -> str:
    reasons: dict[tuple[str, str], list[Cell]] = {}
    for row in rows:
        if row.reason:
            reasons.setdefault((row.provider, row.reason), []).append(row.cell)
    if not reasons:
        return ""
    lines = [
        [
            LABELS.get(provider, provider),
            str(len(cells)),
            "M={} N={} K={}".format(*cells[0]),
            reason.replace("|", "/"),
        ]
        for (provider, reason), cells in reasons.items()
    ]
    return "\n## Not timed\n\n" + markdown_table(["provider", "cells", "first", "why"], lines)


def joined(values: Iterable[str]) -> str:
    """The different values, in their order, as one text."""
    return " / ".join(dict.fromkeys(value for value in values if value)) or "(none)"


def range_text(values: Sequence[float | None], unit: str) -> str:
    """From the least to the greatest of the values that are known, with their unit; "" where none is."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    return f"{low:.0f} {unit}" if low == high else f"{low:.0f}–{high:.0f} {unit}"


def host_csv(csv_path: Path) -> Path:
    """Where the host times of a run lie, beside its CSV."""
    return csv_path.with_name(f"{csv_path.stem}_host.csv")


def write_report(csv_path: Path, rows: Sequence[Row]) -> tuple[Path, ...]:
    """Write `.md` and, where matplotlib is installed, `.png` beside the CSV; returns what was written."""
    if not rows:
        raise ValueError(f"{csv_path} holds no rows: nothing to report")
    host = host_csv(csv_path)
    host_rows = read_rows(host, HostRow) if host.exists() else []
    page = csv_path.with_suffix(".md")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(markdown(rows, host_rows), encoding="utf-8")
    try:
        from .plot import write_plot
    except ImportError as error:
        logger.warning("no plot is made (%s): pip install 'tilelang-gemm-wrapper[bench]'", error)
        return (page,)
    picture = csv_path.with_suffix(".png")
    write_plot(picture, checked(rows))
    return page, picture
