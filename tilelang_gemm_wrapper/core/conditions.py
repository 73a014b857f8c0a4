"""Under which conditions a GPU was measured: clocks, temperature, power, driver, who else used it."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

# Set by whoever starts several processes on one GPU, to a value of its own: they are no strangers then.
RUN_VARIABLE = "TILELANG_GEMM_RUN"

_FIELDS = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "temperature.gpu",
    "power.draw",
)
_SLOWDOWN_FIELD = "clocks_event_reasons.active"
# Bits of that field which mean that the card is slower than it should be: hardware slowdown and
# power brake, thermal slowdown in software and hardware. The software power cap (0x4) is left out: it is the
# normal state of a card under a large GEMM.
_SLOWDOWN_BITS = 0x8 | 0x20 | 0x40 | 0x80


@dataclass(frozen=True, slots=True)
class Conditions:
    """One reading of a GPU; None where the driver does not tell. Clocks in MHz, power in watts."""

    gpu: str | None = None
    driver: str | None = None
    sm_clock_mhz: float | None = None
    max_sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    slowdown: bool | None = None
    other_processes: tuple[int, ...] = ()

    def warnings(self) -> tuple[str, ...]:
        """What makes timings taken now doubtful, a sentence each."""
        found = []
        if self.slowdown:
            found.append(f"the GPU slows itself down ({self.sm_clock_mhz} MHz, {self.temperature_c} C)")
        if self.other_processes:
            found.append(f"other processes use the GPU: {', '.join(map(str, self.other_processes))}")
        return tuple(found)


def _nvidia_smi(*arguments: str) -> str:
    answer = subprocess.run(
        ("nvidia-smi", *arguments), capture_output=True, text=True, timeout=20, check=True
    )
    return answer.stdout


def record_conditions(index: int | None = None, ask: Callable[..., str] = _nvidia_smi) -> Conditions:
    """Read the conditions of CUDA device `index` (torch's numbering; the current one by default).

    Uses nvidia-smi, about 0.1 s a call; without it, or where it fails, the reading is empty and a debug line
    says why. `ask` takes nvidia-smi's arguments and gives its output.
    """
    try:
        card = f"--id={_card(index)}"
        line = ask(card, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits")
        processes = ask(card, "--query-compute-apps=pid", "--format=csv,noheader")
    except (OSError, subprocess.SubprocessError, RuntimeError, AssertionError) as error:
        logger.debug("the conditions of the GPU are not recorded: %s", error)
        return Conditions()
    values = dict(zip(_FIELDS, (value.strip() for value in line.strip().split(",")), strict=False))
    return Conditions(
        gpu=values.get("name"),
        driver=values.get("driver_version"),
        sm_clock_mhz=_number(values.get("clocks.sm")),
        max_sm_clock_mhz=_number(values.get("clocks.max.sm")),
        memory_clock_mhz=_number(values.get("clocks.mem")),
        temperature_c=_number(values.get("temperature.gpu")),
        power_w=_number(values.get("power.draw")),
        slowdown=_slowdown(card, ask),
        other_processes=tuple(
            int(pid)
            for pid in processes.split()
            if pid.isdigit() and int(pid) != os.getpid() and not _is_of_this_run(int(pid))
        ),
    )


def _slowdown(card: str, ask: Callable[..., str]) -> bool | None:
    try:  # asked for alone: drivers before 535 refuse the field, and the whole query with it
        reasons = ask(card, f"--query-gpu={_SLOWDOWN_FIELD}", "--format=csv,noheader,nounits").strip()
        return bool(int(reasons, 16) & _SLOWDOWN_BITS)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _card(index: int | None) -> str:
    """What nvidia-smi calls that device: CUDA_VISIBLE_DEVICES may number them in another way."""
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
    return f"GPU-{properties.uuid}"


def _is_of_this_run(pid: int) -> bool:
    """Whether a process carries this one's `RUN_VARIABLE`: it compiles for it, say."""
    run = os.environ.get(RUN_VARIABLE)
    if not run:
        return False
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone, or another user's
        return False
    return f"{RUN_VARIABLE}={run}".encode() in environment


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:  # "[N/A]"
        return None
