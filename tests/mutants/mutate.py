"""`make mutants`: changes one token of the call path at a time and lists the changes that no test notices.

Cosmic Ray makes the changes, in a copy of the repository for each module, and runs the module's tests on each
change. One that passes them is a survivor: it needs a test, or a reason in `equivalent.txt`.

Left alone are strings (the words of a message are free), annotations (nothing evaluates them), and whatever a
milder change stands for (`<` becomes `<=`, not `!=` or `>`).
"""

from __future__ import annotations

import argparse
import ast
import difflib
import gc
import multiprocessing
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = "tilelang_gemm_wrapper"
COPIED = (PACKAGE, "configs", "tests", "pyproject.toml")
EQUIVALENT = Path(__file__).with_name("equivalent.txt")

Position = tuple[int, int]  # line, from 1, and column, from 0
Spans = list[tuple[Position, Position]]  # start and end of each


@dataclass(frozen=True)
class Target:
    """A module below the package, the tests that must notice changes to it, and where it is changed."""

    module: str
    tests: tuple[str, ...]
    functions: tuple[str, ...] = ()  # none: everywhere
    left_out: tuple[str, ...] = ()  # of these tests: what takes long and notices nothing more


TARGETS = {
    target.module: target
    for target in (
        Target("core/problem.py", ("core/test_problem.py",)),
        Target("core/config.py", ("core/test_config.py",)),
        Target("core/config_entry.py", ("core/test_config_entry.py", "core/test_config_file.py")),
        Target("core/config_file.py", ("core/test_config_file.py", "core/test_config_entry.py")),
        Target("core/config_loader.py", ("core/test_config_loader.py",)),
        Target("core/dispatch.py", ("core/test_dispatch.py",)),
        Target("core/wrapper.py", ("core/test_wrapper.py",)),
        Target(
            "entrypoint.py",
            ("test_entrypoint.py",),
            left_out=("test_entrypoint.py::test_compile_fullgraph", "test_entrypoint.py::test_opcheck"),
        ),
        Target("quantize.py", ("test_quantize.py",)),
        Target(
            "core/workload.py",
            ("core/test_workload.py",),
            left_out=("core/test_workload.py::test_24_zeros_in_the_last_of_4096_rows_are_seen",),
        ),
        Target(
            "core/tuner/bench.py",
            ("core/tuner/test_accept.py",),
            ("check", "_check_layouts", "_require_same_inputs", "_check_on_all", "_check_once", "_result"),
        ),
    )
}

# Of the operators that Cosmic Ray replaces by every other, the replacements that are worth a run.
_REPLACEMENTS = {
    "Binary": (
        "Add_Sub Sub_Add Mul_FloorDiv Div_Mul FloorDiv_Mul Mod_FloorDiv Pow_Mul LShift_RShift RShift_LShift "
        "BitOr_BitAnd BitAnd_BitOr"
    ),
    "Comparison": (
        "Eq_NotEq Eq_LtE Eq_GtE NotEq_Eq NotEq_Lt NotEq_Gt Lt_LtE LtE_Lt Gt_GtE GtE_Gt Is_IsNot IsNot_Is"
    ),
    "Unary": "Delete_Not USub_UAdd",
}
_SKIPPED = re.compile(
    "|".join(
        f"core/Replace{kind}Operator_(?!({'|'.join(kept.split())})$)" for kind, kept in _REPLACEMENTS.items()
    )
)


@dataclass(frozen=True, order=True)
class Mutant:
    """One change, named by what it does and not by a line number, so that it is known again after an edit."""

    module: str
    function: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"    {self.module} {self.function}\n    - {self.old}\n    + {self.new}"


@dataclass(frozen=True)
class Outcome:
    """What became of the mutants of one module."""

    module: str
    killed: int
    timed_out: int  # of those killed
    survivors: tuple[Mutant, ...]
    failure: str | None  # why none was tried
    seconds: float


