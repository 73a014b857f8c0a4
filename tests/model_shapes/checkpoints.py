"""Small real checkpoints of each family: what their files hold, and the layers that engines make of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Layers = dict[tuple[int, int], tuple[str, ...]]
BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@dataclass
class Family:
    config: dict[str, Any]
    fp8: dict[str, tuple[int, int]]  # name without ".weight" -> (N, K)
    bf16: dict[str, tuple[int, ...]] = field(default_factory=dict)
    layers: dict[int, Layers] = field(default_factory=dict)  # tp -> what a rank runs


def tensors_of(family: Family, scale: str = "weight_scale_inv") -> dict[str, torch.Tensor]:
    tensors = {}
    for name, (N, K) in family.fp8.items():
        tensors[f"{name}.weight"] = torch.zeros(N, K).to(torch.float8_e4m3fn)
        tensors[f"{name}.{scale}"] = torch.ones(-(-N // 128), -(-K // 128), dtype=torch.bfloat16)
    for name, shape in family.bf16.items():
        tensors[f"{name}.weight"] = torch.zeros(shape, dtype=torch.bfloat16)
    return tensors


def write(
    directory: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], shards: int = 1
) -> Path:
    """config.json and one safetensors file, or several with an index; returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(dict(tensors), directory / "model.safetensors")
        return directory
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = dict(
            list(tensors.items())[shard::shards]
        )  # a weight and its scale often land in different files
        save_file(part, directory / file)
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def write_family(directory: Path, family: Family, shards: int = 1) -> Path:
    return write(directory, family.config, tensors_of(family), shards)


