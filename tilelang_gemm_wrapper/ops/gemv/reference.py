"""GEMV by PyTorch: cuBLAS for bfloat16 and float16, the formula as it is for e4m3."""

from __future__ import annotations

import torch

from . import Problem


def launch(problem: Problem) -> None:
    """Write problem.out."""
    x, x_scale, W, W_scale, out = problem
    if W_scale is None and out.is_cuda:
        torch.mm(x, W.t(), out=out)
        return
    # On a CPU the half-precision product rounds its partial sums: float32, as the kernels have it.
    values, weights = x.float(), W.float()
    if x_scale is not None:
        values *= x_scale.repeat_interleave(128, 1)[:, : problem.K]
    if W_scale is not None:
        weights *= W_scale.repeat_interleave(128, 0)[: problem.N].repeat_interleave(128, 1)[:, : problem.K]
    out.copy_(values @ weights.t())
