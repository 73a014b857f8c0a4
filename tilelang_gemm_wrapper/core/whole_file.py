"""Writing a file so that a reader, or a kill at any moment, sees the old or the new, never half of it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import TextIO


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A file beside `path` to write to, which takes its place when the block ends; not if that raises.

    A link stays one: what it leads to is replaced. What is no plain file, as /dev/null, is written to and
    never replaced.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        with path.open("w", newline="", encoding="utf-8") as file:
            yield file
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Containers that share a disk have the same process ids; a name may be as long as one can be.
    beside = path.with_name(f".{path.name[:40]}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        with beside.open("w", newline="", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
        _put_in_place(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def append(file: FileIO, data: bytes) -> None:
    """Add all of `data` at the end of a file opened with "ab" and without a buffer, or nothing.

    One write, so that Ctrl-C leaves all of it or none. Raises OSError where a disk has room for a part alone.
    """
    end = file.seek(0, os.SEEK_END) if file.seekable() else None  # None for a device
    try:
        if file.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
    except OSError:
        if end is not None:
            os.ftruncate(file.fileno(), end)
        raise


def _put_in_place(beside: Path, path: Path) -> None:
    try:
        os.replace(beside, path)
    except OSError as error:
        if error.errno != errno.EBUSY:  # a mount of this one file, as containers have
            raise
        shutil.copyfile(beside, path)
