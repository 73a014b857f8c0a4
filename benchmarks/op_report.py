"""From rows of memory-bound ops to tables, a Markdown report and a plot. Needs no GPU: a CSV is enough."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from op_rows import CEILING_NOISE, OpRow, by_cell

from tilelang_gemm_wrapper.core.report import figure_text, geomean, joined, markdown_table, range_text
from tilelang_gemm_wrapper.core.timing import L2_MULTIPLE

logger = logging.getLogger(__name__)

LABELS = {
    "torch": "PyTorch",
    "separate": "separate kernels",
    "separate_peers": "separate kernels of others",
    "triton": "Triton",
    "tilelang_naive": "TileLang naive",
    "tilelang_split_k": "TileLang split-K",
    "tilelang": "TileLang",
    "auto": "auto",
    "group_quant": "TileLang, SGLang's rounding",
    "gemm": "FP8 GEMM",
    "flashinfer": "FlashInfer",
    "flashinfer_pdl": "FlashInfer PDL",
    "liger": "Liger",
    "sgl_kernel": "sgl-kernel",
    "sglang": "SGLang",
}
_COLOURS = {
    "torch": "#5c8001",
    "separate": "#5c8001",
    "separate_peers": "#a3b86c",
    "triton": "#8d6b94",
    "tilelang_naive": "#edae49",
    "tilelang_split_k": "#e07a3f",
    "tilelang": "#d1495b",
    "auto": "0.2",
    "group_quant": "#edae49",
    "gemm": "#30638e",
    "flashinfer": "#30638e",
    "flashinfer_pdl": "#00798c",
    "liger": "#7a5c3e",
    "sgl_kernel": "#4f86c6",
    "sglang": "#4f86c6",
}
_METHOD = (
    "Method: every provider on the same values in one process, each checked before it is timed against the "
    "formula in float64, on random data, its outputs NaN before. *Error* is the norm of the difference over "
    "the norm of the result. One CUDA graph per provider walks over copies of the buffers that together "
    f"exceed L2 {L2_MULTIPLE} times, so each launch reads from DRAM and writes where L2 holds nothing; "
    "replays of the providers alternate; a time is the median replay over its launches. *GB/s* is the bytes "
    "that must move at least, each input read once and each output written once, over the time. *Copy* is "
    "the best of PyTorch's and several Triton copies of 1 GiB in the same run, read plus written. A row "
    "above what the run's own copy (ops that write as much as they read) or plain read (the others) reaches, "
    f"{100 * CEILING_NOISE:.0f} % of noise allowed, or above the data sheet, is a measurement bug, loses its "
    "time and fails the run. *Speedup* is the time of the reference over the provider's.\n"
)


@dataclass(frozen=True)
class About:
    """What a report is about: `name` is that of the script and its files, `method` what its rows mean."""

    name: str
    title: str
    method: str


def tables(rows: Iterable[OpRow]) -> str:
    """A table per op, a line per shape and provider that was timed or ran wrong (Markdown)."""
    by_op: dict[str, list[dict[str, OpRow]]] = {}
    for cell, by_provider in by_cell(rows).items():
        by_op.setdefault(cell.op, []).append(by_provider)
    return "\n".join(f"## {op}\n\n{_table(cells)}" for op, cells in by_op.items())


def _table(cells: Sequence[dict[str, OpRow]]) -> str:
    shown = [
        (row, by_provider.get(row.reference))
        for by_provider in cells
        for row in by_provider.values()
        if row.p50_us is not None or row.error is not None
    ]
    has_floor = any(row.floor_us is not None for row, _ in shown)
    has_config = any(row.config for row, _ in shown)
    header = ["Shape", "Ref Time (ms)", "Custom Time (ms)", "Speedup", "Accuracy", "GB/s", "% of copy"]
    header += ["% of floor"] * has_floor + ["Error", "Ref"] + ["Config"] * has_config
    lines = []
    for row, reference in shown:
        line = [
            f"{_label(row.provider)} {row.shape}",
            _ms(reference.p50_us if reference else None),
            _ms(row.p50_us),
            figure_text(row.speedup, ".2f"),
            str(not row.reason.startswith("wrong")),
            figure_text(row.gb_per_s, ".0f"),
            figure_text(row.pct_of_copy, ".1f"),
        ]
        line += [figure_text(row.pct_of_floor, ".1f")] * has_floor
        line += [figure_text(row.error, ".1e"), _label(row.reference) if row.reference else "–"]
        lines.append(line + [row.config.replace("|", "/")] * has_config)
    return markdown_table(header, lines)


def markdown(about: About, rows: Sequence[OpRow]) -> str:
    """The whole report, from the rows of one or several runs on one kind of device."""
    rows = [row for by_provider in by_cell(rows).values() for row in by_provider.values()]
    versions = ", ".join(
        f"{name} {joined(getattr(row, name) for row in rows)}" for name in ("torch", "tilelang", "triton")
    )
    readings = [
        text
        for name, unit in (
            ("copy_gb_per_s", "GB/s of copy"),
            ("sm_clock_mhz", "MHz"),
            ("temperature_c", "°C"),
            ("power_w", "W"),
        )
        if (text := range_text([getattr(row, name) for row in rows], unit))
    ]
    facts = (
        f"Written by `benchmarks/benchmark_{about.name}.py` from the CSV beside it. Package "
        f"{joined(row.package for row in rows)}, {versions}, peers: {joined(row.peers for row in rows)}, "
        f"driver {joined(row.driver for row in rows)}, {joined(row.date for row in rows)}."
        + (f" Measured with {', '.join(readings)}." if readings else "")
    )
    heading = f"# {about.title} on {joined(row.device for row in rows)}\n"
    parts = [
        heading,
        f"{facts}\n\n{_METHOD}\n{about.method}\n",
        _summary(rows),
        tables(rows),
        _left_out(rows),
    ]
    return "\n".join(part for part in parts if part)


def _summary(rows: Sequence[OpRow]) -> str:
    """Per op and provider the geometric mean of the speedups and the worst of them."""
    speedups: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row.speedup is not None and row.provider != row.reference:
            speedups.setdefault((row.op, row.provider), []).append(row.speedup)
    if not speedups:
        return ""
    lines = [
        [op, _label(provider), str(len(values)), figure_text(geomean(values), ".2f"), f"{min(values):.2f}"]
        for (op, provider), values in speedups.items()
    ]
    header = ["op", "provider", "shapes", "speedup, geometric mean", "worst"]
    return "## Over all shapes\n\n" + markdown_table(header, lines)


def _left_out(rows: Sequence[OpRow]) -> str:
    reasons: dict[tuple[str, str, str], list[OpRow]] = {}
    for row in rows:
        if row.reason:
            reasons.setdefault((row.op, row.provider, row.reason), []).append(row)
    if not reasons:
        return ""
    lines = [
        [op, _label(provider), str(len(cells)), cells[0].shape, reason.replace("|", "/")]
        for (op, provider, reason), cells in reasons.items()
    ]
    return "## Not timed\n\n" + markdown_table(["op", "provider", "shapes", "first", "why"], lines)


def _label(provider: str) -> str:
    return LABELS.get(provider, provider)


def _ms(us: float | None) -> str:
    return figure_text(None if us is None else us / 1e3, ".4f")


def write_report(csv_path: Path, about: About, rows: Sequence[OpRow]) -> tuple[Path, ...]:
    """Write `.md` and, where matplotlib is installed, `.png` beside the CSV; returns what was written."""
    if not rows:
        raise ValueError(f"{csv_path} holds no rows: nothing to report; measure into it first")
    page = csv_path.with_suffix(".md")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(markdown(about, rows), encoding="utf-8")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        logger.warning("no plot is made (%s): pip install 'tilelang-gemm-wrapper[bench]'", error)
        return (page,)
    picture = csv_path.with_suffix(".png")
    _write_plot(picture, about.title, rows)
    return page, picture


def _write_plot(path: Path, title: str, rows: Sequence[OpRow]) -> None:
    """GB/s by shape, a panel per op, with the copy bandwidth of the run as a dashed line."""
    from matplotlib.figure import Figure

    ops = list(dict.fromkeys(row.op for row in rows))
    figure = Figure(figsize=(11, 3.4 * len(ops) + 0.8), layout="constrained")
    panels = figure.subplots(len(ops), 1, squeeze=False).ravel()
    for panel, op in zip(panels, ops, strict=True):
        cells = {cell: by for cell, by in by_cell(rows).items() if cell.op == op}
        shapes = [cell.shape for cell in cells]
        for name in dict.fromkeys(name for by_provider in cells.values() for name in by_provider):
            points = [
                (i, row.gb_per_s)
                for i, by_provider in enumerate(cells.values())
                if (row := by_provider.get(name)) and row.gb_per_s
            ]
            panel.plot(
                [i for i, _ in points],
                [value for _, value in points],
                marker="o",
                markersize=4,
                linewidth=1,
                color=_COLOURS.get(name, "0.5"),
                linestyle=":" if name in ("auto", "flashinfer") else "-",
                label=_label(name),
            )
        copies = [next(iter(by_provider.values())).copy_gb_per_s or 0 for by_provider in cells.values()]
        panel.plot(range(len(copies)), copies, color="0.45", linestyle="--", linewidth=1, label="copy")
        panel.set_title(op, fontsize=10)
        panel.set_xticks(range(len(shapes)), shapes, rotation=45, ha="right", fontsize=7)
        panel.set_ylim(bottom=0)
        panel.set_ylabel("GB/s, cold", fontsize=8)
        panel.tick_params(axis="y", labelsize=8)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7, ncols=2)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
