"""A temporary directory that the processes of one session share, and one in which compilers can work."""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tilelang_gemm_wrapper.core.locks import try_lock

_PREFIX = "tilelang_gemm_"
_USERS = "users.lock"  # in the directory; each process that uses it has a shared lock of this file
_REMOVAL_S = 5.0  # that the last user may take
_COMPILERS_NEED = bytes(16 << 20)  # nvcc's and the host compiler's files for one kernel, and some more

logger = logging.getLogger(__name__)


def shared_directory(purpose: str) -> Path:
    """The directory of this user and session for `purpose`; a private one where it cannot be shared.

    Private where somebody else has made it or the file system has no locks. Raises OSError where no directory
    can be made.
    """
    _remove_abandoned()
    which = hashlib.sha256(purpose.encode()).hexdigest()[:8]
    directory = Path(tempfile.gettempdir(), f"{_prefix()}{os.getsid(0)}_{which}")
    deadline = time.monotonic() + _REMOVAL_S
    while time.monotonic() < deadline:
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        try:
            if not _is_ours(directory):
                break
            if hold(directory):
                return directory
        except FileNotFoundError:
            pass  # removed since
        except OSError:
            break
        time.sleep(0.02)
    return _private_directory()


def moved_from_unfit(last_resort: Path) -> bool:
    """Have this process and its children use another temporary directory, if compilers cannot use theirs.

    nvcc takes TMPDIR as it is, and TileLang loads from there what it has linked. `last_resort`: tried where
    the usual places are unfit too. False where the directory is fit, or no other is.
    """
    why = why_unfit_for_compilers()
    if why is None:
        return False
    place = next((place for place in ("/tmp", "/var/tmp", str(last_resort)) if not _why_unfit(place)), None)
    if place is None:
        logger.warning("no temporary directory serves the compilers (%s); set TMPDIR to one", why)
        return False
    logger.warning("%s, so compilers cannot use it: TMPDIR is %s from now on", why, place)
    os.environ["TMPDIR"] = tempfile.tempdir = place
    return True


def why_unfit_for_compilers() -> str | None:
    """Why the directory that nvcc takes, or that Python takes, is of no use to them, or None."""
    return _why_unfit(os.environ.get("TMPDIR") or "/tmp") or _why_unfit(_pythons())


def _pythons() -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:  # none of those that Python looks at can be written
        return "/tmp"


def is_noexec(place: str | Path) -> bool:
    return bool(os.statvfs(place).f_flag & os.ST_NOEXEC)


def _why_unfit(place: str) -> str | None:
    try:
        if is_noexec(place):
            return f"{place} is on a file system from which nothing may be loaded (noexec)"
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(_COMPILERS_NEED)
    except OSError as error:
        return f"{place} cannot be written ({error.strerror or error})"
    return None


def is_shared(directory: Path) -> bool:
    """Whether `directory` came from `shared_directory`, of this process or of one that has passed it on."""
    return directory.name.startswith(_prefix()) and os.path.isfile(directory / _USERS)


def hold(directory: Path) -> bool:
    """Keep a shared directory until this process ends; False where its last user is removing it.

    Raises OSError where the file system has no locks.
    """
    users = os.open(directory / _USERS, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        held = try_lock(users, shared=True) and _is_at(users, directory / _USERS)
    except OSError:
        os.close(users)
        raise
    if held:
        _at_exit(lambda: _remove_unused(directory, users))
    else:
        os.close(users)
    return held


def _private_directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix=_prefix()))
    _at_exit(lambda: shutil.rmtree(directory, ignore_errors=True))
    return directory


def _remove_abandoned() -> None:
    """Remove what killed processes have left."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_prefix()}*"):
        with suppress(OSError):
            if _is_ours(directory):
                _remove_unused(directory, os.open(directory / _USERS, os.O_RDWR))


def _remove_unused(directory: Path, users: int) -> None:
    """Remove a shared directory that no other process uses; closes `users`, its open lock file."""
    try:
        if try_lock(users) and _is_at(users, directory / _USERS):
            shutil.rmtree(directory, ignore_errors=True)
    except OSError:
        pass  # no locks any more: better left behind than taken away from others
    finally:
        os.close(users)


def _prefix() -> str:
    return f"{_PREFIX}{os.getuid()}_"


def _is_ours(directory: Path) -> bool:
    """Whether this user alone can have put something in; in /tmp anyone may have made it before."""
    found = directory.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _at_exit(do: Callable[[], None]) -> None:
    """Not at the exit of forked processes, which inherit what is to be done."""
    here = os.getpid()
    atexit.register(lambda: do() if os.getpid() == here else None)
