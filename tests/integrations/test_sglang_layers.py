"""The plugin on real layers of the real SGLang, after their weights are loaded: `make test-sglang`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("sglang", reason="make test-sglang brings SGLang's releases")

from integrations import sglang_processes as processes
from integrations.linear_calls import K, N, ours
from integrations.sglang_processes import layer, load
from tilelang_gemm_wrapper import per_block_quant_fp8
from tilelang_gemm_wrapper.integrations import preparation, sglang_layers
from tilelang_gemm_wrapper.integrations import sglang as plugin
from tilelang_gemm_wrapper.integrations.block_fp8_linear import BlockFp8Linear


def is_ours(layer):
    """Whether calls of the layer come to us; what SGLang asks of it comes out as before in any case."""
    assert layer.quant_method.w8a8_block_fp8_linear is layer.made_with
    return "apply" in vars(layer.quant_method)


# ---- the account, and what runs


def test_layers_that_are_ours_run_and_are_counted(scheduler, group, hopper, told):
    layers = [layer(), layer(bias=True), layer(16, K)]
    load(scheduler, torch.nn.Linear(8, 8), *layers)
    assert all(map(is_ours, layers)) and {(job.N, job.K) for job in hopper.jobs} == {(N, K), (16, K)}
    [(level, line)] = told()
    assert level == "INFO" and line.startswith(
        "TileLang FP8 GEMM is active on NVIDIA_H100_80GB_HBM3 for 3 of 3 block-FP8 layers of 2 (N, K): "
        "0 with a tuned file, 2 by the default choice. Warm-up for M up to "
    )
    x = torch.randn(5, K).bfloat16()
    for mine in layers:
        given = {"weight": mine.weight, "weight_scale": mine.weight_scale_inv, "bias": mine.bias}
        assert torch.equal(mine(x)[0], ours(input=x, block_size=[128, 128], **given))


UE8M0 = "the checkpoint's scales are UE8M0 (powers of two), and so have the activations' to be"
DELEGATED = {
    "ue8m0": ({"scale_fmt": "ue8m0"}, torch.bfloat16, UE8M0),
    "32x32": (
        {"weight_block_size": [32, 32]},
        torch.bfloat16,
        "the weights are quantized in blocks of [32, 32], expected [128, 128]",
    ),
    "64x128": (
        {"weight_block_size": [64, 128]},
        torch.bfloat16,
        "the weights are quantized in blocks of [64, 128], expected [128, 128]",
    ),
    "half": ({}, torch.float16, "the activations are torch.float16, expected torch.bfloat16"),
    "float32": ({}, torch.float32, "the activations are torch.float32, expected torch.bfloat16"),
}


@pytest.mark.parametrize(("checkpoint", "dtype", "why"), DELEGATED.values(), ids=DELEGATED)
def test_a_model_that_is_not_ours_is_left_alone_and_the_log_says_why(
    scheduler, group, hopper, told, checkpoint, dtype, why
):
    from sglang.srt.layers.quantization.fp8 import Fp8Config

    layers = [layer(dtype=dtype, **checkpoint) for _ in range(2)]
    load(scheduler, *layers, dtype=dtype)
    if why is UE8M0 and not hasattr(
        Fp8Config.from_config(processes.CONFIG["quantization_config"]), "scale_fmt"
    ):
        assert all(map(is_ours, layers)), "this SGLang quantizes as for any other checkpoint"
        assert "is active on NVIDIA_H100_80GB_HBM3 for 2 of 2 block-FP8 layers" in told()[0][1]
        return
    assert not any(map(is_ours, layers)) and not hopper.jobs and not hopper.quantizers
    assert told() == [
        (
            "WARNING",
            "The tilelang backend does nothing for ModuleList: SGLang's own GEMM runs all of its "
            "2 block-FP8 layers",
        ),
        ("WARNING", f"SGLang's own GEMM runs 2 block-FP8 layers (N={N}, K={K}): {why}"),
    ]


def test_each_layer_is_judged_by_itself(scheduler, group, hopper, told):
    mine = [layer(), layer()]
    odd, small = layer(100, K), layer(weight_block_size=[32, 32])
    marlin = layer()
    marlin.quant_method.use_marlin = True
    marlin.weight = torch.nn.Parameter(torch.zeros(K // 16, N * 4, dtype=torch.int32), requires_grad=False)
    packed = layer()
    packed.weight_scale_inv.data = packed.weight_scale_inv.data.int()
    broken = layer(2 * N, K)
    hopper.broken.add((2 * N, K))
    theirs = [odd, small, marlin, packed, broken]
    load(scheduler, *mine, *theirs)
    assert all(map(is_ours, mine)) and not any(map(is_ours, theirs))
    assert {(job.N, job.K) for job in hopper.jobs} == {(N, K), (2 * N, K)}
    (_, first), *rest = told()
    assert "is active on NVIDIA_H100_80GB_HBM3 for 2 of 7 block-FP8 layers of 1 (N, K)" in first
    reasons = ("N = 100 is not a multiple of 16", "blocks of [32, 32]", "Marlin", "torch.int32", "ptxas died")
    for reason in reasons:
        [line] = [line for _, line in rest if reason in line]
        assert line.startswith("SGLang's own GEMM runs 1 block-FP8 layer (N=")
        assert f"(N={N}, K={K})" in line or reason not in ("Marlin", "torch.int32")
    assert len(rest) == len(reasons)


def test_weights_with_one_scale_are_no_block_fp8_layers(scheduler, group, hopper, told):
    """SGLang gives their method a linear function too, and never calls it."""
    from sglang.srt.layers.linear import ReplicatedLinear
    from sglang.srt.layers.quantization.fp8 import Fp8Config

    config = Fp8Config(is_checkpoint_fp8_serialized=True, activation_scheme="dynamic")
    made = ReplicatedLinear(K, N, bias=False, quant_config=config, params_dtype=torch.bfloat16)
    assert made.quant_method.w8a8_block_fp8_linear is not None
    load(scheduler, made, torch.nn.Linear(8, 8))
    assert told() == [
        (
            "WARNING",
            "The tilelang backend has nothing to do: ModuleList has no block-FP8 linear layer",
        )
    ]
    assert not hopper.jobs


@pytest.mark.parametrize("name", ["enable_deterministic_inference", "rl_on_policy_target"])
def test_deterministic_inference_stays_with_sglangs_own(scheduler, group, hopper, told, monkeypatch, name):
    given = SimpleNamespace(fp8_gemm_runner_backend="tilelang", **{name: "fsdp"})
    monkeypatch.setattr(plugin, "_resolved", lambda args: given)
    one = layer()
    load(scheduler, one)
    assert not is_ours(one) and not hopper.jobs
    assert "does nothing" in told()[0][1] and f": {name} asks for results" in told()[1][1]
    assert sglang_layers.why_never(SimpleNamespace(**{name: None})) is None


def test_compressed_tensors_layers_are_served_too(scheduler, group, hopper, monkeypatch):
    from sglang.srt.layers.linear import ReplicatedLinear
    from sglang.srt.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    quantized = {"num_bits": 8, "type": "float", "symmetric": True}
    weights = quantized | {"strategy": "block", "block_structure": [128, 128], "dynamic": False}
    inputs = quantized | {"strategy": "group", "group_size": 128, "dynamic": True}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}
    config = CompressedTensorsConfig.from_config(
        {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "ignore": [],
            "config_groups": groups,
        }
    )
    made = ReplicatedLinear(
        K, N, bias=False, quant_config=config, params_dtype=torch.bfloat16, prefix="model.up_proj"
    )
    weight, scale = per_block_quant_fp8(torch.randn(N, K))
    made.weight.data.copy_(weight)
    made.weight_scale.data.copy_(scale)
    made.quant_method.process_weights_after_loading(made)
    before = made.scheme.w8a8_block_fp8_linear
    load(scheduler, made)
    assert made.scheme.w8a8_block_fp8_linear is before and "apply_weights" in vars(made.scheme)
    x = torch.randn(5, K).bfloat16()
    given = {"weight": weight, "weight_scale": scale, "block_size": [128, 128]}
    assert torch.equal(made(x)[0], ours(input=x, **given))


def test_a_server_with_another_backend_is_left_alone(servers, group, hopper):
    one = layer()
    load(servers["triton"], one)
    assert not is_ours(one) and not hopper.jobs


def test_a_machine_without_a_gpu_is_refused(scheduler):
    with pytest.raises(RuntimeError, match="torch finds no CUDA GPU"):
        load(scheduler)


# ---- what SGLang asks of a layer's function


def deep_gemm(monkeypatch):
    """SGLang as on a GPU where it chooses DeepGEMM."""
    from sglang.srt.layers import deep_gemm_wrapper
    from sglang.srt.layers.quantization import fp8_utils

    monkeypatch.setattr(deep_gemm_wrapper, "ENABLE_JIT_DEEPGEMM", True)
    return fp8_utils.deepgemm_w8a8_block_fp8_linear_with_fallback


def test_sglang_finds_its_own_function_before_and_after(scheduler, group, hopper, monkeypatch):
    """By it, it decides on formats of scales and copies of weights, also when weights are updated."""
    function = deep_gemm(monkeypatch)
    asked = []
    mine, small = layer(), layer(weight_block_size=[32, 32])
    load(scheduler, mine, small)
    assert is_ours(mine) and not is_ours(small)
    for one in (mine, small):
        kept = one.quant_method.w8a8_block_fp8_linear
        asked.append(getattr(kept, "func", kept))
        one.quant_method.process_weights_after_loading(one)  # as after an update
    assert asked[0] is function
    assert type(mine.quant_method.w8a8_block_fp8_linear) is not BlockFp8Linear
    x = torch.randn(3, K).bfloat16()
    given = {"weight": mine.weight, "weight_scale": mine.weight_scale_inv, "block_size": [128, 128]}
    assert torch.equal(mine(x)[0], ours(input=x, **given)), "still ours after the update"


@pytest.fixture
def deepseek_v2(scheduler):
    return pytest.importorskip("sglang.srt.models.deepseek_v2")  # imported before `hopper` shows a GPU


def test_shared_experts_are_asked_as_without_us(deepseek_v2, scheduler, group, hopper, monkeypatch):
    """SGLang asks at the first forward pass whether to quantize once for shared and routed experts."""
    moe_class = deepseek_v2.DeepseekV2MoE
    if not hasattr(moe_class, "_compute_moe_quant_once_enabled"):
        pytest.skip("this SGLang does not ask")
    deep_gemm(monkeypatch)
    monkeypatch.setattr(deepseek_v2, "_is_cuda", True)
    monkeypatch.setenv("SGLANG_OPT_MOE_QUANT_ONCE", "1")
    gate_up = layer()
    moe = SimpleNamespace(
        _enable_a2a_moe=False,
        _fuse_shared_experts_inside_sbo=False,
        num_fused_shared_experts=0,
        shared_experts=SimpleNamespace(gate_up_proj=gate_up),
        shared_experts_is_fp8=True,
        shared_experts_weight_block_size=[128, 128],
        experts=None,
    )
    assert moe_class._compute_moe_quant_once_enabled(moe) == (False, "experts not FusedMoE"), "the next check"
    load(scheduler, gate_up)
    assert is_ours(gate_up)
    assert moe_class._compute_moe_quant_once_enabled(moe) == (False, "experts not FusedMoE")


def test_a_layer_is_taken_over_again_by_another_model_that_shares_it(scheduler, group, hopper):
    shared = layer()
    load(scheduler, shared)
    first = vars(shared.quant_method)["apply"].__self__
    load(scheduler, shared, layer(16, K))
    second = vars(shared.quant_method)["apply"].__self__
    assert second is not first and "apply" not in vars(second)
    assert second.w8a8_block_fp8_linear.engine_linear is shared.made_with


def test_a_method_that_two_weights_share_judges_each_call(scheduler, group, hopper, monkeypatch):
    one, other = layer(), layer(100, K)
    other.quant_method = one.quant_method
    monkeypatch.setattr(one.quant_method, "w8a8_block_fp8_linear", lambda **given: "theirs")
    load(scheduler, one, other)
    x = torch.randn(3, K).bfloat16()
    assert other.quant_method.apply(other, x) == "theirs"
    assert isinstance(one.quant_method.apply(one, x), torch.Tensor)


def test_a_layer_compiles_whole(scheduler, group):
    mine = layer()
    [found] = sglang_layers.block_fp8_layers(mine)
    found.serve(frozenset({(N, K)}), set())
    assert is_ours(mine)
    compiled = torch.compile(lambda x: mine.quant_method.apply(mine, x), fullgraph=True, backend="aot_eager")
    x = torch.randn(3, K).bfloat16()
    with torch.inference_mode():
        assert torch.equal(compiled(x), mine(x)[0])


# ---- ranks


def gathered(monkeypatch, group, rank, other):
    """This process is `rank` of two, and the other one has prepared `other`."""

    def all_gather_object(results, mine, group):
        assert group == "cpu group"
        results[:] = [mine, other] if rank == 0 else [other, mine]

    group.world_size, group.rank_in_group = 2, rank
    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)


def prepared(**changes):
    ready = preparation.prepare([(N, K)], 8, 0, progress=False)
    return preparation.replace(ready, **changes)


def test_ranks_that_disagree_stop(scheduler, group, hopper, monkeypatch, told):
    gathered(monkeypatch, group, 1, prepared(selection={(N, K): ((8, "triton", None),)}))
    with pytest.raises(RuntimeError, match=f"cannot run: for N={N}, K={K} rank 0 chose triton up to M=8"):
        load(scheduler, layer())
    gathered(monkeypatch, group, 1, prepared())
    one = layer()
    load(scheduler, one)
    assert is_ours(one) and not told(), "the first rank speaks for all"


def test_what_another_rank_cannot_run_goes_to_sglangs_own(scheduler, group, hopper, monkeypatch, told):
    gathered(monkeypatch, group, 0, prepared(selection={}, sources={}, refused={(N, K): "ptxas died"}))
    one = layer()
    load(scheduler, one)
    assert not is_ours(one) and told()[1][1].endswith("(N=384, K=256): on rank 1: ptxas died")


def test_a_rank_with_nothing_to_prepare_still_answers_the_others(scheduler, group, hopper, monkeypatch):
    answers = []
    monkeypatch.setattr(plugin, "_agreed", lambda ready, group: answers.append(ready) or ready)
    group.world_size = 2
    load(scheduler, layer(100, K))
    load(scheduler, torch.nn.Linear(8, 8))
    assert [bool(answer.selection) for answer in answers] == [False, False]
