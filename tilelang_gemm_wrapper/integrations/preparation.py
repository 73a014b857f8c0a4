"""What any engine does with its layers before it serves: compile, say what will run, agree among ranks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tilelang_gemm_wrapper import entrypoint
from tilelang_gemm_wrapper.core import wrapper
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.device import device_of
from tilelang_gemm_wrapper.core.dispatch import build_table
from tilelang_gemm_wrapper.ops import quant

Shape = tuple[int, int]  # (N, K) of a weight as this rank holds it
Selection = dict[Shape, tuple[tuple[int, str, KernelConfig | None], ...]]  # (largest M, kernel, config) each


@dataclass(frozen=True, slots=True)
class Preparation:
    """The shapes of a rank's layers, and what became of them."""

    device: str
    m_max: int
    layers: Mapping[Shape, int]  # how many layers have that shape
    sources: Mapping[Shape, str]  # a tuned file's path, "default choice" or "fallback"
    fallbacks: Mapping[Shape, str]  # why no TileLang kernel serves that shape at any M
    selection: Selection  # of the shapes that are served
    seconds: float
    compiled: int

    def summary(self) -> str:
        """What a user should know, a line for all and one for each shape that falls back."""
        tuned = sum(source.endswith(".json") for source in self.sources.values())
        untuned = sum(source == "default choice" for source in self.sources.values())
        first = (
            f"TileLang FP8 GEMM is active on {self.device} for {sum(self.layers.values())} layers of "
            f"{len(self.layers)} (N, K): {tuned} with a tuned file, {untuned} by the default choice, "
            f"{len(self.fallbacks)} on the engine's own GEMM. Warm-up for M up to {self.m_max} took "
            f"{self.seconds:.1f} s; {self.compiled} kernels were not in the cache."
        )
        rest = (
            f"N={N}, K={K} ({self.layers[N, K]} layers) stays with the engine's own GEMM: {why}"
            for (N, K), why in self.fallbacks.items()
        )
        return "\n".join((first, *rest))


def prepare(layers: Mapping[Shape, int], m_max: int, index: int, progress: bool = True) -> Preparation:
    """Compile and load on CUDA device `index` all that calls with these (N, K) and M up to `m_max` need.

    layers: how many layers have each (N, K). Of several processes with one cache the first compiles and the
    others wait for it. Shapes that no TileLang kernel takes are left alone and named in the result.
    """
    started = time.perf_counter()
    device = device_of(index)
    tables = {shape: build_table(*shape, device) for shape in sorted(layers)}
    fallbacks = {
        shape: table.choices[0].reason
        for shape, table in tables.items()
        if all(choice.source == "fallback" for choice in table.choices)
    }
    served = [shape for shape in tables if shape not in fallbacks]
    if served:
        quant.warmup(index, "sglang")
    compiled = entrypoint.warmup(served, m_max, index, progress=progress)
    gemms = {shape: wrapper.gemm_for(*shape, index) for shape in served}
    return Preparation(
        device=device.name,
        m_max=m_max,
        layers=layers,
        sources={shape: table.choices[0].source for shape, table in tables.items()},
        fallbacks=fallbacks,
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


def disagreement(selections: Sequence[Selection]) -> str | None:
    """The first shape that two ranks would compute with different kernels, in words; None where they agree.

    Ranks of one group must: a row that two ranks computed differently is not the same row any more. Shapes
    that not every rank has are compared among those that have them.
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
