"""Tests of the tuner run its real processes on a simulated GPU and compiler, which have to find them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent
sys.path.insert(0, str(HERE))


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Sets what the children of this test simulate; returns the file in which they log what they do."""
    path = [str(HERE), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    log = tmp_path / "simulated.log"
    log.touch()

    def set_settings(**settings: object) -> Path:
        monkeypatch.setenv("SIMULATED_GPU", json.dumps({"speed": 1000.0, "log": str(log), **settings}))
        return log

    set_settings()
    return set_settings
