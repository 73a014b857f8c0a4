"""A progress bar that never stops what it shows: standard error may be closed, or a file on a full disk."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tqdm import tqdm


class Forgiving:
    """A stream whose failures to write go unnoticed; None is one that takes nothing."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def progress_bar(description: str, unit: str, show: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Gives what is to be called with how many are done, and of how many."""
    stream = Forgiving(sys.stderr)
    with tqdm(
        total=0, unit=unit, desc=description, file=stream, disable=not show or sys.stderr is None
    ) as bar:

        def done_of(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield done_of
