"""What the lab runs: a kernel together with one launch of it and the result to expect.

The package's own kernels are in `builtin_cases`. A kernel of yours needs a function `case(arch)` in a file of
yours that returns a `TritonCase` or a `TileLangCase`; `--kernel FILE.py:case` names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ..core.workload import Expected

MAX_ERROR = 3e-6  # of `core.workload.error`; results in bfloat16 stand at 1.4e-6


@dataclass(frozen=True, slots=True)
class Launch:
    """The arguments of one launch.

    arguments: by name, in the kernel's order, every one (Triton's constexprs too). outputs: names of those
    that the kernel writes; they must be NaN-filled or zero, so that what is left unwritten is seen. expected:
    the right outputs by name, in any float dtype, or for a GEMM what each element must be. cold: names of
    those that `--bench` rotates through copies larger than L2; the others stay where the launch before left
    them.
    """

    arguments: Mapping[str, Any]
    outputs: tuple[str, ...]
    expected: Callable[[], Mapping[str, torch.Tensor | Expected]]
    cold: tuple[str, ...] = ()
    max_error: float = MAX_ERROR


@dataclass(frozen=True, slots=True)
class TritonCase:
    """A `@triton.jit` function. options: num_warps, num_stages and so on. launch: called with a device name,
    "meta" where only dtypes and shapes are wanted."""

    kernel: Any
    grid: tuple[int, ...]
    launch: Callable[[str], Launch]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TileLangCase:
    """A TileLang PrimFunc whose parameters are the launch's arguments, with TileLang's compiler options."""

    function: Any
    launch: Callable[[str], Launch]
    pass_configs: Mapping[str, Any] = field(default_factory=dict)


Case = TritonCase | TileLangCase


def language_of(case: Case) -> str:
    return "triton" if isinstance(case, TritonCase) else "tilelang"
