"""A Python that has imported nothing yet, for tests of what is imported and what may be missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def printed_by(code: str, *, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
    """What `code` prints, run in a process of its own, which has to end with status 0."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
