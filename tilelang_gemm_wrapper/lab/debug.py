"""Helpers to debug Triton kernels in Triton's interpreter: look at values and stop, for chosen programs.

Set TRITON_INTERPRET=1 before Triton is imported. Then, inside a kernel,

    print_if("offsets", offsets, conditions="=0,>1")  # programs with id 0 on axis 0 and above 1 on axis 1
    breakpoint_if(",!=0")  # any on axis 0, not 0 on axis 1

A condition names an axis of the grid by its place: axis 0, 1 and 2, separated by commas. Each is empty (any
program) or an operator out of = == != > >= < <= and a whole number; all must hold.

The idea is that of "A Practitioner's Guide to Triton".
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable
from typing import Any

import torch

_OPERATORS: dict[str, Callable[[int, int], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"(==|!=|>=|<=|=|>|<)\s*(\d+)")
_AXES = 3


def interpreting() -> bool:
    """Whether this process runs Triton kernels in the interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def check_tensors_gpu_ready(*tensors: torch.Tensor) -> None:
    """Raise ValueError unless each tensor is contiguous and, outside the interpreter, on a CUDA device."""
    for position, tensor in enumerate(tensors):
        if not tensor.is_contiguous():
            raise ValueError(
                f"tensor {position} of shape {tuple(tensor.shape)} has strides {tensor.stride()}, which is "
                f"not contiguous; pass .contiguous(), or its strides to the kernel"
            )
        if not tensor.is_cuda and not interpreting():
            raise ValueError(
                f"tensor {position} is on {tensor.device}; move it to a GPU, or set TRITON_INTERPRET=1 "
                f"before Triton is imported to run the kernel on the CPU"
            )


def holds(conditions: str, *program_ids: int) -> bool:
    """Whether the conditions hold for a program with these ids, one an axis; those not given are 0.

    Raises ValueError for a condition that is none.
    """
    parts = conditions.replace(" ", "").split(",")
    if len(parts) > _AXES:
        raise ValueError(f"conditions {conditions!r} name {len(parts)} axes; a grid has at most {_AXES}")
    ids = (*program_ids, *([0] * _AXES))
    wanted = []
    for axis, part in enumerate(parts):
        if not part:
            continue
        match = _CONDITION.fullmatch(part)
        if match is None:
            raise ValueError(
                f"condition {part!r} for axis {axis} is none; expected one of {' '.join(_OPERATORS)} and a "
                f"whole number, as in '=0' or '>1,!=0', or nothing for any program"
            )
        wanted.append(_OPERATORS[match[1]](ids[axis], int(match[2])))
    return all(wanted)


def print_if(text: str, *values: Any, conditions: str = "") -> None:
    """In a kernel: print text and values, Triton's as arrays, in the programs that the conditions name.

    Raises RuntimeError outside Triton's interpreter, ValueError for a bad condition.
    """
    ids = _program_ids()
    if holds(conditions, *ids):
        print(f"program {ids}:", text, *(_array(value) for value in values))


def breakpoint_if(conditions: str = "") -> None:
    """In a kernel: enter the debugger in the programs that the conditions name; `up` leads into the kernel.

    Raises RuntimeError outside Triton's interpreter, ValueError for a bad condition.
    """
    if holds(conditions, *_program_ids()):
        breakpoint()


def _program_ids() -> tuple[int, ...]:
    """Of the program that the interpreter runs right now."""
    if not interpreting():
        raise RuntimeError(
            "print_if and breakpoint_if work in Triton's interpreter alone; set TRITON_INTERPRET=1 before "
            "Triton is imported, or use tl.device_print in a compiled kernel"
        )
    from triton.runtime.interpreter import interpreter_builder

    return tuple(int(index) for index in interpreter_builder.grid_idx or ())


def _array(value: Any) -> Any:
    """The NumPy array of an interpreted tensor; everything else as it is."""
    handle = getattr(value, "handle", None)
    return getattr(handle, "data", value)
