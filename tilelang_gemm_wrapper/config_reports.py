"""What `tilelang-gemm configs` and `doctor` say about tuned files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tilelang_gemm_wrapper import configurer
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.config_entry import Entry
from tilelang_gemm_wrapper.core.config_file import (
    ConfigFile,
    ConfigFileError,
    config_file_name,
    parse_config_file,
)
from tilelang_gemm_wrapper.core.config_loader import choose, find_config, why_other_kernels
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES, Device, canonical_name

_ABSENT = "does not exist"
_NAMED_FOR = re.compile(r"N=([0-9]+),K=([0-9]+),device_name=([^,]+)(,.*)?\.json")


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file whose name says which weight shape and device it is for."""

    path: Path
    N: int
    K: int
    device_name: str

    @property
    def device(self) -> Device:
        """The device in its name; where that is unknown this one, and its refusal then says so."""
        device = KNOWN_DEVICES.get(canonical_name(self.device_name))
        if device is None:
            from tilelang_gemm_wrapper.doctor import this_device

            device = this_device()
        return device

    def read(self) -> ConfigFile:
        """Its usable entries on the device in its name. Raises ConfigFileError where it is of no use."""
        return parse_config_file(self.path, self.N, self.K, self.device)


def files_in(directory: str | os.PathLike[str]) -> list[FoundFile]:
    """The tuned files of a directory by device, N and K. Raises OSError if `why_unreadable` has a reason."""
    found = []
    for name in os.listdir(directory):
        match = _NAMED_FOR.fullmatch(name)
        if match and not name.endswith(".meta.json"):
            found.append(FoundFile(Path(directory, name), int(match[1]), int(match[2]), match[3]))
    return sorted(found, key=lambda file: (file.device_name, file.N, file.K))


def why_unreadable(directory: str | os.PathLike[str]) -> str | None:
    """Why it cannot be said which files a directory has, as a clause; None where it can."""
    try:
        os.listdir(directory)
    except FileNotFoundError:
        return _ABSENT
    except NotADirectoryError:
        return "is no directory"
    except (OSError, ValueError) as failure:  # ValueError: a NUL in the path
        return f"cannot be read ({getattr(failure, 'strerror', None) or failure})"
    return None


def describe(config: KernelConfig) -> str:
    """A kernel in a few characters: `swapAB 64x16 s6 t128`, split kinds with `/4` for split_k."""
    if not config.is_tilelang:
        return config.kernel_type
    split = f"/{config.split_k}" if config.is_split_k else ""
    tile = f"{config.block_M}x{config.block_N}"
    return f"{config.kernel_type}{split} {tile} s{max(1, config.num_stages)} t{config.threads}"


