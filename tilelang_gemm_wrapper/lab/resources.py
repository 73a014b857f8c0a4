"""What a compiled kernel takes: registers, shared memory, spills, barriers, occupancy and instruction mix.

Read from the cubin with cuobjdump and nvdisasm, which come with CUDA and with Triton. Without them the
instructions are counted in the PTX, and what only the cubin knows is None.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ..core.cuda_toolchain import read_cubin
from .occupancy import occupancy


class Kind(NamedTuple):
    """An instruction by its opcode in SASS and in PTX."""

    sass: str
    ptx: str


# The instructions that show which way a kernel takes through the chip, and what it spills.
KINDS = {
    "wgmma": Kind(r"[HQIB]GMMA", r"wgmma\.mma_async"),
    "mma": Kind(r"[HQIDO]MMA", r"mma\.sync"),
    "tcgen05 mma": Kind(r"UTC\w*MMA", r"tcgen05\.mma"),
    "TMA load": Kind(r"UTMALDG|UBLKCP", r"cp\.async\.bulk\S*\.shared::\w+\.global"),
    "TMA store": Kind(r"UTMASTG|UTMAREDG", r"cp\.async\.bulk\S*\.global\.shared"),
    "cp.async": Kind(r"LDGSTS", r"cp\.async\.c[ag]\."),
    "ldmatrix": Kind(r"LDSM", r"ldmatrix\."),
    "stmatrix": Kind(r"STSM", r"stmatrix\."),
    "global load": Kind(r"LDG", r"ld\.global"),
    "global store": Kind(r"STG", r"st\.global"),
    "shared load": Kind(r"LDS", r"ld\.(?:volatile\.)?shared"),
    "shared store": Kind(r"STS", r"st\.(?:volatile\.)?shared"),
    "local load": Kind(r"LDL", r"ld\.local"),  # of spilt registers, or of an indexed array
    "local store": Kind(r"STL", r"st\.local"),
    "float32 FMA": Kind(r"FFMA2?", r"fma\.rn(?:\.ftz)?\.f32"),
    "barrier": Kind(r"BAR", r"bar(?:rier)?\.(?:cta\.)?sync"),
    "mbarrier": Kind(r"SYNCS", r"mbarrier\."),
}


SPILLS = ("local load", "local store")


@dataclass(frozen=True, slots=True)
class Resources:
    """Of one kernel of a module; None where neither cubin nor its reader says so."""

    entry: str
    threads: int  # a CTA
    dynamic_shared_bytes: int  # a CTA
    static_shared_bytes: int | None
    registers: int | None  # a thread
    stack_bytes: int | None  # a thread
    barriers: int | None  # named ones, of 16
    ctas_per_sm: int | None
    occupancy: float | None  # of the warps that an SM can hold
    limited_by: str | None
    instructions: dict[str, int]  # static counts by `KINDS`, those that are not 0
    instruction_total: int
    counted_in: str  # "SASS" or "PTX"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def resources(
    entries: Mapping[str, tuple[int, int]], arch: str, ptx: str | None, cubin: bytes
) -> list[Resources]:
    """Of every entry, given as name -> (threads, dynamic shared bytes), for `arch` ("sm_90a")."""
    capability = capability_of(arch)
    usage = _usage(cubin)
    sass = disassembly(cubin)
    found = []
    for entry, (threads, dynamic) in entries.items():
        used = usage.get(entry, {})
        # From sm_90 on the section has the kilobyte in it that the system keeps.
        kept = 1024 if capability >= 90 else 0
        static = max(0, used.get("STATIC", 0) - kept) if used else None
        registers = used.get("REG")
        fits = None
        if registers is not None and static is not None:
            fits = occupancy(capability, threads, registers, dynamic + static)
        code = _code_of(sass, entry) if sass is not None else None
        opcodes = _sass_opcodes(code) if code is not None else _ptx_opcodes(ptx or "", entry)
        found.append(
            Resources(
                entry=entry,
                threads=threads,
                dynamic_shared_bytes=dynamic,
                static_shared_bytes=static,
                registers=registers,
                stack_bytes=used.get("STACK"),
                barriers=used.get("BARRIERS"),
                ctas_per_sm=fits.ctas if fits else None,
                occupancy=fits.fraction if fits else None,
                limited_by=fits.limited_by if fits else None,
                instructions=_by_kind(opcodes, in_sass=code is not None),
                instruction_total=sum(opcodes.values()),
                counted_in="SASS" if code is not None else "PTX",
            )
        )
    return found


def disassembly(cubin: bytes) -> str | None:
    """The SASS of a cubin; None where nvdisasm is missing or older than the cubin."""
    try:
        return read_cubin("nvdisasm", cubin, "-c")
    except RuntimeError:
        return None


def capability_of(arch: str) -> int:
    """90 of "sm_90a"."""
    return int(re.sub(r"\D", "", arch))


def _usage(cubin: bytes) -> dict[str, dict[str, int]]:
    try:
        table = read_cubin("cuobjdump", cubin, "-res-usage")
        elf = read_cubin("cuobjdump", cubin, "-elf")
    except RuntimeError:
        return {}
    found: dict[str, dict[str, int]] = {}
    for entry, line in re.findall(r"Function (\S+):\s*\n\s*(.*)", table or ""):
        found[entry] = {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", line)}
    for section in re.split(r"\n(?=\.nv\.info\.)", elf or "")[1:]:
        entry = section.split("\n", 1)[0].removeprefix(".nv.info.").strip()
        attributes = re.split(r"\n(?=\.section|\.text|\.nv\.)", section, maxsplit=1)[0]
        barriers = re.search(r"EIATTR_NUM_BARRIERS.*?Value:\s*(0x[0-9a-f]+|\d+)", attributes, re.DOTALL)
        if entry in found and barriers:
            found[entry]["BARRIERS"] = int(barriers[1], 0)
    for size, entry in re.findall(
        r"^\s+\w+\s+\w+\s+(\w+)\s.*NOBITS.*\.nv\.shared\.(\S+)", elf or "", re.MULTILINE
    ):
        if entry in found:
            found[entry]["STATIC"] = int(size, 16)
    # Cubins of older compilers have the number in the flags of the section with the code.
    for flags, entry in re.findall(r"PROGBITS\s+(\w+)\s+\w+\s+\w+\s+\.text\.(\S+)", elf or ""):
        if entry in found:
            found[entry].setdefault("BARRIERS", int(flags, 16) >> 20 & 0x7F)
    return found


def _code_of(sass: str, entry: str) -> str | None:
    match = re.search(rf"^\.text\.{re.escape(entry)}:$(.*?)(?=^\.text\.|\Z)", sass, re.MULTILINE | re.DOTALL)
    return match[1] if match else None


def _sass_opcodes(code: str) -> Counter[str]:
    return Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", code))


def _ptx_opcodes(ptx: str, entry: str) -> Counter[str]:
    begins = re.search(rf"\.entry\s+{re.escape(entry)}\b", ptx)
    body = ptx[begins.end() :] if begins else ""
    body = re.split(r"^\}", body, maxsplit=1, flags=re.MULTILINE)[0]
    return Counter(re.findall(r"^\s*(?:@!?%p\w+\s+)?([a-z][\w.:]+)", body, re.MULTILINE))


def _by_kind(opcodes: Counter[str], *, in_sass: bool) -> dict[str, int]:
    counts = {}
    for name, kind in KINDS.items():
        if in_sass:
            count = sum(n for opcode, n in opcodes.items() if re.fullmatch(kind.sass, opcode))
        else:
            count = sum(n for opcode, n in opcodes.items() if re.match(kind.ptx, opcode))
        if count:
            counts[name] = count
    return counts
