"""From (N, K, device) to a dispatch table: which kernel serves which M, from which source, and why."""

from __future__ import annotations

import logging
from bisect import bisect_left
from dataclasses import dataclass

from tilelang_gemm_wrapper import backends, configurer
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.config_file import config_file_name
from tilelang_gemm_wrapper.core.config_loader import ConfigSearch, find_config
from tilelang_gemm_wrapper.core.default_choice import default_entries
from tilelang_gemm_wrapper.core.device import Device

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """What runs for a range of M."""

    kernel: str  # a TileLang kernel type, or a backend: "deep_gemm", "triton" or "torch"
    config: KernelConfig | None  # None for backends
    source: str  # path of a tuned file, "default choice" or "fallback"
    reason: str
    cause: str = ""  # of a fallback: why TileLang does not run, without what runs in its place


@dataclass(frozen=True, slots=True)
class DispatchTable:
    """Choices in ascending M: `choices[i]` serves up to `bounds[i]`, the last one every larger M too."""

    N: int
    K: int
    device: Device
    bounds: tuple[int, ...]
    choices: tuple[Choice, ...]
    notes: tuple[str, ...] = ()  # refusals and missing files, one sentence each

    def index(self, M: int) -> int:
        """Position of the choice for `M`: the smallest bound that is at least M, else the last."""
        return min(bisect_left(self.bounds, M), len(self.choices) - 1)


def build_table(N: int, K: int, device: Device) -> DispatchTable:
    """The table for (N, K) on `device`: a tuned file, else the default choice, else a fallback backend."""
    why_not = configurer.why_tilelang_unavailable(device)
    if why_not is not None:
        return _fallback_table(N, K, device, why_not)
    search = find_config(N, K, device)
    if search.file is not None:
        source = str(search.file.path)
        entries = [(entry.M, entry.config, f"tuned for M = {entry.M}") for entry in search.file.entries]
        notes = search.refused
    elif why_not := why_shape_unfit(N, K):
        return _fallback_table(
            N, K, device, f"{why_not}; {_missing_file(N, K, device, search)}", search.refused
        )
    else:
        source = "default choice"
        defaults = default_entries(N, K, device)
        ranges = _ranges([M for M, _ in defaults])
        entries = [
            (M, config, f"no tuned file; default for {served}")
            for (M, config), served in zip(defaults, ranges, strict=True)
        ]
        remedy = (
            f"the default choice runs, which may be slower: tune N={N}, K={K} on this device, or name a "
            f"directory that has the file in {configurer.CONFIG_DIR}"
        )
        notes = (*search.refused, f"{_missing_file(N, K, device, search)}; {remedy}")
    if not entries:
        return _fallback_table(N, K, device, f"no TileLang kernel is valid for N = {N}, K = {K}", notes)
    choices = [_choice(N, K, device, M, config, source, reason) for M, config, reason in entries]
    replaced = [choice for choice in choices if choice.source != source]
    if replaced:
        runs = "others run" if len(replaced) > 1 else f"{replaced[0].kernel} runs"
        notes = (
            *notes,
            f"N={N}, K={K}, {len(replaced)} entries of {source}: {replaced[0].reason}; {runs} instead",
        )
    return DispatchTable(N, K, device, tuple(M for M, _, _ in entries), tuple(choices), notes)


def log_notes(table: DispatchTable) -> None:
    """Say once what the user should know of a table that is about to serve calls."""
    for note in table.notes:
        logger.warning("%s", note)
    if all(choice.source == "fallback" for choice in table.choices):
        logger.warning(
            "N=%d, K=%d runs on %s: %s", table.N, table.K, table.choices[0].kernel, table.choices[0].reason
        )


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


def _fallback_table(N: int, K: int, device: Device, why: str, notes: tuple[str, ...] = ()) -> DispatchTable:
    return DispatchTable(N, K, device, (1,), (fallback_choice(N, K, device, why),), notes)


def _choice(N: int, K: int, device: Device, M: int, config: KernelConfig, source: str, reason: str) -> Choice:
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
    replacement = next((own for bound, own in own if bound >= M), own[-1][1])
    return Choice(replacement.kernel_type, replacement, "default choice", reason)


def _ranges(bounds: list[int]) -> list[str]:
    """In words, the M that each of these ascending bounds serves."""
    last = f"M above {bounds[-2]}" if len(bounds) > 1 else "every M"
    return [*(f"M up to {bound}" for bound in bounds[:-1]), *([last] if bounds else [])]


def _missing_file(N: int, K: int, device: Device, search: ConfigSearch) -> str:
    directories = ", ".join(dict.fromkeys(str(path.parent) for path in search.tried))
    return f"no tuned file {config_file_name(N, K, device.name)!r} in {directories}"
