"""core/progress.py: a bar is shown where it can be, and stops nothing where it cannot."""

from __future__ import annotations

import io
import sys

import pytest
from tqdm import tqdm

from tilelang_gemm_wrapper.core.progress import progress_bar
from tilelang_gemm_wrapper.core.streams import Forgiving


class Full(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")

    def flush(self):
        raise OSError(28, "No space left on device")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, closed(), Full()], ids=["none", "closed", "full disk"])
def test_nothing_is_stopped(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("compiling", "kernel") as done_of:
        for done in range(3):
            done_of(done + 1, 3)


def test_what_is_shown(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar("compiling", "kernel") as done_of:
        done_of(1, 3)
        done_of(3, 3)
    shown = sys.stderr.getvalue()
    assert "compiling" in shown and "3/3" in shown


def test_what_is_not_to_be_shown(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar("compiling", "kernel", show=False) as done_of:
        done_of(3, 3)
    assert sys.stderr.getvalue() == ""


@pytest.mark.parametrize("stream", [None, closed(), Full()], ids=["none", "closed", "full disk"])
def test_a_bar_of_ones_own_is_not_stopped_either(stream):
    forgiving = Forgiving(stream)
    with tqdm(total=2, file=forgiving, dynamic_ncols=True) as bar:
        bar.update()
        tqdm.write("a remark", file=forgiving)
