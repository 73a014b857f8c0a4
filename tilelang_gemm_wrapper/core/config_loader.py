"""Which tuned file serves (N, K) on a device, and which of its entries serves an M.

The search reads files, so it runs once per (N, K, device), when the dispatch table is built; the caller keeps
the result.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from tilelang_gemm_wrapper import configurer
from tilelang_gemm_wrapper.core.compile_cache import code_version
from tilelang_gemm_wrapper.core.config_entry import Entry
from tilelang_gemm_wrapper.core.config_file import (
    ConfigFile,
    ConfigFileError,
    config_file_name,
    is_config_for,
    parse_config_file,
)
from tilelang_gemm_wrapper.core.device import Device, names_of_same_chip


@dataclass(frozen=True, slots=True)
class ConfigSearch:
    """What the search found: the file to use, or None; every path looked for; a sentence per refusal."""

    file: ConfigFile | None
    tried: tuple[Path, ...]
    refused: tuple[str, ...]


def find_config(
    N: int, K: int, device: Device, directories: Iterable[str | os.PathLike[str]] | None = None
) -> ConfigSearch:
    """The first file with a usable entry, walking `directories` in order (default: configurer's).

    In each directory the device's own name is looked for first, then other names of the same chip. Never
    raises for what it finds there: a broken file or directory becomes a sentence in `refused`.
    """
    if directories is None:
        directories = configurer.config_directories()
    tried: list[Path] = []
    refused: list[str] = []
    for directory in map(Path, directories):
        names = [config_file_name(N, K, name) for name in names_of_same_chip(device.name)]
        tried += [directory / name for name in names]
        for name in (*names, *_other_names(directory, names, N, K, refused)):
            path = directory / name
            if not os.path.lexists(path):
                continue
            try:
                file = parse_config_file(path, N, K, device)
            except ConfigFileError as error:
                refused.append(str(error))
                continue
            refused += file.refused
            if file.entries:
                return ConfigSearch(file, tuple(tried), tuple(refused))
    return ConfigSearch(None, tuple(tried), tuple(refused))


def choose(entries: Sequence[Entry], M: int) -> Entry | None:
    """The entry for `M`: the smallest tuned M that is at least M, else the largest. None where none is.

    `entries` ascend in M. Rounding up rather than to the nearest: a tile tuned for more rows covers M in as
    many waves as it was tuned for, one tuned for fewer rows may need another wave.
    """
    if not entries:
        return None
    index = bisect_left(entries, M, key=lambda entry: entry.M)
    return entries[min(index, len(entries) - 1)]


def why_other_kernels(file: ConfigFile) -> str | None:
    """That a file was tuned with other kernels than would run here, in words; None where it does not say so.

    Its kernels are valid and its results right all the same: only which is fastest may have changed.
    """
    tuned_with = file.metadata.get("kernels")
    try:
        running = code_version()
    except PackageNotFoundError:  # without TileLang none run here
        return None
    if not isinstance(tuned_with, str) or tuned_with == running:
        return None
    return f"tuned with {_short(tuned_with)}, running {_short(running)}"


def _short(code_version: str) -> str:
    """A version with its hashes cut to 12 digits."""
    return " ".join(word[:12] for word in code_version.split())[:80]


def _other_names(directory: Path, names: Sequence[str], N: int, K: int, refused: list[str]) -> Iterator[str]:
    """Names of the other files for (N, K) in `directory`: of another chip or misspelt, to be refused by name.

    A generator, so that the directory is listed only where none of `names` served.
    """
    try:
        listed = sorted(os.listdir(directory))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        refused.append(
            f"config directory {directory} is not used: {reason}; create it, correct its permissions, or "
            f"take it out of {configurer.CONFIG_DIR}."
        )
        return
    yield from (name for name in listed if is_config_for(name, N, K) and name not in names)
