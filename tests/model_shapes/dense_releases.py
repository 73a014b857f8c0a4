"""Models of plain attention: fused, with shared or absent values, other heads by layer, inside wrappers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .checkpoints import BLOCKS
from .release import (
    HALF_BLOCKS,
    Release,
    column,
    experts,
    heads_config,
    mlp,
    mlp_cuts,
    qkvo,
    row,
    stacked,
    whole,
)


def _mimo_fused() -> Release:
    """Query-key-value as eight ranks wrote it: 3392 rows of each in 27 rows of scales."""
    attention, hidden = "model.layers.0.self_attn", 6144
    fp8 = {f"{attention}.qkv_proj": (27136, hidden), **mlp("model.layers.0.mlp", hidden, 16384)}
    swa = {"swa_num_attention_heads": 128, "swa_num_key_value_heads": 8}
    return Release(
        config=heads_config(128, 8, 192, v_head_dim=128, hidden_size=hidden, **swa),
        fp8=fp8 | experts("model.layers.1.mlp", hidden, 2048),
        bf16={f"{attention}.o_proj": (hidden, 16384)},
        scale_rows={f"{attention}.qkv_proj": 8 * 27},
        layers=(column(hidden, 24576, copied=[(1536, 8), (1024, 8)]), *mlp_cuts(hidden, 16384)),
    )


def _mimo_in_parts() -> Release:
    """Keys with heads of 192 and values of 128, in other numbers where the window slides."""
    hidden = 4096
    fp8 = mlp("model.layers.0.mlp", hidden, 16384)
    for layer, kv_heads in enumerate((4, 8)):
        base = f"model.layers.{layer}.self_attn"
        fp8 |= qkvo(base, hidden, 64 * 192, kv_heads * 192, kv_heads * 128, out=64 * 128)
    fields = {"v_head_dim": 128, "swa_num_key_value_heads": 8, "swa_head_dim": 192, "swa_v_head_dim": 128}
    return Release(
        config=heads_config(64, 4, 192, hidden_size=hidden, **fields),
        fp8=fp8,
        layers=(
            column(hidden, 64 * 192, copied=[(4 * 320, 4)]),
            column(hidden, 64 * 192, copied=[(8 * 320, 8)]),
            row(hidden, 64 * 128),
            *mlp_cuts(hidden, 16384),
        ),
    )


def _step3_5() -> Release:
    """Heads of other numbers in other layers, and experts in one tensor of a layer."""
    hidden = 4096
    fp8 = mlp("model.layers.0.mlp", hidden, 11264) | stacked("model.layers.3.moe", hidden, 1280)
    for layer, heads in ((0, 64), (4, 96)):
        fp8 |= qkvo(f"model.layers.{layer}.self_attn", hidden, heads * 128, 1024)
    config = {
        "hidden_size": hidden,
        "num_attention_heads": 64,
        "num_attention_groups": 8,
        "head_dim": 128,
        "attention_other_setting": {
            "num_attention_heads": 96,
            "num_attention_groups": 8,
            "head_dim": 128,
        },
    }
    keys = [(1024, 8), (1024, 8)]
    return Release(
        config=config,
        fp8=fp8,
        layers=(
            column(hidden, 64 * 128, copied=keys),
            column(hidden, 96 * 128, copied=keys),
            row(hidden, 64 * 128),
            row(hidden, 96 * 128),
            *mlp_cuts(hidden, 11264),
        ),
        refused={16: "gate_up_proj .* 704 of its 11264 rows"},
    )


def _ling() -> Release:
    hidden, base = 4096, "model.layers.0.attention"
    fp8 = {
        f"{base}.query_key_value": (5120, hidden),
        f"{base}.dense": (hidden, 4096),
        **mlp("model.layers.0.mlp", hidden, 9216),
        **mlp("model.layers.1.mlp.shared_experts", hidden, 1024),
        **experts("model.layers.1.mlp", hidden, 1024),
    }
    attention = column(hidden, 4096, copied=[(512, 4), (512, 4)])
    return Release(
        config=heads_config(32, 4, 128),
        fp8=fp8,
        layers=(attention, row(hidden, 4096), *mlp_cuts(hidden, 9216), *mlp_cuts(hidden, 1024)),
        refused={16: HALF_BLOCKS},
    )


def _minimax_m2() -> Release:
    hidden = 3072
    fp8 = qkvo("model.layers.0.self_attn", hidden, 6144, 1024)
    fp8 |= experts("model.layers.0.block_sparse_moe", hidden, 1536, "w1 w3 w2")
    return Release(
        config=heads_config(48, 8, 128),
        fp8=fp8,
        layers=(column(hidden, 6144, copied=[(1024, 8), (1024, 8)]), row(hidden, 6144)),
        refused={8: "routed experts.* 192 of its 1536 rows", 16: "routed experts.* 96 of its 1536 rows"},
    )


def _gemma4() -> Release:
    """Full attention holds no values: its keys serve as such."""
    hidden, layers = 5376, "model.language_model.layers"
    fp8 = qkvo(f"{layers}.0.self_attn", hidden, 32 * 256, 16 * 256) | mlp(f"{layers}.0.mlp", hidden, 21504)
    full = qkvo(f"{layers}.5.self_attn", hidden, 32 * 512, 4 * 512)
    del full[f"{layers}.5.self_attn.v_proj"]
    text = heads_config(32, 16, 256, hidden_size=hidden, attention_k_eq_v=True)
    text |= {"num_global_key_value_heads": 4, "global_head_dim": 512}
    return Release(
        config={"text_config": text},
        fp8=fp8 | full,
        scale="weight_scale",
        scale_dtype="BF16",
        layers=(
            column(hidden, 32 * 256, copied=[(4096, 16), (4096, 16)]),
            column(hidden, 32 * 512, copied=[(2048, 4), (2048, 4)]),
            row(hidden, 32 * 256),
            row(hidden, 32 * 512),
            *mlp_cuts(hidden, 21504),
        ),
        refused={16: "gate_proj gives a rank 1344"},
    )


def _gemma4_shared_keys() -> Release:
    """The last layers read the keys and values of earlier ones, and are built like these."""
    hidden, fp8 = 1536, {}
    for layer, head in enumerate((256, 512, 256, 512)):
        attention = qkvo(f"model.layers.{layer}.self_attn", hidden, 8 * head, head)
        own = ("q_proj", "o_proj") if layer >= 2 else ("q_proj", "k_proj", "v_proj", "o_proj")
        fp8 |= {name: shape for name, shape in attention.items() if name.endswith(own)}
    return Release(
        config=heads_config(8, 1, 256, hidden_size=hidden, global_head_dim=512, num_kv_shared_layers=2),
        fp8=fp8,
        layers=tuple(
            cut
            for head in (256, 512)
            for cut in (column(hidden, 8 * head, copied=[(2 * head, 1)]), row(hidden, 8 * head))
        ),
        refused={16: "8 query heads"},
    )


def _afmoe() -> Release:
    hidden, base = 2048, "model.layers.0.self_attn"
    attention = column(hidden, 4096, copied=[(512, 4), (512, 4)])
    return Release(
        config=heads_config(32, 4),
        fp8=qkvo(base, hidden, 4096, 512) | {f"{base}.gate_proj": (4096, hidden)},
        layers=(attention, column(hidden, 4096), row(hidden, 4096)),
    )


def _laguna() -> Release:
    """A number of heads for each layer, and a gate on each value of them."""
    hidden, fp8 = 3072, {}
    for layer, heads in enumerate((48, 64)):
        base = f"model.layers.{layer}.self_attn"
        fp8 |= qkvo(base, hidden, heads * 128, 1024) | {f"{base}.g_proj": (heads * 128, hidden)}
    keys = [(1024, 8), (1024, 8)]
    return Release(
        config=heads_config(48, 8, 128, num_attention_heads_per_layer=[48, 64]),
        fp8=fp8,
        layers=tuple(
            cut
            for rows in (48 * 128, 64 * 128)
            for cut in (column(hidden, rows, copied=keys), column(hidden, rows), row(hidden, rows))
        ),
    )


def _starcoder2() -> Release:
    """An MLP with one weight into it, of a name that MLPs with gates have not."""
    hidden, width, base = 4608, 18432, "model.layers.0"
    fp8 = qkvo(f"{base}.self_attn", hidden, 4608, 512)
    fp8 |= {f"{base}.mlp.c_fc": (width, hidden), f"{base}.mlp.c_proj": (hidden, width)}
    return Release(
        config=heads_config(36, 4, hidden_size=hidden),
        fp8=fp8,
        layers=(
            column(hidden, 4608, copied=[(512, 4), (512, 4)]),
            row(hidden, 4608),
            column(hidden, width),
            row(hidden, width),
        ),
        refused={8: "36 query heads", 16: "36 query heads"},
    )


def _starcoder() -> Release:
    """All query heads share one key and value, which the config calls `multi_query` and does not count."""
    hidden, base = 6144, "transformer.h.0"
    return Release(
        config={"n_embd": hidden, "n_head": 48, "multi_query": True},
        fp8={f"{base}.attn.c_attn": (hidden + 2 * 128, hidden), f"{base}.attn.c_proj": (hidden, hidden)},
        layers=(column(hidden, hidden, copied=[(256, 1)]), row(hidden, hidden)),
    )


def _dbrx() -> Release:
    """Key-value heads under another name, deeper in the config."""
    hidden, base = 6144, "transformer.blocks.0.norm_attn_norm.attn"
    return Release(
        config={"d_model": hidden, "n_heads": 48, "attn_config": {"kv_n_heads": 8}},
        fp8={f"{base}.Wqkv": (hidden + 2 * 1024, hidden), f"{base}.out_proj": (hidden, hidden)},
        layers=(column(hidden, hidden, copied=[(1024, 8), (1024, 8)]), row(hidden, hidden)),
    )


def _phi4() -> Release:
    """Everything merged in the checkpoint; ten key-value heads."""
    hidden, width, base = 5120, 17920, "model.layers.0"
    return Release(
        config=heads_config(40, 10, hidden_size=hidden),
        fp8={
            f"{base}.self_attn.qkv_proj": (7680, hidden),
            f"{base}.self_attn.o_proj": (hidden, hidden),
            f"{base}.mlp.gate_up_proj": (2 * width, hidden),
            f"{base}.mlp.down_proj": (hidden, width),
        },
        layers=(
            column(hidden, 5120, copied=[(1280, 10), (1280, 10)]),
            row(hidden, hidden),
            *mlp_cuts(hidden, width),
        ),
        refused={4: "10 key-value heads", 8: "10 key-value heads", 16: "40 query heads"},
    )


def _hunyuan_large() -> Release:
    """Every second layer reads the keys and values of the one before, and is built with queries alone."""
    hidden = 4096
    fp8 = qkvo("model.layers.0.self_attn", hidden, 4096, 1024)
    fp8 |= {f"model.layers.1.self_attn.{name}": (hidden, hidden) for name in ("q_proj", "o_proj")}
    fp8 |= mlp("model.layers.0.mlp.shared_mlp", hidden, 3072)
    return Release(
        config=heads_config(32, 8, 128, hidden_size=hidden, use_cla=True, cla_share_factor=2),
        fp8=fp8 | experts("model.layers.0.mlp", hidden, 3072),
        layers=(
            column(hidden, 4096, copied=[(1024, 8), (1024, 8)]),
            column(hidden, 4096),
            row(hidden, 4096),
            *mlp_cuts(hidden, 3072),
        ),
        refused={16: "shared_mlp.gate_up_proj .* 192 of its 3072 rows"},
    )


def _qwen() -> Release:
    """Two weights into the MLP that elsewhere are the ways in and out."""
    hidden, width, base = 4096, 11008, "transformer.h.0"
    return Release(
        config={"hidden_size": hidden, "num_attention_heads": 32, "no_bias": True},
        fp8={
            f"{base}.attn.c_attn": (3 * hidden, hidden),
            f"{base}.attn.c_proj": (hidden, hidden),
            **mlp(f"{base}.mlp", hidden, width, "w2 w1 c_proj"),
        },
        layers=(column(hidden, *3 * [hidden]), row(hidden, hidden), *mlp_cuts(hidden, width)),
        refused={tp: HALF_BLOCKS for tp in (4, 8, 16)},
    )


def _hrm_text() -> Release:
    """The output's gate above queries, keys and values of as many heads."""
    hidden, base = 1536, "model.layers.0.self_attn"
    return Release(
        config=heads_config(12, 12, hidden_size=hidden),
        fp8={f"{base}.gqkv_proj": (4 * hidden, hidden), f"{base}.o_proj": (hidden, hidden)},
        layers=(column(hidden, *4 * [hidden]), row(hidden, hidden)),
        refused={8: "12 query heads", 16: "12 query heads"},
    )


