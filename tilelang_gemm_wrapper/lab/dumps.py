"""A dump: a folder with every level of one kernel, and `dump.json`, which says what they are levels of."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..core.whole_file import replacing
from .resources import capability_of

LEVELS = {
    "triton": ("python", "ttir", "ttgir", "llir", "ptx", "cubin"),
    "tilelang": ("python", "tir", "cu", "ptx", "cubin"),
}
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")
FORMAT = 1
_MANIFEST = "dump.json"
_PYTHON = "python"  # the folder of that level's files


@dataclass(frozen=True, slots=True)
class Dump:
    """What `dump.json` holds.

    kernel: a name of `builtin_cases.BUILTIN` or FILE.py:FUNCTION. parameters: all that its case was made
    from. modules: the SHA-256 of the installed source of each module that is its Python level. levels: the
    SHA-256 of each level as it was dumped, by name. entries: the kernels in the cubin with their PTX
    parameters. metadata: Triton's, to go on from below Python.
    """

    kernel: str
    language: str
    parameters: dict[str, Any]
    arch: str
    compiler: dict[str, str]
    modules: dict[str, str]
    levels: dict[str, str]
    entries: dict[str, list[str]]
    function: str | None  # of TIR's text
    read_only: dict[str, str] = field(default_factory=dict)  # level -> why it cannot be run from
    metadata: dict[str, Any] = field(default_factory=dict)
    resources: list[dict[str, Any]] = field(default_factory=list)
    format: int = FORMAT

    def write(self, directory: Path) -> None:
        with replacing(directory / _MANIFEST) as file:
            json.dump(asdict(self), file, indent=1)
            file.write("\n")

    @classmethod
    def read(cls, directory: Path) -> Dump:
        """Raises ValueError where the folder is no dump, or one of another format."""
        path = directory / _MANIFEST
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(
                f"{directory} is no dump: it has no {_MANIFEST}; make one with lab dump"
            ) from None
        except ValueError as problem:  # bad JSON or bad encoding
            raise ValueError(f"{path} is no JSON ({problem}); dump the kernel again") from None
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            found = fields.get("format") if isinstance(fields, dict) else None
            raise ValueError(f"{path} has format {found}, expected {FORMAT}; dump the kernel again")
        try:
            dump = cls(**fields)
        except TypeError as problem:  # fields that are missing or unknown
            raise ValueError(f"{path} is incomplete ({problem}); dump the kernel again") from None
        if dump.language not in LEVELS or dump.arch not in ARCHITECTURES:
            raise ValueError(f"{path} is of unknown {dump.language!r}, {dump.arch!r}; dump the kernel again")
        return dump


@dataclass(frozen=True, slots=True)
class LevelFile:
    """A file, or for Python a folder of files, to run from."""

    directory: Path
    dump: Dump
    level: str
    path: Path

    @classmethod
    def of(cls, path: Path) -> LevelFile:
        """The level that `path` is of: by its ending, in a folder with a dump.json; "python" for what lies in
        that folder's python/. Raises ValueError where it is none."""
        path = path.resolve()
        if not path.exists():
            raise ValueError(f"{path} does not exist")
        python = path if path.name == _PYTHON and path.is_dir() else path.parent
        if python.name == _PYTHON:
            return cls(python.parent, Dump.read(python.parent), "python", python)
        directory = path if path.is_dir() else path.parent
        dump = Dump.read(directory)
        level = path.suffix.removeprefix(".")
        if path.is_dir() or level not in LEVELS[dump.language]:
            names = ", ".join(f"kernel.{name}" for name in LEVELS[dump.language][1:])
            raise ValueError(f"{path} is no level of {dump.kernel}; expected one of python/, {names}")
        return cls(directory, dump, level, path)

    def content(self) -> str | bytes:
        """Of a level below Python."""
        return self.path.read_bytes() if self.level == "cubin" else self.path.read_text(encoding="utf-8")

    def sources(self) -> dict[str, str]:
        """The Python level: source by module."""
        sources = {}
        for module in self.dump.modules:
            path = self.path / f"{module}.py"
            if not path.is_file():
                raise ValueError(f"{path} is missing, which {self.dump.kernel} is built from; dump it again")
            sources[module] = path.read_text(encoding="utf-8")
        return sources

    @property
    def is_edited(self) -> bool:
        return digest_of(self) != self.dump.levels[self.level]

    def others_edited(self) -> list[str]:
        """Other levels whose files are not as they were dumped: they take no part in a run from this one."""
        return [level for level in edited_levels(self.directory, self.dump) if level != self.level]


