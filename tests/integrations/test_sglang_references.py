"""A layer's results against SGLang's own references: `make test-sglang`."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("sglang", reason="make test-sglang brings SGLang's releases")

from integrations.linear_calls import K, N, arguments, ours
from tilelang_gemm_wrapper import per_token_group_quant_fp8
from tilelang_gemm_wrapper.core.workload import MAX_ERROR, error, integer_workload


def sglangs_reference(input, weight, block_size, weight_scale):
    """In float32, from the functions by which SGLang undoes quantization."""
    from sglang.srt.layers.quantization.fp8_utils import block_quant_dequant

    q, s = per_token_group_quant_fp8(input)
    x = block_quant_dequant(q, s, [1, 128], torch.float32)
    return x @ block_quant_dequant(weight, weight_scale, block_size, torch.float32).T


def test_linear_equals_sglangs_reference():
    given = arguments(M=7)
    assert error(ours(**given).float(), sglangs_reference(**given)) <= MAX_ERROR


def test_linear_has_every_bit_of_sglangs_reference():
    """Where every sum is exact in float32: others round as the processor's matmul happens to add."""
    integers = integer_workload(7, N, K)
    scale = torch.tensor([0.5, 1.0, 2.0])[torch.arange(7 * K // 128) % 3].view(7, K // 128, 1)
    x = integers.A.float().view(7, K // 128, 128)
    x[:, :, 0] = 448  # the largest e4m3: the quantizer finds these very scales and integers
    given = arguments(weight=integers.B, weight_scale=integers.B_scale)
    given["input"] = (x * scale).view(7, K).bfloat16()
    assert torch.equal(per_token_group_quant_fp8(given["input"])[1], scale[..., 0])
    exact = sglangs_reference(**given)
    assert torch.equal(ours(**given), exact.bfloat16())
    assert not torch.equal(exact, exact.bfloat16().float())  # else nothing was rounded


def test_linear_equals_sglangs_test_reference(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # SGLang's tests make a port of its first character
    reference = pytest.importorskip("sglang.test.test_block_fp8", reason="ships with older releases alone")
    given = arguments(M=7)
    q, s = reference.native_per_token_group_quant_fp8(given["input"], 128)
    wanted = reference.native_w8a8_block_fp8_matmul(
        q, given["weight"], s, given["weight_scale"], [128, 128], torch.bfloat16
    )
    torch.testing.assert_close(ours(**given), wanted, rtol=2**-8, atol=1e-4)
