"""What a chip offers: name, architecture, SMs, shared memory, L2 and DRAM speed.

Nothing here touches CUDA until `device_of` is called, so that importing the package stays free of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache

HOPPER_SHARED_MEMORY = 232448  # bytes a block may opt in to: 228 KiB of the SM less 1 KiB the system keeps
ADA_SHARED_MEMORY = 101376  # 100 KiB less 1 KiB
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Device:
    """One chip, as far as choosing and refusing a kernel needs it.

    `name` is torch's device name with spaces as underscores ("NVIDIA_H200"), the form used in config file
    names; "cpu" where there is no GPU. `arch` is "sm_90a" on Hopper, else "sm_XY" ("sm_89" on Ada), or "cpu".
    Sizes are bytes; `dram_bytes_per_s` is the data sheet's figure, 0.0 where unknown.
    """

    name: str
    arch: str
    sm_count: int
    shared_memory_per_block: int
    l2_bytes: int
    dram_bytes_per_s: float

    @property
    def is_hopper(self) -> bool:
        return self.arch == "sm_90a"

    @property
    def is_ada(self) -> bool:
        return self.arch == "sm_89"

    @property
    def is_cuda(self) -> bool:
        return self.arch.startswith("sm_")

    @property
    def capability(self) -> int:
        """90 for sm_90a, 89 for sm_89; 0 for what is no NVIDIA GPU."""
        return int(self.arch.removeprefix("sm_").rstrip("a")) if self.is_cuda else 0

    @property
    def runs_tilelang(self) -> bool:
        """Whether our TileLang kernels are built for this architecture."""
        return self.is_hopper or self.is_ada


def _hopper(name: str, sm_count: int, l2_mib: int, dram_gb_per_s: int) -> Device:
    return Device(name, "sm_90a", sm_count, HOPPER_SHARED_MEMORY, l2_mib * _MIB, dram_gb_per_s * 1e9)


def _ada(name: str, sm_count: int, l2_mib: int, dram_gb_per_s: int) -> Device:
    return Device(name, "sm_89", sm_count, ADA_SHARED_MEMORY, l2_mib * _MIB, dram_gb_per_s * 1e9)


# SMs and DRAM speed from NVIDIA's data sheets, L2 as the driver reports it.
KNOWN_DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _hopper("NVIDIA_H100_80GB_HBM3", 132, 50, 3350),
        _hopper("NVIDIA_H100_PCIe", 114, 50, 2000),
        _hopper("NVIDIA_H100_NVL", 132, 60, 3900),
        _hopper("NVIDIA_H200", 132, 60, 4800),
        _hopper("NVIDIA_H200_NVL", 132, 60, 4800),
        _hopper("NVIDIA_H800", 132, 50, 3350),
        _hopper("NVIDIA_H20", 78, 60, 4000),
        _hopper("NVIDIA_H20-3e", 78, 60, 4800),
        _hopper("NVIDIA_GH200_480GB", 132, 60, 4000),
        _hopper("NVIDIA_GH200_144G_HBM3e", 132, 60, 4900),
        _ada("NVIDIA_L40S", 142, 96, 864),
        _ada("NVIDIA_L40", 142, 96, 864),
        _ada("NVIDIA_L20", 92, 96, 864),
        _ada("NVIDIA_L4", 58, 48, 300),
        _ada("NVIDIA_GeForce_RTX_4090", 128, 72, 1008),
        _ada("NVIDIA_GeForce_RTX_4090_D", 114, 72, 1008),
        _ada("NVIDIA_GeForce_RTX_4080", 76, 64, 716),
        _ada("NVIDIA_RTX_6000_Ada_Generation", 142, 96, 960),
        _ada("NVIDIA_RTX_5000_Ada_Generation", 100, 64, 576),
    )
}

# Other names of a chip above: same silicon and the same DRAM, so a tuned file of one serves the other.
# H200 is no alias of H100, nor H20-3e of H20, nor H100 PCIe of H100 SXM: their memory or SM count differs.
DEVICE_ALIASES: dict[str, str] = {
    "NVIDIA_H100": "NVIDIA_H100_80GB_HBM3",  # upstream's name in SGLang's tuned files
    "NVIDIA_H100_SXM5_80GB": "NVIDIA_H100_80GB_HBM3",
    "NVIDIA_GH200_120GB": "NVIDIA_GH200_480GB",  # 120/480 is the CPU's memory; both have 96 GB of HBM3
    "NVIDIA_RTX_4090": "NVIDIA_GeForce_RTX_4090",
    "NVIDIA_RTX_6000_Ada": "NVIDIA_RTX_6000_Ada_Generation",
}


def file_safe_name(name: str) -> str:
    """torch's device name as it stands in config file names: "NVIDIA H200" -> "NVIDIA_H200"."""
    return name.strip().replace(" ", "_").replace("/", "_")


