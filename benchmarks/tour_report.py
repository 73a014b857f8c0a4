"""Rows of the tour's benchmark, and their report: tables and a picture."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from tilelang_gemm_wrapper.core.environment import Environment
from tilelang_gemm_wrapper.core.report import figure_text, joined, markdown_table, range_text
from tilelang_gemm_wrapper.core.results import gemm_flops
from tilelang_gemm_wrapper.core.timing import L2_MULTIPLE

logger = logging.getLogger(__name__)

FP8_N, FP8_K = 4096, 4096


class Provider(NamedTuple):
    part: str
    step: int  # of the tour; 0 for a peer
    label: str
    colour: str


PROVIDERS = {
    "copy": Provider("copy", 1, "step 1", "#d1495b"),
    "torch_copy": Provider("copy", 0, "torch copy_", "#5c8001"),
    "naive": Provider("fp16", 2, "step 2, naive", "#edae49"),
    "grouped": Provider("fp16", 3, "step 3, grouped", "#e07a3f"),
    "autotuned": Provider("fp16", 4, "step 4, autotuned", "#d1495b"),
    "torch_mm": Provider("fp16", 0, "torch.mm", "#5c8001"),
    "triton_fp8": Provider("fp8", 5, "step 5, Triton", "#e07a3f"),
    "tilelang_fp8": Provider("fp8", 6, "step 6, TileLang", "#edae49"),
    "package_triton": Provider("fp8", 0, "the package's Triton kernel", "#8d6b94"),
    "package": Provider("fp8", 0, "gemm_nt_f8f8bf16", "#d1495b"),
}


class Part(NamedTuple):
    title: str
    field: str  # of TourRow: what the table and the plot show
    unit: str
    form: str
    peak_share: float  # of the FP8 peak that its arithmetic can reach at most


PARTS = {
    "copy": Part("Copy", "gb_per_s", "GB/s", ".0f", 1.0),
    "fp16": Part("FP16 matmul, M x N x K", "tflops", "TFLOPS", ".1f", 0.5),
    "fp8": Part(f"FP8 block-scaled matmul, N = {FP8_N}, K = {FP8_K}, by M", "p50_us", "µs", ".2f", 1.0),
}
_METHOD = (
    "Method: every provider on the same tensors in one process, its output NaN before and checked against "
    "the example's reference before it is timed. One CUDA graph per provider walks over copies that together "
    f"exceed L2 {L2_MULTIPLE} times (of source and target for the copy, of B for the products), so a "
    "launch finds them in DRAM; replays of the providers alternate; a time is the median replay over its "
    "launches. *GB/s* of a copy is the bytes read plus the bytes written over the time, *TFLOPS* 2·M·N·K "
    "over it. A time below what the data sheet's memory or tensor cores allow fails the run.\n"
)


@dataclass(frozen=True, slots=True)
class TourRow(Environment):
    """One provider at one shape. Where it cannot run on this device, `reason` says so and figures are None.

    Times are microseconds a launch. `bytes` must move at least, each input read once and each output written
    once; M, N and K are 0 for the copy. `error` is the example's: for a copy 0, else `core.workload.error`.
    """

    part: str
    shape: str
    M: int
    N: int
    K: int
    provider: str
    config: str = ""
    p20_us: float | None = None
    p50_us: float | None = None
    p80_us: float | None = None
    replays: int | None = None
    launches: int | None = None
    bytes: int | None = None
    gb_per_s: float | None = None
    tflops: float | None = None
    error: float | None = None
    sm_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    reason: str = ""


def with_rates(row: TourRow) -> TourRow:
    """A timed row with its GB/s and, for a product, its TFLOPS."""
    if not row.p50_us or row.bytes is None:
        return row
    flops = gemm_flops(row.M, row.N, row.K)
    return replace(
        row,
        gb_per_s=row.bytes / row.p50_us / 1e3,
        tflops=flops / row.p50_us / 1e6 if flops else None,
    )


def table(part: str, rows: Sequence[TourRow]) -> str:
    """A line a shape, a column a provider, in the unit of the part (Markdown)."""
    by_shape = _by_shape(part, rows)
    names = [name for name in PROVIDERS if any(name in by for by in by_shape.values())]
    has_config = any(row.config for by in by_shape.values() for row in by.values())
    about = PARTS[part]
    header = [
        "M" if part == "fp8" else "shape",
        *(f"{PROVIDERS[name].label}, {about.unit}" for name in names),
    ]
    lines = [
        [
            shape,
            *(figure_text(_figure(by.get(name), about.field), about.form) for name in names),
            *(["; ".join(row.config for row in by.values() if row.config)] if has_config else []),
        ]
        for shape, by in by_shape.items()
    ]
    return markdown_table([*header, *(["chosen"] if has_config else [])], lines)


def _by_shape(part: str, rows: Sequence[TourRow]) -> dict[str, dict[str, TourRow]]:
    by_shape: dict[str, dict[str, TourRow]] = {}
    for row in rows:
        if row.part == part:
            by_shape.setdefault(row.shape, {})[row.provider] = row
    return by_shape


def _figure(row: TourRow | None, field: str) -> float | None:
    return None if row is None else getattr(row, field)


def tables(rows: Sequence[TourRow]) -> str:
    present = [part for part in PARTS if any(row.part == part for row in rows)]
    return "\n".join(f"## {PARTS[part].title}\n\n{table(part, rows)}" for part in present)


def markdown(rows: Sequence[TourRow]) -> str:
    """The whole report."""
    versions = ", ".join(
        f"{name} {joined(getattr(row, name) for row in rows)}" for name in ("torch", "tilelang", "triton")
    )
    readings = [
        text
        for name, unit in (("sm_clock_mhz", "MHz"), ("temperature_c", "°C"), ("power_w", "W"))
        if (text := range_text([getattr(row, name) for row in rows], unit))
    ]
    facts = (
        f"Written by `benchmarks/benchmark_tour.py` from the CSV beside it. Package "
        f"{joined(row.package for row in rows)}, {versions}, driver {joined(row.driver for row in rows)}, "
        f"{joined(row.date for row in rows)}."
        + (f" Before measuring: {', '.join(readings)}." if readings else "")
    )
    left_out = sorted({f"{PROVIDERS[row.provider].label}: {row.reason}" for row in rows if row.reason})
    parts = [
        f"# The kernels of the tour on {joined(row.device for row in rows)}\n",
        f"{facts}\n\n{_METHOD}",
        tables(rows),
        "## Not timed\n\n" + "".join(f"- {line}\n" for line in left_out) if left_out else "",
    ]
    return "\n".join(part for part in parts if part)


def write_report(csv_path: Path, rows: Sequence[TourRow]) -> tuple[Path, ...]:
    """Write `.md` and, where matplotlib is installed, `.png` beside the CSV; returns what was written."""
    if not rows:
        raise ValueError(f"{csv_path} holds no rows: nothing to report; measure into it first")
    page = csv_path.with_suffix(".md")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(markdown(rows), encoding="utf-8")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        logger.warning("no plot is made (%s): pip install 'tilelang-gemm-wrapper[bench]'", error)
        return (page,)
    picture = csv_path.with_suffix(".png")
    write_plot(picture, rows)
    return page, picture


def write_plot(path: Path, rows: Sequence[TourRow]) -> None:
    """A panel a part, a line a provider, over the shapes in their order."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    present = [part for part in PARTS if any(row.part == part for row in rows)]
    figure = Figure(figsize=(5.6 * len(present), 4.8), layout="constrained")
    panels = figure.subplots(1, len(present), squeeze=False).ravel()
    for panel, part in zip(panels, present, strict=True):
        by_shape, about = _by_shape(part, rows), PARTS[part]
        for name, provider in PROVIDERS.items():
            points = [
                (i, value)
                for i, by in enumerate(by_shape.values())
                if (value := _figure(by.get(name), about.field)) is not None
            ]
            if points:
                panel.plot(
                    *zip(*points, strict=True), marker="o", markersize=4, color=provider.colour,
                    label=provider.label, linestyle="-" if provider.step else "--",
                )  # fmt: skip
        panel.set_title(about.title, fontsize=10)
        panel.set_xticks(range(len(by_shape)), list(by_shape), rotation=45, ha="right", fontsize=7)
        panel.set_ylabel(f"{about.unit}, cold", fontsize=8)
        if about.field == "p50_us":
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter(ScalarFormatter())
        else:
            panel.set_ylim(bottom=0)
        panel.tick_params(axis="y", labelsize=8)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    figure.suptitle(f"The kernels of the tour on {joined(row.device for row in rows)}")
    figure.savefig(path, dpi=110)
