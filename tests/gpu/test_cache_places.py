"""Caches that cannot be written: what was compiled before is used, what was not compiles all the same.

Each case is a process of its own, since TileLang keeps what it has loaded. Root may write anywhere: read-only
places are mounts, and another user's cache is tried as nobody.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

N, K = 1536, 1024
NOBODY = 65534
PROGRAM = f"""
import json, logging, sys, torch
logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
from tilelang_gemm_wrapper import gemm_nt_f8f8bf16, warmup
from tilelang_gemm_wrapper.core import wrapper
from tilelang_gemm_wrapper.core.workload import integer_workload, reference
compiled = warmup([({N}, {K})], m_max=8, progress=False)
work = integer_workload(5, {N}, {K}, "cuda", scale_layout="column_tma")
out = gemm_nt_f8f8bf16((work.A, work.A_scale), (work.B, work.B_scale))
choice = wrapper.gemm_for({N}, {K}, 0).choices[0]
right = torch.equal(out, reference(work).bfloat16())
ours = choice.config is not None
print(json.dumps(dict(compiled=compiled, right=right, kernel=choice.kernel, ours=ours, reason=choice.reason)))
"""


@dataclass(frozen=True)
class Outcome:
    compiled: int
    right: bool
    kernel: str
    ours: bool
    reason: str
    warnings: list[str]


def _why_nobody_cannot() -> str | None:
    """Why the program cannot run as another user here, or None."""
    if os.getuid() != 0:
        return "needs root, to become another user"
    find = "import importlib.util, sys; sys.exit(importlib.util.find_spec('tilelang') is None)"
    try:
        subprocess.run([sys.executable, "-c", find], capture_output=True, user=NOBODY, check=True)
    except (OSError, subprocess.CalledProcessError) as failure:
        return f"user {NOBODY} cannot read the installed packages: {failure}"
    return None


WHY_NOBODY_CANNOT = _why_nobody_cannot()


def run(cache: Path, user: int | None = None, home: str | None = None) -> Outcome:
    environment = {**os.environ, "TILELANG_GEMM_CACHE_DIR": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}
    if home is not None:
        environment["HOME"] = home
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        user=user,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    fields = json.loads(done.stdout.splitlines()[-1])
    return Outcome(**fields, warnings=[line for line in done.stderr.splitlines() if str(cache) in line])


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    """A cache that this process's user has filled, readable by all."""
    cache = tmp_path_factory.mktemp("cache")
    outcome = run(cache)
    assert outcome.compiled > 0 and outcome.ours and outcome.right
    for path in (cache, *cache.parents):
        if path.stat().st_uid == os.getuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    return cache


@pytest.fixture
def read_only(filled, tmp_path) -> Iterator[Path]:
    for command in (
        ["mount", "--bind", str(filled), str(tmp_path)],
        ["mount", "-o", "remount,ro,bind", str(tmp_path)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            subprocess.run(["umount", str(tmp_path)], capture_output=True, check=False)
            pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def check_used(outcome: Outcome) -> None:
    """Nothing was compiled, and one line says that what is new will not be kept."""
    assert outcome.ours and outcome.right, outcome
    assert outcome.compiled == 0
    assert len(outcome.warnings) == 1 and "TILELANG_GEMM_CACHE_DIR" in outcome.warnings[0]


def test_a_filled_cache_on_a_read_only_mount_is_used(read_only):
    check_used(run(read_only))


@pytest.mark.skipif(WHY_NOBODY_CANNOT is not None, reason=str(WHY_NOBODY_CANNOT))
def test_a_filled_cache_of_another_user_is_used(filled):
    check_used(run(filled, user=NOBODY, home="/nonexistent"))


@pytest.mark.skipif(WHY_NOBODY_CANNOT is not None, reason=str(WHY_NOBODY_CANNOT))
def test_what_another_users_cache_lacks_compiles_elsewhere_with_one_warning(tmp_path):
    tmp_path.chmod(0o755)
    outcome = run(tmp_path / "absent", user=NOBODY, home="/nonexistent")
    assert outcome.ours and outcome.right and outcome.compiled > 0, outcome
    assert len(outcome.warnings) == 1 and "TILELANG_GEMM_CACHE_DIR" in outcome.warnings[0]
    assert not any(tmp_path.iterdir())
