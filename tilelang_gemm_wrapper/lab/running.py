"""Compile from an edited level, launch the result with the original's arguments, check it and time it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.device import device_of
from ..core.timing import Timing, cold_copies, time_interleaved
from ..core.workload import Expected, compare, error
from . import dumps, kernels
from .built import Built
from .cases import Case, Launch
from .dumps import LevelFile
from .resources import Resources, capability_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Compiled:
    """A file that has been compiled. others_edited: levels that were edited too and take no part in this."""

    file: LevelFile
    edited: bool
    others_edited: list[str]
    built: Built
    case: Case

    def resources(self) -> list[Resources]:
        return self.built.resources(self.file.dump.arch)


@dataclass(frozen=True, slots=True)
class Run:
    """What `run_from` found. outputs: what the kernel wrote, by name. errors: `core.workload.error` of each
    against the reference; empty without check. wrong: why an output is no right one, by name. timings: of
    "edited" and "unedited"; empty without bench."""

    compiled: Compiled
    outputs: Mapping[str, torch.Tensor]
    errors: Mapping[str, float] = field(default_factory=dict)
    max_error: float = 0.0
    wrong: Mapping[str, str] = field(default_factory=dict)
    timings: Mapping[str, Timing] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every output that was checked is right."""
        return not self.wrong


def compile_from(path: str | Path) -> Compiled:
    """Compile a level's file as it is now, down to the cubin; no GPU is needed.

    path: a file of a dump's folder (kernel.ptx, or any name with a level's ending), or its python/ folder.
    Nothing is kept, so the file's content is what counts, whatever its time stamp. Raises ValueError where
    the file is of another kernel, architecture or compiler than the dump, or its level cannot be run from;
    RuntimeError where the compiler refuses it.
    """
    file = LevelFile.of(Path(path))
    dump = file.dump
    _refuse_other_compiler(file)
    installed = kernels.installed_sources(dump.kernel)
    for module, known in dump.modules.items():
        if dumps.digest(installed.get(module, "")) != known:
            raise ValueError(
                f"{module} has changed since {dump.kernel} was dumped into {file.directory}: its launch may "
                f"be another; dump the kernel again"
            )
    if file.level in dump.read_only:
        raise ValueError(f"{file.path} is for reading only: {dump.read_only[file.level]}")
    sources = installed | file.sources() if file.level == "python" else installed
    content = "" if file.level == "python" else file.content()
    if file.level != "python":
        why_not = dumps.why_foreign(file, content)
        if why_not is not None:
            raise ValueError(why_not)
    with kernels.case_of(dump.kernel, dump.parameters, dump.arch, sources) as (case, _):
        built = kernels.build(case, dump.arch, file.level, content, dump.metadata)
        _refuse_other_launch(file, built)
        return Compiled(file, file.is_edited, file.others_edited(), built, case)


def run_from(path: str | Path, *, check: bool = True, bench: bool = False) -> Run:
    """Compile from a level's file and launch it once, on the current CUDA device.

    The launch has the original's arguments, grid and metadata. check: compare the outputs with the reference.
    bench: time it against the kernel as it is installed, in turns, with cold weights and CUDA graphs. Raises
    as `compile_from`, and ValueError where the GPU is of another architecture, RuntimeError where there is
    none.
    """
    file = LevelFile.of(Path(path))
    _refuse_other_gpu(file)
    compiled = compile_from(path)
    launch = compiled.case.launch("cuda")
    launcher = compiled.built.launcher()
    outputs = _launched(launcher, launch)
    errors, wrong = _checked(launch, outputs) if check else ({}, {})
    timings = _timings(compiled, launch, launcher) if bench else {}
    return Run(compiled, outputs, errors, launch.max_error, wrong, timings)


def _refuse_other_compiler(file: LevelFile) -> None:
    dump = file.dump
    installed = kernels.compiler_of(dump.language)
    for name, version in dump.compiler.items():
        if installed.get(name) != version:
            raise ValueError(
                f"{file.directory} was dumped with {name} {version} and {installed.get(name)} is "
                f"installed, which may launch or compile the kernel otherwise; dump it again, "
                f"or install {name} {version}"
            )


