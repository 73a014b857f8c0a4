"""ops/group_quant.py: what it refuses. Its results are checked where there is a GPU, in tests/gpu."""

from __future__ import annotations

import pytest
import torch

from tilelang_gemm_wrapper.ops.group_quant import group_quant_fp8

X = torch.ones(4, 256, dtype=torch.bfloat16)


def test_another_dtype():
    with pytest.raises(TypeError, match=r"x is torch\.float32, expected torch\.bfloat16"):
        group_quant_fp8(X.float())


@pytest.mark.parametrize("x", [X[:, :200], X[:, :100].contiguous(), X.t(), X[0]])
def test_another_shape_or_order(x):
    with pytest.raises(ValueError, match=r"multiple of 128; pass x\.contiguous"):
        group_quant_fp8(x)


def test_a_start_that_vector_loads_cannot_take():
    x = X.flatten()[1:513].view(4, 128)
    with pytest.raises(ValueError, match=r"x starts at byte 2 of 16, .* pass x\.clone\(\)"):
        group_quant_fp8(x)


def test_the_cpu():
    with pytest.raises(ValueError, match="x is on cpu, expected a CUDA device"):
        group_quant_fp8(X)
