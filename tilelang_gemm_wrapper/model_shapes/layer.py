"""A linear layer as an engine builds it: the parts that its rows are made of, and how ranks share it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Tensor parallelism gives a rank a share of the rows, a share of the columns, or the whole layer.
Split = Literal["column", "row", "replicated"]


@dataclass(frozen=True, slots=True)
class Heads:
    """What a part's rows consist of and no rank cuts: `count` heads of one size."""

    kind: str  # "query heads", "key-value heads", "state-space groups": for messages
    count: int | None  # None where config.json does not tell
    copied: bool = False  # ranks beyond `count` hold a copy of a head instead of nothing
    unknown: str = ""  # why `count` is None, as a clause


@dataclass(frozen=True, slots=True)
class Part:
    """The rows that a merged layer has for one projection."""

    name: str
    rows: int
    heads: Heads | None = None


@dataclass(frozen=True, slots=True)
class Linear:
    """A layer as the engine runs it undivided: the rows of `parts` above each other, K columns."""

    name: str  # "qkv_proj", "shared_experts.down_proj"
    split: Split
    parts: tuple[Part, ...]
    K: int
    whole_blocks: bool = True  # the engine refuses shares that are no multiple of 128

    @property
    def N(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def parent(self) -> str:
        return self.name.rpartition(".")[0]
