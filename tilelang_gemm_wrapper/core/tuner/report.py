"""What a run leaves to read: a table a shape, the CSV of every timing and failure, and a plot."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from tilelang_gemm_wrapper.config_reports import describe
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.config_entry import Entry
from tilelang_gemm_wrapper.core.config_file import ConfigFileError, parse_config_file
from tilelang_gemm_wrapper.core.config_loader import choose
from tilelang_gemm_wrapper.core.results import gemm_flops
from tilelang_gemm_wrapper.core.tuner.driver import ShapeResult
from tilelang_gemm_wrapper.core.tuner.entries import Times, choose_entries
from tilelang_gemm_wrapper.core.tuner.records import Failure, ShapeConditions, Timing
from tilelang_gemm_wrapper.core.tuner.search import DEEP_GEMM, TRITON
from tilelang_gemm_wrapper.core.tuner.shape_times import ShapeTimes
from tilelang_gemm_wrapper.core.whole_file import replacing

CONFIG_FIELDS = ("kernel_type", "block_M", "block_N", "num_stages", "threads", "split_k")  # in the CSV
_COLUMNS = (
    "device", "N", "K", "M", *CONFIG_FIELDS,
    "stage", "p20_us", "p50_us", "p80_us", "replays", "error", "failure", "message",
)  # fmt: skip

HEADER = (
    "M", "kernel", "µs", "TFLOPS", "% of floor", "× DeepGEMM", "× Triton", "× before"
)  # fmt: skip


def rows_of(result: ShapeResult) -> list[tuple[str, ...]]:
    """A row for each M that was decided, as `HEADER` names the columns; the kernel is what the file gives."""
    times = ShapeTimes(result.records).decided()
    floors = [r.floor_us for r in result.records if isinstance(r, ShapeConditions) and r.floor_us]
    before = dict(result.previous)
    rows: list[tuple[str, ...]] = []
    for M, config in _dispatched(result, times).items():
        us = times[M].get(config, math.nan)  # someone may have edited the file since

        def ratio(peer: KernelConfig | None, M: int = M, us: float = us) -> str:
            peer_us = times[M].get(peer) if peer else None
            return f"{peer_us / us:.2f}" if peer_us else "-"

        rows.append(
            (
                str(M),
                describe(config),
                f"{us:.2f}",
                f"{gemm_flops(M, result.N, result.K) / us / 1e6:.1f}",
                f"{100 * floors[-1] / us:.0f}" if floors else "-",
                ratio(DEEP_GEMM),
                ratio(TRITON),
                ratio(before.get(M)),
            )
        )
    return rows


def _dispatched(result: ShapeResult, times: Times) -> dict[int, KernelConfig]:
    """What each M of `times` gets: by the file, which also has entries that this run did not measure."""
    entries: Sequence[Entry] = ()
    if result.path is not None:
        with suppress(ConfigFileError):  # it is gone: the run still has its report
            entries = parse_config_file(result.path, result.N, result.K, result.device).entries
    entries = entries or choose_entries(times, result.N, result.K)
    return {M: entry.config for M in sorted(times) if (entry := choose(entries, M))}


def failures_of(result: ShapeResult) -> list[str]:
    """A sentence for each candidate that failed."""
    return [f"{describe(r.config)}: {r.kind}: {r.message}" for r in result.records if isinstance(r, Failure)]


def write_csv(path: Path, results: Iterable[ShapeResult]) -> None:
    """Every timing and failure of the run."""
    with replacing(path) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(_COLUMNS)
        for result in results:
            for record in result.records:
                if not isinstance(record, Timing | Failure):
                    continue
                M = "" if record.M is None else record.M
                config = (getattr(record.config, name) for name in CONFIG_FIELDS)
                found: Sequence[object]
                if isinstance(record, Timing):
                    spans = (f"{us:.3f}" for us in (record.p20_us, record.p50_us, record.p80_us))
                    found = (record.stage, *spans, record.replays, f"{record.error:.3g}", "", "")
                else:
                    found = ("", "", "", "", "", "", record.kind, record.message)
                table.writerow((result.device.name, result.N, result.K, M, *config, *found))


def markdown(results: Sequence[ShapeResult], head: Sequence[str]) -> str:
    """The report: what was run, a table a shape, what failed."""
    lines = ["# Tuning report", "", *(f"- {line}" for line in head), ""]
    for result in results:
        lines += [f"## N={result.N}, K={result.K} on {result.device.name}", ""]
        lines += _conditions(result)
        rows = rows_of(result)
        if rows:
            lines += [_line(HEADER), _line(["---"] * len(HEADER)), *map(_line, rows), ""]
        failures = failures_of(result)
        if failures:
            kinds = Counter(r.kind for r in result.records if isinstance(r, Failure))
            lines.append("Left out: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()) + ".")
            lines += [f"- {failure}" for failure in failures[:20]]
            lines.append("")
    return "\n".join(lines)


def _conditions(result: ShapeResult) -> list[str]:
    found = [record for record in result.records if isinstance(record, ShapeConditions)]
    if not found:
        return []
    last = found[-1]
    parts = [
        f"{label} {value:.4g} {unit}"
        for label, value, unit in (
            ("floor", last.floor_us, "µs"),
            ("SM clock", last.sm_clock_mhz, "MHz"),
            ("temperature", last.temperature_c, "°C"),
            ("power", last.power_w, "W"),
        )
        if value is not None
    ]
    warnings = dict.fromkeys(warning for record in found for warning in record.warnings)
    return [", ".join([*parts, *warnings]) + ".", ""] if parts or warnings else []


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_plot(path: Path, results: Sequence[ShapeResult]) -> None:
    """µs over M, a panel a shape: the file's choice, DeepGEMM, Triton, what was before. Needs matplotlib."""
    from matplotlib.figure import Figure

    shown = [result for result in results if ShapeTimes(result.records).decided()]
    if not shown:
        return
    columns = min(5, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(4.0 * columns, 3.1 * lines + 0.6), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, result in zip(panels, shown, strict=False):
        times = ShapeTimes(result.records).decided()
        for label, color, config_at in (
            ("tuned", "#d1495b", _dispatched(result, times)),
            ("DeepGEMM", "#30638e", dict.fromkeys(times, DEEP_GEMM)),
            ("Triton", "#8d6b94", dict.fromkeys(times, TRITON)),
            ("before", "0.6", dict(result.previous)),
        ):
            points = [(M, us) for M in sorted(times) if M in config_at and (us := times[M].get(config_at[M]))]
            if points:
                panel.plot(*zip(*points, strict=True), marker=".", label=label, color=color)
        panel.set(xscale="log", yscale="log", title=f"N={result.N}, K={result.K}", xlabel="M (tokens)")
        panel.grid(alpha=0.3)
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    panels[0].set_ylabel("µs a launch, cold weights")
    handles = {line.get_label(): line for panel in panels for line in panel.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=100)
