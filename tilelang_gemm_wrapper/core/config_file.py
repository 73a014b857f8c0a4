"""One tuned file: its name, reading it with a reason for every refusal, and writing it.

The format is upstream's: `{"<M>": {"kernel_type": "swapAB", "block_M": 64, ...}, ...}`. Provenance lies in a
sidecar `<name>.meta.json` (or under the reserved key "_metadata"), because SGLang's own reader calls int() on
every top-level key.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tilelang_gemm_wrapper.core.config import SCALE_BLOCK
from tilelang_gemm_wrapper.core.config_entry import (
    REPEATED,
    Entry,
    EntryError,
    entry_fields,
    parse_entry,
    show,
)
from tilelang_gemm_wrapper.core.device import Device, canonical_name, file_safe_name
from tilelang_gemm_wrapper.core.failure_text import told
from tilelang_gemm_wrapper.core.whole_file import replacing

logger = logging.getLogger(__name__)

METADATA_KEY = "_metadata"
DTYPE = "fp8_w8a8"
BLOCK_SHAPE = [SCALE_BLOCK, SCALE_BLOCK]
LARGEST_M = 2**31 - 1
LARGEST_FILE = 1 << 20  # bytes; a table of 23 M has 6 KiB, so anything above is some other file

_FILE_NAME = re.compile(
    r"N=(?P<N>[0-9]+),K=(?P<K>[0-9]+),device_name=(?P<device>[^,]+)"
    r"(,dtype=(?P<dtype>[^,]+))?(,block_shape=(?P<block_shape>\[[^\]]*\]))?\.json"
)


class ConfigFileError(ValueError):
    """A whole file is refused; the message is a sentence with file, value, reason and remedy."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The usable part of one file, and a sentence for each part that is not."""

    path: Path
    N: int
    K: int
    device_name: str  # as the file name spells it
    entries: tuple[Entry, ...]  # ascending M, each valid on the device it was read for
    refused: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


def config_file_name(N: int, K: int, device_name: str) -> str:
    """The name under which a tuned file for this weight shape and device is looked for."""
    name = file_safe_name(device_name)
    return f"N={N},K={K},device_name={name},dtype={DTYPE},block_shape={BLOCK_SHAPE}.json"


def metadata_path(path: Path) -> Path:
    """The sidecar of a config file."""
    return path.with_suffix(".meta.json")


def is_config_for(name: str, N: int, K: int) -> bool:
    """Whether a file of this name is a tuned file, of whatever device, for the weight shape (N, K)."""
    match = _FILE_NAME.fullmatch(name)
    return match is not None and (int(match["N"]), int(match["K"])) == (N, K)


def parse_config_file(path: str | os.PathLike[str], N: int, K: int, device: Device) -> ConfigFile:
    """Read a tuned file and keep the entries that (N, K) on `device` can run.

    An unusable entry is left out, with its sentence in `refused`. Raises ConfigFileError, and nothing else,
    where the file as a whole is of no use.
    """
    path = Path(path)
    device_name = _parse_name(path, N, K, device)
    table = _read_object(path)
    if any(isinstance(fields, dict) and "BLOCK_SIZE_M" in fields for fields in table.values()):
        raise ConfigFileError(
            f"{path} is not used: its entries have BLOCK_SIZE_M, as the tables of SGLang's and vLLM's Triton "
            f"kernels do; tune N={N},K={K} for this package, and keep those tables in another directory."
        )
    refused: list[str] = []
    metadata = _read_metadata(path, table.pop(METADATA_KEY, {}), refused)
    _require_same_device(path, metadata, N, K, device)
    spellings = Counter(int(key) for key in table if _is_m(key))
    entries: list[Entry] = []
    for key, fields in table.items():
        try:
            if not _is_m(key):
                raise EntryError(
                    f"the key must be M, a whole number from 1 to {LARGEST_M}; correct or delete it"
                )
            if spellings[int(key)] > 1:
                raise EntryError(
                    f"M = {int(key)} has another entry and which one counts is unknown; keep one"
                )
            entries.append(parse_entry(int(key), fields, N, K, device))
        except EntryError as error:
            refused.append(f"{path}: entry {show(key)} is not used: {error}.")
    if not table:
        refused.append(f"{path} is not used: it has no entry; tune N={N},K={K} again or delete it.")
    entries.sort(key=lambda entry: entry.M)
    return ConfigFile(path, N, K, device_name, tuple(entries), tuple(refused), metadata)


