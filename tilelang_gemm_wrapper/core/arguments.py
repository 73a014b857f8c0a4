"""Values that several commands take on their command lines."""

from __future__ import annotations

import argparse


def whole_numbers(text: str) -> tuple[int, ...]:
    """For argparse: "1,8,64" as (1, 8, 64), each at least 1."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 1,8,64") from None
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} holds a number below 1")
    return numbers


def whole_number(text: str) -> int:
    """For argparse: "40" as 40, at least 1."""
    numbers = whole_numbers(text)
    if len(numbers) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is {len(numbers)} numbers where one is meant")
    return numbers[0]
