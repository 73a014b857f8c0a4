"""Weight shapes (N, K): the public grid, and the linear layers of a model served in FP8, on one rank.

Importing this needs neither torch nor the extra `models`, which reading a checkpoint does.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from .model_shapes.checkpoint import CONFIG_FILE, Checkpoint, SourceError, read_directory, read_json
from .model_shapes.engine import engines_without_class
from .model_shapes.hub import config_from_hub, config_in_cache, from_cache, from_hub
from .model_shapes.layer import Linear
from .model_shapes.linears import ModelLinears, is_shared_expert, linears_of
from .model_shapes.notes import not_covered
from .model_shapes.parallel import shape_on_rank, why_indivisible
from .model_shapes.shipped import from_shipped, shipped_names

_logger = logging.getLogger(__name__)

_MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_TRIED_TP = 64  # a refused tp is answered with those up to here that fit

# The grid on which the field compares FP8 block-scaled GEMMs: N -> its K.
_PUBLIC_K: dict[int, tuple[int, ...]] = {
    512: (1024, 2048),
    1024: (2048, 2560, 3584, 5120),
    2048: (1024, 2048, 6144),
    2560: (4096, 9216),
    3584: (1024,),
    4096: (1024, 2048, 2560),
    5120: (6144, 17408),
    6144: (1024, 2048, 5120),
    8192: (2560,),
    9216: (2560,),
    10240: (5120,),
    12288: (5120,),
    17408: (5120,),
}
PUBLIC_SHAPES: tuple[tuple[int, int], ...] = tuple((N, K) for N, ks in _PUBLIC_K.items() for K in ks)
PUBLIC_M: tuple[int, ...] = (
    *range(1, 9),
    *(12, 14, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048, 4096, 8192),
)

_QWEN3_DENSE = tuple(f"qwen3-{size}" for size in ("0.6b", "1.7b", "4b", "8b", "14b", "32b"))


@dataclass(frozen=True, slots=True)
class ModelShapes:
    """The FP8 block-quantised linear layers of a model as an engine runs them on one of `tp` ranks."""

    model: str  # as the user gave it
    source: str  # where the shapes come from, in words
    tp: int
    layers: Mapping[tuple[int, int], tuple[str, ...]]  # (N, K) -> the layers of that shape, in running order
    not_covered: tuple[str, ...]  # what else the model holds or the shapes leave open, as clauses
    ep: int = 1  # of these ranks, in how many groups the routed experts are distributed

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Each (N, K) once, in the order in which a layer of the model runs them."""
        return tuple(self.layers)


def weight_shapes(
    model: str | os.PathLike[str],
    tp: int = 1,
    *,
    ep: int = 1,
    revision: str | None = None,
    offline: bool = False,
) -> ModelShapes:
    """The (N, K) of every FP8 block-quantised linear layer of `model`, merged and divided as engines do.

    `model` is a directory with a checkpoint, a Hugging Face id (looked for in the cache, then on the hub,
    which gives headers alone and which `offline` leaves out, then among the shipped shape files), or the
    short name of a shipped file, such as "qwen3-4b". With `ep` the engine distributes the routed experts over
    that many groups of ranks, and divides an expert over the tp / ep ranks of a group alone. ValueError
    where there is no such model (with all that was tried), where it is not FP8 in blocks of 128 x 128, or
    where `tp` ranks cannot divide it (with the tp that fit).
    """
    for name, value in (("tp", tp), ("ep", ep)):
        if type(value) is not int or value < 1:  # not isinstance: True is an int to Python
            raise ValueError(f"{name} = {value!r}: expected a whole number of ranks, 1 or more")
    if tp % ep:
        raise ValueError(f"ep = {ep}: expected a divisor of tp = {tp}; give one, or leave it out")
    return _on_one_rank(os.fspath(model), _find(model, revision, offline), tp, ep)


