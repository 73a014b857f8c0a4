"""What the README shows must work as written."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from published_results import needs_results

from tilelang_gemm_wrapper import configurer
from tilelang_gemm_wrapper.core.report import OURS, OURS_COLUMN_MAJOR, geomean
from tilelang_gemm_wrapper.core.results import Row, by_cell, read_rows
from tilelang_gemm_wrapper.core.tuner.search import PROBE_LOSS
from tilelang_gemm_wrapper.core.workload import error

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text()
RESULTS = REPOSITORY / "benchmarks/results"
H100 = RESULTS / "NVIDIA_H100_80GB_HBM3"


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
    measured = {line for name in results for line in (H100 / name).read_text().splitlines()}
    lines = (REPOSITORY / "docs" / document).read_text().split("\n## ")
    shown = [line for part in lines for line in part.splitlines() if re.match(r"\|.*\d\.\d|\| \d+ B", line)]
    assert len(shown) >= 12
    assert [line for line in shown if line not in measured] == []


def test_every_percentage_in_the_prose_of_the_readme_is_measured() -> None:
    """In the order in which they stand; a new one needs a line here that says where it comes from."""
    prose = re.sub(r"```.*?```|<!-- (\w+):begin -->.*?<!-- \1:end -->|^\|.*?$", "", README, flags=re.S | re.M)
    shorter = decode_steps_shorter(H100 / "sglang_qwen3-4b.csv")
    mean, worst = cost_of_row_major_scales(H100 / "gemm_public.csv")
    assert re.findall(r"([\d.]+) %", prose) == [
        *(f"{shorter[batch]:.1f}" for batch in ("1", "16", "64")),
        f"{100 * (PROBE_LOSS - 1):.0f}",
        f"{mean:.0f}",
        f"{worst:.0f}",
    ]


def decode_steps_shorter(path: Path) -> dict[str, float]:
    """Percent by batch: this package's steps against those of deep_gemm."""
    with path.open() as file:
        steps = [row for row in csv.DictReader(file) if row["what"] == "decode"]
    assert {row["sglang"] for row in steps} == set(re.findall(r"with SGLang ([\d.]+) and", README))
    ms = {(row["backend"], row["M"]): float(row["value"]) for row in steps}
    return {
        M: 100 * (1 - ms["tilelang", M] / ms["deep_gemm", M]) for backend, M in ms if backend == "tilelang"
    }


def cost_of_row_major_scales(path: Path) -> tuple[float, float]:
    """Percent over column-major ones: the mean, and the worst cell."""
    cells = by_cell(read_rows(path, Row)).values()
    times = [
        (cell[OURS].p50_us, cell[OURS_COLUMN_MAJOR].p50_us) for cell in cells if OURS_COLUMN_MAJOR in cell
    ]
    quotients = [row / column for row, column in times if row and column]
    mean = geomean(quotients)
    assert len(quotients) > 500 and mean
    return 100 * (mean - 1), 100 * (max(quotients) - 1)


def test_the_tables_of_the_ops_are_those_of_the_results() -> None:
    """On the device that the heading names."""
    text, later = (REPOSITORY / "docs/ops.md").read_text().split("## The quantizer on an ")
    (device,) = re.findall(r"^## Measured on an (.*)$", text, re.MULTILINE)
    with (RESULTS / device.replace(" ", "_") / "quant.csv").open() as file:
        us = {
            (row["op"], row["M"], row["K"], row["provider"]): float(row["p50_us"] or "nan")
            for row in csv.DictReader(file)
        }

    def fused(M: str) -> list[str]:
        op = "fused_add_rmsnorm_quant_fp8"
        separate, auto = us[op, M, "4096", "separate"], us[op, M, "4096", "auto"]
        return [f"{separate:.2f}", f"{auto:.2f}", f"{separate / auto:.2f}"]

    def beside_sglang(M: str) -> list[str]:
        ops = (("per_token_group_quant_fp8", "4096"), ("silu_mul_quant_fp8", "9728"))
        return [f"{us[op, M, K, name]:.2f}" for op, K in ops for name in ("auto", "sglang")]

    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in re.findall(r"^\| \d.*$", text, re.MULTILINE)
    ]
    assert {len(line) for line in lines} == {5} and len(lines) == 10
    assert [line[1:4] for line in lines[:3]] == [fused(line[0]) for line in lines[:3]]
    assert [line[1:] for line in lines[3:]] == [beside_sglang(line[0]) for line in lines[3:]]
    with (RESULTS / later.splitlines()[0].replace(" ", "_") / "quant.csv").open() as file:
        quantizer = {(row["M"], row["provider"]): row["p50_us"] for row in csv.DictReader(file)}
    for line in re.findall(r"^\| (\d.*) \|$", later, re.MULTILINE):
        M, *times = line.split(" | ")
        names = ("auto", "group_quant", "sglang")
        assert times == [f"{float(quantizer[M, name]):.2f}" for name in names]


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
        configurer.SHAPES_OUT,
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
