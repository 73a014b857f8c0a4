"""What the README shows must work as written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from published_results import needs_results

from tilelang_gemm_wrapper import configurer
from tilelang_gemm_wrapper.core.workload import error

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text()


def test_the_example_runs_and_computes_the_product(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    x, w, C = (names[name] for name in ("x", "w", "C"))
    assert isinstance(x, torch.Tensor) and isinstance(w, torch.Tensor) and isinstance(C, torch.Tensor)
    assert C.dtype == torch.bfloat16
    assert error(C.float(), x @ w.T) < 2e-3  # what quantising both operands costs
    assert "M=16, N=6144, K=2560" in capsys.readouterr().out


def test_the_example_of_the_ops_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/ops.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, "docs/ops.md", "exec"), names)
    q, scale = names["q"], names["scale"]
    assert isinstance(q, torch.Tensor) and isinstance(scale, torch.Tensor)
    assert q.shape == (4, 2560) and scale.shape == (4, 20)


@needs_results
@pytest.mark.parametrize(
    ("document", "results"),
    [("kernel-lab.md", ("lab.md", "launch_latency.md")), ("kernel-tour.md", ("tour.md",))],
)
def test_tables_of_documents_are_lines_of_results(document: str, results: tuple[str, ...]) -> None:
    folder = REPOSITORY / "benchmarks/results/NVIDIA_H100_80GB_HBM3"
    measured = {line for name in results for line in (folder / name).read_text().splitlines()}
    lines = (REPOSITORY / "docs" / document).read_text().split("\n## ")
    shown = [line for part in lines for line in part.splitlines() if re.match(r"\|.*\d\.\d|\| \d+ B", line)]
    assert len(shown) >= 12
    assert [line for line in shown if line not in measured] == []


def test_the_example_of_the_lab_is_a_case(tmp_path: Path) -> None:
    """The file that docs/kernel-lab.md shows, dumped by its name."""
    pytest.importorskip("triton")
    from tilelang_gemm_wrapper.lab import dump

    text = (REPOSITORY / "docs/kernel-lab.md").read_text()
    file = tmp_path / "example.py"
    file.write_text(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0])
    assert list(dump(f"{file}:case", tmp_path / "dump").entries) == ["double"]


@needs_results
def test_the_figures_are_those_of_the_results() -> None:
    script = [sys.executable, str(REPOSITORY / "benchmarks" / "update_readme.py"), "--check"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run(script, check=False, env=environment).returncode == 0


def test_every_environment_variable_is_listed_once() -> None:
    ours = (
        configurer.CONFIG_DIR,
        configurer.ENABLE,
        configurer.FALLBACK,
        configurer.CACHE_DIR,
        configurer.COMPILE_WORKERS,
        configurer.STATIC_WEIGHTS,
    )
    assert re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE) == list(ours)


@needs_results
@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "CONTRIBUTING.md",
        "configs/README.md",
        "docs/ops.md",
        "docs/kernel-lab.md",
        "docs/kernel-tour.md",
    ],
)
def test_paths_that_documents_name_exist(document: str) -> None:
    path = REPOSITORY / document
    text = path.read_text()
    links = {target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target}
    missing = {target for target in links if not (path.parent / target).exists()}
    named = set(
        re.findall(r"`((?:tests|core|backends|benchmarks|configs|tuning|requirements)/[\w./]+)`", text)
    )
    roots = (REPOSITORY, REPOSITORY / "tilelang_gemm_wrapper")
    missing |= {target for target in named if not any((root / target).exists() for root in roots)}
    assert not missing
