"""Programmatic dependent launch: on Hopper a kernel may be set up while the one before it still runs.

Every kernel of the ops waits for that one before it reads or writes anything, so results are those of one
after the other; what overlaps is the launch, a microsecond of each.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from ..core.device import device_of


def overlaps(tensor: torch.Tensor) -> bool:
    """Whether kernels on the device of the tensor are launched so: a Hopper GPU or a newer one."""
    return tensor.is_cuda and _has_pdl(tensor.get_device())


@lru_cache(maxsize=64)
def _has_pdl(index: int) -> bool:
    device = device_of(index)
    return device.is_cuda and int(device.arch.removeprefix("sm_").rstrip("a")) >= 90


def triton_options(tensor: torch.Tensor) -> dict[str, bool]:
    """Launch options of a Triton kernel that has PDL; what no such GPU takes is not named at all."""
    pdl = overlaps(tensor)
    return {"PDL": True, "launch_pdl": True} if pdl else {"PDL": False}