def parse_equivalent(text: str) -> dict[Mutant, str]:
    """Each listed mutant with its reason. Raises ValueError where a mutant is malformed or has no reason.

    Lines from the first column on are a reason, which holds for the indented mutants below it: three lines
    each, as `Mutant` prints them. Lines that start with "#" are comments.
    """
    listed: dict[Mutant, str] = {}
    reason: list[str] = []
    mutant: list[str] = []
    complete = False  # whether the reason has had a mutant, so that the next line of text begins another
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if not line.startswith(" "):
            reason = [line.strip()] if complete else [*reason, line.strip()]
            complete = False
            continue
        mutant.append(line.strip())
        if len(mutant) < 3:
            continue
        (place, old, new), mutant = mutant, []
        module, _, function = place.partition(" ")
        if not reason or old[:1] != "-" or new[:1] != "+":
            raise ValueError(
                f"line {number}: expected a reason, then 'module function', '- old line' and '+ new line'"
            )
        listed[Mutant(module, function, old[1:].strip(), new[1:].strip())] = " ".join(reason)
        complete = True
    if mutant:
        raise ValueError(f"the last mutant has {len(mutant)} of its 3 lines")
    return listed


def why_not_tried(operator: str, function: str, start: Position, target: Target, spans: Spans) -> str | None:
    """Why a change that Cosmic Ray offers is not made, or None where it is."""
    if _SKIPPED.match(operator):
        return "a milder change stands for it"
    if target.functions and function not in target.functions:
        return "another function"
    if any(first <= start < last for first, last in spans):
        return "an annotation"
    return None


def annotation_spans(source: str) -> Spans:
    """Where the annotations of `source` are."""
    nodes = ast.walk(ast.parse(source))
    found = [getattr(node, field, None) for node in nodes for field in ("annotation", "returns")]
    return [((a.lineno, a.col_offset), (a.end_lineno, a.end_col_offset)) for a in found if a is not None]


def mutant_of(module: str, function: str | None, diff: str) -> Mutant:
    """The mutant that a unified diff shows."""
    changed = {"-": [], "+": []}
    for line in diff.splitlines():
        if line[:1] in changed and not line.startswith(("---", "+++")):
            changed[line[0]] += line[1:].split()
    return Mutant(module, function or "(module)", " ".join(changed["-"]), " ".join(changed["+"]))


def run_target(target: Target, folder: Path) -> Outcome:
    """Try every mutant of one module, in a fresh copy of the repository below `folder`."""
    from cosmic_ray.commands import init
    from cosmic_ray.work_db import use_db

    began = time.monotonic()
    tree = _copied_tree(folder / target.module.replace("/", "-").removesuffix(".py"))
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    sys.path.insert(0, str(tree))
    _import_what_takes_seconds()
    sys.dont_write_bytecode = False
    status = _test_status(target, 3600)
    if status != 0:
        why = f"its tests fail without a change, with status {status}"
        return Outcome(target.module, 0, 0, (), why, time.monotonic() - began)
    time_limit = 60 + 10 * (time.monotonic() - began)
    sys.dont_write_bytecode = True  # two changes within a second would be one to Python
    with use_db(tree / "session.sqlite") as session:
        init([Path(PACKAGE, target.module)], session, {})
        _skip(session, target, annotation_spans(Path(PACKAGE, target.module).read_text()))
        for item in session.pending_work_items:
            session.set_result(item.job_id, _result(item, target, time_limit))
        return _outcome(target.module, session, time.monotonic() - began)


def _import_what_takes_seconds() -> None:
    """Once, for all forks: everything but the package. The garbage collector then leaves it alone."""
    import hypothesis.strategies  # noqa: F401
    import torch  # noqa: F401

    for plugin in entry_points(group="pytest11"):
        plugin.load()
    gc.freeze()


def _test_status(target: Target, time_limit: float) -> int | None:
    """Exit status of the tests, in a fork of this process, or None after `time_limit` seconds."""
    process = multiprocessing.get_context("fork").Process(target=_run_pytest, args=(target,))
    process.start()
    process.join(time_limit)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    return process.exitcode


