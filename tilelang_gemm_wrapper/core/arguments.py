"""Values that commands and public calls take, and how what stops a command is told."""

from __future__ import annotations

import argparse
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .config_entry import show
from .config_file import LARGEST_M
from .failure_text import told
from .streams import discard, unfailing_output

DONE, CANNOT_RUN = 0, 2
INTERRUPTED = 130  # what a shell gives for Ctrl-C


def ending_in_one_line(program: str, run: Callable[[], int]) -> int:
    """The exit status of `run`; what was wrong or missing is one line on standard error, and status 2.

    Exceptions of other kinds than those that mean so are bugs, and keep their traceback.
    """
    with unfailing_output():
        try:
            try:
                return run()
            finally:
                _flush()
        except BrokenPipeError:  # `| head` has read enough
            return DONE
        except KeyboardInterrupt:
            print(f"\n{program}: stopped", file=sys.stderr)
            return INTERRUPTED
        except (ValueError, RuntimeError, ImportError, OSError) as failure:
            print(f"{program}: {told(failure)}", file=sys.stderr)
            return CANNOT_RUN


def _flush() -> None:
    """Write what is printed while an error can still be caught; what cannot be written goes nowhere then."""
    try:
        if sys.stdout is not None:  # a service may have none
            sys.stdout.flush()
    except OSError:
        discard(sys.stdout)
        raise


def stop(parser: argparse.ArgumentParser, failure: Exception) -> NoReturn:
    """End as `parser.error` does, in one line: where the usage would say nothing about what is wrong."""
    parser.exit(CANNOT_RUN, f"{parser.prog}: {told(failure)}\n")


def names_among(known: Sequence[str], what: str) -> Callable[[str], tuple[str, ...]]:
    """For argparse: "A,B" as ("A", "B"), each of them known; `what` they are, for the message."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        unknown = [name for name in names if name not in known]
        if unknown:
            shown = ", ".join(name or repr(name) for name in unknown)
            raise argparse.ArgumentTypeError(
                f"unknown {what} {shown}: choose from {', '.join(dict.fromkeys(known))}"
            )
        return names

    return parse


def whole_numbers(text: str) -> tuple[int, ...]:
    """For argparse: "1,8,64" as (1, 8, 64), each from 1 to `LARGEST_M`, and once."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{show(text)} is no list of whole numbers such as 1,8,64") from None
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{show(text)} holds a number below 1")
    if max(numbers) > LARGEST_M:
        raise argparse.ArgumentTypeError(f"{show(text)} holds a number above {LARGEST_M}")
    return tuple(dict.fromkeys(numbers))


def whole_number(text: str) -> int:
    """For argparse: "40" as 40, from 1 to `LARGEST_M`."""
    if "," not in text and not text.strip().lstrip("+-").isdecimal():
        raise argparse.ArgumentTypeError(f"{show(text)} is no whole number")
    numbers = whole_numbers(text)
    if "," in text:
        raise argparse.ArgumentTypeError(f"{show(text)} is {text.count(',') + 1} numbers where one is meant")
    return numbers[0]


def size_of(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int from `least` to `LARGEST_M`; ValueError where it is none.

    NumPy's whole numbers are some, True and 1.0 are not.
    """
    try:
        size = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        size = least - 1
    if not least <= size <= LARGEST_M:
        raise ValueError(
            f"{name} is {value!r}, expected a whole number of at least {least}, at most {LARGEST_M}"
        )
    return size