def canonical_name(name: str) -> str:
    """The one name that stands for a chip, whichever of its documented names is given."""
    safe = file_safe_name(name)
    return DEVICE_ALIASES.get(safe, safe)


def names_of_same_chip(name: str) -> tuple[str, ...]:
    """`name` itself first, then every other documented name of the same chip."""
    safe, canonical = file_safe_name(name), canonical_name(name)
    aliases = (alias for alias, target in DEVICE_ALIASES.items() if target == canonical)
    return tuple(dict.fromkeys((safe, canonical, *aliases)))


def known_device(name: str) -> Device:
    """The chip of `KNOWN_DEVICES` with this name or alias; ValueError, with near names, for another."""
    known = KNOWN_DEVICES.get(canonical_name(name))
    if known is None:
        near = _near_names(name)
        meant = f"; did you mean {' or '.join(near)}? Known are" if near else "; known are"
        raise ValueError(f"device {name!r} is not known{meant} {', '.join(KNOWN_DEVICES)}")
    return known


def _near_names(name: str) -> list[str]:
    """The known names that hold `name`, else those spelt alike, whatever their case and vendor's prefix."""

    def bare(text: str) -> str:
        return file_safe_name(text).casefold().removeprefix("nvidia_")

    names = {bare(known): known for known in (*KNOWN_DEVICES, *DEVICE_ALIASES)}
    wanted = bare(name)
    near = [other for other in names if wanted and f"_{wanted}_" in f"_{other}_"]
    near = near or get_close_matches(wanted, names, n=3, cutoff=0.7)
    return list(dict.fromkeys(canonical_name(names[other]) for other in near))[:3]


@lru_cache(maxsize=1)
def cpu_device() -> Device:
    """Stands for a machine without a GPU: runs the reference backend alone."""
    return Device("cpu", "cpu", 0, 0, 0, 0.0)


def why_no_cuda() -> str | None:
    """Why torch has no CUDA device here, as a clause; None where it has one."""
    import torch

    if torch.cuda.is_available():
        return None
    build = "is built without CUDA" if torch.version.cuda is None else "sees no CUDA device"
    return f"torch {torch.__version__} {build}"


@lru_cache(maxsize=64)
def device_of(index: int) -> Device:
    """The CUDA device with that index, as the driver describes it. Initialises CUDA.

    Raises RuntimeError where torch sees no such device.
    """
    import torch

    count = torch.cuda.device_count()
    if not 0 <= index < count:
        usable = f"use an index below {count}, or " if count else ""
        raise RuntimeError(
            f"there is no CUDA device {index}: torch sees {count}; {usable}check CUDA_VISIBLE_DEVICES and "
            f"that torch was built with CUDA"
        )
    properties = torch.cuda.get_device_properties(index)
    name = file_safe_name(properties.name)
    known = KNOWN_DEVICES.get(canonical_name(name))
    return Device(
        name=name,
        arch=_arch(properties, hip=torch.version.hip is not None),
        sm_count=properties.multi_processor_count,
        shared_memory_per_block=properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]
        l2_bytes=properties.L2_cache_size,
        dram_bytes_per_s=known.dram_bytes_per_s if known else 0.0,
    )


def _arch(properties, *, hip: bool) -> str:
    if hip:  # ROCm reports gfx90a as capability 9.0: it must not pass for Hopper
        return properties.gcnArchName.split(":")[0]
    capability = f"{properties.major}{properties.minor}"
    return "sm_90a" if capability == "90" else f"sm_{capability}"
