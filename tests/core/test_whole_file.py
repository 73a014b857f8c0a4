"""core/whole_file.py: a file is replaced as a whole, and what is no plain file is never replaced."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from tilelang_gemm_wrapper.core.whole_file import append, replacing


def write(path, text="new"):
    with replacing(path) as file:
        file.write(text)


def test_a_device_or_pipe_is_written_to_and_stays_one(tmp_path):
    """A run as root that is told to write to /dev/null must not put a file there."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    read = []
    for path in (pipe, link):
        reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
        reader.start()
        write(path)
        reader.join(10)
    assert read == ["new", "new"]
    assert stat.S_ISFIFO(pipe.lstat().st_mode) and link.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


@pytest.mark.parametrize("target", ["there", "folder/not there"])
def test_a_link_stays_one(tmp_path, target):
    (tmp_path / "there").write_text("old")
    link = tmp_path / "link"
    link.symlink_to(target)
    write(link)
    assert link.is_symlink() and (tmp_path / target).read_text() == "new"


@pytest.mark.parametrize("error", [errno.EBUSY, errno.ENOSYS, errno.EPERM])
def test_a_file_that_cannot_be_renamed_to_is_written(tmp_path, monkeypatch, error):
    """A mount of this one file; a store of objects mounted as a file system; another user's in /tmp."""

    def busy(*_):
        raise OSError(error, os.strerror(error))

    path = tmp_path / "file"
    path.write_text("older and longer")
    monkeypatch.setattr(os, "replace", busy)
    write(path)
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file"]


def test_the_longest_name(tmp_path):
    path = tmp_path / ("x" * 255)
    write(path)
    assert path.read_text() == "new"


def test_two_at_once_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as first:
        first.write("first")
        write(path, "second")
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["file"]


class NearlyFull:
    """A file on a disk that has room for three bytes."""

    def __init__(self, file):
        self._file = file

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        if self._file.tell() > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(data[:3])


def test_what_does_not_fit_is_not_appended_in_part(tmp_path):
    path = tmp_path / "rows"
    path.write_text("whole\n")
    with path.open("ab", buffering=0) as file:
        with pytest.raises(OSError, match="No space left"):
            append(NearlyFull(file), b"a second line\n")
        append(file, b"third\n")
    assert path.read_text() == "whole\nthird\n"


def test_a_device_is_appended_to():
    with open(os.devnull, "ab", buffering=0) as file:
        append(file, b"line\n")


@pytest.mark.parametrize("is_there", [True, False])
def test_a_folder_that_takes_no_other_file(tmp_path, monkeypatch, is_there):
    """As a file that is mounted into a container's own folders."""
    path, path_open = tmp_path / "file", Path.open

    def refuse(self, *arguments, **options):
        if self != path or not is_there:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return path_open(self, *arguments, **options)

    if is_there:
        path.write_text("older and longer")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        if is_there:
            write(path)
        else:
            with pytest.raises(PermissionError):
                write(path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["new"] * is_there


def test_a_full_disk_leaves_the_old(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "file"
    path.write_text("old")
    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(os, call, full)
            write(path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOSYS])
def test_a_file_system_without_sync(tmp_path, monkeypatch, error):
    def refused(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", refused)
    write(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "new"
