"""What a benchmark writes down: one row a cell and provider, and its CSV file."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from .config_entry import show
from .environment import Environment
from .whole_file import append, replacing, sync

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Cell = tuple[int, int, int]  # M, N, K


@dataclass(frozen=True, slots=True)
class Row(Environment):
    """One provider on one (M, N, K). Where it could not run or ran wrong, `reason` says so; times are None.

    Times are microseconds a launch, cold weights. `floor_us` is the fastest plain read of the weights,
    `ideal_us` the larger of it and the arithmetic at the best rate seen on the chip; `pct_of_floor` is
    floor over p50. `x_deep_gemm` and `x_triton` say how many times as fast as those this provider is.
    """

    M: int
    N: int
    K: int
    provider: str
    kernel: str = ""
    config: str = ""
    p20_us: float | None = None
    p50_us: float | None = None
    p80_us: float | None = None
    replays: int | None = None
    launches: int | None = None
    tflops: float | None = None
    gb_per_s: float | None = None
    floor_us: float | None = None
    ideal_us: float | None = None
    pct_of_floor: float | None = None
    error: float | None = None
    x_deep_gemm: float | None = None
    x_triton: float | None = None
    sm_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    reason: str = ""

    @property
    def cell(self) -> Cell:
        return self.M, self.N, self.K


@dataclass(frozen=True, slots=True)
class HostRow(Environment):
    """Host microseconds that one eager call takes, the device kept waiting for nothing."""

    M: int
    N: int
    K: int
    provider: str
    p20_us: float | None = None
    p50_us: float | None = None
    p80_us: float | None = None
    batches: int | None = None
    reason: str = ""


AnyRow = TypeVar("AnyRow", bound="DataclassInstance")


def gemm_flops(M: int, N: int, K: int) -> float:
    return 2.0 * M * N * K


def gemm_bytes(M: int, N: int, K: int) -> float:
    """Bytes that must move at least: A, B and both scales read once, C written once."""
    scales = -(-K // 128) * (M + -(-N // 128)) * 4
    return float(M * K + N * K + scales + 2 * M * N)


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """The rows of one cell with `x_deep_gemm` and `x_triton` filled in."""
    p50 = {row.provider: row.p50_us for row in rows}

    def times_as_fast(peer: str, row: Row) -> float | None:
        reference = p50.get(peer)
        return reference / row.p50_us if reference and row.p50_us else None

    return [
        replace(row, x_deep_gemm=times_as_fast("deep_gemm", row), x_triton=times_as_fast("triton", row))
        for row in rows
    ]


def by_cell(rows: Iterable[Row]) -> dict[Cell, dict[str, Row]]:
    """(M, N, K) -> provider -> row. Of two rows for one cell and provider the later one counts."""
    cells: dict[Cell, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        cells[row.cell][row.provider] = row
    return dict(cells)


def write_rows(path: Path, rows: Sequence[AnyRow], kind: type[AnyRow]) -> None:
    """Write a CSV whole, in the place of what is there: a column for each field of the dataclass `kind`."""
    with replacing(path) as file:
        csv.writer(file).writerow(field.name for field in fields(kind))
        _write(file, rows)


def append_rows(path: Path, rows: Sequence[DataclassInstance]) -> None:
    """Add rows to a file of `write_rows`, on disk when this returns: a run that is killed keeps its cells.

    Raises OSError where they do not fit; the file is then as it was.
    """
    text = io.StringIO()
    _write(text, rows)
    with path.open("ab", buffering=0) as file:
        append(file, text.getvalue().encode())
        sync(file)


class CellFile:
    """The rows of a benchmark and their file, which changes only once a cell has been measured.

    `kept` are the rows that the file has, each kept until its provider is measured again on its cell. Without
    any, what the file held is gone as soon as the first cell has been measured.
    """

    def __init__(self, path: Path, kept: Sequence[Row] = ()) -> None:
        self.path = path
        self.rows = list(kept)
        self._has_all_rows = False  # nor may the last line of an edited file have an end

    def add(self, measured: Sequence[Row]) -> None:
        """Put one cell's rows into the file, in the place of its rows of these providers on that cell.

        Raises OSError where it cannot be written; `rows` has them all the same, and so has the file as soon
        as a later `add` can write it.
        """
        renewed = {(row.cell, row.provider) for row in measured}
        others = [row for row in self.rows if (row.cell, row.provider) not in renewed]
        appends = self._has_all_rows and len(others) == len(self.rows)
        self.rows = [*others, *measured]
        self._has_all_rows = False
        if appends:
            append_rows(self.path, measured)
        else:
            write_rows(self.path, self.rows, Row)
        self._has_all_rows = True


def _write(file: TextIO, rows: Sequence[DataclassInstance]) -> None:
    csv.writer(file).writerows([_text(value) for value in astuple(row)] for row in rows)


def read_rows(path: Path, kind: type[AnyRow]) -> list[AnyRow]:
    """Read what `write_rows` wrote. ValueError, with file and line, for a file that is not of that kind."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return _parsed(file, path, kind)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV file ({error}); give one that this benchmark wrote") from error


def _parsed(file: TextIO, path: Path, kind: type[AnyRow]) -> list[AnyRow]:
    types = {field.name: str(field.type) for field in fields(kind)}
    reader = csv.DictReader(file)
    missing = [name for name in types if name not in (reader.fieldnames or ())]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"{path} lacks the columns {', '.join(missing[:3])}{more}: it is no result file of "
            f"{kind.__name__}s; give one that this benchmark wrote"
        )
    rows = []
    for values in reader:
        try:
            rows.append(kind(**{name: _value(name, values[name], types[name]) for name in types}))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {reader.line_num}: {error}; correct or delete that line"
            ) from error
    return rows


def _text(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def _value(name: str, text: str | None, kind: str) -> Any:
    """The value of a field as a measurement may have given it; ValueError for any other."""
    if text is None:
        raise ValueError("it is cut short")
    if kind == "str":
        return text
    if not text and "None" in kind:
        return None
    if kind.startswith("int"):
        if re.fullmatch(r"[0-9]{1,18}", text) is None:
            raise ValueError(f"{name} is {show(text)}, expected a whole number of at least 0")
        return int(text)
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name} is {show(text)}, expected a number") from None
    if name.endswith("_us") and not 0 < value < math.inf:
        raise ValueError(f"{name} is {show(text)}, expected a time above 0, and finite")
    if name != "error" and not math.isfinite(value):  # the error of NaN is none
        raise ValueError(f"{name} is {show(text)}, expected a finite number")
    return value