def _run_pytest(target: Target) -> None:
    import pytest

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    options = ["-xq", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    options += [f"--deselect=tests/{test}" for test in target.left_out]
    sys.exit(pytest.main([*options, *(f"tests/{test}" for test in target.tests)]))


def _result(item: Any, target: Target, time_limit: float) -> Any:
    """What the tests say of the module with one change, as Cosmic Ray records it."""
    from cosmic_ray.mutating import use_mutation
    from cosmic_ray.plugins import get_operator
    from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

    (mutation,) = item.mutations
    operator = get_operator(mutation.operator_name)(**mutation.operator_args)
    with use_mutation(mutation.module_path, operator, mutation.occurrence) as (old, new):
        status = _test_status(target, time_limit)
    diff = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="")
    return WorkResult(
        WorkerOutcome.NORMAL,
        output="timeout" if status is None else f"status {status}",
        test_outcome=TestOutcome.SURVIVED if status == 0 else TestOutcome.KILLED,
        diff="\n".join(diff),
    )


def _copied_tree(tree: Path) -> Path:
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for name in COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__", ".tuning"))
        else:
            shutil.copy(source, tree / name)
    return tree


def _skip(session: Any, target: Target, spans: Spans) -> None:
    from cosmic_ray.work_item import WorkerOutcome, WorkResult

    for item in session.work_items:
        (mutation,) = item.mutations
        why = why_not_tried(
            mutation.operator_name, mutation.definition_name or "", tuple(mutation.start_pos), target, spans
        )
        if why is not None:
            session.set_result(item.job_id, WorkResult(WorkerOutcome.SKIPPED, why))


def _outcome(module: str, session: Any, seconds: float) -> Outcome:
    from cosmic_ray.work_item import TestOutcome, WorkerOutcome

    results = [
        pair for pair in session.completed_work_items if pair[1].worker_outcome is WorkerOutcome.NORMAL
    ]
    survivors = {
        mutant_of(module, item.mutations[0].definition_name, result.diff)
        for item, result in results
        if result.test_outcome is TestOutcome.SURVIVED
    }
    killed = [result.output for _, result in results if result.test_outcome is TestOutcome.KILLED]
    return Outcome(module, len(killed), killed.count("timeout"), tuple(sorted(survivors)), None, seconds)


def summary(outcome: Outcome, equivalent: Iterable[Mutant]) -> str:
    """One line for a module."""
    listed = len(set(outcome.survivors) & set(equivalent))
    return (
        f"{outcome.module}: {outcome.killed + len(outcome.survivors)} mutants, {outcome.killed} killed "
        f"({outcome.timed_out} by time-out), {listed} equivalent, {len(outcome.survivors) - listed} survive; "
        f"{outcome.seconds / 60:.0f} min"
    )


def verdict(outcomes: Sequence[Outcome], equivalent: Iterable[Mutant]) -> tuple[str, bool]:
    """What is to be done, as text, and whether nothing has to be."""
    ran = {outcome.module for outcome in outcomes}
    survivors = {mutant for outcome in outcomes for mutant in outcome.survivors}
    listed = {mutant for mutant in equivalent if mutant.module in ran}
    parts = [f"{outcome.module}: {outcome.failure}" for outcome in outcomes if outcome.failure]
    good = not parts and survivors <= listed
    if unlisted := sorted(survivors - listed):
        parts.append(f"{len(unlisted)} survive: add a test, or list them with a reason in {EQUIVALENT.name}")
        parts += map(str, unlisted)
    if stale := sorted(listed - survivors):
        parts.append(f"{len(stale)} in {EQUIVALENT.name} are killed or gone: take them out")
        parts += map(str, stale)
    return "\n".join(parts) or "No mutant survives that is not listed as equivalent.", good


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("modules", nargs="*", help="modules below the package; default: all of the call path")
    parser.add_argument("--jobs", type=int, default=2, help="modules at a time")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "build" / "mutants")
    asked = parser.parse_args(arguments)
    unknown = [module for module in asked.modules if module not in TARGETS]
    if unknown:
        parser.error(f"{unknown[0]} is not on the list; expected some of {', '.join(TARGETS)}")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same survivors on every machine
    os.environ["OMP_NUM_THREADS"] = "1"  # threads that wait for each other cost more than the tests
    equivalent = parse_equivalent(EQUIVALENT.read_text())
    outcomes = []
    with ProcessPoolExecutor(asked.jobs) as pool:
        running = [pool.submit(run_target, TARGETS[name], asked.folder) for name in asked.modules or TARGETS]
        for done in as_completed(running):
            outcomes.append(done.result())
            print(summary(outcomes[-1], equivalent), flush=True)
    text, good = verdict(outcomes, equivalent)
    print(text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
