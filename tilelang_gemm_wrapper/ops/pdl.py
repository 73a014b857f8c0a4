"""Programmatic dependent launch: on Hopper a kernel may be set up while the one before it still runs.

Every kernel of the ops waits for that one before it reads or writes anything, so results are those of one
after the other; what overlaps is the launch. It lets its own successor go before that wait, which makes a
layer's chain up to 5 % faster (docs/hopper-speed.md). A GEMM with static weights behind it may therefore
start while the kernel two launches back still runs.
"""

from __future__ import annotations

import torch

from ..core.device import device_of


def overlaps(tensor: torch.Tensor) -> bool:
    """Whether kernels on the device of the tensor are launched so: a Hopper GPU or a newer one."""
    return tensor.is_cuda and device_of(tensor.get_device()).capability >= 90


def triton_options(tensor: torch.Tensor) -> dict[str, bool]:
    """Launch options of a Triton kernel that has PDL; what no such GPU takes is not named at all."""
    pdl = overlaps(tensor)
    return {"PDL": True, "launch_pdl": True} if pdl else {"PDL": False}
