"""The picture of a benchmark: a panel per weight shape, µs by M, and one that sums them up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from .report import LABELS, geomean
from .results import Row, by_cell

_COLUMNS = 5
# One colour a provider wherever it appears; ours stands out, the peers are muted.
_STYLES: dict[str, dict[str, Any]] = {
    "tilelang_gemm": {"color": "#d1495b", "linewidth": 2.0, "zorder": 5},
    "tilelang_gemm_column_major": {"color": "#d1495b", "linestyle": ":"},
    "tilelang_gemm_static_weights": {"color": "#edae49", "linewidth": 2.0, "zorder": 4},
    "tilelang_gemm_untuned": {"color": "#edae49", "linestyle": ":"},
    "deep_gemm": {"color": "#30638e"},
    "deep_gemm_row_major": {"color": "#30638e", "linestyle": ":"},
    "cublas": {"color": "#5c8001"},
    "triton": {"color": "#8d6b94"},
}


def write_plot(path: Path, rows: Sequence[Row]) -> None:
    """Draw µs over M, a panel per (N, K) with the ideal beneath, and one of time ÷ ideal over all shapes."""
    cells = by_cell(rows)
    shapes = list(dict.fromkeys((N, K) for _, N, K in cells))
    columns = min(_COLUMNS, len(shapes) + 1)
    lines = math.ceil((len(shapes) + 1) / columns)
    figure = Figure(figsize=(4.0 * columns, 3.1 * lines + 0.6), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    names = [name for name in LABELS if any(row.provider == name for row in rows)]

    for panel, (N, K) in zip(panels, shapes, strict=False):
        ms = sorted(M for M, n, k in cells if (n, k) == (N, K))
        for name in names:
            points = [(M, row.p50_us) for M in ms if (row := cells[M, N, K].get(name)) and row.p50_us]
            panel.plot(*_axes(points), marker=".", markersize=4, label=LABELS[name], **_STYLES[name])
        ideal = [(M, value) for M in ms if (value := next(iter(cells[M, N, K].values())).ideal_us)]
        panel.plot(*_axes(ideal), color="0.45", linestyle="--", linewidth=1, label="ideal")
        panel.set_title(f"N={N}, K={K}", fontsize=10)
        panel.set_yscale("log")

    summary = panels[len(shapes)]
    for name in names:
        ratios: dict[int, list[float]] = {}
        for (M, _, _), by_provider in cells.items():
            row = by_provider.get(name)
            if row and row.p50_us and row.ideal_us:
                ratios.setdefault(M, []).append(row.p50_us / row.ideal_us)
        points = [(M, mean) for M in sorted(ratios) if (mean := geomean(ratios[M]))]
        summary.plot(*_axes(points), marker=".", markersize=4, label=LABELS[name], **_STYLES[name])
    summary.axhline(1.0, color="0.45", linestyle="--", linewidth=1)
    summary.set_title("all shapes: time ÷ ideal, geomean", fontsize=10)

    for panel in panels[: len(shapes) + 1]:
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.yaxis.set_major_formatter(ScalarFormatter())
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set_xlabel("M (tokens)", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("µs a launch, cold weights", fontsize=8)
    for panel in panels[len(shapes) + 1 :]:
        panel.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=110)


def _axes(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [M for M, _ in points], [value for _, value in points]
