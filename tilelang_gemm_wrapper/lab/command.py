"""`tilelang-gemm lab`: dump, run, diff, launch-latency."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.arguments import whole_number
from ..core.config import TILELANG_KERNELS
from ..core.config_file import LARGEST_M
from .dumps import ARCHITECTURES

if TYPE_CHECKING:
    from .running import Run

DONE, FAILED = 0, 1
# Named here, not read from builtin_cases: --help and wrong arguments are answered without loading torch.
KERNELS = (
    *TILELANG_KERNELS,
    "triton_gemm",
    "gemv_triton",
    "gemv_tilelang",
    "rmsnorm_triton",
    "rmsnorm_tilelang",
)


def main(argv: Sequence[str]) -> int:
    """Run one of the lab's commands. Returns the exit status: 1 where a check failed."""
    arguments = _parser().parse_args(argv)
    status: int = arguments.run(arguments)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tilelang-gemm lab", description="See, edit and run a kernel at every level of its compilation."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    dump = commands.add_parser("dump", help="write every level into a folder; needs no GPU")
    dump.add_argument(
        "--kernel",
        required=True,
        metavar="NAME",
        help=f"{', '.join(KERNELS)}, or FILE.py:FUNCTION of your own",
    )
    dump.add_argument("--to", required=True, type=Path, metavar="DIR")
    dump.add_argument("--arch", default="sm_90a", choices=ARCHITECTURES, help="(default: %(default)s)")
    for size, default in (("M", "16, or the m of --config"), ("N", "4096"), ("K", "2560")):
        dump.add_argument(f"--{size}", type=whole_number, help=f"(default: {default})")
    dump.add_argument(
        "--config",
        default="",
        metavar="m=16 | FIELD=VALUE,...",
        help="the config that is tuned or chosen for this m, or its fields: block_M=64,block_N=16,...",
    )
    dump.set_defaults(run=_dump)

    run = commands.add_parser(
        "run", help="compile from a level's file as it is now, and launch it on the GPU"
    )
    run.add_argument("--from", dest="path", required=True, type=Path, metavar="DIR/kernel.LEVEL | DIR/python")
    run.add_argument("--check", action="store_true", help="compare the result with the reference")
    run.add_argument("--bench", action="store_true", help="time it against the unedited kernel")
    run.set_defaults(run=_run)

    diff = commands.add_parser("diff", help="what distinguishes two dumps")
    diff.add_argument("before", type=Path, metavar="DIR_A")
    diff.add_argument("after", type=Path, metavar="DIR_B")
    diff.add_argument(
        "--level", action="append", default=[], help="compare this level's source alone; repeatable"
    )
    diff.add_argument(
        "--lines", type=_no_or_some, default=40, help="shown of each level (default: %(default)s)"
    )
    diff.set_defaults(run=_diff)

    latency = commands.add_parser(
        "launch-latency", help="what a launch costs, by Triton, TileLang and others"
    )
    latency.add_argument(
        "--output", type=Path, metavar="FILE.csv", help="write the rows, and FILE.md beside it"
    )
    latency.set_defaults(run=_launch_latency)
    return parser


def _no_or_some(text: str) -> int:
    return 0 if text == "0" else whole_number(text)


def _dump(arguments: argparse.Namespace) -> int:
    from . import diffs, dumping

    config, m = parsed_config(arguments.config)
    if m is not None and arguments.M is not None and m != arguments.M:
        raise ValueError(f"--config m={m} and --M {arguments.M} differ; give one of them")
    written = dumping.dump(
        arguments.kernel,
        arguments.to,
        arch=arguments.arch,
        M=arguments.M if m is None else m,
        N=arguments.N,
        K=arguments.K,
        config=config,
    )
    print(diffs.summary(written))
    below = [f"kernel.{level}" for level in written.levels if level != "python"]
    print(f"{arguments.to}: python/, {', '.join(below)}")
    return DONE


def parsed_config(text: str) -> tuple[dict[str, int], int | None]:
    """The fields of "block_M=64,block_N=16", and the m of "m=16". Raises ValueError for anything else."""
    fields: dict[str, int] = {}
    for part in text.split(",") if text else ():
        match = re.fullmatch(r"(m|[a-z]\w*)=(\d+)", part.strip())
        if match is None:
            raise ValueError(
                f"--config {part!r} is no FIELD=VALUE; expected m=16, or block_M=64,block_N=16,..."
            )
        if match[1] in fields:
            raise ValueError(f"--config gives {match[1]} twice; give it once")
        if len(match[2]) > 10:
            raise ValueError(f"--config {part!r} is out of all bounds; no field is above {LARGEST_M}")
        fields[match[1]] = int(match[2])
    if fields.get("m") == 0:
        raise ValueError("--config m=0: a kernel is chosen for M of at least 1")
    return {name: value for name, value in fields.items() if name != "m"}, fields.get("m")


def _run(arguments: argparse.Namespace) -> int:
    from . import running

    run = running.run_from(arguments.path, check=arguments.check, bench=arguments.bench)
    print(run_text(run))
    return DONE if run.passed else FAILED


def run_text(run: Run) -> str:
    """What a run found, for the terminal."""
    from . import diffs

    compiled = run.compiled
    file, dump = compiled.file, compiled.file.dump
    state = "edited" if compiled.edited else "as it was dumped"
    lines = [f"{dump.kernel} for {dump.arch} from {file.path}, {state}"]
    if compiled.others_edited:
        levels = ", ".join(compiled.others_edited)
        lines.append(f"{levels}: edited too, but no part of a run from {file.level}")
    before = {resources["entry"]: resources for resources in dump.resources}
    columns = []
    for now in compiled.resources():
        if now.entry in before:
            columns.append((f"{now.entry}, as dumped", before[now.entry]))
        columns.append((f"{now.entry}, this run", now.as_json()))
    lines += ["", diffs.resource_table(columns)]
    for name, error in run.errors.items():
        why_wrong = run.wrong.get(name)
        verdict = f"WRONG, {why_wrong}" if why_wrong else f"right, at most {run.max_error:g} is"
        lines.append(f"check of {name}: error {error:.3g}: {verdict}")
    if run.timings:
        edited, unedited = run.timings["edited"], run.timings["unedited"]
        for name, timing in run.timings.items():
            lines.append(f"{name}: {timing.p50_us:.2f} us ({timing.p20_us:.2f} to {timing.p80_us:.2f})")
        lines.append(f"edited / unedited: {edited.p50_us / unedited.p50_us:.3f}")
    return "\n".join(lines)


def _diff(arguments: argparse.Namespace) -> int:
    from . import diffs

    print(diffs.diff(arguments.before, arguments.after, levels=arguments.level, lines=arguments.lines))
    return DONE


def _launch_latency(arguments: argparse.Namespace) -> int:
    from . import launch_latency

    rows = launch_latency.launch_latency()
    print(launch_latency.table(rows))
    if arguments.output is not None:
        launch_latency.write(arguments.output, rows)
    return DONE
