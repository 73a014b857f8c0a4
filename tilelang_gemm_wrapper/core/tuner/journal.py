"""The journal of a config directory: every record of every run, append-only, so that nothing is lost.

`<directory>/.tuning/journal.jsonl` has a JSON object a line. A record holds where the environment that made
it is the same: device, driver, versions, kernels and their compiler. The driver alone writes; a lock keeps a
second one away.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from tilelang_gemm_wrapper.core.locks import try_lock
from tilelang_gemm_wrapper.core.tuner.records import Record, from_fields, to_fields
from tilelang_gemm_wrapper.core.whole_file import append

logger = logging.getLogger(__name__)

FOLDER = ".tuning"


class DirectoryBusyError(RuntimeError):
    """Another tuner is writing into the directory; the message names it."""


def environment_key(environment: Mapping[str, Any]) -> str:
    """A short name of what a timing depends on: device, driver, versions, and what decides the binaries."""
    text = json.dumps(dict(environment), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_records(lines: Iterable[bytes], environment: str | None = None) -> Iterator[Record]:
    """The records of a journal's lines that were made in `environment` (all where None), in their order."""
    for line in lines:
        try:
            fields = json.loads(line)
            key = fields.pop("environment")
            if fields["record"] == "environment" or environment not in (None, key):
                continue
            record = from_fields(fields)
        except (ValueError, KeyError, TypeError, AttributeError):  # cut by a kill, or of another version
            continue
        yield record


class Journal:
    """Opened for one run: reads what earlier runs left, appends what this one learns.

    Each record is on its way to the disk when `append` returns: after a kill at any moment at most the line
    in flight is cut, and `records` passes over a cut line.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / FOLDER / "journal.jsonl"
        self.is_whole = True  # for this run's part
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: FileIO | None = None
        try:
            self._file = self.path.open("a+b", buffering=0)
            self._end_cut_line(self._file)
        except OSError as error:
            self._say_lost(error)

    def _end_cut_line(self, file: FileIO) -> None:
        """A kill may have cut the last line: what is appended must not be glued to it."""
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                append(file, b"\n")

    def append(self, environment: str, record: Record) -> None:
        self._write({"environment": environment, **to_fields(record)})

    def note_environment(self, environment: Mapping[str, Any]) -> None:
        """Say once what an environment key stands for."""
        self._write({"record": "environment", "environment": environment_key(environment), **environment})

    def _write(self, fields: Mapping[str, Any]) -> None:
        try:
            if self._file is not None:
                append(self._file, json.dumps(fields).encode() + b"\n")
        except OSError as error:
            self._say_lost(error)

    def _say_lost(self, error: OSError) -> None:
        """Once. What is tuned is tuned: only a later run would have used the journal."""
        if self.is_whole:
            logger.warning("%s lacks what --resume would need: %s", self.path, error.strerror or error)
        self.is_whole = False

    def records(self, environment: str | None = None) -> list[Record]:
        """The records made in `environment` (all where None), oldest first."""
        return list(read_records(self.path.read_bytes().splitlines(), environment))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


@contextmanager
def directory_lock(directory: Path, *, wait: bool = False, poll_s: float = 1.0) -> Iterator[None]:
    """Held by the one tuner that may write into a directory; the kernel frees it when the process dies.

    Raises DirectoryBusyError where another holds it, unless `wait`.
    """
    path = directory / FOLDER / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except PermissionError:  # another user's: it can be locked all the same
        descriptor = os.open(path, os.O_RDONLY)
    try:
        _take(descriptor, directory, wait, poll_s)
        _write_holder(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n")
        try:
            yield
        finally:
            _write_holder(descriptor, "")
    finally:
        os.close(descriptor)


def _write_holder(descriptor: int, text: str) -> None:
    with suppress(OSError):  # on a full disk nobody learns who it is
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _take(descriptor: int, directory: Path, wait: bool, poll_s: float) -> None:
    told = False
    while True:
        try:
            if try_lock(descriptor):
                return
        except OSError as error:
            logger.warning("%s cannot be locked (%s): see that no other tuner writes there", directory, error)
            return
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "unknown"
        if not wait:
            raise DirectoryBusyError(
                f"another tuner ({holder}) writes into {directory}: wait for it with --wait, or give this "
                f"one another --out"
            )
        if not told:
            print(f"waiting for another tuner ({holder})", flush=True)
            told = True
        time.sleep(poll_s)
