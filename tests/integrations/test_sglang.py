"""integrations/sglang.py in the real SGLang: `make test-sglang` runs this file once for each release."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("sglang", reason="make test-sglang brings SGLang's releases")

from integrations import sglang_processes as processes
from tilelang_gemm_wrapper import gemm_nt_f8f8bf16, per_block_quant_fp8, per_token_group_quant_fp8
from tilelang_gemm_wrapper.core.workload import MAX_ERROR, error, integer_workload
from tilelang_gemm_wrapper.integrations import preparation
from tilelang_gemm_wrapper.integrations import sglang as plugin
from tilelang_gemm_wrapper.integrations.sglang import BlockFp8Linear

N, K = 384, 256


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return processes.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def scheduler(model):
    """This process is a scheduler that serves with the backend, but for its GPU."""
    args = processes.server_args(model, fp8_gemm_runner_backend="tilelang", chunked_prefill_size=2048)
    processes.begin_scheduler(args)
    processes.initialize(args)
    return args


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(plugin, "_fallbacks", {})
    monkeypatch.setattr(plugin, "_delegations", set())


# ---- launchers


def launch(model, backend, **environment):
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(model), "--device", "cpu"]
    command += ["--skip-tokenizer-init", "--load-format", "dummy", "--fp8-gemm-backend", backend]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=300
    )


def test_a_server_without_a_gpu_stops_with_one_message(model):
    done = launch(model, "tilelang")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "--fp8-gemm-backend tilelang cannot run: SGLang is to run on cpu" in last
    assert "Start with another --fp8-gemm-backend" in last and "sglang-check" in last


def test_a_server_that_is_told_to_load_no_plugin_knows_no_such_backend(model):
    done = launch(model, "tilelang", SGLANG_PLUGINS="another")
    assert done.returncode == 2
    assert "invalid choice: 'tilelang'" in done.stderr


def test_sglang_check():
    done = subprocess.run(
        [sys.executable, "-m", "tilelang_gemm_wrapper", "sglang-check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    rows = {
        line.rsplit("  ", 1)[0].strip(): line.rsplit("  ", 1)[1].strip()
        for line in done.stdout.splitlines()[1:-1]
    }
    assert rows.pop("the GPU") == "torch finds no CUDA GPU"
    assert set(rows) >= {hook.target for hook in plugin.HOOKS}
    assert set(rows.values()) == {"fits"}
    assert done.stdout.splitlines()[-1] == "--fp8-gemm-backend tilelang will not run here"


# ---- schedulers


def test_layers_get_our_linear_around_sglangs_own_choice(model):
    args = processes.server_args(model, fp8_gemm_runner_backend="tilelang")
    outer, inner = processes.in_scheduler(processes.chosen_linear, args)
    assert outer == "BlockFp8Linear"
    auto = processes.server_args(model, fp8_gemm_runner_backend="auto")
    assert processes.in_scheduler(processes.chosen_linear, auto) == (inner, inner)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (processes.without_dispatch, "dispatch_w8a8_block_fp8_linear cannot be hooked in SGLang"),
        (processes.hook_fails_to_apply, "did not apply the hook on sglang.srt.model_executor"),
        (processes.linear_takes_other_names, "take no input, weight"),
    ],
)
def test_a_changed_sglang_stops(model, change, reason):
    args = processes.server_args(model, fp8_gemm_runner_backend="tilelang")
    error = processes.in_scheduler(change, args)
    assert isinstance(error, RuntimeError)
    assert str(error).startswith("--fp8-gemm-backend tilelang cannot run: ") and reason in str(error)
    other = processes.server_args(model, fp8_gemm_runner_backend="triton")
    if change is not processes.without_dispatch:  # SGLang itself needs that one
        assert processes.in_scheduler(change, other) is None


def test_without_the_launchers_hook_the_backend_is_not_offered(monkeypatch, caplog):
    monkeypatch.setattr(
        plugin, "HOOKS", (plugin.Hook("sglang.srt.server_args.gone", "BEFORE", print, False),)
    )
    offered = []
    monkeypatch.setattr("sglang.srt.server_args.add_fp8_gemm_runner_backend_choices", offered.append)
    plugin.register()
    assert not offered
    assert "is not offered: sglang.srt.server_args.gone cannot be hooked" in caplog.text


def test_hooks_are_applied_where_sglang_imported_the_functions(scheduler):
    from sglang.srt.layers.quantization import fp8, fp8_utils
    from sglang.srt.managers import scheduler as scheduler_module

    assert fp8.dispatch_w8a8_block_fp8_linear is fp8_utils.dispatch_w8a8_block_fp8_linear
    assert scheduler_module.initialize_fp8_gemm_config is fp8_utils.initialize_fp8_gemm_config
    assert isinstance(fp8.dispatch_w8a8_block_fp8_linear(), BlockFp8Linear)


def test_activation_leaves_sglang_at_auto_and_frees_the_weights_order(scheduler):
    from sglang.srt.layers.quantization import fp8_utils

    assert fp8_utils.get_fp8_gemm_runner_backend() is fp8_utils.Fp8GemmRunnerBackend.AUTO
    assert os.environ["TILELANG_GEMM_STATIC_WEIGHTS"] == "1"


@pytest.mark.parametrize("name", ["enable_deterministic_inference", "rl_on_policy_target"])
def test_deterministic_inference_stays_with_sglangs_own(scheduler, monkeypatch, name):
    from sglang.srt.layers.quantization import fp8_utils

    why = plugin._why_never(SimpleNamespace(**{name: "fsdp"}))
    assert name in why
    monkeypatch.setattr(plugin._activation, "why_never", why)
    calls = []
    linear = fp8_utils.dispatch_w8a8_block_fp8_linear()
    linear.engine_linear = lambda **given: calls.append(given)
    linear(**arguments())
    assert len(calls) == 1
    assert plugin._why_never(SimpleNamespace(**{name: None})) is None


def test_scales_that_are_powers_of_two_stay_with_sglangs_own(scheduler):
    import inspect

    from sglang.srt.layers.quantization import fp8_utils

    function = fp8_utils.dispatch_w8a8_block_fp8_linear
    if "act_scale_ue8m0" not in inspect.signature(function).parameters:
        pytest.skip("this SGLang has no such checkpoints")
    calls = []
    linear = function(weight_block_size=[128, 128], act_scale_ue8m0=True)
    assert isinstance(linear, BlockFp8Linear)
    linear.engine_linear = lambda **given: calls.append(given)
    linear(**arguments())
    assert len(calls) == 1


# ---- the linear


def arguments(M=5, dtype=torch.bfloat16, seed=0, **others):
    generator = torch.Generator().manual_seed(seed)
    weight, scale = per_block_quant_fp8(torch.randn(N, K, generator=generator))
    x = torch.randn(M, K, generator=generator).to(dtype)
    return {"input": x, "weight": weight, "block_size": [128, 128], "weight_scale": scale, **others}


def refuse(**given):
    raise AssertionError("went to SGLang's own")


ours = BlockFp8Linear(refuse)


def sglangs_reference(input, weight, block_size, weight_scale):
    """In float32, from the functions by which SGLang undoes quantisation."""
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
    x[:, :, 0] = 448  # the largest e4m3: the quantiser finds these very scales and integers
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


def test_linear_adds_the_bias_and_keeps_leading_dimensions():
    given = arguments(M=6)
    bias = torch.randn(N).bfloat16()
    without = ours(**given)
    assert torch.equal(ours(**given, bias=bias), without + bias)
    given["input"] = given["input"].view(2, 3, K)
    assert torch.equal(ours(**given), without.view(2, 3, N))


@pytest.mark.parametrize("layout", ["row", "column_tma"])
def test_linear_takes_quantised_input_in_both_layouts(layout):
    given = arguments(M=6)
    q, s = per_token_group_quant_fp8(given["input"], scale_layout=layout)
    wanted = gemm_nt_f8f8bf16((q, s), (given["weight"], given["weight_scale"]))
    assert torch.equal(ours(**{**given, "input": q, "input_scale": s}), wanted)


def packed(scale):
    return scale.to(torch.int32)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda g: g | {"weight_bf16": g["weight"].bfloat16()}, "passes weight_bf16"),
        (lambda g: g | {"block_size": [32, 32]}, "blocks of [32, 32]"),
        (lambda g: g | {"weight": g["weight"].view(torch.int8)}, "torch.int8"),
        (lambda g: g | {"weight_scale": packed(g["weight_scale"])}, "packed"),
        (lambda g: g | {"weight_scale": g["weight_scale"].repeat(128, 1)[:N]}, "another format"),
        (lambda g: g | {"input": g["input"].half()}, "torch.float16"),
        (lambda g: g | {"input_scale": torch.ones(5, 2)}, "expected e4m3 with float32"),
        (
            lambda g: g | {"input": g["input"].to(torch.float8_e4m3fn), "input_scale": torch.ones(1)},
            "not one a token",
        ),
        (lambda g: g | {"input": g["input"][:0]}, "the batch is empty"),
        (
            lambda g: g | {"weight": g["weight"][:100], "weight_scale": g["weight_scale"][:1]},
            "N = 100 is not a multiple of 16",
        ),
    ],
)
def test_linear_delegates_and_says_why_once(change, reason, caplog):
    given = change(arguments())
    calls = []
    linear = BlockFp8Linear(lambda **all_of_it: calls.append(all_of_it) or "theirs")
    with caplog.at_level(logging.WARNING):
        assert linear(**given) == linear(**given) == "theirs"
    assert len(calls) == 2
    assert all(calls[0][name] is value for name, value in given.items())
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1 and reason in messages[0]


def test_a_keyword_without_a_value_is_nothing_to_delegate_for():
    given = arguments()
    assert torch.equal(ours(**given, weight_bf16=None), ours(**given))


def test_a_shape_that_warm_up_found_no_kernel_for_stays_with_sglangs_own():
    plugin._fallbacks[N, K] = "no TileLang kernel is valid"
    linear = BlockFp8Linear(lambda **given: "theirs")
    assert linear(**arguments()) == "theirs"


def test_linear_compiles_whole_and_for_any_batch():
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.inference_mode():
        for M in (3, 7, 64):
            given = arguments(M=M, seed=M)
            assert torch.equal(compiled(**given), ours(**given))


# ---- after the weights are loaded


class Layer(torch.nn.Module):
    def __init__(self, linear, shape=(N, K), dtype=torch.float8_e4m3fn, scheme=False):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(shape).to(dtype), requires_grad=False)
        holder = SimpleNamespace(w8a8_block_fp8_linear=linear)
        self.quant_method, self.scheme = (None, holder) if scheme else (holder, None)


def runner(scheduler, *layers):
    return SimpleNamespace(server_args=scheduler, gpu_id=0, model=torch.nn.ModuleList(layers))


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that prepares at once; ranks as `group` says."""
    group = SimpleNamespace(rank_in_group=0, world_size=1, cpu_group="cpu group")
    asked = SimpleNamespace(group=group, calls=[])

    def prepare(layers, m_max, index, progress):
        asked.calls.append((dict(layers), m_max, index, progress))
        return preparation.Preparation(
            device="NVIDIA_H200",
            m_max=m_max,
            layers=layers,
            sources={(N, K): "/configs/a.json", (16, K): "default choice", (100, K): "fallback"},
            fallbacks={(100, K): "N = 100 is odd"},
            selection={(N, K): ((8, "swapAB", None),)},
            seconds=1.25,
            compiled=3,
        )

    monkeypatch.setattr(plugin, "why_device_unfit", lambda index: None)
    monkeypatch.setattr(preparation, "prepare", prepare)
    monkeypatch.setattr("sglang.srt.distributed.parallel_state.get_tp_group", lambda: group)
    level = logging.getLogger("tilelang_gemm_wrapper").level
    yield asked
    logging.getLogger("tilelang_gemm_wrapper").setLevel(level)


