"""Which backend of an op was measured to be the fastest, by device and shape.

The tables `measured_tables/<device>.json` come with the package, written by
`benchmarks/choose_op_backends.py` from the benchmarks' results. A chip that has none takes that of another
with as many SMs of the same architecture. What `autotune.tune` measured on this machine goes before them.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..core.compile_cache import alone
from ..core.device import KNOWN_DEVICES, Device, canonical_name
from ..core.kernel_cache import OWN_FOLDERS, cache_directory, known_directory
from ..core.whole_file import replacing

logger = logging.getLogger(__name__)

TABLES = Path(__file__).with_name("measured_tables")
# Timed are bfloat16 and, for e4m3 weights, bfloat16 beside them: others move as many bytes, or nearly.
_AS_TIMED = {
    "float16": "bfloat16",
    "float32": "bfloat16",
    "float16 x float8_e4m3fn": "bfloat16 x float8_e4m3fn",
    "float8_e4m3fn": "bfloat16 x float8_e4m3fn",
}
ON_FORGET: list[Callable[[], None]] = []  # caches of what was looked up here
BACKENDS = ("tilelang", "triton", "torch")
DEFAULT = "triton"  # runs wherever an NVIDIA GPU is, and compiles fastest


@dataclass(frozen=True, slots=True)
class Entry:
    """The fastest backend for an op at one shape; for a tuned GEMV its TileLang configuration as well.

    N is 0 for ops without one. `versions` are those of what compiled and ran it: "" in shipped tables.
    """

    op: str
    dtype: str
    M: int
    N: int
    K: int
    backend: str
    config: dict[str, int] = field(default_factory=dict, hash=False)
    versions: str = ""


def best(op: str, dtype: str, M: int, N: int, K: int, device: Device) -> str:
    """That of the nearest entry: this machine's own of the same class, else the device's table."""
    own = _of_class(_own(device), op, dtype, M, N, K)
    if own is not None:
        return own.backend
    entry = _nearest(_shipped_like(device, op, dtype), M, N, K)
    return entry.backend if entry else DEFAULT


def config(op: str, dtype: str, M: int, N: int, K: int, device: Device) -> dict[str, int] | None:
    """The TileLang configuration tuned for this class of shapes on this machine, else on such a device."""
    entry = _of_class(_own(device), op, dtype, M, N, K)
    if entry is None:
        alike = [e for e in _shipped_like(device, op, dtype) if _rows_class(e.M) == _rows_class(M)]
        entry = _nearest([e for e in alike if e.config], M, N, K)
    return entry.config if entry and entry.config else None


def _shipped_like(device: Device, op: str, dtype: str) -> list[Entry]:
    """The table's entries for an op with such operands, else with bfloat16 in the place of theirs."""
    of_op = [e for e in _shipped(device) if e.op == op]
    same = [e for e in of_op if e.dtype == dtype]
    return same or [e for e in of_op if e.dtype == _AS_TIMED.get(dtype)]


def shape_class(M: int, N: int, K: int) -> tuple[int, int, int]:
    """Shapes that share a tuning: M up to the next power of two, N and K to the nearest half power of two."""
    return _rows_class(M), round(2 * math.log2(N or 1)), round(2 * math.log2(K))


def _rows_class(M: int) -> int:
    return max(M - 1, 0).bit_length()


def _of_class(entries: Iterable[Entry], op: str, dtype: str, M: int, N: int, K: int) -> Entry | None:
    wanted = op, dtype, shape_class(M, N, K)
    same = [e for e in entries if (e.op, e.dtype, shape_class(e.M, e.N, e.K)) == wanted]
    return same[-1] if same else None


def _nearest(entries: list[Entry], M: int, N: int, K: int) -> Entry | None:
    """M counts most: what is right for one row is seldom right for a thousand."""

    def distance(entry: Entry) -> float:
        n = abs(math.log2((N or 1) / (entry.N or 1)))
        return 2 * abs(math.log2(max(M, 1) / entry.M)) + n + abs(math.log2(K / entry.K))

    return min(entries, key=distance, default=None)


