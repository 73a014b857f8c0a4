"""Locks on files between processes. The operating system frees the lock of a process that dies."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

_POLL_S = 0.1
_HELD_BY_ANOTHER = (errno.EWOULDBLOCK, errno.EACCES)  # some file systems answer EACCES


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file; False where another process holds it.

    Raises OSError where the file system, or the platform, has no locks.
    """
    try:
        import fcntl
    except ImportError as error:
        raise OSError(errno.ENOSYS, "this platform has no flock") from error
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD_BY_ANOTHER:
            return False
        raise
    return True


def take(path: Path, limit_s: float, waiting: Callable[[], None]) -> int:
    """The descriptor that holds the lock of `path` until it is closed; the file is made if need be.

    `waiting` is called once, where the lock is not free within a second. Raises TimeoutError after `limit_s`
    seconds, another OSError where no lock is to be had.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        started, told = time.monotonic(), False
        while not try_lock(descriptor):
            waited = time.monotonic() - started
            if waited >= limit_s:
                raise TimeoutError(f"another process has held {path} for {limit_s:g} s")
            if waited >= 1 and not told:
                waiting()
                told = True
            time.sleep(min(_POLL_S, limit_s))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