def test_load_model_prepares_the_layers_shapes_and_reports_once(scheduler, gpu, caplog):
    layers = [Layer(ours), Layer(ours), Layer(ours, (16, K)), Layer(ours, (100, K), scheme=True)]
    others = [
        torch.nn.Linear(8, 8),
        Layer(None),
        Layer(refuse, dtype=torch.int32),
        Layer(ours, dtype=torch.int32),
    ]
    with caplog.at_level(logging.INFO):
        plugin._load_model(None, runner(scheduler, *layers, *others))
    shapes, m_max, index, progress = gpu.calls[0]
    assert shapes == {(N, K): 2, (16, K): 1, (100, K): 1}
    assert m_max >= 2048 and index == 0 and progress
    assert plugin._fallbacks == {(100, K): "N = 100 is odd"}
    first, second = [record.getMessage() for record in caplog.records]
    for text in (
        "active on NVIDIA_H200",
        "4 layers of 3 (N, K)",
        "1 with a tuned file",
        "1 by the default",
        "1.2 s",
    ):
        assert text in first
    assert "N=100" in second and "N = 100 is odd" in second


def test_load_model_refuses_a_model_whose_layers_were_made_without_the_backend(scheduler, gpu):
    with pytest.raises(RuntimeError, match="1 FP8 layers of the model were made without it"):
        plugin._load_model(None, runner(scheduler, Layer(ours), Layer(refuse)))


