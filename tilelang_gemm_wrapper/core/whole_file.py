"""Writing a file so that a reader, or a kill at any moment, sees the old or the new, never half of it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import IO, Any, TextIO

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A file beside `path` to write to, which takes its place when the block ends; not if that raises.

    A link stays one: what it leads to is replaced. What is no plain file, as /dev/null, is written to and
    never replaced. So is a file whose folder takes no other, as containers have.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        with _opened(path) as file:
            yield file
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Containers that share a disk have the same process ids; a name may be as long as one can be.
    beside = path.with_name(f".{path.name[:40]}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        opened = _opened(beside)
    except OSError as error:
        if error.errno not in _REFUSED or not os.path.isfile(path):
            raise
        beside = path
        opened = _opened(path)
    try:
        with opened as file:
            yield file
            file.flush()
            sync(file)  # else a power cut may leave the new name on an empty file
        if beside != path:
            _put_in_place(beside, path)
    finally:
        if beside != path:
            beside.unlink(missing_ok=True)


def _opened(path: Path) -> TextIO:
    return path.open("w", newline="", encoding="utf-8")


def sync(file: IO[Any]) -> None:
    """Have what is written on the disk, where the file system knows such a thing: devices and some do not."""
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


def append(file: FileIO, data: bytes) -> None:
    """Add all of `data` at the end of a file opened with "ab" and without a buffer, or nothing.

    One write, so that Ctrl-C leaves all of it or none. Raises OSError where a disk has room for a part alone.
    """
    end = file.seek(0, os.SEEK_END) if file.seekable() else None  # None for a device
    try:
        written = file.write(data)
        while written < len(data):  # a disk took what it still had room for, and now says so
            written += file.write(data[written:])
    except OSError:
        if end is not None:
            os.ftruncate(file.fileno(), end)
        raise


def _put_in_place(beside: Path, path: Path) -> None:
    try:
        os.replace(beside, path)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOSYS, errno.ENOTSUP, *_REFUSED):
            raise
        shutil.copyfile(beside, path)  # a mount of this one file, or a file system that renames nothing
