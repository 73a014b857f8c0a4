"""Output streams that end nothing: closed, on a full disk, or of an encoding that has not all characters."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class Forgiving:
    """A stream whose failures to write go unnoticed; None is one that takes nothing."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._going_on():
            if self._stream is not None:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._going_on():
            if self._stream is not None:
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # ValueError: it is closed
            self._failed()

    def _failed(self) -> None:
        """The next write is tried again."""


class _Ending(Forgiving):
    """A stream that goes nowhere from its first error on: of a full disk, or a reader that has ended."""

    def _failed(self) -> None:
        discard(self._stream)


def discard(stream: TextIO) -> None:
    """Have what a stream holds, and all that comes to its descriptor, libraries' lines too, go nowhere."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def unfailing_output() -> Iterator[None]:
    """Standard output and error that a measurement of an hour does not end at.

    What their encoding has not, such as µs in ASCII, becomes an escape. One that whoever started this has
    closed, for which Python has None, goes nowhere; so does standard error once it cannot be written.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Also lest a file that is opened next gets its descriptor, and what libraries say.
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")
    whole = sys.stderr
    if not isinstance(whole, _Ending):
        sys.stderr = cast(TextIO, _Ending(whole))
    try:
        yield
    finally:
        sys.stderr = whole
