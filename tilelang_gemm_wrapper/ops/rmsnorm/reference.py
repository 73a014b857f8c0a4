"""RMSNorm by PyTorch's own operators: the formula as it is, and what a CPU runs."""

from __future__ import annotations

import torch

from ..arguments import Rows
from ..quant.reference import quantize


def launch(
    x: Rows, residual: Rows | None, weight: torch.Tensor, out: Rows, eps: float, offset: float
) -> None:
    """Write the norm of x, or of the residual with x added to it first, to out; rows as `Rows` have them."""
    out.tensor.copy_(_normalised(x, residual, weight, eps, offset))


def launch_quant(
    x: Rows,
    residual: Rows | None,
    weight: torch.Tensor,
    q: torch.Tensor,
    scale: torch.Tensor,
    eps: float,
    offset: float,
) -> None:
    """As `launch`, the norm quantised into q (M, K) e4m3 and scale (M, K / 128) float32."""
    quantize(_normalised(x, residual, weight, eps, offset).flatten(0, 1), q, scale)


def _normalised(
    x: Rows, residual: Rows | None, weight: torch.Tensor, eps: float, offset: float
) -> torch.Tensor:
    if residual is not None:
        residual.tensor.add_(x.tensor)
        x = residual
    values = x.tensor.float()
    total = values.square().sum(-1, keepdim=True)
    mean = total / torch.full_like(total, x.K) + eps  # not by a number: see `quantize`
    # PyTorch's float32 square root is off by a unit in the last place on some CPUs, the kernels' is not.
    factor = 1.0 / mean.double().sqrt().float()
    return values * factor * (weight.float() + offset)
