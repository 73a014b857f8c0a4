"""core/locks.py: one process at a time, for a limited time; what has no locks says so at once."""

from __future__ import annotations

import errno
import os
import time

import pytest

from tilelang_gemm_wrapper.core import locks


def take(path, limit_s=0.05):
    return locks.take(path, limit_s, lambda: None)


def test_the_second_waits_no_longer_than_its_limit(tmp_path):
    first = take(tmp_path / "lock")
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"another process has held .*lock for 0\.05 s"):
        take(tmp_path / "lock")
    assert time.monotonic() - started < 5
    os.close(first)
    os.close(take(tmp_path / "lock"))


def test_who_waits_long_is_told_once(tmp_path, monkeypatch):
    first, told = take(tmp_path / "lock"), []
    clock = iter(range(100))
    monkeypatch.setattr(locks.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: None)
    with pytest.raises(TimeoutError):
        locks.take(tmp_path / "lock", 5, lambda: told.append("waits"))
    assert told == ["waits"]
    os.close(first)


def test_readers_share(tmp_path):
    first, second = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    assert locks.try_lock(first, shared=True) and locks.try_lock(second, shared=True)
    assert not locks.try_lock(first)
    for descriptor in (first, second):
        os.close(descriptor)


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_not_taken_for_a_busy_one(tmp_path, monkeypatch, error):
    def no_locks(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("fcntl.flock", no_locks)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError) as raised:
        locks.take(tmp_path / "lock", 60, lambda: pytest.fail("waited"))
    assert raised.value.errno == error
    assert len(os.listdir("/proc/self/fd")) == len(before)
