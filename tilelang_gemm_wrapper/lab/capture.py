"""Recording the launches that a piece of Python makes, instead of making them: no GPU is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from unittest import mock


class TritonLaunch(NamedTuple):
    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # of the kernel, by name, in its order
    options: dict[str, Any]  # num_warps and so on


def triton_launch(launch: Callable[[], Any]) -> TritonLaunch:
    """The one launch of a `@triton.jit` kernel that `launch()` makes.

    Raises ValueError unless it is one.
    """
    from triton.runtime.jit import JITFunction

    found: list[TritonLaunch] = []

    def record(kernel: Any, *arguments: Any, grid: Any, warmup: bool = False, **named: Any) -> None:
        del warmup
        given = dict(zip(kernel.arg_names, arguments, strict=False)) | named
        defaults = {p.name: p.default for p in kernel.params if p.has_default}
        bound = {name: _first(name, given, defaults) for name in kernel.arg_names}
        options = {name: value for name, value in named.items() if name not in bound}
        found.append(TritonLaunch(kernel, grid(bound) if callable(grid) else tuple(grid), bound, options))

    with mock.patch.object(JITFunction, "run", record):
        launch()
    if len(found) != 1:
        raise ValueError(f"expected one launch of a Triton kernel; {len(found)} were made")
    return found[0]


def _first(name: str, *sources: Mapping[str, Any]) -> Any:
    for source in sources:
        if name in source:
            return source[name]
    raise ValueError(f"the launch has no value for {name}")


class TileLangLaunch(NamedTuple):
    build: Callable[[Any], Any]
    shape: Any
    pass_configs: dict[str, Any]
    arguments: tuple[Any, ...]


def tilelang_launch(module: Any, launch: Callable[[], Any]) -> TileLangLaunch:
    """The one launch that an op's TileLang module makes of what it gets from `ops.compiled`."""
    found: list[TileLangLaunch] = []

    def compiled(build: Any, shape: Any, index: int, pass_configs: Any = None) -> Callable[..., None]:
        del index
        return lambda *arguments: found.append(
            TileLangLaunch(build, shape, dict(pass_configs or {}), arguments)
        )

    with mock.patch.object(module, "compiled", compiled):
        launch()
    if len(found) != 1:
        raise ValueError(f"expected one launch of a TileLang kernel; {len(found)} were made")
    return found[0]
