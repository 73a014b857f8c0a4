"""The journal of a config directory: every record of every run, append-only, so that nothing is lost.

`<directory>/.tuning/journal.jsonl` has a JSON object a line. A record holds where the environment that made
it is the same: device, versions and kernel sources. The driver alone writes; a lock keeps a second one away.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tilelang_gemm_wrapper.core.tuner.records import Record, from_fields, to_fields

FOLDER = ".tuning"


class DirectoryBusyError(RuntimeError):
    """Another tuner is writing into the directory; the message names it."""


def environment_key(environment: Mapping[str, Any]) -> str:
    """A short name of what a timing depends on: device, driver, versions, kernel sources."""
    text = json.dumps(dict(environment), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Journal:
    """Opened for one run: reads what earlier runs left, appends what this one learns.

    Each record is on its way to the disk when `append` returns: after a kill at any moment at most the line
    in flight is cut, and `records` passes over a cut line.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / FOLDER / "journal.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        self._end_cut_line()

    def _end_cut_line(self) -> None:
        """A kill may have cut the last line: what is appended must not be glued to it."""
        if self._file.seek(0, os.SEEK_END):
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")
                self._file.flush()

    def append(self, environment: str, record: Record) -> None:
        line = json.dumps({"environment": environment, **to_fields(record)})
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def note_environment(self, environment: Mapping[str, Any]) -> None:
        """Say once what an environment key stands for."""
        line = {"record": "environment", "environment": environment_key(environment), **environment}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def records(self, environment: str | None = None) -> list[Record]:
        """The records made in `environment` (all where None), oldest first."""
        found = []
        for line in self.path.read_bytes().splitlines():
            try:
                fields = json.loads(line)
                key = fields.pop("environment")
                if fields["record"] != "environment" and environment in (None, key):
                    found.append(from_fields(fields))
            except (ValueError, KeyError, TypeError, AttributeError):  # cut by a kill, or of another version
                continue
        return found

    def close(self) -> None:
        self._file.close()


class DirectoryLock:
    """Held by the one tuner that may write into a directory; the kernel frees it when the process dies."""

    def __init__(self, directory: Path, *, wait: bool = False, poll_s: float = 1.0) -> None:
        self._path = directory / FOLDER / "lock"
        self._wait, self._poll_s = wait, poll_s
        self._descriptor = -1

    def __enter__(self) -> DirectoryLock:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    os.close(descriptor)
                    raise
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "unknown"
                if not self._wait:
                    os.close(descriptor)
                    raise DirectoryBusyError(
                        f"another tuner ({holder}) writes into {self._path.parent.parent}: wait for it with "
                        f"--wait, or give this one another --out"
                    ) from None
                if not told:
                    print(f"waiting for another tuner ({holder})", flush=True)
                    told = True
                time.sleep(self._poll_s)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
