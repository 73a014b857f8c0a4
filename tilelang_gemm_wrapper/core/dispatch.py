"""From (N, K, device) to a dispatch table: which kernel serves which M, from which source, and why."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from tilelang_gemm_wrapper import backends, configurer
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.config_entry import Entry
from tilelang_gemm_wrapper.core.config_file import ConfigFile, config_file_name
from tilelang_gemm_wrapper.core.config_loader import ConfigSearch, find_config, why_other_kernels
from tilelang_gemm_wrapper.core.default_choice import continued, default_entries
from tilelang_gemm_wrapper.core.device import Device

logger = logging.getLogger(__name__)

DEFAULT_CHOICE = "default choice"  # the `source` of what no file names


@dataclass(frozen=True, slots=True)
class Choice:
    """What runs for a range of M."""

    kernel: str  # a TileLang kernel type, or a backend: "deep_gemm", "triton" or "torch"
    config: KernelConfig | None  # None for backends
    source: str  # path of a tuned file, "default choice" or "fallback"
    reason: str
    cause: str = ""  # of a fallback: why TileLang does not run, without what runs in its place


@dataclass(frozen=True, slots=True)
class Remark:
    """What is worth knowing of a table and no fault of it. It is logged once a process for each `topic`."""

    topic: str
    text: str


@dataclass(frozen=True, slots=True)
class DispatchTable:
    """Choices in ascending M: `choices[i]` serves up to `bounds[i]`, the last one every larger M too."""

    N: int
    K: int
    device: Device
    bounds: tuple[int, ...]
    choices: tuple[Choice, ...]
    notes: tuple[str, ...] = ()  # what is refused or replaced, one sentence each
    remarks: tuple[Remark, ...] = ()

    def index(self, M: int) -> int:
        """Position of the choice for `M`: the smallest bound that is at least M, else the last."""
        return min(bisect_left(self.bounds, M), len(self.choices) - 1)


def build_table(N: int, K: int, device: Device) -> DispatchTable:
    """The table for (N, K) on `device`: a tuned file, else the default choice, else a fallback backend.

    Far above a tuned file's last M the default choice goes on.
    """
    why_not = configurer.why_tilelang_unavailable(device)
    if why_not is not None:
        return _fallback_table(N, K, device, why_not)
    search = find_config(N, K, device)
    if search.file is not None:
        return _tuned_table(N, K, device, search.file, search.refused)
    missing = _missing_file(N, K, device, search)
    if why_not := why_shape_unfit(N, K):
        return _fallback_table(N, K, device, f"{why_not}; {missing}", search.refused)
    defaults = default_entries(N, K, device)
    if not defaults:
        why_not = f"no TileLang kernel is valid for N = {N}, K = {K}; {missing}"
        return _fallback_table(N, K, device, why_not, search.refused)
    bounds = tuple(M for M, _ in defaults)
    choices = tuple(
        Choice(config.kernel_type, config, DEFAULT_CHOICE, f"no tuned file; default for {served}")
        for (_, config), served in zip(defaults, _ranges(bounds), strict=True)
    )
    remark = Remark(
        "no tuned file",
        f"{missing}; the default choice runs: tune N={N}, K={K} on this device for the fastest kernels, or "
        f"name a directory that has the file in {configurer.CONFIG_DIR}",
    )
    return DispatchTable(N, K, device, bounds, choices, search.refused, (remark,))


def log_notes(table: DispatchTable) -> None:
    """Say once what the user should know of a table that is about to serve calls."""
    for note in table.notes:
        logger.warning("%s", note)
    for remark in table.remarks:
        if remark.topic not in _told:
            _told.add(remark.topic)
            logger.info("%s (told of one shape; `tilelang-gemm explain M N K` tells it of any)", remark.text)
    if all(choice.source == "fallback" for choice in table.choices):
        logger.warning(
            "N=%d, K=%d runs on %s: %s", table.N, table.K, table.choices[0].kernel, table.choices[0].reason
        )


_told: set[str] = set()  # topics of remarks; the lock of wrapper.gemm_for guards it


def fallback_choice(N: int, K: int, device: Device, why: str) -> Choice:
    """The backend that runs (N, K) on `device` when TileLang does not, with both reasons."""
    name, reason = configurer.fallback_backend(device, N, K)
    return Choice(name, None, "fallback", f"{why}; {reason}", why)


def why_shape_unfit(N: int, K: int) -> str | None:
    """Why no TileLang kernel takes this shape on any device, else None."""
    if N % 16:
        return f"N = {N} is not a multiple of 16, as the TileLang kernels need"
    if K % 128:
        return f"K = {K} is not a multiple of 128, as the TileLang kernels need"
    return None


def _tuned_table(N: int, K: int, device: Device, file: ConfigFile, refused: tuple[str, ...]) -> DispatchTable:
    entries = continued(file.entries, N, K, device)
    tuned, above = file.entries, entries[len(file.entries) :]
    bounds = tuple(entry.M for entry in entries)
    choices = [_tuned_choice(N, K, device, entry, str(file.path)) for entry in tuned]
    notes, remarks = list(refused), []
    replaced = [choice for choice in choices if choice.source != str(file.path)]
    if replaced:
        runs = "others run" if len(replaced) > 1 else f"{replaced[0].kernel} runs"
        notes.append(
            f"N={N}, K={K}, {len(replaced)} entries of {file.path}: {replaced[0].reason}; {runs} instead"
        )
    if why_other := why_other_kernels(file):
        remedy = f"others may be the fastest now; tune N={N}, K={K} again to know"
        remarks.append(Remark("tuned with other kernels", f"{file.path}: {why_other}: {remedy}"))
    if above:
        last = tuned[-1].M
        choices += [
            Choice(
                entry.config.kernel_type,
                entry.config,
                DEFAULT_CHOICE,
                f"far above M = {last}, the last tuned; default for {served}",
            )
            for entry, served in zip(above, _ranges(bounds)[len(tuned) :], strict=True)
        ]
        remarks.append(
            Remark(
                "above the last tuned M",
                f"{file.path} ends at M = {last}: from M = {bounds[len(tuned) - 1] + 1} on the default "
                f"choice runs; tune larger M for the fastest kernels",
            )
        )
    return DispatchTable(N, K, device, bounds, tuple(choices), tuple(notes), tuple(remarks))


def _fallback_table(N: int, K: int, device: Device, why: str, notes: tuple[str, ...] = ()) -> DispatchTable:
    return DispatchTable(N, K, device, (1,), (fallback_choice(N, K, device, why),), notes)


def _tuned_choice(N: int, K: int, device: Device, entry: Entry, source: str) -> Choice:
    config, reason = entry.config, f"tuned for M = {entry.M}"
    if config.is_tilelang:
        return Choice(config.kernel_type, config, source, reason)
    backend = backends.backend(config.kernel_type)
    why_not = backend.why_unavailable(device) or backend.why_unsupported(N, K)
    if why_not is None:
        return Choice(config.kernel_type, None, source, reason)
    # The file was tuned where that backend was installed; our own kernel for such an M is the next best.
    reason = f"{reason} with {config.kernel_type}, which cannot run here: {why_not}"
    own = default_entries(N, K, device)
    if not own:
        return fallback_choice(N, K, device, reason)
    replacement = next((own for bound, own in own if bound >= entry.M), own[-1][1])
    return Choice(replacement.kernel_type, replacement, DEFAULT_CHOICE, reason)


def _ranges(bounds: Sequence[int]) -> list[str]:
    """In words, the M that each of these ascending bounds serves."""
    last = f"M above {bounds[-2]}" if len(bounds) > 1 else "every M"
    return [*(f"M up to {bound}" for bound in bounds[:-1]), *([last] if bounds else [])]


def _missing_file(N: int, K: int, device: Device, search: ConfigSearch) -> str:
    directories = ", ".join(dict.fromkeys(str(path.parent) for path in search.tried))
    return f"no tuned file {config_file_name(N, K, device.name)!r} in {directories}"