def _glm_tower() -> Release:
    """What merges a vision tower's patches: a projection that is whole on each rank, then an MLP."""
    hidden, width, base = 1536, 4608, "model.visual.merger"
    return Release(
        config={"vision_config": {"hidden_size": 1024, "num_heads": 16}},
        fp8={f"{base}.proj": (hidden, hidden), **mlp(base, hidden, width)},
        layers=(whole(hidden, hidden), *mlp_cuts(hidden, width)),
        refused={8: HALF_BLOCKS, 16: HALF_BLOCKS},
    )


def _wrapped(prefix: str, wrap: Callable[[dict[str, Any]], dict[str, Any]]) -> Release:
    """A dense language model of 32 and 8 heads inside another model."""
    hidden = 4096
    fp8 = qkvo(f"{prefix}.self_attn", hidden, 4096, 1024) | mlp(f"{prefix}.mlp", hidden, 12288)
    return Release(
        config=wrap(heads_config(32, 8, 128, hidden_size=hidden)),
        fp8=fp8,
        layers=(
            column(hidden, 4096, copied=[(1024, 8), (1024, 8)]),
            row(hidden, 4096),
            *mlp_cuts(hidden, 12288),
        ),
    )


def _with_fp8_output() -> Release:
    plain = _wrapped("model.layers.0", lambda config: config)
    return Release(config=plain.config, fp8=plain.fp8 | {"lm_head": (151936, 4096)}, layers=plain.layers)


