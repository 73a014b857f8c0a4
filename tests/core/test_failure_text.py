"""One line of an exception: the one that says what went wrong, whatever stands around it."""

from __future__ import annotations

import pytest

from tilelang_gemm_wrapper.core.failure_text import first_line

CUDA_SOURCE = "#include <tl_templates/cuda/gemm.h>\n" + '  printf("error: no\\n");\n' * 400


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        (
            "k.cu(3): warning: unused\nk.cu(7): error: identifier 'x' is undefined\n\n1 error detected\n",
            "k.cu(7): error: identifier 'x' is undefined",
        ),
        (
            "ptxas info    : 0 bytes gmem\nptxas error   : Entry function 'main' uses too much shared data\n",
            "ptxas error   : Entry function 'main' uses too much shared data",
        ),
        ("ptxas fatal   : Memory allocation failure\n", "ptxas fatal   : Memory allocation failure"),
        ("nvcc was killed\n", "nvcc was killed"),
        ("", "Command: nvcc -O3 k.cu"),
    ],
)
def test_of_a_compilers_pages_its_complaint_is_told(output: str, complaint: str) -> None:
    message = f"{CUDA_SOURCE}\nCompilation error:\n{output}\nCommand: nvcc -O3 k.cu\n"
    told = first_line(RuntimeError(message))
    assert told == f"RuntimeError: {complaint}"


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (ValueError("  M must be above 1\nerror: a later line"), "ValueError: M must be above 1"),
        (RuntimeError(), "RuntimeError: no message"),
        (KeyError("a"), "KeyError: 'a'"),
        (RuntimeError("x" * 1000), "RuntimeError: " + "x" * 286),
    ],
)
def test_of_others_the_first_line_is_told(failure: Exception, told: str) -> None:
    assert first_line(failure) == told
