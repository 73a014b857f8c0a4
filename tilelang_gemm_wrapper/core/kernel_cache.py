"""Where compiled kernels are kept: the directory that the user means or, where it cannot be written, another.

What stands in is a temporary directory. It shows every kernel that the user's has and takes what is compiled,
so that a cache that cannot be written costs no kernel, only the next start's time.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeGuard

from tilelang_gemm_wrapper import configurer
from tilelang_gemm_wrapper.core import temporary_directory
from tilelang_gemm_wrapper.core.environment import installed_version

logger = logging.getLogger(__name__)

OWN_FOLDERS = "tilelang_gemm_"  # what ours in a cache directory start with; the others are TileLang's
NOTES = f"{OWN_FOLDERS}compiled"  # the folder of what is noted of kernels
REMEDY = f"set {configurer.CACHE_DIR} to a directory that can be written and is kept"
_KERNEL = re.compile(r"[0-9a-f]{64}")  # TileLang's folders that hold one kernel each, whole
_UNFINISHED = (".staging", "tmp")  # TileLang's folders of what is being written
_DISABLE = "TILELANG_DISABLE_CACHE"
NO_HOME = "there is no home directory"
_PROBE = bytes(1 << 20)  # about a kernel: less may still fit on a disk that is full

_in_use: dict[Path | None, Path] = {}  # by what the user means
_lock = threading.Lock()


def wanted_directory() -> Path:
    """Where the user wants compiled kernels.

    Raises RuntimeError where that is in a home and there is none, ValueError where the setting names such.
    """
    own = configurer.cache_directory()
    if own is not None:
        return own
    tilelangs = os.environ.get("TILELANG_CACHE_DIR", "").strip()
    return Path(tilelangs) if tilelangs else Path.home() / ".tilelang" / "cache"


def cache_directory() -> Path:
    """Where compiled kernels are kept: `wanted_directory`, made where it is not there, or what stands in.

    Decided once in a process; where something stands in, a warning says why.
    """
    wanted, why = _wanted()
    with _lock:
        if wanted not in _in_use:
            _in_use[wanted] = _usable(wanted, why)
        return _in_use[wanted]


def why_not_kept() -> str | None:
    """What keeps TileLang from writing and reading any cache, or None."""
    value = os.environ.get(_DISABLE, "")
    return f"{_DISABLE}={value!r} is set" if value.lower() in ("1", "true", "yes", "on") else None


def known_directory() -> Path | None:
    """Where kernels of earlier processes are, if anywhere. Unlike `cache_directory` it decides nothing."""
    wanted, _ = _wanted()
    return _in_use.get(wanted, wanted)


def lend_to(variable: str, usual: str) -> None:
    """Have another library keep its kernels in our directory, where its own cannot be written or loaded from.

    variable: of the environment, names the library's directory; `usual` is that where it is not set. Called
    before the library compiles. Without this its first kernel would cost the call.
    """
    try:
        directory = Path(os.environ.get(variable) or usual).expanduser()
        why = why_unwritable(directory) or _why_not_loaded_from(directory)
    except RuntimeError:
        directory, why = Path(usual), NO_HOME
    if why is not None:
        ours = cache_directory() / f"{OWN_FOLDERS}{variable.lower()}"
        if _why_not_loaded_from(ours) is not None:
            with suppress(OSError):
                ours = temporary_directory.shared_directory(variable)
        logger.info("%s cannot be used (%s): %s is %s from now on", directory, why, variable, ours)
        os.environ[variable] = str(ours)


def _why_not_loaded_from(directory: Path) -> str | None:
    """Why no library can be loaded from a directory, there or not. TileLang loads from a temporary one."""
    wanted = directory.absolute()
    above = next(path for path in (wanted, *wanted.parents) if os.path.exists(path))
    return "its file system is mounted noexec" if temporary_directory.is_noexec(above) else None


def lend_to_triton() -> None:
    lend_to("TRITON_CACHE_DIR", f"{os.environ.get('TRITON_HOME') or '~'}/.triton/cache")


def given_up_for(problem: Exception) -> bool:
    """Keep kernels elsewhere from now on if the directory is what `problem` comes from; whether it is so."""
    wanted, _ = _wanted()
    if wanted is None or cache_directory() != wanted or temporary_directory.is_shared(wanted):
        return False  # something stands in already
    why = why_unwritable(wanted) or (_reason(problem) if _is_about(problem, wanted) else None)
    if why is None:
        return False
    with _lock:
        _in_use[wanted] = _stand_in(wanted, why)
        return _in_use[wanted] != wanted


def why_unwritable(directory: Path) -> str | None:
    """Why no kernel can be put into `directory`, or None. It need not exist, and is left as it was."""
    try:
        _try_to_write(directory)
    except OSError as error:
        return _reason(error)
    folders = (folder for folder in _folders_added_to(directory) if not os.access(folder, os.W_OK | os.X_OK))
    refused = next(folders, None)
    return None if refused is None else f"no permission to write into {refused}"


def _wanted() -> tuple[Path | None, str | None]:
    try:
        return wanted_directory(), None
    except RuntimeError:
        return None, NO_HOME
    except ValueError as error:
        return None, str(error)


def _usable(wanted: Path | None, why: str | None) -> Path:
    if wanted is not None:
        if wanted in _in_use.values():  # what stands in, as TileLang has been told
            return wanted
        if temporary_directory.is_shared(wanted):  # a parent process's, passed on in the environment
            with suppress(OSError):
                temporary_directory.hold(wanted)
            return wanted
        why = why_unwritable(wanted) or _make(wanted / NOTES)
        if why is None:
            return wanted
    return _stand_in(wanted, why or "")


def _make(directory: Path) -> str | None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return _reason(error)
    return None


def _try_to_write(directory: Path) -> None:
    """Write a file, which is gone on return, into `directory` or where it would be made. Raises OSError."""
    try:
        os.lstat(directory)
    except FileNotFoundError:
        wanted = directory.absolute()
        above = next(path for path in wanted.parents if os.path.lexists(path))
        with tempfile.TemporaryDirectory(prefix=OWN_FOLDERS, dir=above) as made:
            alike = Path(made, wanted.relative_to(above))  # a name may be too long
            alike.mkdir(parents=True)
            _try_to_write(alike)
        return
    if not os.path.isdir(directory):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(_PROBE)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _is_about(problem: Exception, directory: Path) -> TypeGuard[OSError]:
    file = getattr(problem, "filename", None)
    return isinstance(problem, OSError) and isinstance(file, str) and Path(file).is_relative_to(directory)


def _folders_added_to(directory: Path) -> Iterator[Path]:
    """`directory` and those in it that the installed TileLang puts kernels into, as far as they exist."""
    if os.path.isdir(directory):  # unlike Path.is_dir never raises
        yield directory
    for top in _tilelangs(directory):
        yield top
        for path, folders, _ in os.walk(top):
            folders[:] = [name for name in folders if not _KERNEL.fullmatch(name)]
            yield from (Path(path, name) for name in folders)


def _tilelangs(directory: Path) -> list[Path]:
    """What the installed TileLang keeps in `directory`: it has a folder for each of its versions."""
    version = installed_version("tilelang").partition("+")[0]
    return [path for path in _starting_with(version, directory) if os.path.isdir(path)] if version else []


def _starting_with(text: str, directory: Path) -> list[Path]:
    """What starts with `text` in a directory; nothing where it is not there, or not to be looked into."""
    try:
        return [directory / name for name in os.listdir(directory) if name.startswith(text)]
    except OSError:
        return []


def _stand_in(wanted: Path | None, why: str) -> Path:
    """A temporary directory that shows what `wanted` has; `wanted` itself where none can be made."""
    name = f"the cache of compiled kernels{f' {wanted}' if wanted else ''} cannot be written ({why})"
    try:
        directory = temporary_directory.shared_directory(str(wanted and wanted.absolute()))
    except OSError as error:
        logger.warning("%s, nor can a temporary one (%s): no kernel can be compiled; %s", name, error, REMEDY)
        return wanted or Path("/")
    if wanted is not None:
        for source in (*_tilelangs(wanted), *_starting_with(OWN_FOLDERS, wanted)):
            _show(source, directory / source.name)
    _make(directory / NOTES)
    logger.warning(
        "%s; kernels that it lacks are compiled into %s and lost when the last process ends; %s",
        name,
        directory,
        REMEDY,
    )
    return directory


def _show(source: Path, target: Path) -> None:
    """Have `target` show what `source` has: its folders, to be added to, with links to kernels and files."""
    if source.suffix == ".lock" or source.name in _UNFINISHED:
        return
    with suppress(OSError):  # another process of the session has made it, or it is unreadable
        if source.is_dir() and not _KERNEL.fullmatch(source.name):
            target.mkdir(exist_ok=True)
            for name in os.listdir(source):
                _show(source / name, target / name)
        else:
            target.symlink_to(source.absolute())
