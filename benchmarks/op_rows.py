"""What a benchmark of a memory-bound op writes down, and the bandwidth that no row of it may exceed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from tilelang_gemm_wrapper.core.environment import Environment

# The ceilings are medians of their own replays and vary by about as much from run to run; and of a rotation
# of 4 x L2, L2 still finds up to 2 % of its lines. What lies further above was not read or not written.
CEILING_NOISE = 0.02
BUG = "measurement bug"


class Cell(NamedTuple):
    """One op at one shape. `shape` is as printed, `dtype` that of x, with that of the weights if it differs.

    N is 0 for ops without one.
    """

    op: str
    shape: str
    M: int
    N: int
    K: int
    dtype: str


@dataclass(frozen=True, slots=True)
class OpRow(Environment):
    """One provider of one op at one shape. Where it could not run or ran wrong, `reason` says so.

    Times are microseconds a launch, cold; None where there is none. `bytes` must move at least: every input
    read once, every output written once. `copy_gb_per_s` is the best copy of this run, read plus written,
    and `ceiling_gb_per_s` what this op may reach (see `ceiling_of`). `floor_us` is the fastest plain read of
    the weights, GEMV only, `pct_of_floor` floor over p50. `error` is ||out - exact|| / ||exact||. `reference`
    is the provider whose time over this one's is `speedup`.
    """

    peers: str
    op: str
    shape: str
    M: int
    N: int
    K: int
    dtype: str
    provider: str
    config: str = ""
    p20_us: float | None = None
    p50_us: float | None = None
    p80_us: float | None = None
    replays: int | None = None
    launches: int | None = None
    bytes: int | None = None
    gb_per_s: float | None = None
    copy_gb_per_s: float | None = None
    pct_of_copy: float | None = None
    ceiling_gb_per_s: float | None = None
    floor_us: float | None = None
    pct_of_floor: float | None = None
    error: float | None = None
    reference: str = ""
    speedup: float | None = None
    sm_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    reason: str = ""

    @property
    def cell(self) -> Cell:
        return Cell(self.op, self.shape, self.M, self.N, self.K, self.dtype)


def ceiling_of(measured_gb_per_s: float, dram_bytes_per_s: float) -> float:
    """GB/s that a row may reach: what was measured and its noise, and never above the data sheet.

    `dram_bytes_per_s` is 0 where the data sheet is unknown; it then limits nothing.
    """
    noisy = measured_gb_per_s * (1 + CEILING_NOISE)
    return min(noisy, dram_bytes_per_s / 1e9) if dram_bytes_per_s else noisy


def with_bandwidth(row: OpRow) -> OpRow:
    """A timed row with its GB/s and shares; without its time, and saying why, if it exceeds the ceiling."""
    if row.p50_us is None or row.bytes is None:
        return row
    gb_per_s = row.bytes / row.p50_us / 1e3 if row.p50_us > 0 else float("inf")
    if row.ceiling_gb_per_s is not None and gb_per_s > row.ceiling_gb_per_s:
        return replace(
            row,
            p20_us=None,
            p50_us=None,
            p80_us=None,
            replays=None,
            launches=None,
            reason=f"{BUG}: {row.p50_us:.2f} us for {row.bytes / 1e6:.2f} MB is {gb_per_s:.0f} GB/s, above "
            f"the {row.ceiling_gb_per_s:.0f} of memory in this run: something was not cold, not read or not "
            f"written; look at how the provider's buffers rotate",
        )
    return replace(
        row,
        gb_per_s=gb_per_s,
        pct_of_copy=100 * gb_per_s / row.copy_gb_per_s if row.copy_gb_per_s else None,
        pct_of_floor=100 * row.floor_us / row.p50_us if row.floor_us else None,
    )


def with_speedups(rows: Sequence[OpRow], references: Sequence[str]) -> list[OpRow]:
    """The rows of one cell, each beside the first of the references that was timed."""
    times = {row.provider: row.p50_us for row in rows if row.p50_us}
    name = next((name for name in references if name in times), None)
    if name is None:
        return list(rows)
    return [
        replace(row, reference=name, speedup=times[name] / row.p50_us if row.p50_us else None) for row in rows
    ]


def bugs(rows: Iterable[OpRow]) -> list[str]:
    """A line for each row that `with_bandwidth` has refused: a run with one has failed."""
    return [
        f"{row.op} {row.shape} {row.dtype}, {row.provider}: {row.reason}"
        for row in rows
        if row.reason.startswith(BUG)
    ]


def by_cell(rows: Iterable[OpRow]) -> dict[Cell, dict[str, OpRow]]:
    """Cell -> provider -> row, in the order of the rows. Of two for one cell and provider the later one."""
    cells: dict[Cell, dict[str, OpRow]] = {}
    for row in rows:
        cells.setdefault(row.cell, {})[row.provider] = row
    return cells
