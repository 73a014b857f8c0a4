"""`make` and `make help` name what can be run, and install nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str) -> str:
    command = ["make", "--no-print-directory", "-C", str(REPOSITORY), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_help_names_targets_that_exist_and_installs_nothing(tmp_path: Path) -> None:
    text = make("help", f"VENV={tmp_path / 'venv'}")
    lines = re.findall(r"^  ([a-z][a-z, -]*?)(?:  |:)", text, re.MULTILINE)
    named = [name for line in lines for name in line.split(", ")]
    assert {"demo", "test", "test-gpu", "lint", "format", "clean"} <= set(named)
    for name in named:
        make("--dry-run", name)  # fails where there is no such target
    assert not list(tmp_path.iterdir())


def test_bare_make_is_help() -> None:
    assert make() == make("help")
