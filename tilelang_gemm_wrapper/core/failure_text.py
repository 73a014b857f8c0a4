"""What is told of an exception where a line is all there is room for."""

from __future__ import annotations


def first_line(failure: BaseException) -> str:
    """Its kind and the first line of its text, cut at 300 characters: compilers and CUDA add pages."""
    lines = str(failure).strip().splitlines()
    return f"{type(failure).__name__}: {lines[0] if lines else 'no message'}"[:300]