def test_load_model_refuses_where_the_backend_was_never_activated(scheduler, gpu, monkeypatch):
    monkeypatch.setattr(plugin, "_activation", None)
    with pytest.raises(RuntimeError, match=r"SGLang never called .*initialize_fp8_gemm_config"):
        plugin._load_model(None, runner(scheduler, Layer(ours)))


def test_load_model_refuses_without_a_gpu(scheduler):
    with pytest.raises(RuntimeError, match="torch finds no CUDA GPU"):
        plugin._load_model(None, runner(scheduler, Layer(ours)))


def test_load_model_has_nothing_to_do_without_fp8_layers(scheduler, gpu, caplog):
    plugin._load_model(None, runner(scheduler, torch.nn.Linear(8, 8)))
    assert "has no block-quantised FP8 layer" in caplog.text and not gpu.calls


def test_load_model_compiles_nothing_for_deterministic_inference(scheduler, gpu, monkeypatch, caplog):
    monkeypatch.setattr(plugin._activation, "why_never", "results must not depend on the batch")
    plugin._load_model(None, runner(scheduler, Layer(ours)))
    assert "results must not depend on the batch" in caplog.text and not gpu.calls


def test_load_model_leaves_servers_with_another_backend_alone(model, gpu):
    args = processes.server_args(model, fp8_gemm_runner_backend="triton")
    plugin._load_model(None, runner(args, Layer(refuse)))
    assert not gpu.calls