def add(device: Device, entry: Entry) -> Path:
    """Keep an entry of this machine, in the place of one for the same class; returns the file."""
    path = cache_directory() / _own_file(device)
    key = entry.op, entry.dtype, shape_class(entry.M, entry.N, entry.K)
    with alone("ops"):  # of two that read, and then write, one would lose its entry
        try:
            before = _read(path)
        except ValueError as error:
            logger.warning("it is written anew: %s", error)
            before = ()
        others = [e for e in before if (e.op, e.dtype, shape_class(e.M, e.N, e.K)) != key]
        write(path, [*others, entry])
    forget()
    return path


def write(path: Path, entries: Iterable[Entry]) -> None:
    with replacing(path) as file:
        lines = [json.dumps({k: v for k, v in asdict(e).items() if v}) for e in entries]
        file.write("[\n" + ",\n".join(lines) + "\n]\n")


def versions() -> str:
    """What a tuned entry depends on: it counts while these are the same."""
    from importlib.metadata import version

    from .. import __version__

    return f"package {__version__} tilelang {version('tilelang')} torch {version('torch')}"


def forget() -> None:
    """Read the files again at the next look."""
    _shipped.cache_clear()
    _own.cache_clear()
    for clear in ON_FORGET:
        clear()


def _own_file(device: Device) -> Path:
    """Within the cache directory."""
    return Path(f"{OWN_FOLDERS}ops", f"{device.name}.json")


@lru_cache(maxsize=16)
def _own(device: Device) -> tuple[Entry, ...]:
    """What this machine has measured; nothing, with a warning, where that cannot be read."""
    directory = known_directory()
    try:
        entries = _read(directory / _own_file(device)) if directory else ()
    except (OSError, ValueError) as error:
        logger.warning("this machine's own measurements of the ops do not count: %s", error)
        return ()
    return tuple(e for e in entries if e.versions == versions()) if entries else ()


@lru_cache(maxsize=16)
def _shipped(device: Device) -> tuple[Entry, ...]:
    own = TABLES / f"{canonical_name(device.name)}.json"
    return _read(own if own.exists() else next(filter(_is_alike(device), sorted(TABLES.glob("*.json"))), own))


def _is_alike(device: Device) -> Callable[[Path], bool]:
    """Whether a table is of a chip with as many SMs of the same architecture."""

    def alike(table: Path) -> bool:
        other = KNOWN_DEVICES.get(table.stem)
        return other is not None and (other.arch, other.sm_count) == (device.arch, device.sm_count)

    return alike


def _read(path: Path) -> tuple[Entry, ...]:
    """The entries of a file, none if it is not there. ValueError, naming it, for one that is not of them."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return ()
    try:
        return tuple(map(_entry, json.loads(content)))
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is no table of measured ops ({error}); remove it or write it anew"
        ) from error


def _entry(item: dict[str, Any]) -> Entry:
    """Raises TypeError, ValueError or AttributeError for what is none, or could not serve a call."""
    names = {f.name for f in fields(Entry)}
    entry = Entry(**{"N": 0, **{k: v for k, v in item.items() if k in names}})
    sizes = {"M": (entry.M, 1), "N": (entry.N, 0), "K": (entry.K, 1)}
    for name, (size, least) in sizes.items():
        if type(size) is not int or size < least:
            raise ValueError(f"{name} is {size!r}, expected a whole number of at least {least}")
    if entry.backend not in BACKENDS:
        raise ValueError(f"backend is {entry.backend!r}, expected one of {', '.join(BACKENDS)}")
    if not all(type(value) is int for value in entry.config.values()):
        raise ValueError(f"config is {entry.config!r}, expected whole numbers")
    return entry