def _refuse_other_launch(file: LevelFile, built: Built) -> None:
    """The launcher is the original's: a kernel that takes other parameters would read past them."""
    dump = file.dump
    if set(built.launches) != set(dump.entries):
        raise ValueError(
            f"{file.path} makes the kernels {', '.join(built.launches)} and {dump.kernel} has "
            f"{', '.join(dump.entries)}; keep their names"
        )
    ptx = built.levels.get("ptx")
    for entry, expected in dump.entries.items() if isinstance(ptx, str) else ():
        found = dumps.ptx_parameters(str(ptx), entry)
        if found != expected and file.level != "python":
            raise ValueError(
                f"{entry} of {file.path} takes the parameters ({', '.join(found)}) and is launched with "
                f"({', '.join(expected)}); keep them as they are"
            )


def _refuse_other_gpu(file: LevelFile) -> None:
    import torch

    wanted = file.dump.arch
    if not torch.cuda.is_available():
        raise RuntimeError(f"{file.dump.kernel} needs a GPU of {wanted} to run, and torch sees none here")
    device = device_of(torch.cuda.current_device())
    if device.capability != capability_of(wanted):
        raise ValueError(
            f"{file.directory} is compiled for {wanted} and {device.name} is {device.arch}; dump the kernel "
            f"again with --arch {device.arch}"
        )


def _launched(launcher: Callable[[Launch], None], launch: Launch) -> dict[str, torch.Tensor]:
    import torch

    launcher(launch)
    torch.cuda.synchronize()
    return {name: launch.arguments[name] for name in launch.outputs}


def _checked(launch: Launch, outputs: Mapping[str, torch.Tensor]) -> tuple[dict[str, float], dict[str, str]]:
    """The error of each output, and why those that are wrong are."""
    expected = launch.expected()
    errors: dict[str, float] = {}
    wrong: dict[str, str] = {}
    for name, actual in outputs.items():
        right = expected[name]
        if isinstance(right, Expected):
            comparison = compare(actual, right)
            errors[name], why_wrong = comparison.error, comparison.why_wrong()
        else:
            errors[name] = error(actual, right.reshape(actual.shape))
            is_right = errors[name] <= launch.max_error
            why_wrong = None if is_right else f"its error is above {launch.max_error:g}"
        if why_wrong is not None:
            wrong[name] = why_wrong
    return errors, wrong


def _timings(compiled: Compiled, launch: Launch, edited: Callable[[Launch], None]) -> dict[str, Timing]:
    dump = compiled.file.dump
    sources = kernels.installed_sources(dump.kernel)
    with kernels.case_of(dump.kernel, dump.parameters, dump.arch, sources) as (case, _):
        unedited = kernels.build(case, dump.arch, "python", "", {}).launcher()
    # A rotation each: an edited Python level may take other arguments.
    ours, theirs = _rotation(launch), _rotation(case.launch("cuda"))
    calls: dict[str, Callable[[int], Any]] = {
        "edited": lambda index: edited(ours[index]),
        "unedited": lambda index: unedited(theirs[index]),
    }
    return time_interleaved(calls, min(len(ours), len(theirs)))


def _rotation(launch: Launch) -> list[Launch]:
    """The launch, and copies of it that together have more cold arguments than L2 holds."""
    import torch

    cold = [launch.arguments[name] for name in launch.cold]
    size = sum(tensor.numel() * tensor.element_size() for tensor in cold)
    device = device_of(torch.cuda.current_device())
    return [launch, *(_copy(launch) for _ in range(cold_copies(size, device.l2_bytes) - 1 if size else 0))]


def _copy(launch: Launch) -> Launch:
    """The same launch with its cold arguments in other memory."""
    copies = {name: launch.arguments[name].clone() for name in launch.cold}
    return dataclasses.replace(launch, arguments={**launch.arguments, **copies})
