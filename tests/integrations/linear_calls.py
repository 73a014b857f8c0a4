"""A call of a block-FP8 linear as engines make it."""

from __future__ import annotations

import torch

from tilelang_gemm_wrapper import per_block_quant_fp8
from tilelang_gemm_wrapper.integrations.block_fp8_linear import BlockFp8Linear

N, K = 384, 256


def arguments(M=5, dtype=torch.bfloat16, seed=0, **others):
    generator = torch.Generator().manual_seed(seed)
    weight, scale = per_block_quant_fp8(torch.randn(N, K, generator=generator))
    x = torch.randn(M, K, generator=generator).to(dtype)
    return {"input": x, "weight": weight, "block_size": [128, 128], "weight_scale": scale, **others}


def refuse(**given):
    raise AssertionError("went to the engine's own")


ours = BlockFp8Linear(refuse)
