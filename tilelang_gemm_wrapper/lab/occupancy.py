"""Theoretical occupancy: how many CTAs of a kernel fit on an SM, and what sets the limit."""

from __future__ import annotations

from dataclasses import dataclass

_REGISTERS = 65536  # of an SM, on every architecture below
_REGISTER_UNIT = 256  # a warp's registers are given out in such units
_WARP_UNIT = 4  # an SM has four parts with a quarter of the registers each
_SHARED_UNIT = 128
_RESERVED_SHARED = 1024  # bytes a CTA that the system keeps


@dataclass(frozen=True, slots=True)
class SmLimits:
    """What an SM holds at most."""

    warps: int
    ctas: int
    shared_bytes: int


# By compute capability; the CUDA C++ Programming Guide's table of technical specifications.
SM_LIMITS = {
    80: SmLimits(64, 32, 164 * 1024),
    86: SmLimits(48, 16, 100 * 1024),
    89: SmLimits(48, 24, 100 * 1024),
    90: SmLimits(64, 32, 228 * 1024),
    100: SmLimits(64, 32, 228 * 1024),
    120: SmLimits(48, 24, 100 * 1024),
}


@dataclass(frozen=True, slots=True)
class Occupancy:
    ctas: int  # an SM; 0 where one does not fit
    warps: int  # an SM
    fraction: float  # of the warps an SM can hold
    limited_by: str  # "registers", "shared memory", "warps" or "CTAs"


def occupancy(capability: int, threads: int, registers: int, shared_bytes: int) -> Occupancy | None:
    """Of a kernel with so many threads and bytes of shared memory a CTA, and registers a thread.

    `capability` is 90 for sm_90. None where the limits of the architecture are not known here.
    """
    limits = SM_LIMITS.get(capability)
    if limits is None:
        return None
    warps = -(-threads // 32)
    warp_registers = _rounded(registers * 32, _REGISTER_UNIT)
    warps_by_registers = _REGISTERS // max(warp_registers, 1) // _WARP_UNIT * _WARP_UNIT
    fits = {
        "CTAs": limits.ctas,
        "warps": limits.warps // warps,
        "registers": warps_by_registers // warps if registers else limits.ctas,
        "shared memory": limits.shared_bytes // (_rounded(shared_bytes, _SHARED_UNIT) + _RESERVED_SHARED),
    }
    limited_by = min(fits, key=lambda name: fits[name])
    ctas = fits[limited_by]
    return Occupancy(ctas, ctas * warps, ctas * warps / limits.warps, limited_by)


def _rounded(value: int, unit: int) -> int:
    return -(-value // unit) * unit
