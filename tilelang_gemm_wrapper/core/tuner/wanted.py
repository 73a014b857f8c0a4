"""The weight shapes that a command line asks for: of models, of engines, of lists, or one by one."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tilelang_gemm_wrapper import models
from tilelang_gemm_wrapper.core.config_file import LARGEST_M
from tilelang_gemm_wrapper.core.dispatch import why_shape_unfit
from tilelang_gemm_wrapper.model_shapes.engine import Engine
from tilelang_gemm_wrapper.model_shapes.shapes_file import EngineShapes, read_shapes_file

Shape = tuple[int, int]  # (N, K) of a weight as a rank holds it

_LONGEST_NAME = 200  # characters; file systems take 255 bytes, suffixes included


class Wanted(NamedTuple):
    shapes: tuple[Shape, ...]  # each once, and each such that a kernel can take it
    listing: str  # the text of --list-shapes
    left_out: tuple[str, ...]  # a line for each shape that no kernel takes, with the reason
    name: str  # of the result files
    notes: tuple[str, ...]  # a line for each thing that an engine says of its shapes


class _Source(NamedTuple):
    """One of the things that the options name."""

    shapes: Iterable[Shape]
    text: str
    name: str
    notes: tuple[str, ...] = ()


def wanted(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Wanted:
    """All that the options name. Ends the program where they do not fit together; ValueError as below."""
    if (options.N is None) != (options.K is None):
        parser.error("give both --N and --K")
    if not options.model and (options.engine or options.tp != 1 or options.ep != 1):
        parser.error("--engine, --tp and --ep are about --model, which is missing")
    if options.engine and options.ep != 1:
        parser.error("--engine takes no --ep: it builds a rank without expert parallelism; leave --ep out")
    sources = [*_sources(options), *_single(parser, options)]
    if not sources:
        parser.error("say what to tune: --model, --shapes-from, --shapes, or --N and --K")
    shapes = dict.fromkeys(shape for source in sources for shape in source.shapes)
    unfit = {shape: why for shape in shapes if (why := why_shape_unfit(*shape))}
    left_out = tuple(f"N={N} K={K} is not tuned: {why}" for (N, K), why in unfit.items())
    if len(unfit) == len(shapes):
        raise ValueError(f"there is nothing to tune: {'; '.join(left_out)}")
    texts = [source.text for source in sources] + (["\n".join(left_out)] if left_out else [])
    return Wanted(
        tuple(shape for shape in shapes if shape not in unfit),
        "\n\n".join(texts),
        left_out,
        "_".join(source.name for source in sources)[:_LONGEST_NAME],
        tuple(note for source in sources for note in source.notes),
    )


def _sources(options: argparse.Namespace) -> Iterator[_Source]:
    """ValueError for a model or file that gives no shapes; RuntimeError for an engine that is missing."""
    if options.engine:
        with Engine(options.engine) as engine:
            for model in options.model:
                built = engine.shapes(models.config_directory(model), model, options.tp)
                yield _built(built, f"{built.engine} {built.engine_version}, which built the model")
    else:
        for model in options.model:
            read = models.weight_shapes(model, options.tp, ep=options.ep)
            if not read.shapes:
                raise _without_layers(f"{model} at tp {options.tp}, from {read.source}", read.not_covered)
            yield _Source(read.shapes, models.listing(read), _name(model, options.tp))
    for path in options.shapes_from:
        written = read_shapes_file(path)
        yield _built(written, f"{path}, written by {written.engine} {written.engine_version}")
    for name in options.shapes:
        shapes = models.shapes_of(name)
        yield _Source(shapes, "\n".join(f"N={N} K={K}" for N, K in shapes), name)


def _single(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Iterator[_Source]:
    N, K = options.N, options.K
    if N is not None:
        if min(N, K) < 1 or max(N, K) > LARGEST_M or why_shape_unfit(N, K):
            parser.error(
                f"--N {N} --K {K}: the kernels need N in multiples of 16 and K of 128, both from 1 to "
                f"{LARGEST_M}"
            )
        yield _Source([(N, K)], f"N={N} K={K}", f"N{N}_K{K}")


def _without_layers(what: str, found: Iterable[str]) -> ValueError:
    rest = "; ".join(found) or "no FP8 weight at all"
    return ValueError(
        f"{what}: no linear layer has FP8 weights in blocks of 128 x 128. Found: {rest}. Take a model that "
        f"is quantised so"
    )


def _name(model: str, tp: int) -> str:
    """The last part of a path or id, for file names; a file of shapes may call its model anything."""
    last = re.sub(r"[^\w.-]+", "_", Path(model).name.lower())
    return f"{last or 'model'}{f'_tp{tp}' if tp > 1 else ''}"


# ---- what an engine built


def _built(built: EngineShapes, origin: str) -> _Source:
    notes = tuple(f"{built.model}: not covered: {clause}" for clause in built.not_covered)
    return _Source(built.layers, _listing(built, origin), _name(built.model, built.tp), notes)


def _listing(built: EngineShapes, origin: str) -> str:
    """A line for each shape with its number of layers, then what is not covered.

    ValueError where the engine built no linear layer for the kernels.
    """
    not_covered = [*_about_experts(built), *built.not_covered]
    if not built.layers:
        raise _without_layers(f"{built.model} at tp {built.tp}, from {origin}", not_covered)
    rows = [("N", "K", "layers"), *((N, K, count) for (N, K), count in built.layers.items())]
    lines = [f"{built.model} at tp {built.tp}: {len(built.layers)} shapes on a rank, from {origin}"]
    lines += [f"{N:>8} {K:>8}  {count}" for N, K, count in rows]
    lines += [f"Not covered: {clause}." for clause in not_covered]
    return "\n".join(lines)


def _about_experts(built: EngineShapes) -> Iterator[str]:
    if built.experts:
        stacks = ", ".join(f"{n} of (E={E}, N={N}, K={K})" for (E, N, K), n in built.experts.items())
        yield f"routed experts, a grouped GEMM of its own: {stacks}"
