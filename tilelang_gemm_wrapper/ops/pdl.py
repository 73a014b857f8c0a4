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
    """Whether kernels on the device of the tensor are launched so; see `overlaps_on`."""
    return overlaps_on(tensor.get_device())


def overlaps_on(index: int) -> bool:
    """Whether kernels on CUDA device `index`, -1 for the CPU, are launched so: on Hopper and newer GPUs."""
    return index >= 0 and device_of(index).capability >= 90


def triton_options(tensor: torch.Tensor) -> dict[str, bool]:
    """Options of every launch of the ops' Triton kernels, which all have a constant PDL.

    launch_pdl is named only where the GPU takes it. Fusion of products and sums is fixed: Triton's default
    changes with its release and with TRITON_DEFAULT_FP_FUSION, and the kernels were measured with it.
    """
    pdl = {"PDL": True, "launch_pdl": True} if overlaps(tensor) else {"PDL": False}
    return {**pdl, "enable_fp_fusion": True}
