"""`tilelang-gemm`: the package from the command line.

Each command imports what it needs when it runs, so that `--help` answers at once. Exit status: 0 done, 1 a
check failed, 2 wrong usage or nothing that could run, with a message that says why, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tilelang_gemm_wrapper import __version__
from tilelang_gemm_wrapper.core.arguments import CANNOT_RUN, DONE, ending_in_one_line, whole_number

if TYPE_CHECKING:
    from tilelang_gemm_wrapper.core.device import Device

FAILED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` defaults to the process's arguments. Returns the exit status."""
    return ending_in_one_line("tilelang-gemm", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command not in ("bench", "tune", "lab"):
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    program = f"tilelang-gemm {arguments.command}"
    return ending_in_one_line(program, lambda: arguments.run(arguments, rest))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tilelang-gemm", description="FP8 block-scaled GEMM for inference.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="run a real model's linear layers in FP8 and check them")
    demo.add_argument(
        "--model", metavar="DIR", help="folder of a BERT sentence encoder (default: MiniLM's package)"
    )
    demo.add_argument("--no-bench", action="store_true", help="on a GPU: leave the timing table out")
    demo.set_defaults(run=_demo)

    doctor = commands.add_parser("doctor", help="what this machine can run, and why not")
    doctor.set_defaults(run=_doctor)

    # Its options are the benchmark's own: they are handed on, --help included.
    bench = commands.add_parser("bench", help="time every backend; --help lists the options", add_help=False)
    bench.set_defaults(run=_bench)

    tune = commands.add_parser(
        "tune", help="find the fastest kernels; --help lists the options", add_help=False
    )
    tune.set_defaults(run=_tune)

    lab = commands.add_parser(
        "lab", help="see, edit and run a kernel at every level; --help lists the commands", add_help=False
    )
    lab.set_defaults(run=_lab)

    warmup = commands.add_parser(
        "warmup", help="compile ahead every kernel that calls of these shapes can need"
    )
    warmup.add_argument("--shapes", nargs="+", required=True, type=_shape, metavar="N,K")
    warmup.add_argument(
        "--m-max", type=whole_number, default=8192, help="largest M that calls will have (%(default)s)"
    )
    warmup.set_defaults(run=_warmup)

    explain = commands.add_parser("explain", help="which kernel a call would run, from which file, and why")
    for name in ("M", "N", "K"):
        explain.add_argument(name, type=whole_number)
    _add_device(explain)
    explain.set_defaults(run=_explain)

    sglang = commands.add_parser(
        "sglang-check", help="whether the installed SGLang can serve with --fp8-gemm-backend tilelang"
    )
    sglang.set_defaults(run=_sglang_check)

    configs = commands.add_parser("configs", help="the tuned files: list, show, check or compare them")
    actions = configs.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="every tuned file on the search path")
    listing.add_argument("directories", nargs="*", help="look here instead of on the search path")
    listing.set_defaults(run=_configs_list)
    show = actions.add_parser("show", help="the table that serves one weight shape")
    show.add_argument("N", type=whole_number)
    show.add_argument("K", type=whole_number)
    _add_device(show)
    show.set_defaults(run=_configs_show)
    check = actions.add_parser(
        "check", help="read every file as a call would; fails where an entry is refused"
    )
    check.add_argument("directories", nargs="*", help="look here instead of on the search path")
    check.set_defaults(run=_configs_check)
    diff = actions.add_parser("diff", help="which M two directories of tuned files serve differently")
    diff.add_argument("before", metavar="BEFORE")
    diff.add_argument("after", metavar="AFTER")
    diff.set_defaults(run=_configs_diff)
    return parser


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", metavar="NAME", help="answer for this chip, e.g. NVIDIA_H200 (default: this one)"
    )


def _shape(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is no weight shape; expected N,K as in 4096,8192")
    return whole_number(parts[0]), whole_number(parts[1])


def _device(name: str | None) -> Device:
    """The chip named on the command line, else this machine's."""
    if name is None:
        from tilelang_gemm_wrapper.doctor import this_device

        return this_device()
    from tilelang_gemm_wrapper.core.device import known_device

    return known_device(name)


def _demo(arguments: argparse.Namespace, _: list[str]) -> int:
    from tilelang_gemm_wrapper import demo

    return DONE if demo.run(arguments.model, with_benchmark=not arguments.no_bench) else FAILED


def _doctor(_: argparse.Namespace, __: list[str]) -> int:
    from tilelang_gemm_wrapper import doctor

    print(doctor.report())
    return DONE


def _bench(_: argparse.Namespace, rest: list[str]) -> int:
    from tilelang_gemm_wrapper.core import bench

    return bench.main(rest, program="tilelang-gemm bench")


def _tune(_: argparse.Namespace, rest: list[str]) -> int:
    from tilelang_gemm_wrapper.core.tuner import command

    return command.main(rest, program="tilelang-gemm tune")


def _lab(_: argparse.Namespace, rest: list[str]) -> int:
    from tilelang_gemm_wrapper.lab import command

    return command.main(rest)


def _warmup(arguments: argparse.Namespace, _: list[str]) -> int:
    from tilelang_gemm_wrapper.entrypoint import warm_up

    done = warm_up(arguments.shapes, m_max=arguments.m_max)
    if done.why_idle is not None:
        print(f"tilelang-gemm warmup: {done}", file=sys.stderr)
        return CANNOT_RUN
    print(done)
    return FAILED if done.failed else DONE


def _explain(arguments: argparse.Namespace, _: list[str]) -> int:
    from tilelang_gemm_wrapper import explain

    print(explain(arguments.M, arguments.N, arguments.K, device=arguments.device))
    return DONE


def _sglang_check(_: argparse.Namespace, __: list[str]) -> int:
    from tilelang_gemm_wrapper.integrations import sglang

    text, runs = sglang.check()
    print(text)
    return DONE if runs else FAILED


def _configs_list(arguments: argparse.Namespace, _: list[str]) -> int:
    from tilelang_gemm_wrapper import config_reports

    print(config_reports.listing(arguments.directories or None))
    return DONE


def _configs_show(arguments: argparse.Namespace, _: list[str]) -> int:
    from tilelang_gemm_wrapper import config_reports

    print(config_reports.table(arguments.N, arguments.K, _device(arguments.device)))
    return DONE


def _configs_check(arguments: argparse.Namespace, _: list[str]) -> int:
    from tilelang_gemm_wrapper import config_reports

    text, all_usable = config_reports.check(arguments.directories or None)
    print(text)
    return DONE if all_usable else FAILED


def _configs_diff(arguments: argparse.Namespace, _: list[str]) -> int:
    from tilelang_gemm_wrapper import config_reports

    print(config_reports.difference(arguments.before, arguments.after))
    return DONE
