"""What any engine does with its layers before it serves: compile, agree among ranks, say what will run."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tilelang_gemm_wrapper import entrypoint
from tilelang_gemm_wrapper.core import wrapper
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.device import device_of
from tilelang_gemm_wrapper.core.dispatch import Choice, build_table
from tilelang_gemm_wrapper.core.failure_text import first_line
from tilelang_gemm_wrapper.integrations.block_fp8_linear import Shape
from tilelang_gemm_wrapper.ops import quant

Selection = dict[Shape, tuple[tuple[int, str, KernelConfig | None], ...]]  # (largest M, kernel, config) each

_LISTED = 4  # (N, K) that a line names before it counts the rest


@dataclass(frozen=True, slots=True)
class Preparation:
    """What became of the shapes of a rank's layers."""

    device: str
    m_max: int
    sources: Mapping[Shape, str]  # of the shapes that are served: a tuned file's path or "default choice"
    refused: Mapping[Shape, str]  # why the engine's own GEMM has to run that shape
    selection: Selection  # of the shapes that are served
    seconds: float
    compiled: int


def prepare(
    shapes: Iterable[Shape], m_max: int, index: int, progress: bool = True, static_weights: bool | None = None
) -> Preparation:
    """Compile and load on CUDA device `index` all that calls with these (N, K) and M up to `m_max` need.

    static_weights: whether the kernels may read weights early; None leaves it to the environment. Of several
    processes with one cache the first compiles and the others wait for it. A shape for which a kernel is
    missing or does not compile is refused whole: an engine's own GEMM is the better stand-in for it.
    """
    started = time.perf_counter()
    device = device_of(index)
    tables = {shape: build_table(*shape, device) for shape in sorted(set(shapes))}
    refused = {shape: why for shape, table in tables.items() if (why := _why_missing(table.choices))}
    served = [shape for shape in tables if shape not in refused]
    compiled = 0
    if served and (why := _why_no_quantizer(index)):
        refused |= dict.fromkeys(served, why)
    elif served:
        compiled = entrypoint.warmup(served, m_max, index, progress, static_weights, fallbacks=False)
    gemms = {shape: wrapper.gemm_for(*shape, index) for shape in served if shape not in refused}
    refused |= {shape: why for shape, gemm in gemms.items() if (why := _why_missing(gemm.choices))}
    gemms = {shape: gemm for shape, gemm in gemms.items() if shape not in refused}
    return Preparation(
        device=device.name,
        m_max=m_max,
        sources={shape: _source(gemm.choices) for shape, gemm in gemms.items()},
        refused=refused,
        selection={
            shape: tuple(
                (bound, choice.kernel, choice.config)
                for bound, choice in zip(gemm.table.bounds, gemm.choices, strict=True)
            )
            for shape, gemm in gemms.items()
        },
        seconds=time.perf_counter() - started,
        compiled=compiled,
    )


def _why_missing(choices: Iterable[Choice]) -> str | None:
    """Why some M of a shape has no kernel: what would run in its place is ours, not the engine's."""
    return next((choice.cause for choice in choices if choice.source == "fallback"), None)


def _source(choices: Iterable[Choice]) -> str:
    """A tuned file that serves some M of a shape, else "default choice"."""
    return next((choice.source for choice in choices if choice.source != "default choice"), "default choice")


def _why_no_quantizer(index: int) -> str | None:
    try:
        quant.warmup(index, "sglang")
    except Exception as problem:  # any compiler failure: the engine has a quantizer of its own
        return f"the quantizer of activations did not compile ({first_line(problem)})"
    return None


# ---- ranks of one group


def agreed(mine: Preparation, ranks: Sequence[Preparation]) -> Preparation:
    """`mine` without the shapes that another rank refused: a group runs a shape with one GEMM on all ranks.

    ranks: of every rank of the group, in order. Raises RuntimeError where two ranks would run different
    kernels: a row that two ranks computed differently is not the same row any more.
    """
    refused: dict[Shape, str] = dict(mine.refused)
    for rank, theirs in enumerate(ranks):
        for shape, why in theirs.refused.items():
            refused.setdefault(shape, f"on rank {rank}: {why}")
    selections = [
        {shape: chosen for shape, chosen in theirs.selection.items() if shape not in refused}
        for theirs in ranks
    ]
    if difference := disagreement(selections):
        raise RuntimeError(difference)
    return replace(
        mine,
        sources={shape: source for shape, source in mine.sources.items() if shape not in refused},
        refused=refused,
        selection={shape: chosen for shape, chosen in mine.selection.items() if shape not in refused},
    )


def disagreement(selections: Sequence[Selection]) -> str | None:
    """The first shape that two ranks would compute with different kernels, in words; None where they agree.

    Shapes that not every rank has are compared among those that have them.
    """
    for shape in sorted({shape for selection in selections for shape in selection}):
        chosen = {rank: selection[shape] for rank, selection in enumerate(selections) if shape in selection}
        first, *others = chosen
        for other in others:
            mine, theirs = chosen[first], chosen[other]
            if mine != theirs:
                return (
                    f"for N={shape[0]}, K={shape[1]} rank {first} chose {_differing(mine, theirs)} "
                    f"and rank {other} {_differing(theirs, mine)}"
                )
    return None


def _differing(mine: tuple, theirs: tuple) -> str:
    """The first entry of `mine` that is not in `theirs`, or that there is no such entry."""
    entry = next((entry for entry in mine if entry not in theirs), None)
    return f"{entry[1]} up to M={entry[0]} ({entry[2]})" if entry else "nothing more"


# ---- the account


def account(
    ready: Preparation, layers: Sequence[tuple[Shape, str | None]], engine: str, model: str
) -> tuple[str, ...]:
    """What a user should know: a line of what is served, and one for each reason of what is not.

    layers: (N, K) of each block-FP8 layer of the rank, and why the engine's own GEMM runs it, or None. The
    layers that the lines count add up to all of them.
    """
    served = Counter(shape for shape, why in layers if why is None)
    others: dict[str, Counter[Shape]] = defaultdict(Counter)
    for shape, why in layers:
        if why is not None:
            others[why][shape] += 1
    if served:
        tuned = sum(ready.sources[shape] != "default choice" for shape in served)
        first = (
            f"TileLang FP8 GEMM is active on {ready.device} for {served.total()} of {_count(len(layers))} of "
            f"{len(served)} (N, K): {tuned} with a tuned file, {len(served) - tuned} by the default choice. "
            f"Warm-up for M up to {ready.m_max} took {ready.seconds:.1f} s; {ready.compiled} kernels were "
            "not in the cache."
        )
    else:
        first = (
            f"The tilelang backend does nothing for {model}: {engine}'s own GEMM runs all of its "
            f"{_count(len(layers))}"
        )
    rest = (
        f"{engine}'s own GEMM runs {_count(shapes.total())} ({_listed(shapes)}): {why}"
        for why, shapes in others.items()
    )
    return first, *rest


def _count(layers: int) -> str:
    return f"{layers} block-FP8 layer{'' if layers == 1 else 's'}"


def _listed(shapes: Iterable[Shape]) -> str:
    names = [f"N={N}, K={K}" for N, K in sorted(shapes)]
    more = [f"{len(names) - _LISTED} more (N, K)"] if len(names) > _LISTED else []
    return "; ".join(names[:_LISTED] + more)