def test_ranks_that_disagree_stop(scheduler, gpu, monkeypatch, caplog):
    gpu.group.world_size, gpu.group.rank_in_group = 2, 1
    theirs = {(N, K): ((8, "splitK", None),)}

    def all_gather_object(results, mine, group):
        assert group == "cpu group"
        results[:] = [theirs, mine]

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    with pytest.raises(RuntimeError, match=f"N={N}, K={K} rank 0 chose splitK up to M=8 .* rank 1 swapAB"):
        plugin._load_model(None, runner(scheduler, Layer(ours)))
    theirs[N, K] = ((8, "swapAB", None),)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        plugin._load_model(None, runner(scheduler, Layer(ours)))
    assert not caplog.records  # the first rank speaks for all
    assert gpu.calls[-1][-1] is False


@pytest.mark.parametrize(
    ("settings", "m_max"),
    [
        ({"chunked_prefill_size": 4096, "max_running_requests": 64}, 4160),
        ({"chunked_prefill_size": -1, "max_prefill_tokens": 16384, "context_length": 40960}, 40960),
        ({"chunked_prefill_size": 2048, "cuda_graph_max_bs": 32, "speculative_num_draft_tokens": 4}, 2176),
        ({"chunked_prefill_size": None}, 1),
    ],
)
def test_the_largest_m_is_the_engines(settings, m_max):
    assert plugin._largest_m(SimpleNamespace(**settings)) == m_max