def write_config_file(
    path: str | os.PathLike[str], entries: Iterable[Entry], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a tuned file and its sidecar so that a reader, or a kill at any moment, sees the old or the new.

    Merges nothing: what the file had before is replaced. The old sidecar goes first and the new one comes
    last, so that provenance may be missing after a kill, but never belongs to other entries.
    Raises ValueError where an M occurs twice or a figure is NaN, OSError where the directory cannot be
    written.
    """
    path = Path(path)
    ordered = sorted(entries, key=lambda entry: entry.M)
    repeated = [M for M, times in Counter(entry.M for entry in ordered).items() if times > 1]
    if repeated:
        raise ValueError(f"{path.name}: M = {repeated[0]} has several entries; give each M one entry")
    table = {str(entry.M): entry_fields(entry) for entry in ordered}
    text = json.dumps(table, indent=2, allow_nan=False) + "\n"
    provenance = json.dumps(dict(metadata), indent=2, allow_nan=False) + "\n" if metadata else None
    with replacing(path) as file:
        file.write(text)
        file.flush()  # on a full disk the old pair stays
        metadata_path(path).unlink(missing_ok=True)
    if provenance is not None:
        try:
            with replacing(metadata_path(path)) as file:
                file.write(provenance)
        except OSError as error:
            logger.warning("%s is written, but not what it was tuned with: %s", path, told(error))


def _parse_name(path: Path, N: int, K: int, device: Device) -> str:
    """The device name in a file's name, once the name agrees with (N, K) and `device`."""
    wanted = config_file_name(N, K, device.name)
    match = _FILE_NAME.fullmatch(path.name)
    if match is None:
        why = f"its name is not of the form {wanted!r}; rename it"
    elif not is_config_for(path.name, N, K):
        why = (
            f"its name says N={match['N']},K={match['K']} and N={N},K={K} is wanted; rename it or tune again"
        )
    elif canonical_name(match["device"]) != canonical_name(device.name):
        why = f"found for {match['device']}, this is {device.name}; tune N={N},K={K} on this device"
    elif match["dtype"] != DTYPE:
        why = f"its name says dtype={match['dtype']} and the kernels run {DTYPE} alone; tune for that"
    elif match["block_shape"] != str(BLOCK_SHAPE):
        why = f"its name says block_shape={match['block_shape']} and {wanted!r} is looked for; rename it"
    else:
        return match["device"]
    raise ConfigFileError(f"{path} is not used: {why}.")


def _require_same_device(path: Path, metadata: Mapping[str, Any], N: int, K: int, device: Device) -> None:
    """Its name alone does not make a file one for `device`: a copy under another name keeps its sidecar."""
    tuned_on = metadata.get("device")
    if tuned_on is None:
        return
    if not isinstance(tuned_on, str) or canonical_name(tuned_on) != canonical_name(device.name):
        raise ConfigFileError(
            f"{path} is not used: its {metadata_path(path).name} says that it was tuned on {show(tuned_on)}, "
            f"this is {device.name}; tune N={N},K={K} on this device."
        )


def _is_m(key: str) -> bool:
    # int() alone would take " 8", "+8", "8_0" and digits of other scripts, and raise on thousands of digits.
    return re.fullmatch(r"[0-9]{1,10}", key) is not None and 1 <= int(key) <= LARGEST_M


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = _read_bytes(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigFileError(
            f"{path} is not used: it cannot be read ({reason}); correct its permissions or delete it."
        ) from error
    try:
        table = json.loads(content, object_pairs_hook=_object_of)
    except (ValueError, RecursionError) as error:  # ValueError: bad JSON, bad encoding, an endless integer
        raise ConfigFileError(
            f"{path} is not used: it is no JSON, or was truncated ({error}); tune again or delete it."
        ) from error
    if not isinstance(table, dict):
        raise ConfigFileError(
            f"{path} is not used: its top level is {show(table)}; expected an object; tune it again."
        )
    return table


def _read_bytes(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise OSError(errno.EINVAL, "not a regular file")
    if status.st_size > LARGEST_FILE:
        raise OSError(errno.EFBIG, f"{status.st_size} bytes, where a tuned file has a few thousand")
    return path.read_bytes()


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    occurrences = Counter(key for key, _ in pairs)
    return {key: value if occurrences[key] == 1 else REPEATED for key, value in pairs}


def _read_metadata(path: Path, embedded: Any, refused: list[str]) -> dict[str, Any]:
    if not isinstance(embedded, dict):
        refused.append(f"{path}: {METADATA_KEY} is not used: it is {show(embedded)}; expected an object.")
        embedded = {}
    sidecar = metadata_path(path)
    if not os.path.lexists(sidecar):
        return embedded
    try:
        return embedded | _read_object(sidecar)
    except ConfigFileError as error:
        refused.append(str(error))
        return embedded
