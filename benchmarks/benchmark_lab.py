"""The kernel lab on a GPU: a TileLang and a Triton GEMM run from each of their levels, unedited and edited.

    python benchmarks/benchmark_lab.py --output benchmarks/results/<device>

Unedited, every level must give the bits of the kernel as the package launches it. Edited, the result must
be what the edit makes of it, and the check against the reference must see it. Writes lab.csv and lab.md, and
with --launch-latency the table of launch latencies beside them. Ends with status 1 where anything is not so.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tilelang_gemm_wrapper.backends import triton as triton_backend
from tilelang_gemm_wrapper.core.arguments import ending_in_one_line, whole_number
from tilelang_gemm_wrapper.core.bench import require_gpu
from tilelang_gemm_wrapper.core.compile_cache import CompileJob
from tilelang_gemm_wrapper.core.conditions import record_conditions
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.device import device_of
from tilelang_gemm_wrapper.core.environment import Environment
from tilelang_gemm_wrapper.core.report import figure_text, markdown_table
from tilelang_gemm_wrapper.core.results import write_rows
from tilelang_gemm_wrapper.core.wrapper import tilelang_launch
from tilelang_gemm_wrapper.lab import dump, launch_latency, run_from
from tilelang_gemm_wrapper.lab.dumps import Dump, level_path
from tilelang_gemm_wrapper.lab.running import Run

DOUBLED = "doubled"
RECTIFIED = "negative results become 0"
OTHER = "a product becomes a sum"


@dataclass(frozen=True, slots=True)
class Edit:
    """`old` -> `new` in the file of a level, and what that makes of the result."""

    level: str
    file: str  # in the level's folder; "" for the level's one file
    old: str
    new: str
    effect: str


_KERNELS = "tilelang_gemm_wrapper.core.kernels"
_PROMOTE = "partial[i, j] * scale_strip[k, j]"
_PROMOTE_DOUBLED = "partial[i, j] * (scale_strip[k, j] * 2.0)"  # exact: a power of two is no rounding
_STORE = "  store_share<units, First"
_DOUBLE_ALL = "  for (int i = 0; i < 4 * units; ++i) partial[First * 4 + i] *= 2.0f;\n"
# The conversion to bfloat16 can set negative values to 0 as it goes.
_CONVERT, _CONVERT_RECTIFIED = "cvt.rn.bf16x2.f32", "cvt.rn.relu.bf16x2.f32"
_RECTIFY = Edit("ptx", "", _CONVERT, _CONVERT_RECTIFIED, RECTIFIED)
EDITS = {
    "swapAB": (
        Edit("python", f"{_KERNELS}.swapped.py", _PROMOTE, _PROMOTE_DOUBLED, DOUBLED),
        Edit("tir", "", "* scale_strip[k, j]", "* (scale_strip[k, j] * T.float32(2.0))", DOUBLED),
        Edit("cu", "", _STORE, _DOUBLE_ALL + _STORE, DOUBLED),
        _RECTIFY,
    ),
    "triton_gemm": (
        Edit(
            "python",
            "tilelang_gemm_wrapper.backends._triton_kernel.py",
            "scale = a_scale * b_scale",
            "scale = a_scale * b_scale * 2.0",
            DOUBLED,
        ),
        Edit("ttir", "", "arith.mulf", "arith.addf", OTHER),
        Edit("ttgir", "", "arith.mulf", "arith.addf", OTHER),
        Edit("llir", "", "fmul float", "fadd float", OTHER),
        _RECTIFY,
    ),
}
ALL_OF_IT = ("swapAB tir", "swapAB ptx", "triton_gemm ptx")  # every occurrence, elsewhere the first


def edited(directory: Path, kernel: str, edit: Edit) -> Path:
    """Make the edit in a dump's folder; returns what to run from. Raises ValueError if there is no place."""
    path = level_path(directory, edit.level)
    file = path / edit.file if edit.file else path
    text = file.read_text()
    if edit.old not in text:
        raise ValueError(f"{file} has no {edit.old!r} to edit")
    times = -1 if f"{kernel} {edit.level}" in ALL_OF_IT else 1
    file.write_text(text.replace(edit.old, edit.new, times))
    return path


def as_edited(effect: str, result: torch.Tensor, unedited: torch.Tensor) -> bool:
    """Whether a result is what an edit with this effect makes of the unedited one."""
    if effect == DOUBLED:
        return torch.equal(result, 2 * unedited)
    if effect == RECTIFIED:
        return torch.equal(result, unedited.clamp(min=0))
    return not torch.equal(result, unedited)


