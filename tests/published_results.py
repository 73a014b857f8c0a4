"""Which tests read published results: these stay in the repository, so that the sdist is small."""

from __future__ import annotations

from pathlib import Path

import pytest

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
needs_results = pytest.mark.skipif(
    not RESULTS.is_dir(), reason="benchmarks/results is in the repository alone, not in the sdist"
)