def config_directory(model: str | os.PathLike[str]) -> Path:
    """The directory with the config.json of `model`: all that an engine needs to build it, without weights.

    `model` is a directory or a Hugging Face id, looked for in the cache and then on the hub. ValueError where
    there is no config.json, with all that was tried.
    """
    name, directory = os.fspath(model), _directory(model)
    if directory is None and name.casefold() in shipped_names():
        raise ValueError(
            f"{name} is a shape file of this package, and an engine needs the whole {CONFIG_FILE}; give the "
            f"model's Hugging Face id or its directory"
        )
    sources: tuple[Callable[[], Path], ...] = (
        (lambda: config_in_cache(name, None), lambda: config_from_hub(name, None))
        if directory is None
        else (lambda: directory / CONFIG_FILE,)
    )
    failures = []
    for source in sources:
        try:
            config = source()
            read_json(config)
            return config.parent
        except SourceError as error:
            failures.append(str(error))
    raise ValueError(
        f"{name}: an engine needs its {CONFIG_FILE}, and {'; '.join(failures)}. Check the name, or give a "
        f"directory that has the file"
    )


def listing(shapes: ModelShapes) -> str:
    """A line for each shape with its layers, then what is not covered; without a newline at the end."""
    rows = [
        ("N", "K", "layers"),
        *((str(N), str(K), ", ".join(names)) for (N, K), names in shapes.layers.items()),
    ]
    ranks = f"tp {shapes.tp}" + (f", ep {shapes.ep}" if shapes.ep > 1 else "")
    lines = [f"{shapes.model} at {ranks}: {len(shapes.layers)} shapes on each rank, from {shapes.source}"]
    lines += [f"{N:>8} {K:>8}  {names}" for N, K, names in rows]
    lines += [f"Not covered: {sentence}." for sentence in shapes.not_covered]
    return "\n".join(lines)


def shapes_of(name: str) -> tuple[tuple[int, int], ...]:
    """The (N, K) list behind a name of `shape_list_names`, models at tp 1. ValueError for another name."""
    if name == "public":
        return PUBLIC_SHAPES
    if name == "qwen3-dense":
        return tuple(dict.fromkeys(chain.from_iterable(map(shapes_of, _QWEN3_DENSE))))
    if name not in shape_list_names():
        raise ValueError(
            f"there is no shape list {name!r}: take one of {', '.join(shape_list_names())}, or give N and K"
        )
    return _on_one_rank(name, from_shipped(name), tp=1).shapes


def shape_list_names() -> tuple[str, ...]:
    """The public grid, the six dense Qwen3 models together, and each shipped model's short name."""
    return ("public", "qwen3-dense", *shipped_names())


def _on_one_rank(model: str, checkpoint: Checkpoint, tp: int, ep: int = 1) -> ModelShapes:
    try:
        found = linears_of(checkpoint)
    except ValueError as error:
        raise ValueError(f"{model} ({checkpoint.source}): {error}") from error
    _check_fits(model, found, tp, ep)
    layers: dict[tuple[int, int], tuple[str, ...]] = {}
    for linear in found.linears:
        shape = shape_on_rank(linear, tp)
        names = layers.get(shape, ())
        layers[shape] = names if linear.name in names else (*names, linear.name)
    notes = not_covered(found, tp, ep, lambda linear: _list_of_tp([linear]))
    return ModelShapes(model, checkpoint.source, tp, layers, (*notes, *_about_class(checkpoint.config)), ep)