def packages_result(written: Dump, M: int, N: int, K: int) -> Callable[[Run], torch.Tensor]:
    """C of the kernel as the package itself compiles and launches it, for a run's operands."""
    index = torch.cuda.current_device()
    device = device_of(index)
    if written.language == "tilelang":
        config = KernelConfig(written.kernel, **written.parameters["config"])
        launch = tilelang_launch(CompileJob.on(N, K, config, device), index)
    else:
        launch = triton_backend.gemm

    def result(run: Run) -> torch.Tensor:
        operands = run.compiled.case.launch("cuda").arguments
        tensors = [operands[name] for name in ("A", "A_scale", "B", "B_scale")]
        C = torch.empty((M, N), dtype=torch.bfloat16, device="cuda")
        launch(*tensors, C)
        torch.cuda.synchronize()
        return C

    return result


@dataclass(frozen=True, slots=True)
class LabRow(Environment):
    kernel: str
    M: int
    N: int
    K: int
    level: str
    edit: str  # "" where the file is as it was dumped
    as_expected: bool  # the same bits as the package's launch, or what the edit makes of them
    error: float  # against the float32 reference
    check_passed: bool
    registers: int | None
    run_us: float | None
    unedited_us: float | None

    @property
    def is_right(self) -> bool:
        return self.as_expected and self.check_passed == (not self.edit)


def rows_of(kernel: str, M: int, N: int, K: int, environment: Environment, *, bench: bool) -> list[LabRow]:
    """Run a kernel from each of its levels as dumped, then with each of its edits."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, kernel)
        arch = device_of(torch.cuda.current_device()).arch
        written = dump(kernel, folder, arch=arch, M=M, N=N, K=K)
        package = packages_result(written, M, N, K)
        common = {**environment.as_fields(), "kernel": kernel, "M": M, "N": N, "K": K}
        rows, unedited = [], None
        for level in written.levels:
            run = run_from(level_path(folder, level), check=True, bench=bench)
            unedited = package(run)
            rows.append(_row(common, run, "", torch.equal(run.outputs["C"], unedited)))
        assert unedited is not None
        for edit in EDITS[kernel]:
            copy = Path(root, f"{kernel}-{edit.level}")
            shutil.copytree(folder, copy)
            run = run_from(edited(copy, kernel, edit), check=True, bench=bench)
            expected = as_edited(edit.effect, run.outputs["C"], unedited)
            rows.append(_row(common, run, edit.effect, expected))
            if edit.level == "ptx":  # a cubin is edited by assembling edited PTX, or with a hex editor
                level_path(folder, "cubin").write_bytes(run.compiled.built.cubin)
                run = run_from(level_path(folder, "cubin"), check=True, bench=bench)
                expected = as_edited(edit.effect, run.outputs["C"], unedited)
                rows.append(_row(common, run, edit.effect, expected))
    return rows


def _row(common: dict, run: Run, edit: str, as_expected: bool) -> LabRow:
    timings = run.timings
    return LabRow(
        **common,
        level=run.compiled.file.level,
        edit=edit,
        as_expected=as_expected,
        error=run.errors["C"],
        check_passed=run.passed,
        registers=run.compiled.resources()[0].registers,
        run_us=timings["edited"].p50_us if timings else None,
        unedited_us=timings["unedited"].p50_us if timings else None,
    )


def table(rows: Sequence[LabRow]) -> str:
    """In Markdown."""
    first = rows[0]
    lines = [
        [
            row.kernel,
            row.level,
            row.edit or "none",
            ("the same bits" if not row.edit else "as edited") if row.as_expected else "NOT AS EXPECTED",
            f"{'right' if row.check_passed else 'wrong'}, {row.error:.2g}",
            str(row.registers),
            figure_text(row.run_us, ".2f"),
            figure_text(row.unedited_us, ".2f"),
        ]
        for row in rows
    ]
    head = ["kernel", "from", "edit", "result", "check, error", "registers", "µs", "unedited µs"]
    return (
        f"The kernel lab on {first.device}: M = {first.M}, N = {first.N}, K = {first.K}; "
        f"torch {first.torch}, triton {first.triton}, tilelang {first.tilelang}, {first.date}\n\n"
        f"{markdown_table(head, lines)}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="folder for the results; printed alone without it")
    parser.add_argument(
        "--shape", type=whole_number, nargs=3, default=(16, 4096, 2560), metavar=("M", "N", "K")
    )
    parser.add_argument("--launch-latency", action="store_true", help="measure that too")
    arguments = parser.parse_args(argv)
    require_gpu()
    device = device_of(torch.cuda.current_device())
    environment = Environment.here(device.name, record_conditions().driver)
    rows = [row for kernel in EDITS for row in rows_of(kernel, *arguments.shape, environment, bench=True)]
    text = table(rows)
    latency = launch_latency.launch_latency() if arguments.launch_latency else []
    print(text)
    if latency:
        print(launch_latency.table(latency))
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        write_rows(arguments.output / "lab.csv", rows, LabRow)
        (arguments.output / "lab.md").write_text(text)
        if latency:
            launch_latency.write(arguments.output / "launch_latency.csv", latency)
    wrong = [row for row in rows if not row.is_right]
    for row in wrong:
        print(f"not as expected: {row}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(ending_in_one_line(Path(__file__).name, main))
