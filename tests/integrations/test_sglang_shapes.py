"""The layers that SGLang itself builds, without a GPU, beside those that the reader of checkpoints tells.

`make test-sglang` runs this file once for each release. One process of SGLang answers all questions.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sglang", reason="make test-sglang brings SGLang's releases")

from tilelang_gemm_wrapper.core.tuner import command, wanted
from tilelang_gemm_wrapper.integrations import sglang_shapes
from tilelang_gemm_wrapper.model_shapes import shipped
from tilelang_gemm_wrapper.model_shapes.engine import Engine
from tilelang_gemm_wrapper.model_shapes.shapes_file import read_shapes_file
from tilelang_gemm_wrapper.models import weight_shapes

pytestmark = pytest.mark.xdist_group("sglang_shapes")  # its imports take most of the time: once is enough

BLOCKS = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "weight_block_size": [128, 128],
}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "ignore": ["lm_head", "re:.*mlp.gate$"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8,
                "type": "float",
                "strategy": "block",
                "block_structure": [128, 128],
                "dynamic": False,
                "symmetric": True,
            },
            "input_activations": {
                "num_bits": 8,
                "type": "float",
                "strategy": "group",
                "group_size": 128,
                "dynamic": True,
                "symmetric": True,
            },
        }
    },
}
COMMON = {
    "torch_dtype": "bfloat16",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "vocab_size": 32000,
    "quantization_config": BLOCKS,
}
# The widths are those of the real models; there are fewer layers and experts.
QWEN3 = COMMON | {  # Qwen3-0.6B
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "head_dim": 128,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_hidden_layers": 3,
}
LLAMA = COMMON | {  # Llama-3.1-8B
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "head_dim": 128,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 2,
}
QWEN3_MOE = COMMON | {  # Qwen3-235B-A22B
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "head_dim": 128,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "num_hidden_layers": 2,
}
DEEPSEEK = COMMON | {  # DeepSeek-V3
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "num_hidden_layers": 3,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
    },
}
WITHOUT_YARN = {name: value for name, value in DEEPSEEK.items() if name != "rope_scaling"}
QWEN3_NEXT = COMMON | {  # Qwen3-Next-80B-A3B: layers of linear attention, one of full attention
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "partial_rotary_factor": 0.25,
    "head_dim": 256,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "quantization_config": BLOCKS
    | {
        "modules_to_not_convert": [
            f"model.layers.{layer}.{name}"
            for layer in range(4)
            for name in ("mlp.gate", "mlp.shared_expert_gate", "linear_attn.in_proj_ba")
        ]
    },
}
LONGCAT = COMMON | {  # LongCat-Flash: two attentions and two dense parts a layer
    "architectures": ["LongcatFlashForCausalLM"],
    "model_type": "longcat_flash",
    "hidden_size": 6144,
    "ffn_hidden_size": 12288,
    "expert_ffn_hidden_size": 2048,
    "num_layers": 2,
    "num_attention_heads": 64,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 8,
    "moe_topk": 2,
    "zero_expert_num": 2,
    "zero_expert_type": "identity",
    "routed_scaling_factor": 6.0,
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
    "attention_method": "MLA",
    "attention_bias": False,
    "router_bias": False,
    "rope_scaling": DEEPSEEK["rope_scaling"],
}
HELIUM = QWEN3 | {
    "architectures": ["HeliumForCausalLM"],
    "model_type": "helium",
    "num_attention_heads": 8,
}
LFM2 = QWEN3 | {  # LFM2-700M: short convolutions, of which one is the first layer
    "architectures": ["Lfm2ForCausalLM"],
    "model_type": "lfm2",
    "num_hidden_layers": 2,
    "layer_types": ["conv", "full_attention"],
    "num_attention_heads": 16,
    "head_dim": 64,
    "block_ff_dim": 3072,
    "block_auto_adjust_ff_dim": False,
    "block_multiple_of": 256,
    "conv_L_cache": 3,
    "conv_bias": False,
    "norm_eps": 1e-5,
}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": QWEN3,
    "llama": LLAMA,
    "llama compressed-tensors": LLAMA | {"quantization_config": COMPRESSED},
    "qwen3_moe": QWEN3_MOE,
    "qwen3_moe compressed-tensors": QWEN3_MOE | {"quantization_config": COMPRESSED},
    "deepseek": DEEPSEEK,
    "deepseek without yarn": WITHOUT_YARN,  # whose rotary embedding SGLang refuses on a CPU
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine("sglang", limit_s=240.0) as engine:
        yield engine


def write(directory: Path, config: Mapping[str, Any]) -> Path:
    """config.json, and a safetensors file of the model's FP8 weights, which is a hole behind its header."""
    (directory / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    scale = "weight_scale" if config["quantization_config"] is COMPRESSED else "weight_scale_inv"
    for name, tensor in shipped.tensors_of(config).items():
        begin, end = end, end + math.prod(tensor.shape) * (4 if tensor.dtype == "F32" else 1)
        header[name.replace("weight_scale_inv", scale)] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return directory


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_engine_and_reader_agree(engine: Engine, tmp_path: Path, name: str, tp: int) -> None:
    config = MODELS[name]
    built = engine.shapes(write(tmp_path, config), name, tp)
    assert set(built.layers) == set(weight_shapes(tmp_path, tp).shapes)
    assert (built.engine, built.model, built.tp) == ("sglang", name, tp)
    assert re.match(r"\d+\.\d+\.\d+", built.engine_version)
    assert all("weights that are no" not in clause for clause in built.not_covered)


def test_each_layer_is_counted(engine: Engine, tmp_path: Path) -> None:
    assert engine.shapes(write(tmp_path, QWEN3), "m", 2).layers == {
        (2048, 1024): 3,
        (1024, 1024): 3,
        (3072, 1024): 3,
        (1024, 1536): 3,
    }


@pytest.mark.parametrize(
    ("name", "tp", "experts"),
    [
        ("qwen3_moe", 1, {(8, 3072, 4096): 2, (8, 4096, 1536): 2}),
        ("qwen3_moe", 4, {(8, 768, 4096): 2, (8, 4096, 384): 2}),
        ("qwen3_moe compressed-tensors", 2, {(8, 1536, 4096): 2, (8, 4096, 768): 2}),
        ("deepseek", 4, {(8, 1024, 7168): 2, (8, 7168, 512): 2}),
    ],
)
def test_experts_are_stacked(
    engine: Engine, tmp_path: Path, name: str, tp: int, experts: dict[tuple[int, int, int], int]
) -> None:
    built = engine.shapes(write(tmp_path, MODELS[name]), name, tp)
    assert built.experts == experts
    assert any("shared experts" in clause for clause in built.not_covered) == (name == "deepseek")


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        pytest.param(
            QWEN3_NEXT,
            {
                (6144, 2048): 3,  # of linear attention, its four inputs merged
                (2048, 2048): 4,
                (4608, 2048): 1,  # queries with their gates, keys and values
                (512, 2048): 4,
                (2048, 256): 4,
            },
            id="a cache that needs a GPU",
        ),
        pytest.param(
            LONGCAT,
            {
                (2112, 6144): 4,
                (6144, 1536): 4,
                (8192, 512): 4,
                (6144, 4096): 4,
                (12288, 6144): 4,
                (6144, 6144): 4,
            },
            id="a stream of the GPU",
        ),
        pytest.param(
            HELIUM,
            {(512, 1024): 9, (1024, 512): 3, (1536, 1024): 6, (1024, 1536): 3},
            id="the class of transformers, put on the GPU, with nothing merged",
        ),
        pytest.param(
            LFM2,
            {(1536, 1024): 5, (1024, 512): 2, (1024, 1536): 2, (1024, 1024): 1},
            id="a backend of attention that begins with no attention",
        ),
    ],
)
def test_what_models_ask_of_a_gpu_is_stood_in_for(
    engine: Engine, tmp_path: Path, config: dict[str, Any], layers: dict[tuple[int, int], int]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert engine.shapes(tmp_path, "m", 2).layers == layers


def test_what_is_put_on_the_gpu_by_name_takes_no_memory() -> None:
    with sglang_shapes._MetaForCuda():
        assert torch.empty(2, device="cuda").device.type == "meta"
        assert torch.zeros(2, device=torch.device("cuda", 1)).device.type == "meta"
        assert torch.empty(2, device="cpu").device.type == "cpu"
        with torch.device("meta"), sglang_shapes._MetaForCuda():
            assert [rate.item() for rate in torch.linspace(0, 0.5, 2)] == [0.0, 0.5]
        assert torch.empty(2).device.type == "cpu"


def test_scales_that_sglang_keeps_to_itself_are_told(engine: Engine, tmp_path: Path) -> None:
    config = QWEN3 | {"quantization_config": BLOCKS | {"scale_fmt": "ue8m0"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    built = engine.shapes(tmp_path, "m", 1)
    heeds_it = [int(part) for part in built.engine_version.split(".")[:3]] >= [0, 5, 21]
    assert ["ue8m0" in clause for clause in built.not_covered] == [True] * heeds_it


@pytest.mark.parametrize("said", [{"torch_dtype": "float16"}, {"torch_dtype": "float32"}, {}])
def test_activations_that_no_kernel_takes_are_told(
    engine: Engine, tmp_path: Path, said: dict[str, str]
) -> None:
    """Where config.json does not say bfloat16, SGLang serves with float16: tuning would be for nothing."""
    config = {name: value for name, value in QWEN3.items() if name != "torch_dtype"} | said
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": BLOCKS}))
    built = engine.shapes(tmp_path, "m", 1)
    [clause] = built.not_covered
    assert built.layers and "torch.float16 activations" in clause and "--dtype bfloat16" in clause


class Weights(torch.nn.Module):
    """Parameters of these names, dtypes and shapes, without memory."""

    def __init__(self, **tensors: tuple[torch.dtype, tuple[int, ...]]) -> None:
        super().__init__()
        for name, (dtype, shape) in tensors.items():
            tensor = torch.empty(shape, dtype=dtype, device="meta")
            self.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))


E4M3, F32 = torch.float8_e4m3fn, torch.float32


def linear(N: int, K: int, scale: str = "weight_scale_inv") -> Weights:
    return Weights(weight=(E4M3, (N, K)), **{scale: (F32, (-(-N // 128), -(-K // 128)))})


def test_what_is_no_linear_layer_of_ours_is_told() -> None:
    model = torch.nn.Module()
    model.right = linear(200, 256)  # a last block need not be full
    model.experts = torch.nn.ModuleList([linear(256, 128, "weight_scale") for _ in range(3)])
    model.shared_experts = torch.nn.ModuleList([linear(256, 128)])
    model.stacked = Weights(w13_weight=(E4M3, (4, 256, 128)), w13_weight_scale_inv=(F32, (4, 2, 1)))
    model.unscaled = Weights(weight=(E4M3, (128, 128)))
    model.mxfp8 = Weights(weight=(E4M3, (128, 128)), weight_scale_inv=(torch.uint8, (1, 1)))
    model.rows = Weights(weight=(E4M3, (256, 128)), weight_scale=(F32, (256, 1)))
    model.absorbed = Weights(w_kc=(E4M3, (128, 128)), w_kc_scale=(F32, (1, 1)))
    model.half = Weights(weight=(torch.bfloat16, (128, 128)), weight_scale_inv=(F32, (1, 1)))
    account = sglang_shapes._account(model)
    assert account["layers"] == [[200, 256, 1], [256, 128, 4]]
    assert account["experts"] == [[4, 256, 128, 1]]
    others, single, shared = account["not_covered"]
    assert "block: 4, such as unscaled.weight (128, 128) with no scales" in others
    assert single.startswith("3 layers of single experts")
    assert shared.startswith("1 layers of shared experts")


@pytest.mark.parametrize(
    ("config", "tp", "reason"),
    [
        (QWEN3, 16, "192"),  # rows of the dense layers on a rank
        (LLAMA, 32, "448"),
        (QWEN3, 3, "AssertionError: .*(3|tp_size|divisib)"),
    ],
)
def test_engine_and_reader_refuse_the_same(
    engine: Engine, tmp_path: Path, config: dict[str, Any], tp: int, reason: str
) -> None:
    write(tmp_path, config)
    with pytest.raises(ValueError):
        weight_shapes(tmp_path, tp)
    with pytest.raises(ValueError) as error:
        engine.shapes(tmp_path, "Org/Model", tp)
    message = str(error.value)
    assert message.startswith(f"SGLang does not build Org/Model at tp {tp}. While it built the model: ")
    assert re.search(reason, message) and "\n" not in message


def test_experts_that_cannot_be_cut_are_the_engines_refusal(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"While it built the model: ValueError: .* 192 is not divisible"):
        engine.shapes(write(tmp_path, QWEN3_MOE), "m", 8)


@pytest.mark.parametrize(
    ("quantization", "example"),
    [
        (BLOCKS | {"weight_block_size": [32, 32]}, r"qkv_proj\.weight \(4096, 1024\) with .* \(128, 32\)"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, r"qkv_proj\.weight .* scales \(3,\)"),
    ],
)
def test_fp8_of_another_kind_is_no_layer_of_ours(
    engine: Engine, tmp_path: Path, quantization: dict[str, Any], example: str
) -> None:
    built = engine.shapes(write(tmp_path, QWEN3 | {"quantization_config": quantization}), "m", 1)
    assert built.layers == {}
    (clause,) = built.not_covered
    assert re.search(f"128 x 128 block: 12, such as .*{example}", clause)


def test_a_model_without_fp8_has_no_layers(engine: Engine, tmp_path: Path) -> None:
    config = {name: value for name, value in QWEN3.items() if name != "quantization_config"}
    (tmp_path / "config.json").write_text(json.dumps(config))  # no weights are needed
    built = engine.shapes(tmp_path, "m", 1)
    assert (built.layers, built.experts, built.not_covered) == ({}, {}, ())


@pytest.mark.parametrize(
    ("change", "step"),
    [
        ({"model_type": "no_such_type", "architectures": ["NoSuchForCausalLM"]}, "read config.json"),
        ({"architectures": ["NoSuchForCausalLM"]}, "read the quantization config"),
        ({"quantization_config": {"quant_method": "no such method"}}, "read config.json"),
    ],
)
def test_what_sglang_does_not_know_is_told_in_a_line(
    engine: Engine, tmp_path: Path, change: dict[str, Any], step: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3 | change))
    with pytest.raises(ValueError, match=f"SGLang does not build m at tp 1. While it {step}: ") as error:
        engine.shapes(tmp_path, "m", 1)
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)


@pytest.mark.skipif(
    importlib.util.find_spec("torchaudio") is not None, reason="then SGLang imports the class"
)
def test_a_class_that_does_not_import_is_not_replaced_by_another(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"architectures": ["MiDashengLMModel"]}))
    with pytest.raises(ValueError, match=r"While it looked for the model's class: .*torchaudio"):
        engine.shapes(tmp_path, "m", 1)


def test_the_tuner_lists_what_sglang_builds(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wanted, "Engine", lambda name: nullcontext(engine))
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_MOE))
    asked = ["--model", str(tmp_path), "--tp", "2", "--engine", "sglang", "--list-shapes"]
    assert command.main(asked) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert re.search(r"at tp 2: 2 shapes on a rank, from sglang \d.*, which built the model", head)
    assert [row.split() for row in rows[1:3]] == [["4608", "4096", "2"], ["4096", "4096", "2"]]
    assert "2 of (E=8, N=1536, K=4096), 2 of (E=8, N=4096, K=768)" in rows[3]


def test_what_sglang_builds_can_be_kept_in_a_file(engine: Engine, tmp_path: Path) -> None:
    built = engine.shapes(write(tmp_path, DEEPSEEK), "m", 4)
    built.write(tmp_path / "shapes.json")
    assert read_shapes_file(tmp_path / "shapes.json") == built