def _about_class(config: Mapping[str, object]) -> Iterator[str]:
    architectures = config.get("architectures")
    names = (
        [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    )
    for engine, title in engines_without_class(names):
        yield (
            f"the layers of the installed {title}, which has no class {names[0]} of its own: that of "
            f"transformers merges none of these; --engine {engine} tells them"
        )


def _check_fits(model: str, found: ModelLinears, tp: int, ep: int) -> None:
    """ValueError where an engine refuses a layer on `tp` ranks that share out the experts `ep` ways."""
    for linear, module in found.linears.items():
        why = why_indivisible(linear, tp)
        if why is not None:
            raise ValueError(
                f"{model} cannot run at tp {tp}: {_described(linear, module)}: {why}"
                f"{_with_whole_shared_experts(found, linear)}. {_advice(found)}"
            )
    for linear, module in found.experts.items():
        why = why_indivisible(linear, tp // ep)
        if why is not None:
            raise ValueError(
                f"{model} cannot run at tp {tp}: routed experts, {_described(linear, module)}: {why}"
                f"{_with_expert_parallelism(found, tp)}. {_advice(found)}"
            )


def _described(linear: Linear, module: str) -> str:
    return f"{linear.name} of {module or 'the model'} (N = {linear.N}, K = {linear.K})"


def _with_whole_shared_experts(found: ModelLinears, linear: Linear) -> str:
    if not (is_shared_expert(linear) and found.experts):
        return ""
    return "; only all-to-all backends of experts (DeepEP) run it whole, which a checkpoint does not tell"


def _with_expert_parallelism(found: ModelLinears, tp: int) -> str:
    fitting = [
        str(ep)
        for ep in range(2, tp + 1)
        if tp % ep == 0 and all(why_indivisible(linear, tp // ep) is None for linear in found.experts)
    ]
    return f"; with expert parallelism they fit: ep {', '.join(fitting)}" if fitting else ""


def _list_of_tp(linears: Iterable[Linear]) -> str:
    """The numbers of ranks up to `_TRIED_TP` that all of `linears` fit, in words."""
    layers = list(linears)
    return ", ".join(
        str(tp)
        for tp in range(1, _TRIED_TP + 1)
        if all(why_indivisible(linear, tp) is None for linear in layers)
    )


def _advice(found: ModelLinears) -> str:
    fitting = _list_of_tp([*found.linears, *found.experts])
    if not fitting:
        return f"No tp up to {_TRIED_TP} fits; take another checkpoint"
    return f"The tp that fit: {fitting}"


def _find(model: str | os.PathLike[str], revision: str | None, offline: bool) -> Checkpoint:
    name, directory = os.fspath(model), _directory(model)
    if directory is not None:
        try:
            return read_directory(directory, f"directory {directory}")
        except SourceError as error:
            raise ValueError(f"{name}: {error}") from error
    failures: list[SourceError] = []
    for source in _sources(name, revision, offline):
        try:
            checkpoint = source()
        except SourceError as error:
            failures.append(error)
            continue
        if failures:
            level = logging.WARNING if any(error.incomplete for error in failures) else logging.INFO
            reasons = "; ".join(map(str, failures))
            _logger.log(
                level, "shapes of %s come from: %s. Before that: %s", name, checkpoint.source, reasons
            )
        return checkpoint
    tried = "; ".join(f"({number}) {error}" for number, error in enumerate(failures, start=1))
    raise ValueError(
        f"{name}: its shapes were not found. {_no_directory(name)}, and tried were: "
        f"{tried}. Check the id, or download the model (hf download {name}), or give N and K"
    )


def _directory(model: str | os.PathLike[str]) -> Path | None:
    """The directory that `model` means; None where it is an id. ValueError for an empty name."""
    directory = Path(model).expanduser()
    if not os.fspath(model):
        raise ValueError("the model has no name; give a directory or a model id")
    # A directory that is named like a model but holds none, say of results, does not hide the model.
    is_path = not isinstance(model, str) or not _MODEL_ID.fullmatch(model)
    return directory if is_path or (directory / CONFIG_FILE).is_file() else None


def _no_directory(name: str) -> str:
    path = Path(name).expanduser()
    if os.path.isfile(path):
        return f"That is a file, where the directory with its {CONFIG_FILE} is expected"
    if os.path.isdir(path):
        return f"The directory of that name has no {CONFIG_FILE}"
    return f"No directory of that name has a {CONFIG_FILE}"


def _sources(model: str, revision: str | None, offline: bool) -> Iterable[Callable[[], Checkpoint]]:
    """Where to look for a model id, in this order; each raises SourceError where it has nothing."""
    if model.casefold() in shipped_names():  # no id of the hub: "qwen3-4b" is ours
        return (lambda: from_shipped(model),)
    return (
        lambda: from_cache(model, revision),
        lambda: _from_hub_unless(offline, model, revision),
        lambda: _from_shipped_unless_revised(model, revision),
    )


def _from_hub_unless(offline: bool, model: str, revision: str | None) -> Checkpoint:
    if offline:
        raise SourceError("the Hugging Face hub was not asked, because of offline=True")
    return from_hub(model, revision)


def _from_shipped_unless_revised(model: str, revision: str | None) -> Checkpoint:
    if revision is not None:
        raise SourceError(f"shipped shape files know no revisions, and {revision} was asked for")
    return from_shipped(model)


# What the demo and the benchmarks take where they need one real model: (N, K) -> the layers of that shape.
QWEN3_4B_FP8: dict[tuple[int, int], str] = {
    shape: ", ".join(names)
    for shape, names in _on_one_rank("qwen3-4b", from_shipped("qwen3-4b"), tp=1).layers.items()
}
