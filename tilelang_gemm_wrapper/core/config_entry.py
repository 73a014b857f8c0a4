"""One entry of a tuned file: its fields, their checks with a reason for every refusal, and writing it."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tilelang_gemm_wrapper.core.config import (
    FALLBACK_KERNELS,
    KERNEL_TYPES,
    TILELANG_KERNELS,
    KernelConfig,
    why_invalid,
)
from tilelang_gemm_wrapper.core.device import Device

TILE_FIELDS = ("block_M", "block_N", "block_K", "num_stages", "threads")
INTEGER_FIELDS = (*TILE_FIELDS, "split_k")
HINT_FIELDS = (
    "c_scale_local",
    "a_scale_shm",
    "b_scale_shm",
)  # upstream's placement of scales; without effect
MEASURED_FIELDS = ("latency_ms", "tflops")
FIXED_FIELDS = {"out_dtype": "bfloat16", "accum_dtype": "float32"}
KNOWN_FIELDS = ("kernel_type", *INTEGER_FIELDS, *HINT_FIELDS, *MEASURED_FIELDS, *FIXED_FIELDS)

# Stands for the value of a key that a JSON object has twice; compared by identity. A string, so that whatever
# carries it along can still be shown and written.
REPEATED = "<given several times>"


class EntryError(ValueError):
    """One entry is refused; the message is a clause with field, value, reason and remedy."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What was tuned for one M. `latency_ms` and `tflops` are the tuner's measurement, None where absent."""

    M: int
    config: KernelConfig
    latency_ms: float | None = None
    tflops: float | None = None


def parse_entry(M: int, fields: Any, N: int, K: int, device: Device) -> Entry:
    """The entry that decoded JSON stands for. Raises EntryError where (N, K) on `device` cannot run it."""
    if fields is REPEATED:
        raise EntryError("it is given several times and which one counts is unknown; keep one")
    if not isinstance(fields, dict):
        raise EntryError(
            f"it is {show(fields)}, {_kind(fields)}; expected an object of fields; tune it again"
        )
    for name, value in fields.items():
        why = _why_field_wrong(name, value)
        if why is not None:
            raise EntryError(why)
    config = _parse_kernel_config(fields)
    why = why_invalid(config, N, K, device)
    if why is not None:
        raise EntryError(why)
    return Entry(M, config, fields.get("latency_ms"), fields.get("tflops"))


def entry_fields(entry: Entry) -> dict[str, Any]:
    """The JSON object of an entry: `parse_entry` of it gives the entry back."""
    config = entry.config
    fields: dict[str, Any] = {"kernel_type": config.kernel_type}
    if config.is_tilelang:
        fields |= {name: getattr(config, name) for name in TILE_FIELDS}
    if config.is_split_k:
        fields["split_k"] = config.split_k
    measured = {name: getattr(entry, name) for name in MEASURED_FIELDS}
    return fields | {name: value for name, value in measured.items() if value is not None}


def show(value: Any) -> str:
    """A short, printable form of any JSON value: cut, and without what a terminal or log cannot encode."""
    return reprlib.repr(value).encode("ascii", "backslashreplace").decode()


def _why_field_wrong(name: str, value: Any) -> str | None:
    if name not in KNOWN_FIELDS:
        return f"unknown field {show(name)} = {show(value)}; {_nearest(name, KNOWN_FIELDS)}"
    if value is REPEATED:
        return f"{name} is given several times and which one counts is unknown; keep one"
    shown = f"{name} = {show(value)} is {_kind(value)}"
    if name in INTEGER_FIELDS and type(value) is not int:  # not isinstance: JSON's true is an int to Python
        return f"{shown}; expected a whole number"
    if name in HINT_FIELDS and not isinstance(value, bool):
        return f"{shown}; expected true or false"
    if name in FIXED_FIELDS and value != FIXED_FIELDS[name]:
        return f"{name} = {show(value)}; the kernels have {FIXED_FIELDS[name]!r} alone; tune again for that"
    if name in MEASURED_FIELDS:
        if type(value) not in (int, float):
            return f"{shown}; expected a number, or leave it out"
        if not 0 <= value < 1e12:  # NaN fails here too
            return f"{name} = {show(value)} cannot have been measured; tune again, or leave it out"
    return None


def _parse_kernel_config(fields: Mapping[str, Any]) -> KernelConfig:
    kernel_type = fields.get("kernel_type", REPEATED)
    if kernel_type is REPEATED:
        raise EntryError(f"kernel_type is missing; give one of {', '.join(KERNEL_TYPES)}")
    if kernel_type in FALLBACK_KERNELS:
        for name in (*INTEGER_FIELDS, *HINT_FIELDS):
            if name in fields:
                raise EntryError(
                    f"{name} = {show(fields[name])} means nothing to kernel_type {kernel_type!r}, which "
                    "picks its own tiles; leave it out"
                )
        return KernelConfig(kernel_type)
    if kernel_type not in TILELANG_KERNELS:
        raise EntryError(
            f"kernel_type = {show(kernel_type)} is unknown; {_nearest(kernel_type, KERNEL_TYPES)}"
        )
    config = KernelConfig(kernel_type, **{name: fields[name] for name in INTEGER_FIELDS if name in fields})
    needed = INTEGER_FIELDS if config.is_split_k else TILE_FIELDS
    for name in needed:
        if name not in fields:
            raise EntryError(f"{name} is missing; kernel_type {kernel_type!r} needs {', '.join(needed)}")
    return config


def _nearest(word: Any, known: Iterable[str]) -> str:
    by_lower_case = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word[:40].lower(), by_lower_case, n=1) if isinstance(word, str) else []
    if close:
        return f"perhaps {by_lower_case[close[0]]!r} is meant"
    return f"known are {', '.join(by_lower_case.values())}"


def _kind(value: Any) -> str:
    kinds = {bool: "a truth value", int: "a whole number", float: "a number with a fraction", str: "a string"}
    return kinds.get(type(value)) or ("null" if value is None else "a list or object")
