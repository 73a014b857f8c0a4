"""Quantisation by PyTorch's own operators: the reference, and what a CPU runs."""

from __future__ import annotations

import torch

from ...quantize import per_token_group_quant_fp8
from ..arguments import Rows


def launch(x: Rows, q: torch.Tensor, scale: torch.Tensor, silu_mul: bool) -> None:
    """Write q (M, K) e4m3 and scale (M, K / 128) float32 for x of M rows: K columns, or 2 K with silu_mul."""
    values = x.tensor.flatten(0, 1).float()
    if silu_mul:
        gate, up = values.chunk(2, dim=1)
        values = gate / (1 + torch.exp(-gate)) * up
    quantise(values, q, scale)


def quantise(values: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> None:
    """values (M, K) float32 into q and scale."""
    for target, result in zip((q, scale), per_token_group_quant_fp8(values), strict=True):
        target.copy_(result)
