"""integrations/block_fp8_linear.py: what a layer's call gives, and which calls go to the engine."""

from __future__ import annotations

import logging

import pytest
import torch

from integrations.linear_calls import K, N, arguments, ours, refuse
from tilelang_gemm_wrapper import gemm_nt_f8f8bf16, per_token_group_quant_fp8
from tilelang_gemm_wrapper.integrations.block_fp8_linear import BlockFp8Linear, why_call_unfit


def test_linear_adds_the_bias_and_keeps_leading_dimensions():
    given = arguments(M=6)
    bias = torch.randn(N).bfloat16()
    without = ours(**given)
    assert torch.equal(ours(**given, bias=bias), without + bias)
    given["input"] = given["input"].view(2, 3, K)
    assert torch.equal(ours(**given), without.view(2, 3, N))


@pytest.mark.parametrize("layout", ["row", "column_tma"])
def test_linear_takes_quantized_input_in_both_layouts(layout):
    given = arguments(M=6)
    q, s = per_token_group_quant_fp8(given["input"], scale_layout=layout)
    wanted = gemm_nt_f8f8bf16((q, s), (given["weight"], given["weight_scale"]))
    assert torch.equal(ours(**{**given, "input": q, "input_scale": s}), wanted)


CHANGES = [
    (lambda g: g | {"weight_bf16": g["weight"].bfloat16()}, "passes weight_bf16"),
    (lambda g: g | {"act_scale_ue8m0": True}, "passes act_scale_ue8m0"),
    (lambda g: g | {"block_size": [32, 32]}, "blocks of [32, 32]"),
    (lambda g: g | {"block_size": (64, 128)}, "blocks of [64, 128]"),
    (lambda g: g | {"weight": g["weight"].view(torch.int8)}, "torch.int8"),
    (lambda g: g | {"weight": g["weight"].view(1, N, K)}, "in 3 dimensions"),
    (lambda g: g | {"weight": g["weight"].t().contiguous().t()}, "not contiguous"),
    (lambda g: g | {"weight_scale": g["weight_scale"].to(torch.int32)}, "packed"),
    (lambda g: g | {"weight_scale": g["weight_scale"].repeat(128, 1)[:N]}, "another format"),
    (lambda g: g | {"weight_scale": g["weight_scale"].t().contiguous().t()}, "transposed"),
    (lambda g: g | {"input": g["input"].half()}, "torch.float16"),
    (lambda g: g | {"input_scale": torch.ones(5, 2)}, "expected e4m3 with float32"),
    (
        lambda g: g | {"input": g["input"].to(torch.float8_e4m3fn), "input_scale": torch.ones(1)},
        "not one a token",
    ),
    (lambda g: g | {"input": g["input"][:0]}, "the batch is empty"),
]


@pytest.mark.parametrize(("change", "reason"), CHANGES)
def test_linear_delegates_and_says_why_once(change, reason, caplog):
    given = change(arguments())
    calls, logged = [], set()
    layers = [BlockFp8Linear(lambda **call: calls.append(call) or "theirs", None, logged) for _ in range(2)]
    with caplog.at_level(logging.WARNING):
        assert [linear(**given) for linear in layers * 2] == ["theirs"] * 4
    assert len(calls) == 4
    assert all(calls[0][name] is value for name, value in given.items())
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1 and reason in messages[0]


def test_an_imagined_call_is_judged_as_a_real_one():
    given = {"input_scale": None, "others": {}} | arguments()
    assert why_call_unfit(**given) is None
    assert why_call_unfit(**given | {"input": given["input"].to("meta")}) is None
    assert "float16" in why_call_unfit(
        **given | {"input": torch.empty(1, K, dtype=torch.half, device="meta")}
    )


@pytest.mark.parametrize("nothing", [None, False])
def test_a_keyword_that_asks_for_nothing_is_nothing_to_delegate_for(nothing):
    given = arguments()
    assert torch.equal(ours(**given, weight_bf16=nothing), ours(**given))


def test_a_shape_that_was_not_prepared_goes_to_the_engine(caplog):
    linear = BlockFp8Linear(lambda **given: "theirs", frozenset({(N, 2 * K)}))
    assert linear(**arguments()) == "theirs" and f"N={N}, K={K} was not prepared" in caplog.text
    assert torch.equal(BlockFp8Linear(refuse, frozenset({(N, K)}))(**arguments()), ours(**arguments()))


@pytest.mark.parametrize("shapes", [None, frozenset({(N, K)})])
def test_linear_compiles_whole_and_for_any_batch(shapes):
    layer = arguments()
    linear = BlockFp8Linear(refuse, shapes)

    def forward(x):  # weights are a module's parameters, and their sizes constants
        return linear(**{**layer, "input": x})

    compiled = torch.compile(forward, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.inference_mode():
        for M in (3, 7, 64):
            x = arguments(M=M, seed=M)["input"]
            assert torch.equal(compiled(x), forward(x))
