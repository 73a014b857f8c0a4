"""The debug helpers outside a kernel: conditions on program ids, tensors, and a process that compiles."""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("is about a process that compiles", allow_module_level=True)

from tilelang_gemm_wrapper.lab.debug import breakpoint_if, check_tensors_gpu_ready, holds, print_if


@pytest.mark.parametrize(
    ("conditions", "ids", "expected"),
    [
        ("", (3, 4, 5), True),
        ("=0", (0,), True),
        ("=0", (1, 0), False),
        ("==2", (2,), True),
        (",>1", (0, 2), True),
        (",>1", (5, 1), False),
        (">=1,!=0", (1, 1), True),
        (">=1,!=0", (1, 0), False),
        (">=1,!=0", (0, 1), False),
        ("<=2,<2", (2, 1), True),
        ("<=2,<2", (2, 2), False),
        (" > 1 , = 0 ", (2, 0), True),
        (",,=10", (1, 1, 10), True),
        (",=0", (7,), True),  # an axis that the grid does not have is 0
    ],
)
def test_conditions(conditions: str, ids: tuple[int, ...], expected: bool) -> None:
    assert holds(conditions, *ids) is expected


@pytest.mark.parametrize("conditions", ["0", "=>1", "=x", "=-1", "=1=2", "<>1", "= "])
def test_bad_conditions(conditions: str) -> None:
    with pytest.raises(ValueError, match="is none; expected one of = == != >= <= > < and a whole number"):
        holds(conditions, 0)


def test_a_bad_condition_is_seen_though_an_earlier_one_fails() -> None:
    with pytest.raises(ValueError, match="for axis 1"):
        holds("=1,oops", 0, 0)


def test_too_many_axes() -> None:
    with pytest.raises(ValueError, match="name 4 axes"):
        holds("=0,=0,=0,=0")


def test_tensors() -> None:
    with pytest.raises(ValueError, match=r"tensor 0 of shape \(3, 2\) has strides \(1, 3\), which is not"):
        check_tensors_gpu_ready(torch.zeros(2, 3).t())
    with pytest.raises(ValueError, match="tensor 0 is on cpu; move it to a GPU, or set TRITON_INTERPRET=1"):
        check_tensors_gpu_ready(torch.zeros(2))


def test_outside_the_interpreter() -> None:
    for call in (lambda: print_if("here"), breakpoint_if):
        with pytest.raises(RuntimeError, match="work in Triton's interpreter alone"):
            call()
