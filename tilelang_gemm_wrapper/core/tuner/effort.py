"""How thorough a search is: how many kernels are compiled and how long each is timed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effort:
    """`kernels`: most TileLang kernels compiled for one (N, K); `quick_ms` and `final_ms`: replay time a
    candidate; `finalists`: candidates timed again, interleaved; `probes`: whether M between the wanted ones
    are looked at, to place the changes of kernel; `every_m`: whether M that fill one smallest token tile are
    explored each for itself, not all by the largest of them."""

    name: str
    kernels: int
    quick_ms: float
    finalists: int
    final_ms: float
    probes: bool
    every_m: bool = False


EFFORTS = {
    effort.name: effort
    for effort in (
        Effort("quick", kernels=24, quick_ms=1.0, finalists=3, final_ms=6.0, probes=False),
        Effort("standard", kernels=80, quick_ms=1.0, finalists=5, final_ms=10.0, probes=True),
        Effort("full", kernels=100_000, quick_ms=2.0, finalists=8, final_ms=20.0, probes=True, every_m=True),
    )
}
