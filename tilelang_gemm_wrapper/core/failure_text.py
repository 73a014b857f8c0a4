"""What is told of an exception where a line is all there is room for."""

from __future__ import annotations

import re

_LONGEST = 300  # characters

# TileLang raises nvcc's output behind the whole CUDA source: what nvcc complains of comes after this line.
_COMPILER_OUTPUT = "\nCompilation error:\n"
_COMPLAINT = re.compile(r"^.*\b(?:error|fatal) *: *\S.*$", re.MULTILINE)


def first_line(failure: BaseException) -> str:
    """Its kind and the line that says most, cut at 300 characters: compilers and CUDA add pages.

    That is a compiler's first complaint, else the first line.
    """
    text = str(failure).strip()
    _, is_compilers, output = text.partition(_COMPILER_OUTPUT)
    if is_compilers:
        complaint = _COMPLAINT.search(output)
        text = complaint[0] if complaint else output.strip()
    lines = text.splitlines()
    return f"{type(failure).__name__}: {lines[0].strip() if lines else 'no message'}"[:_LONGEST]
