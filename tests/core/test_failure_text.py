"""What a line says of a failure whose text is pages."""

from __future__ import annotations

import pytest

from tilelang_gemm_wrapper.core.failure_text import first_line, last_line, told

SOURCE = "#include <cuda.h>\n" + "  float error = 0; // an error of its own: none\n" * 400


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA", "CUDA error: out of memory"),
        ("two lines\nof prose", "two lines"),
        ("", "no message"),
        (
            f"{SOURCE}\nCompilation error:\nk.cu(7): error: expected a ';'\n1 error",
            "k.cu(7): error: expected a ';'",
        ),
        (f"{SOURCE}\nptxas fatal   : too much shared data", "ptxas fatal   : too much shared data"),
    ],
)
def test_the_line_that_names_the_error_is_told(text: str, line: str) -> None:
    assert first_line(RuntimeError(text)) == f"RuntimeError: {line}"


def test_a_long_line_is_cut() -> None:
    assert len(first_line(RuntimeError("x" * 1000))) == 300
    assert len(last_line(RuntimeError("x" * 1000))) == 300


def test_the_last_line_of_a_traceback_is_told() -> None:
    assert last_line(RuntimeError("Traceback\n  File ...\nChildFailedError: no device\n")) == (
        "ChildFailedError: no device"
    )
    assert last_line(RuntimeError()) == "RuntimeError"


def test_an_exception_without_text_has_its_kind() -> None:
    assert told(RuntimeError()) == "RuntimeError"
    assert told(OSError("no error number")) == "no error number"