def columns(rows: Iterable[Sequence[object]], indent: str = "  ") -> str:
    """Rows as aligned columns: numbers to the right, text to the left."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    numeric = [all(_is_number(row[i]) for row in cells[1:]) for i in range(len(cells[0]))]
    lines = (
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        for row in cells
    )
    return "\n".join(indent + line.rstrip() for line in lines)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace("e-", "", 1).isdigit() or text in ("", "-")


def listing(directories: Sequence[str] | None = None) -> str:
    """Every tuned file of each directory, with the range of M that it covers."""
    paragraphs = []
    for directory in _directories(directories):
        why_not = why_unreadable(directory)
        if why_not is not None:
            paragraphs.append(f"{directory}: {why_not}")
            continue
        rows: list[Sequence[object]] = [("device", "N", "K", "entries", "M")]
        for file in files_in(directory):
            try:
                entries = file.read().entries
            except ConfigFileError:
                entries = ()
            covered = f"{entries[0].M} to {entries[-1].M}" if entries else "none usable: see configs check"
            rows.append((file.device_name, file.N, file.K, len(entries), covered))
        if len(rows) > 1:
            paragraphs.append(f"{directory}\n{columns(rows)}")
        else:
            paragraphs.append(f"{directory}: no tuned file")
    return "\n\n".join(paragraphs)


def table(N: int, K: int, device: Device) -> str:
    """The tuned table that serves (N, K) on `device`, where it came from, and what was refused on the way."""
    search = find_config(N, K, device)
    lines = []
    if search.file is None:
        lines.append(f"N={N}, K={K} on {device.name}: no tuned file; looked for")
        lines += [f"  {path}" for path in search.tried]
    else:
        lines.append(f"N={N}, K={K} on {device.name}: {search.file.path}")
        rows: list[Sequence[object]] = [("M up to", "kernel", "µs")]
        for entry in search.file.entries:
            latency = "" if entry.latency_ms is None else f"{entry.latency_ms * 1e3:.2f}"
            rows.append((entry.M, describe(entry.config), latency))
        lines.append(columns(rows))
        lines += _above(search.file, device)
        if why_other := why_other_kernels(search.file):
            lines.append(f"  {why_other}")
        lines += [f"  {key}: {value}" for key, value in search.file.metadata.items()]
    if search.refused:
        lines.append("Refused:")
        lines += [f"  {sentence}" for sentence in search.refused]
    return "\n".join(lines)


def _continued(file: ConfigFile, device: Device) -> list[Entry]:
    from tilelang_gemm_wrapper.core.default_choice import continued  # numpy: `doctor` reports without it

    return continued(file.entries, file.N, file.K, device)


def _above(file: ConfigFile, device: Device) -> list[str]:
    """A line that says what serves the M far above the last tuned one, where that is not its entry."""
    serving, tuned = _continued(file, device), len(file.entries)
    if len(serving) == tuned:
        return []
    kernels = ", ".join(describe(entry.config) for entry in serving[tuned:])
    return [f"  M from {serving[tuned - 1].M + 1} on: the default choice, {kernels}"]


def check(directories: Sequence[str] | None = None) -> tuple[str, bool]:
    """A line per file and per refusal, and whether every file of every directory is usable as a whole."""
    lines, refusals, count, others = [], 0, 0, 0
    for directory in _directories(directories):
        why_not = why_unreadable(directory)
        if why_not is not None:
            lines.append(f"{directory}: {why_not}")
            # Of the search path some may be absent; asked for by name, one should be there.
            refusals += directories is not None or why_not != _ABSENT
            continue
        for file in files_in(directory):
            count += 1
            try:
                read = file.read()
                refused, usable, why_other = read.refused, len(read.entries), why_other_kernels(read)
            except ConfigFileError as error:
                refused, usable, why_other = (str(error),), 0, None
            refusals += len(refused)
            others += why_other is not None
            lines.append(f"{'ok' if not refused else 'REFUSED':8}{file.path}: {usable} usable entries")
            lines += [f"        {sentence}" for sentence in (*refused, why_other) if sentence]
    lines.append(f"{count} files, {refusals} refusals")
    if others:
        lines.append(
            f"{others} files were tuned with other kernels than run here, which refuses none of them"
        )
    if not count:
        example = config_file_name(4096, 8192, "NVIDIA_H200")
        lines.append(f"A tuned file is named like {example!r}.")
    return "\n".join(lines), not refusals


def difference(before: str | os.PathLike[str], after: str | os.PathLike[str]) -> str:
    """What two directories of tuned files serve differently, for every M that either has an entry for.

    The times are those that each file records; only times of one run are comparable to a per cent. Raises
    ValueError where a directory does not exist or cannot be read.
    """
    for directory in (before, after):
        why_not = why_unreadable(directory)
        if why_not is not None:
            raise ValueError(f"{directory} {why_not}: give two directories of tuned files")
    old, new = ({(f.device_name, f.N, f.K): f for f in files_in(d)} for d in (before, after))
    paragraphs, same = [], 0
    for key in sorted(old.keys() | new.keys()):
        device, N, K = key
        rows = _differing(_Serving.of(old.get(key)), _Serving.of(new.get(key)))
        if rows:
            title = f"N={N}, K={K} on {device}"
            paragraphs.append(f"{title}\n{columns([('M', 'before', 'µs', 'after', 'µs'), *rows])}")
        else:
            same += 1
    return "\n\n".join([*paragraphs, f"{len(paragraphs)} weight shapes differ, {same} choose the same"])


@dataclass(frozen=True, slots=True)
class _Serving:
    """What serves a weight shape: a file's entries, and these as they go on above the last tuned M."""

    tuned: Sequence[Entry] = ()
    continued: Sequence[Entry] = ()

    @classmethod
    def of(cls, found: FoundFile | None) -> _Serving:
        if found is None:
            return cls()
        try:
            file = found.read()
        except ConfigFileError:
            return cls()
        return cls(file.entries, _continued(file, found.device))

    def at(self, M: int) -> Entry | None:
        is_tuned = bool(self.tuned) and M <= self.tuned[-1].M
        return choose(self.tuned if is_tuned else self.continued, M)


def _differing(before: _Serving, after: _Serving) -> list[tuple[str, ...]]:
    rows = []
    for M in sorted({entry.M for entry in (*before.tuned, *after.tuned)}):
        chosen = before.at(M), after.at(M)
        if (chosen[0] and chosen[0].config) != (chosen[1] and chosen[1].config):
            cells = [cell for entry in chosen for cell in _choice_at(entry, M)]
            rows.append((str(M), *cells))
    return rows


def _choice_at(entry: Entry | None, M: int) -> tuple[str, str]:
    """A choice and its time, if that was measured at this very M."""
    if entry is None:
        return "no file", "-"
    us = entry.latency_ms * 1e3 if entry.latency_ms is not None and entry.M == M else None
    return describe(entry.config), "-" if us is None else f"{us:.2f}"


def _directories(directories: Sequence[str] | None) -> list[Path]:
    return (
        [Path(d) for d in directories] if directories is not None else list(configurer.config_directories())
    )
