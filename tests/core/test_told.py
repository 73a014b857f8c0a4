"""core/failure_text.py: what a command says of what ended it."""

from __future__ import annotations

import pytest

from tilelang_gemm_wrapper.core.failure_text import last_line, told


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (RuntimeError(), "RuntimeError"),
        (OSError("no error number"), "no error number"),
        (FileNotFoundError(2, "No such file or directory", "/x"), "/x: No such file or directory"),
        (ImportError("cannot import name 'y' from 'x'"), "cannot import name 'y' from 'x'"),
        (ModuleNotFoundError("No module named 'x.y'", name="x.y"), "x is not installed: pip install x"),
    ],
)
def test_what_ended_a_command(failure: Exception, text: str) -> None:
    assert told(failure) == text


def test_the_last_line_of_a_traceback_is_told() -> None:
    traceback = "Traceback\n  File ...\nChildFailedError: no device\n"
    assert last_line(RuntimeError(traceback)) == "ChildFailedError: no device"
    assert last_line(RuntimeError()) == "RuntimeError"
    assert len(last_line(RuntimeError("x" * 1000))) == 300