def _nested(*keys: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def wrap(config: dict[str, Any]) -> dict[str, Any]:
        for key in reversed(keys):
            config = {key: config}
        return config | {"quantization_config": BLOCKS}

    return wrap


DENSE: dict[str, Release] = {
    "MiMo-V2.5-Pro": _mimo_fused(),
    "MiMo-V2-Flash": _mimo_in_parts(),
    "Step-3.5-Flash": _step3_5(),
    "Ling-flash-2.0": _ling(),
    "MiniMax-M2.5": _minimax_m2(),
    "gemma-4-31B": _gemma4(),
    "gemma-4-E2B": _gemma4_shared_keys(),
    "Trinity": _afmoe(),
    "Laguna": _laguna(),
    "InternVL3.5": _wrapped("language_model.model.layers.0", _nested("llm_config")),
    "Qwen3-Omni": _wrapped("thinker.model.layers.0", _nested("thinker_config", "text_config")),
    "FP8 output layer": _with_fp8_output(),
    "StarCoder2-7B": _starcoder2(),
    "StarCoder": _starcoder(),
    "DBRX": _dbrx(),
    "Phi-4": _phi4(),
    "Hunyuan-Large": _hunyuan_large(),
    "Qwen-7B": _qwen(),
    "HRM-Text": _hrm_text(),
    "GLM-OCR": _glm_tower(),
}
