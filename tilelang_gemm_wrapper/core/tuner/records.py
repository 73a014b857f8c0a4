"""What a tuning run learns, one record at a time; each is a line of the journal."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from tilelang_gemm_wrapper.core.config import KernelConfig

Stage = Literal["quick", "final"]
FailureKind = Literal[
    "compile_error",
    "compile_timeout",
    "wrong",  # the error against float32 is too large, or an element was not written
    "not_repeatable",  # two runs on the same data differ
    "out_of_bounds",  # it wrote outside its output
    "illegal_access",  # the driver reported it; the CUDA context was lost
    "out_of_memory",
    "hang",  # no answer in time; the process was killed
    "crash",  # the process ended by itself
    "error",  # anything else that was raised
]


@dataclass(frozen=True, slots=True)
class Timing:
    """One candidate on one (N, K, M): microseconds a launch, cold weights, after it was found right.

    `stage` "quick" is the first, short timing of every candidate, "final" the long one in which the leaders
    and the peers were interleaved; only final times of one cell are comparable to a per cent. `error` is that
    of `core.workload.error` against float32.
    """

    tag: ClassVar[str] = "timing"
    N: int
    K: int
    M: int
    config: KernelConfig
    stage: Stage
    p20_us: float
    p50_us: float
    p80_us: float
    replays: int
    error: float


@dataclass(frozen=True, slots=True)
class Failure:
    """A candidate that cannot win at (N, K), with the M at which that was seen (None: at compiling)."""

    tag: ClassVar[str] = "failure"
    N: int
    K: int
    M: int | None
    config: KernelConfig
    kind: FailureKind
    message: str


@dataclass(frozen=True, slots=True)
class ShapeConditions:
    """The GPU as it was when a shape's timing began, and the floor: a plain read of the weights, in µs."""

    tag: ClassVar[str] = "conditions"
    N: int
    K: int
    floor_us: float | None
    sm_clock_mhz: float | None
    temperature_c: float | None
    power_w: float | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CellDone:
    """All that the search wanted to know of (N, K, M) is in the records before this one.

    `probe`: M was added by the search between two wanted M. `effort`: how thorough the search was.
    """

    tag: ClassVar[str] = "cell"
    N: int
    K: int
    M: int
    effort: str
    probe: bool


Record = Timing | Failure | ShapeConditions | CellDone
_KINDS: dict[str, type] = {kind.tag: kind for kind in (Timing, Failure, ShapeConditions, CellDone)}


def to_fields(record: Record) -> dict[str, Any]:
    """The record as a JSON object."""
    return {"record": record.tag, **asdict(record)}


def from_fields(fields: dict[str, Any]) -> Record:
    """The record that `to_fields` wrote. Raises KeyError or TypeError for anything else."""
    fields = dict(fields)
    kind = _KINDS[fields.pop("record")]
    if "config" in fields:
        fields["config"] = KernelConfig(**fields["config"])
    if "warnings" in fields:
        fields["warnings"] = tuple(fields["warnings"])
    return kind(**fields)
