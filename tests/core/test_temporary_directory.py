"""core/temporary_directory.py: shared by a session, removed by its last process, trusted only if ours."""

from __future__ import annotations

import atexit
import errno
import os
import tempfile

import pytest

from tilelang_gemm_wrapper.core import locks, temporary_directory


@pytest.fixture(autouse=True)
def exits(tmp_path, monkeypatch):
    """What is to be done when the process ends."""
    done_at_exit = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(atexit, "register", done_at_exit.append)
    yield done_at_exit
    for do in done_at_exit:
        do()


def test_one_directory_for_each_purpose(tmp_path):
    first = temporary_directory.shared_directory("one")
    assert temporary_directory.shared_directory("one") == first
    assert temporary_directory.shared_directory("another") != first
    assert first.parent == tmp_path and temporary_directory.is_shared(first)
    assert not temporary_directory.is_shared(tmp_path)


def test_the_last_user_removes_it(exits):
    directory = temporary_directory.shared_directory("one")
    temporary_directory.hold(directory)  # as another process does
    (directory / "kernel").write_text("")
    exits.pop()()
    assert directory.is_dir()
    exits.pop()()
    assert not directory.exists()


def test_what_a_killed_process_has_left_is_removed(exits):
    left = temporary_directory.shared_directory("left")
    users = os.open(left / "users.lock", os.O_RDWR)
    exits.clear()
    # The system closes what a killed process has open.
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor != users and _is_open_on(descriptor, left / "users.lock"):
            os.close(descriptor)
    os.close(users)
    kept = temporary_directory.shared_directory("kept")
    assert not left.exists() and kept.is_dir()
    temporary_directory.shared_directory("third")
    assert kept.is_dir(), "it is used"


def _is_open_on(descriptor, path):
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


@pytest.mark.parametrize("kind", ["file", "link", "open to others"])
def test_what_somebody_else_has_made_is_not_trusted(kind, tmp_path, monkeypatch, exits):
    shared = temporary_directory.shared_directory("one")
    exits.pop()()
    if kind == "file":
        shared.write_text("")
    elif kind == "link":
        (tmp_path / "theirs").mkdir()
        shared.symlink_to(tmp_path / "theirs")
    else:
        shared.mkdir()
        shared.chmod(0o777)
    private = temporary_directory.shared_directory("one")
    assert private != shared and private.is_dir() and private.stat().st_mode & 0o777 == 0o700
    exits.pop()()
    assert not private.exists()


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_each_process_has_its_own(error, monkeypatch, exits):
    def no_locks(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("fcntl.flock", no_locks)
    first, second = (temporary_directory.shared_directory("one") for _ in range(2))
    assert first != second and first.is_dir() and second.is_dir()
    for _ in range(2):
        exits.pop()()
    assert not first.exists() and not second.exists()


def test_a_forked_process_removes_nothing(exits, monkeypatch):
    directory = temporary_directory.shared_directory("one")
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        exits[-1]()
    assert directory.is_dir()


def test_one_that_is_being_removed_is_not_joined(tmp_path, exits):
    directory = temporary_directory.shared_directory("one")
    exits.pop()()
    directory.mkdir(mode=0o700)
    remover = os.open(directory / "users.lock", os.O_RDWR | os.O_CREAT)
    assert locks.try_lock(remover)
    assert not temporary_directory.hold(directory)
    os.close(remover)


@pytest.mark.parametrize("unfit", ["missing", "file", "full", "noexec"])
def test_compilers_get_a_directory_that_they_can_use(unfit, tmp_path, monkeypatch, caplog):
    place, other = tmp_path / unfit, tmp_path / "other"
    other.mkdir()
    if unfit == "file":
        place.touch()
    elif unfit != "missing":
        place.mkdir()
    _refuse(monkeypatch, unfit, {str(place), "/tmp", "/var/tmp"})
    monkeypatch.setenv("TMPDIR", str(place))
    assert temporary_directory.moved_from_unfit(other)
    assert os.environ["TMPDIR"] == tempfile.gettempdir() and tempfile.gettempdir() != str(place)
    assert f"{place} " in caplog.text and "so compilers cannot use it" in caplog.text
    assert not temporary_directory.moved_from_unfit(other), "it is fit now"


def _refuse(monkeypatch, unfit, places):
    temporary_file, statvfs = tempfile.TemporaryFile, os.statvfs

    def file_in(dir):
        if unfit == "full" and dir in places:
            raise OSError(errno.ENOSPC, "No space left on device")
        return temporary_file(dir=dir)

    def of(place):
        found = statvfs(place)
        if unfit != "noexec" or place not in places:
            return found
        return os.statvfs_result((*found[:8], found.f_flag | os.ST_NOEXEC, *found[9:]))

    monkeypatch.setattr(tempfile, "TemporaryFile", file_in)
    monkeypatch.setattr(os, "statvfs", of)


def test_where_no_directory_serves_compilers_it_is_said(tmp_path, monkeypatch, caplog):
    _refuse(monkeypatch, "full", {str(tmp_path), "/tmp", "/var/tmp"})
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert not temporary_directory.moved_from_unfit(tmp_path)
    assert f"{tmp_path} cannot be written (No space left on device)" in caplog.text
    assert os.environ["TMPDIR"] == str(tmp_path)
