"""The config files of a run: what is in place before it, and what its timings make of that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tilelang_gemm_wrapper.core.config import KernelConfig, why_invalid
from tilelang_gemm_wrapper.core.config_entry import Entry
from tilelang_gemm_wrapper.core.config_file import (
    ConfigFileError,
    config_file_name,
    parse_config_file,
    write_config_file,
)
from tilelang_gemm_wrapper.core.config_loader import choose
from tilelang_gemm_wrapper.core.default_choice import continued
from tilelang_gemm_wrapper.core.device import Device
from tilelang_gemm_wrapper.core.tuner.effort import Effort
from tilelang_gemm_wrapper.core.tuner.entries import choose_entries, kept_m, merged
from tilelang_gemm_wrapper.core.tuner.records import Record
from tilelang_gemm_wrapper.core.tuner.shape_times import ShapeTimes


class Tables:
    """The files under `out` that a run over `m_values` writes."""

    def __init__(self, out: Path, m_values: Sequence[int], effort: Effort) -> None:
        self._out = out
        self._m_values = tuple(m_values)
        self._effort = effort

    def choices(self, N: int, K: int, device: Device) -> tuple[tuple[int, KernelConfig], ...]:
        """What a call of each M runs with the file in place; nothing where none is, or no usable entry."""
        entries, _ = _in_place(self._path(N, K, device), N, K, device)
        serving = continued(entries, N, K, device)
        chosen = ((M, choose(serving, M)) for M in self._m_values)
        return tuple((M, entry.config) for M, entry in chosen if entry is not None)

    def write(
        self, N: int, K: int, device: Device, records: Iterable[Record], environment: Mapping[str, Any]
    ) -> Path | None:
        """Write what `records` decide, into the file in place if there is one; None if that is nothing."""
        times = ShapeTimes(records).decided()
        path = self._path(N, K, device)
        # Read again: someone may have edited the file since the run began.
        before, metadata_before = _in_place(path, N, K, device)
        touched = sorted({*times, *self._probed_before(metadata_before)})
        entries = choose_entries(times, N, K, kept_m(before, touched))
        if not entries:
            return None
        metadata = {
            "date": datetime.now(timezone.utc).date().isoformat(),
            "method": "cold weights, CUDA graph, interleaved, median, column-major A_scale",
            "effort": self._effort.name,
            "m_wanted": list(self._m_values),
            "tuned_M": sorted(times),
            **environment,
        }
        write_config_file(path, merged(entries, before, touched), metadata)
        return path

    def _path(self, N: int, K: int, device: Device) -> Path:
        return self._out / config_file_name(N, K, device.name)

    def _probed_before(self, metadata: Mapping[str, Any]) -> set[int]:
        """M that nobody asked for: an earlier run's looks between its own M, where this run has looked."""
        probed = set(metadata.get("tuned_M", ())) - set(metadata.get("m_wanted", ()))
        return {M for M in probed if min(self._m_values) <= M <= max(self._m_values)}


def _in_place(path: Path, N: int, K: int, device: Device) -> tuple[tuple[Entry, ...], Mapping[str, Any]]:
    """The usable entries of a file and its metadata; nothing where there is none."""
    try:
        file = parse_config_file(path, N, K, device)
    except ConfigFileError:
        return (), {}
    usable = (entry for entry in file.entries if why_invalid(entry.config, N, K, device) is None)
    return tuple(usable), file.metadata
