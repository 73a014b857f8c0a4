"""Quantization by PyTorch's own operators: the reference, and what a CPU runs."""

from __future__ import annotations

import torch

from ...quantize import Rounding, per_token_group_quant_fp8_reference
from ..arguments import Rows


def launch(x: Rows, q: torch.Tensor, scale: torch.Tensor, silu_mul: bool, rounding: Rounding) -> None:
    """Write q (M, K) e4m3 and scale (M, ceil(K / 128)) float32 for x of M rows.

    x has K columns, or 2 K with silu_mul.
    """
    values = x.tensor.flatten(0, 1).float()
    if silu_mul:
        gate, up = values.chunk(2, dim=1)
        values = gate / (1 + torch.exp(-gate)) * up
    quantize(values, q, scale, rounding)


def launch_contiguous(
    x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, memory: torch.Tensor, rounding: Rounding
) -> None:
    """`launch` without SiLU for contiguous x and q of one shape (..., K), K a multiple of 128.

    memory: all that scale lies in, as one dimension.
    """
    del memory
    K = x.shape[-1]
    launch(Rows(x.view(-1, 1, K), K, K), q.view(-1, K), scale, False, rounding)


def quantize(values: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, rounding: Rounding = "ieee") -> None:
    """values (M, K) float32 into q and scale."""
    results = per_token_group_quant_fp8_reference(values, rounding=rounding)
    for target, result in zip((q, scale), results, strict=True):
        target.copy_(result)
