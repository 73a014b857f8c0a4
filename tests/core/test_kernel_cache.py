"""core/kernel_cache.py: a cache that cannot be written costs no kernel, and is said once.

Permission bits do not stop root, so directories that cannot be written lie below a file or in /proc, or the
system calls are made to fail.
"""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tilelang_gemm_wrapper import configurer
from tilelang_gemm_wrapper.core import kernel_cache
from tilelang_gemm_wrapper.core.environment import installed_version

ROOT = Path(__file__).resolve().parents[2]
KEY = "0" * 64  # as TileLang names the folder of a kernel


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """A process that has decided nothing yet, with a place of its own for temporary files."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(kernel_cache, "_in_use", {})
    monkeypatch.delenv("TILELANG_CACHE_DIR", raising=False)
    return temporary


@pytest.fixture
def filled(tmp_path, monkeypatch):
    """A cache with a kernel of the installed TileLang, a marker and a lock."""
    directory = tmp_path / "filled"
    for path in (_kernel_of(directory), directory / "tilelang_gemm_compiled" / "marker"):
        path.parent.mkdir(parents=True)
        path.write_text("of old")
    (directory / "tilelang_gemm_compile.lock").touch()
    (directory / f"{installed_version('tilelang')}" / ".staging" / "half").mkdir(parents=True)
    (directory / "another program's").mkdir()
    monkeypatch.setenv(configurer.CACHE_DIR, str(directory))
    return directory


def _kernel_of(directory: Path) -> Path:
    return directory / installed_version("tilelang") / "linux-x86_64" / "kernels" / KEY / "executable.so"


def refuse_writing(monkeypatch, below: Path, error: int) -> None:
    """As a read-only mount, a full disk or a quota at `below`: neither a file nor a folder can be made."""
    temporary_file, make_directory = tempfile.TemporaryFile, os.mkdir

    def refused(path):
        return Path(path).is_relative_to(below)

    def file_in(dir=None, **options):
        if refused(dir):
            raise OSError(error, os.strerror(error), str(dir))
        return temporary_file(dir=dir, **options)

    def mkdir(path, *arguments, **options):
        if refused(path) and not os.path.exists(path):
            raise OSError(error, os.strerror(error), str(path))
        return make_directory(path, *arguments, **options)

    monkeypatch.setattr(tempfile, "TemporaryFile", file_in)
    monkeypatch.setattr(os, "mkdir", mkdir)


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_cache_that_can_be_written_is_used_and_nothing_is_said(tmp_path, monkeypatch, caplog):
    wanted = tmp_path / "not" / "there" / "yet"
    monkeypatch.setenv(configurer.CACHE_DIR, str(wanted))
    assert kernel_cache.cache_directory() == wanted
    assert wanted.is_dir()
    assert warnings(caplog) == []


@pytest.mark.parametrize("wanted", ["/dev/null/cache", "/proc/cache", "/proc/self/environ"])
def test_a_cache_that_cannot_be_made_costs_one_warning(wanted, monkeypatch, fresh, caplog):
    monkeypatch.setenv(configurer.CACHE_DIR, wanted)
    directory = kernel_cache.cache_directory()
    assert directory.parent == fresh
    (directory / "kernel").write_text("compiled")
    assert kernel_cache.cache_directory() == directory
    (said,) = warnings(caplog)
    for part in (wanted, str(directory), f"set {configurer.CACHE_DIR}", "cannot be written ("):
        assert part in said


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_filled_cache_is_used_whatever_forbids_to_write_it(error, filled, fresh, monkeypatch, caplog):
    refuse_writing(monkeypatch, filled, error)
    directory = kernel_cache.cache_directory()
    assert directory.parent == fresh
    assert _kernel_of(directory).read_text() == "of old"
    assert (directory / "tilelang_gemm_compiled" / "marker").read_text() == "of old"
    assert f"{filled} cannot be written ({os.strerror(error)})" in warnings(caplog)[0]
    # What is compiled goes beside it, and not into the cache.
    added = _kernel_of(directory).parents[1] / ("1" * 64)
    added.mkdir()
    assert not (_kernel_of(filled).parents[1] / added.name).exists()
    # Neither what others are writing nor their locks, which would be this cache's.
    assert not list(directory.rglob("half")) and not (directory / "tilelang_gemm_compile.lock").exists()
    assert not (directory / "another program's").exists()


def test_a_folder_of_another_user_inside_counts_too(filled, fresh, monkeypatch, caplog):
    """A shared directory whose kernels somebody else has compiled."""
    theirs = _kernel_of(filled).parents[1]
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != theirs)
    assert kernel_cache.cache_directory().parent == fresh
    assert f"no permission to write into {theirs}" in warnings(caplog)[0]


@pytest.mark.parametrize("variable", [None, "~/kernels"])
def test_without_a_home(variable, fresh, monkeypatch, caplog):
    def no_home(*_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(Path, "expanduser", no_home)
    monkeypatch.setenv(configurer.CACHE_DIR, variable or "")
    assert kernel_cache.known_directory() is None
    directory = kernel_cache.cache_directory()
    assert directory.parent == fresh and kernel_cache.cache_directory() == directory
    (said,) = warnings(caplog)
    assert "home directory" in said and configurer.CACHE_DIR in said


def test_without_any_place_the_filled_cache_is_still_read(filled, monkeypatch, caplog):
    def nowhere():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    refuse_writing(monkeypatch, filled, errno.EROFS)
    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    assert kernel_cache.cache_directory() == filled
    assert "no kernel can be compiled" in warnings(caplog)[0]


def test_a_disk_that_has_filled_up_since(filled, fresh, monkeypatch, caplog):
    assert kernel_cache.cache_directory() == filled
    assert not kernel_cache.given_up_for(RuntimeError("no such instruction"))  # not the directory's fault
    assert not kernel_cache.given_up_for(FileNotFoundError(errno.ENOENT, "no nvcc", "/usr/bin/nvcc"))
    refuse_writing(monkeypatch, filled, errno.ENOSPC)
    assert kernel_cache.given_up_for(RuntimeError("whatever TileLang made of it"))
    directory = kernel_cache.cache_directory()
    assert directory.parent == fresh and _kernel_of(directory).exists()
    assert len(warnings(caplog)) == 1
    assert not kernel_cache.given_up_for(RuntimeError("again"))  # there is no third place
    assert kernel_cache.cache_directory() == directory


def test_an_error_that_names_the_directory_is_enough(filled, fresh):
    assert kernel_cache.cache_directory() == filled
    assert kernel_cache.given_up_for(OSError(errno.EDQUOT, "Disk quota exceeded", str(filled / "x")))
    assert kernel_cache.cache_directory().parent == fresh


def test_looking_changes_nothing(tmp_path, filled, monkeypatch):
    def everything():
        return sorted(tmp_path.rglob("*"))

    before = everything()
    assert kernel_cache.why_unwritable(filled) is None
    assert kernel_cache.why_unwritable(tmp_path / "not" / "there") is None
    assert kernel_cache.why_unwritable(_kernel_of(filled) / "below") == "Not a directory"
    assert kernel_cache.why_unwritable(_kernel_of(filled)) == "Not a directory"
    assert kernel_cache.known_directory() == filled
    assert everything() == before


def test_where_kernels_are_wanted(monkeypatch, tmp_path):
    monkeypatch.setenv("TILELANG_CACHE_DIR", str(tmp_path / "theirs"))
    assert kernel_cache.wanted_directory() == tmp_path / "theirs"
    monkeypatch.setenv("TILELANG_CACHE_DIR", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kernel_cache.wanted_directory() == tmp_path / ".tilelang" / "cache"
    monkeypatch.setenv(configurer.CACHE_DIR, str(tmp_path / "ours"))
    assert kernel_cache.wanted_directory() == tmp_path / "ours"


def test_what_stands_in_is_not_stood_in_for_once_tilelang_has_been_told(fresh, monkeypatch, caplog):
    monkeypatch.setenv("TILELANG_CACHE_DIR", "/dev/null/cache")
    directory = kernel_cache.cache_directory()
    monkeypatch.setenv("TILELANG_CACHE_DIR", str(directory))
    assert kernel_cache.cache_directory() == directory
    assert len(warnings(caplog)) == 1


def test_another_library_keeps_its_kernels_in_ours_where_it_cannot_write(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(configurer.CACHE_DIR, str(tmp_path / "ours"))
    for variable, usual in (("TRITON_CACHE_DIR", "/dev/null/cache"), ("DG_JIT_CACHE_DIR", "/dev/null/dg")):
        monkeypatch.setenv(variable, usual)
        kernel_cache.lend_to(variable, "~/elsewhere")
        assert Path(os.environ[variable]).parent == tmp_path / "ours"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "theirs"))
    kernel_cache.lend_to_triton()
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "theirs")
    monkeypatch.delenv("TRITON_CACHE_DIR")
    monkeypatch.setenv("TRITON_HOME", "/dev/null")
    kernel_cache.lend_to_triton()
    assert Path(os.environ["TRITON_CACHE_DIR"]).parent == tmp_path / "ours"
    assert warnings(caplog) == []  # nothing is lost


def test_another_library_does_not_load_from_where_nothing_may_be_loaded(tmp_path, fresh, monkeypatch):
    """Triton loads its launchers from its cache; a home may be mounted noexec, with both caches in it."""
    from tilelang_gemm_wrapper.core import temporary_directory

    for name in ("theirs", "ours"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv(configurer.CACHE_DIR, str(tmp_path / "ours"))
    noexec = {tmp_path / "theirs"}
    monkeypatch.setattr(temporary_directory, "is_noexec", lambda place: Path(place) in noexec)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "theirs" / "not there yet"))
    kernel_cache.lend_to_triton()
    assert Path(os.environ["TRITON_CACHE_DIR"]).parent == tmp_path / "ours"
    noexec.add(tmp_path / "ours")
    kernel_cache.lend_to_triton()
    assert Path(os.environ["TRITON_CACHE_DIR"]).parent == fresh


PROCESS = """
import sys
from tilelang_gemm_wrapper.core import kernel_cache
print(kernel_cache.cache_directory(), flush=True)
sys.stdin.read()
"""


def test_processes_of_a_session_share_what_stands_in_and_the_last_removes_it(fresh, tmp_path):
    environment = {**os.environ, configurer.CACHE_DIR: "/dev/null/cache", "TMPDIR": str(fresh)}
    environment["PYTHONPATH"] = str(ROOT)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for _ in range(2)
    ]
    directories = [rank.stdout.readline().strip() for rank in ranks]
    assert directories[0] == directories[1] and Path(directories[0]).parent == fresh
    said = ranks[0].communicate()[1]
    assert "/dev/null/cache" in said
    assert Path(directories[0]).is_dir(), "another process still uses it"
    ranks[1].communicate()
    assert list(fresh.iterdir()) == []


def test_a_cache_below_another_users_folder_costs_no_start(tmp_path, fresh, monkeypatch, caplog):
    """As /root is to the user of a container whose HOME it is: not even to be looked into."""
    private = tmp_path / "private"
    wanted = private / ".tilelang" / "cache"
    wanted.mkdir(parents=True)
    monkeypatch.setenv(configurer.CACHE_DIR, str(wanted))

    def keep_out(name):
        real = getattr(os, name)

        def refused(path=".", *arguments, **options):
            if isinstance(path, str | os.PathLike) and private in Path(path).parents:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real(path, *arguments, **options)

        monkeypatch.setattr(os, name, refused)

    for name in ("stat", "lstat", "listdir", "scandir", "mkdir", "open"):
        keep_out(name)
    assert kernel_cache.cache_directory().parent == fresh
    (said,) = warnings(caplog)
    assert f"{wanted} cannot be written (Permission denied)" in said


@pytest.mark.parametrize("name", ["x" * 300, f"not there/{'x' * 300}"])
def test_a_name_that_is_too_long_costs_no_start(name, tmp_path, fresh, monkeypatch, caplog):
    monkeypatch.setenv(configurer.CACHE_DIR, str(tmp_path / name))
    assert kernel_cache.why_unwritable(tmp_path / name) == "File name too long"
    assert kernel_cache.cache_directory().parent == fresh
    assert len(warnings(caplog)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]
