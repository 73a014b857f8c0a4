"""Shape files of well-known models: the dimensions from which their checkpoints' FP8 tensors follow.

A file `<short name>.json` has `ids`, the Hugging Face ids it stands for, and `config`, the fields of their
config.json that the tensors depend on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .blocks import BLOCK, FP8
from .checkpoint import Checkpoint, SourceError, Tensor

_DIRECTORY = Path(__file__).parent


def shipped_names() -> tuple[str, ...]:
    """The short names: "qwen3-4b" and so on."""
    return tuple(sorted(path.stem for path in _DIRECTORY.glob("*.json")))


def from_shipped(model: str) -> Checkpoint:
    """The checkpoint that a short name or a Hugging Face id stands for. SourceError where no file has it."""
    for name in shipped_names():
        facts = json.loads((_DIRECTORY / f"{name}.json").read_text(encoding="utf-8"))
        if model.casefold() in (name, *map(str.casefold, facts["ids"])):
            source = f"shipped shape file {name}.json"
            return Checkpoint(source, facts["config"], tensors_of(facts["config"]))
    raise SourceError(f"no shipped shape file stands for it; there are {', '.join(shipped_names())}")


def tensors_of(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The FP8 weights of a model with the dimensions of `config`, each with its block scales."""
    tensors = {}
    for name, N, K in _weights(config):
        tensors[f"{name}.weight"] = Tensor(FP8, (N, K))
        tensors[f"{name}.weight_scale_inv"] = Tensor("F32", (-(-N // BLOCK), -(-K // BLOCK)))
    return tensors


def _weights(config: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    """(name, N, K) of each weight."""
    experts = config.get("num_experts") or config.get("n_routed_experts") or 0
    dense = config.get("first_k_dense_replace", 0) if experts else config["num_hidden_layers"]
    # The layers of multi-token prediction follow the others and are built like the last of them.
    for layer in range(config["num_hidden_layers"] + config.get("num_nextn_predict_layers", 0)):
        base = f"model.layers.{layer}"
        yield from _attention(f"{base}.self_attn", config)
        if layer < dense:
            yield from _mlp(f"{base}.mlp", config, config["intermediate_size"])
            continue
        width = config["moe_intermediate_size"]
        for expert in range(experts):
            yield from _mlp(f"{base}.mlp.experts.{expert}", config, width)
        if config.get("n_shared_experts"):
            yield from _mlp(f"{base}.mlp.shared_experts", config, width * config["n_shared_experts"])


def _attention(base: str, config: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if "kv_lora_rank" not in config:
        head, kv_heads = config["head_dim"], config["num_key_value_heads"]
        yield f"{base}.q_proj", heads * head, hidden
        yield f"{base}.k_proj", kv_heads * head, hidden
        yield f"{base}.v_proj", kv_heads * head, hidden
        yield f"{base}.o_proj", hidden, heads * head
        return
    rank, kv_rank = config["q_lora_rank"], config["kv_lora_rank"]
    nope, rope, v_head = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    yield f"{base}.q_a_proj", rank, hidden
    yield f"{base}.q_b_proj", heads * (nope + rope), rank
    yield f"{base}.kv_a_proj_with_mqa", kv_rank + rope, hidden
    yield f"{base}.kv_b_proj", heads * (nope + v_head), kv_rank
    yield f"{base}.o_proj", hidden, heads * v_head


def _mlp(base: str, config: Mapping[str, Any], width: int) -> Iterator[tuple[str, int, int]]:
    yield f"{base}.gate_proj", width, config["hidden_size"]
    yield f"{base}.up_proj", width, config["hidden_size"]
    yield f"{base}.down_proj", config["hidden_size"], width