def _layer_norms(layers: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {f"model.layers.{layer}.input_layernorm": (hidden,) for layer in range(layers)}


def _in_layers(layers: Iterable[int], weights: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    return {f"model.layers.{layer}.{name}": shape for layer in layers for name, shape in weights.items()}


QWEN3 = Family(
    config={
        "model_type": "qwen3",
        "hidden_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "intermediate_size": 1536,
        "quantization_config": BLOCKS,
    },
    fp8=_in_layers(
        range(2),
        {
            "self_attn.q_proj": (1024, 256),
            "self_attn.k_proj": (256, 256),
            "self_attn.v_proj": (256, 256),
            "self_attn.o_proj": (256, 1024),
            "mlp.gate_proj": (1536, 256),
            "mlp.up_proj": (1536, 256),
            "mlp.down_proj": (256, 1536),
        },
    ),
    bf16=_layer_norms(2, 256) | {"model.embed_tokens": (512, 256)},
    layers={
        1: {
            (1536, 256): ("qkv_proj",),
            (256, 1024): ("o_proj",),
            (3072, 256): ("gate_up_proj",),
            (256, 1536): ("down_proj",),
        },
        2: {
            (768, 256): ("qkv_proj",),
            (256, 512): ("o_proj",),
            (1536, 256): ("gate_up_proj",),
            (256, 768): ("down_proj",),
        },
        # Two key-value heads on four ranks: 2 query heads, and a copy of one key and one value head.
        4: {
            (512, 256): ("qkv_proj",),
            (256, 256): ("o_proj",),
            (768, 256): ("gate_up_proj",),
            (256, 384): ("down_proj",),
        },
    },
)

# The same model whose checkpoint holds the merged layers.
FUSED = Family(
    config=QWEN3.config,
    fp8=_in_layers(
        range(2),
        {
            "self_attn.qkv_proj": (1536, 256),
            "self_attn.o_proj": (256, 1024),
            "mlp.gate_up_proj": (3072, 256),
            "mlp.down_proj": (256, 1536),
        },
    ),
    layers=QWEN3.layers,
)

# As many key-value heads as query heads, which older configs do not say; an output layer of its own.
LLAMA = Family(
    config={
        "model_type": "llama",
        "hidden_size": 512,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
        "quantization_config": BLOCKS,
    },
    fp8=_in_layers(
        range(1),
        {
            "self_attn.q_proj": (512, 512),
            "self_attn.k_proj": (512, 512),
            "self_attn.v_proj": (512, 512),
            "self_attn.o_proj": (512, 512),
            "mlp.gate_proj": (1024, 512),
            "mlp.up_proj": (1024, 512),
            "mlp.down_proj": (512, 1024),
        },
    ),
    bf16={"model.embed_tokens": (1024, 512), "lm_head": (1024, 512)},
    layers={
        1: {
            (1536, 512): ("qkv_proj",),
            (512, 512): ("o_proj",),
            (2048, 512): ("gate_up_proj",),
            (512, 1024): ("down_proj",),
        },
        2: {
            (768, 512): ("qkv_proj",),
            (512, 256): ("o_proj",),
            (1024, 512): ("gate_up_proj",),
            (512, 512): ("down_proj",),
        },
        4: {
            (384, 512): ("qkv_proj",),
            (512, 128): ("o_proj",),
            (512, 512): ("gate_up_proj",),
            (512, 256): ("down_proj",),
        },
    },
)


def _experts(count: int, hidden: int, width: int) -> dict[str, tuple[int, int]]:
    weights = {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}
    return {f"mlp.experts.{n}.{name}": shape for n in range(count) for name, shape in weights.items()}


QWEN3_MOE = Family(
    config={
        "model_type": "qwen3_moe",
        "hidden_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "num_experts": 4,
        "moe_intermediate_size": 512,
        "quantization_config": BLOCKS | {"modules_to_not_convert": ["lm_head", "mlp.gate"]},
    },
    fp8=_in_layers(
        range(2),
        {
            "self_attn.q_proj": (1024, 256),
            "self_attn.k_proj": (256, 256),
            "self_attn.v_proj": (256, 256),
            "self_attn.o_proj": (256, 1024),
            **_experts(4, 256, 512),
        },
    ),
    bf16={f"model.layers.{layer}.mlp.gate": (4, 256) for layer in range(2)},
    layers={
        1: {(1536, 256): ("qkv_proj",), (256, 1024): ("o_proj",)},
        2: {(768, 256): ("qkv_proj",), (256, 512): ("o_proj",)},
        4: {(512, 256): ("qkv_proj",), (256, 256): ("o_proj",)},
    },
)

_MLA = {
    "self_attn.q_a_proj": (256, 512),
    "self_attn.q_b_proj": (8 * 192, 256),
    "self_attn.kv_a_proj_with_mqa": (128 + 64, 512),
    "self_attn.kv_b_proj": (8 * 256, 128),
    "self_attn.o_proj": (512, 8 * 128),
}
_DENSE = {"mlp.gate_proj": (2048, 512), "mlp.up_proj": (2048, 512), "mlp.down_proj": (512, 2048)}
_SPARSE = _experts(4, 512, 512) | {
    "mlp.shared_experts.gate_proj": (1024, 512),
    "mlp.shared_experts.up_proj": (1024, 512),
    "mlp.shared_experts.down_proj": (512, 1024),
}
# A dense layer, a sparse one and one of multi-token prediction, whose eh_proj is kept in bf16.
DEEPSEEK = Family(
    config={
        "model_type": "deepseek_v3",
        "hidden_size": 512,
        "num_hidden_layers": 2,
        "num_nextn_predict_layers": 1,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "q_lora_rank": 256,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "intermediate_size": 2048,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 512,
        "n_routed_experts": 4,
        "n_shared_experts": 2,
        "quantization_config": BLOCKS | {"modules_to_not_convert": ["eh_proj"]},
    },
    fp8=_in_layers([0], _MLA | _DENSE) | _in_layers([1, 2], _MLA | _SPARSE),
    bf16={f"model.layers.{layer}.mlp.gate": (4, 512) for layer in (1, 2)}
    | {"model.layers.2.eh_proj": (512, 1024)},
    layers={
        1: {
            (448, 512): ("fused_qkv_a_proj_with_mqa",),
            (1536, 256): ("q_b_proj",),
            (2048, 128): ("kv_b_proj",),
            (512, 1024): ("o_proj", "shared_experts.down_proj"),
            (4096, 512): ("gate_up_proj",),
            (512, 2048): ("down_proj",),
            (2048, 512): ("shared_experts.gate_up_proj",),
        },
        2: {
            (448, 512): ("fused_qkv_a_proj_with_mqa",),
            (768, 256): ("q_b_proj",),
            (1024, 128): ("kv_b_proj",),
            (512, 512): ("o_proj", "shared_experts.down_proj"),
            (2048, 512): ("gate_up_proj",),
            (512, 1024): ("down_proj",),
            (1024, 512): ("shared_experts.gate_up_proj",),
        },
        4: {
            (448, 512): ("fused_qkv_a_proj_with_mqa",),
            (384, 256): ("q_b_proj",),
            (512, 128): ("kv_b_proj",),
            (512, 256): ("o_proj", "shared_experts.down_proj"),
            (1024, 512): ("gate_up_proj",),
            (512, 512): ("down_proj", "shared_experts.gate_up_proj"),
        },
    },
)

# As in DeepSeek-V2-Lite, queries are projected at once.
MLA_WITHOUT_Q_LORA = Family(
    config={"num_attention_heads": 8, "num_key_value_heads": 8, "quantization_config": BLOCKS},
    fp8=_in_layers(
        range(1),
        {
            "self_attn.q_proj": (8 * 192, 512),
            "self_attn.kv_a_proj_with_mqa": (192, 512),
            "self_attn.kv_b_proj": (8 * 256, 128),
            "self_attn.o_proj": (512, 1024),
        },
    ),
    layers={
        1: {
            (192, 512): ("kv_a_proj_with_mqa",),
            (1536, 512): ("q_proj",),
            (2048, 128): ("kv_b_proj",),
            (512, 1024): ("o_proj",),
        },
        4: {
            (192, 512): ("kv_a_proj_with_mqa",),
            (384, 512): ("q_proj",),
            (512, 128): ("kv_b_proj",),
            (512, 256): ("o_proj",),
        },
    },
)

FAMILIES = {
    "qwen3": QWEN3,
    "fused": FUSED,
    "llama": LLAMA,
    "qwen3_moe": QWEN3_MOE,
    "deepseek": DEEPSEEK,
    "mla_without_q_lora": MLA_WITHOUT_Q_LORA,
}