def edited_levels(directory: Path, dump: Dump) -> list[str]:
    """The levels whose files are there, but not as they were dumped."""
    edited = []
    for level in dump.levels:
        path = level_path(directory, level)
        with suppress(ValueError):  # of a Python level that lacks files
            if path.exists() and LevelFile(directory, dump, level, path).is_edited:
                edited.append(level)
    return edited


def digest_of(file: LevelFile) -> str:
    if file.level == "python":
        return digest(json.dumps(file.sources(), sort_keys=True))
    return digest(file.content())


def digest(content: str | bytes) -> str:
    return hashlib.sha256(content if isinstance(content, bytes) else content.encode()).hexdigest()


def level_path(directory: Path, level: str) -> Path:
    return directory / (_PYTHON if level == "python" else f"kernel.{level}")


def write_levels(directory: Path, levels: Mapping[str, str | bytes], sources: Mapping[str, str]) -> None:
    python = directory / _PYTHON
    python.mkdir(parents=True, exist_ok=True)
    for module, source in sources.items():
        (python / f"{module}.py").write_text(source, encoding="utf-8")
    for level, content in levels.items():
        path = level_path(directory, level)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, encoding="utf-8")


def remove_levels(directory: Path, dump: Dump) -> None:
    for level in dump.levels:
        path = level_path(directory, level)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def why_foreign(file: LevelFile, content: str | bytes) -> str | None:
    """Why a file below Python is not of this dump's kernel and architecture, by what it says of itself."""
    dump, level = file.dump, file.level
    for entry in dump.entries:
        if not _names(level, content, entry, dump.function):
            return (
                f"{file.path} does not define {entry}, the kernel of this dump ({dump.kernel}); "
                f"files of another kernel run from that one's folder"
            )
    arch = _arch_in(level, content)
    if arch is not None and arch != capability_of(dump.arch):
        return (
            f"{file.path} is compiled for sm_{arch} and this dump is of {dump.arch}; dump the kernel for the "
            f"architecture that it is to run on"
        )
    return None


def _names(level: str, content: str | bytes, entry: str, function: str | None) -> bool:
    if level == "cubin":
        return isinstance(content, bytes) and f".text.{entry}\0".encode() in content
    assert isinstance(content, str)
    word = rf"\b{re.escape(entry)}\b"
    patterns = {
        "tir": rf"^def {re.escape(function or entry)}\(",
        "cu": rf"__global__[^;{{]*{word}\s*\(",
        "ttir": rf"tt\.func public @{word}",
        "ttgir": rf"tt\.func public @{word}",
        "llir": rf"define [^\n]*@{word}\(",
        "ptx": rf"\.entry\s+{word}",
    }
    return re.search(patterns[level], content, re.MULTILINE) is not None


def _arch_in(level: str, content: str | bytes) -> int | None:
    """The capability that a file says it is for; None where it does not say."""
    if level == "cubin":
        assert isinstance(content, bytes)
        return cubin_capability(content)
    assert isinstance(content, str)
    pattern = {"ptx": r"^\.target\s+sm_(\d+)", "ttgir": r'ttg\.target = "cuda:(\d+)"'}.get(level)
    found = re.search(pattern, content, re.MULTILINE) if pattern else None
    return int(found[1]) if found else None


_ELF_FLAGS = slice(48, 52)  # e_flags of a 64-bit ELF header
_ABI_VERSION = 8  # of EI_ABIVERSION: from CUDA 13 on the flags hold the architecture one byte further up


def cubin_capability(cubin: bytes) -> int | None:
    """90 of a cubin for sm_90 or sm_90a; None where it is no CUDA ELF."""
    if len(cubin) < 64 or cubin[:4] != b"\x7fELF":
        return None
    flags = int.from_bytes(cubin[_ELF_FLAGS], "little")
    return flags >> 8 & 0xFF if cubin[8] >= _ABI_VERSION else flags & 0xFF


def ptx_parameters(ptx: str, entry: str) -> list[str]:
    """The parameters of a kernel by type and size, without their names: what the launcher hands over."""
    found = re.search(rf"\.entry\s+{re.escape(entry)}\s*\(([^)]*)\)", ptx)
    parameters = []
    for line in (found[1] if found else "").split(","):
        kind = re.search(r"\.param\b.*?(\.[busf]\d+)\b", line)
        size = re.search(r"\[(\d+)\]", line)
        if kind:
            parameters.append(kind[1] + (f"[{size[1]}]" if size else ""))
    return parameters
