"""A kernel compiled by the lab: its levels, and how to launch it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .cases import Launch
from .resources import Resources, resources


@dataclass(frozen=True, slots=True)
class Built:
    """levels: by name, from the one that the compilation started at down to "cubin". launches: of each entry
    of the cubin (threads, dynamic shared bytes). launcher: makes, on a GPU, the function that launches on the
    current stream. metadata: what a later start below Python needs to know."""

    levels: Mapping[str, str | bytes]
    launches: Mapping[str, tuple[int, int]]
    launcher: Callable[[], Callable[[Launch], None]]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cubin(self) -> bytes:
        cubin = self.levels["cubin"]
        assert isinstance(cubin, bytes)
        return cubin

    def resources(self, arch: str) -> list[Resources]:
        ptx = self.levels.get("ptx")
        return resources(self.launches, arch, ptx if isinstance(ptx, str) else None, self.cubin)
