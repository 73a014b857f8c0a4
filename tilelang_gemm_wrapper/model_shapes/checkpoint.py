"""A checkpoint without its weights, read from a directory: config, and the dtypes and shapes of tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.failure_text import first_line

INSTALL_EXTRA = "pip install 'tilelang-gemm-wrapper[models]'"
CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_SHARD = re.compile(r"-\d+-of-(\d+)\.safetensors$")


class SourceError(ValueError):
    """A source holds no readable checkpoint; the message is a clause that says why.

    `incomplete`: it holds a part of one, which is worth telling even where another source then serves.
    """

    def __init__(self, message: str, *, incomplete: bool = False) -> None:
        super().__init__(message)
        self.incomplete = incomplete


@dataclass(frozen=True, slots=True)
class Tensor:
    dtype: str  # as safetensors names it: "F8_E4M3", "BF16", ...
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    source: str  # where it was read, in words for people
    config: Mapping[str, Any]  # config.json
    tensors: Mapping[str, Tensor]


def read_directory(directory: Path, source: str) -> Checkpoint:
    """Read config.json and the safetensors files' headers. SourceError says what is missing or broken."""
    if not directory.is_dir():
        raise SourceError(
            f"{directory} is no directory; give one with {CONFIG_FILE} and safetensors files, or a model id"
        )
    config = read_json(directory / CONFIG_FILE)
    index = directory / INDEX_FILE
    if index.is_file():
        return Checkpoint(source, config, _indexed_tensors(directory, read_json(index)))
    files = [directory / SINGLE_FILE]
    if not files[0].is_file():
        files = sorted(directory.glob("*.safetensors"))
    _check_shards(directory, files)
    return Checkpoint(source, config, _tensors(files))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; SourceError where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{path.name} not found in {path.parent}") from None
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: thousands of brackets
        raise SourceError(f"{path} cannot be read ({first_line(error)}); download it again") from error
    if not isinstance(value, dict):
        raise SourceError(f"{path} holds no JSON object; download it again")
    return value


def _indexed_tensors(directory: Path, index: Mapping[str, Any]) -> dict[str, Tensor]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f"{directory / INDEX_FILE} has no weight_map; download it again")
    for tensor, file in weight_map.items():
        if not isinstance(file, str):
            raise SourceError(
                f"{directory / INDEX_FILE} places {tensor} in {file!r}, expected a file's name; download it "
                f"again"
            )
    files = [directory / name for name in sorted(set(weight_map.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise SourceError(
            f"{directory} lacks {len(missing)} of the {len(files)} files that {INDEX_FILE} names, such as "
            f"{missing[0]}; finish the download",
            incomplete=True,
        )
    tensors = _tensors(files)
    absent = [name for name in weight_map if name not in tensors]
    if absent:
        raise SourceError(
            f"{directory} has no tensor {absent[0]}, which {INDEX_FILE} places in {weight_map[absent[0]]}; "
            f"download both again",
            incomplete=True,
        )
    return {name: tensors[name] for name in weight_map}


def _check_shards(directory: Path, files: list[Path]) -> None:
    if not files:
        raise SourceError(f"{directory} has no safetensors file; download the model in that format")
    for file in files:
        shard = _SHARD.search(file.name)
        if shard and len(files) < int(shard[1]):
            raise SourceError(
                f"{directory} has {len(files)} of {int(shard[1])} shards and no {INDEX_FILE}; finish the "
                f"download",
                incomplete=True,
            )


def _tensors(files: Iterable[Path]) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise SourceError(f"reading safetensors headers needs safetensors: {INSTALL_EXTRA}") from error
    tensors = {}
    for file in files:
        try:
            with safe_open(file, framework="np") as opened:  # "np": headers are read without loading torch
                for name in opened.keys():  # noqa: SIM118  it is no mapping
                    view = opened.get_slice(name)
                    tensors[name] = Tensor(str(view.get_dtype()), tuple(view.get_shape()))
        except (OSError, SafetensorError) as error:
            raise SourceError(
                f"{file} is no whole safetensors file ({first_line(error)}); download it again",
                incomplete=True,
            ) from error
    return tensors
