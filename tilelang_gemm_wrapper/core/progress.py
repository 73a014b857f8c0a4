"""A progress bar that never stops what it shows: standard error may be closed, or a file on a full disk."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from .streams import Forgiving


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
