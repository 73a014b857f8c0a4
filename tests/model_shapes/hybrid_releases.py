"""Models of other attention: of low rank, to chosen tokens, linear; and of state-space layers."""

from __future__ import annotations

from .checkpoints import BLOCKS
from .release import (
    HALF_BLOCKS,
    HEADS,
    Release,
    Shapes,
    column,
    experts,
    heads_config,
    mla,
    mla_cuts,
    mlp,
    mlp_cuts,
    qkvo,
    row,
    stacked,
    whole,
)


def _qwen3_5(hidden: int, heads: int, kv_heads: int, linear_values: int, width: int, moe: bool) -> Release:
    """Linear attention in two weights, and full attention whose queries have a gate beside them."""
    linear, full = (f"model.language_model.layers.{layer}" for layer in (0, 3))
    values, keys, kv = linear_values * 128, 16 * 128, kv_heads * 256
    fp8: Shapes = {
        f"{linear}.linear_attn.in_proj_qkv": (2 * keys + values, hidden),
        f"{linear}.linear_attn.in_proj_z": (values, hidden),
        f"{linear}.linear_attn.out_proj": (hidden, values),
        **qkvo(f"{full}.self_attn", hidden, 2 * heads * 256, kv, out=heads * 256),
    }
    for layer in (linear, full):
        fp8 |= mlp(f"{layer}.mlp.shared_expert" if moe else f"{layer}.mlp", hidden, width)
        fp8 |= experts(f"{layer}.mlp", hidden, width) if moe else {}
    small = {f"{linear}.linear_attn.in_proj_{name}": (linear_values, hidden) for name in "ab"}
    text = heads_config(heads, kv_heads, 256, hidden_size=hidden, attn_output_gate=True)
    text |= {"linear_num_key_heads": 16, "linear_num_value_heads": linear_values}
    vision = {"hidden_size": 1152, "num_heads": 16}
    return Release(
        config={"text_config": text, "vision_config": vision, "quantization_config": BLOCKS},
        fp8=fp8,
        bf16=small | {"lm_head": (248320, hidden)},
        layers=(
            column(hidden, keys, keys, values, values),
            row(hidden, values),
            column(hidden, 2 * heads * 256, copied=[(kv, kv_heads), (kv, kv_heads)]),
            row(hidden, heads * 256),
            *mlp_cuts(hidden, width),
        ),
        refused={tp: f"{HALF_BLOCKS}|{HEADS}" for tp in (2, 4, 8, 16) if width // tp % 128 or heads % tp},
    )


def _qwen3_next() -> Release:
    linear, full, hidden = "model.layers.0", "model.layers.3", 2048
    fp8 = {
        f"{linear}.linear_attn.in_proj_qkvz": (12288, hidden),
        f"{linear}.linear_attn.out_proj": (hidden, 4096),
        **qkvo(f"{full}.self_attn", hidden, 8192, 512, out=4096),
        **mlp(f"{full}.mlp.shared_expert", hidden, 512),
        **experts(f"{full}.mlp", hidden, 512),
    }
    attention = column(hidden, 8192, copied=[(512, 2), (512, 2)])
    return Release(
        config=heads_config(16, 2, 256, hidden_size=hidden),
        fp8=fp8,
        bf16={f"{linear}.linear_attn.in_proj_ba": (64, hidden)},
        layers=(column(hidden, 12288), row(hidden, 4096), attention, *mlp_cuts(hidden, 512)),
        refused={8: "shared_expert.gate_up_proj", 16: "shared_expert.gate_up_proj"},
    )


def _ring_linear() -> Release:
    """Linear attention has a key-value head for each query head; full attention has fewer."""
    hidden = 4096
    fp8: Shapes = {f"model.layers.{layer}.attention.dense": (hidden, 4096) for layer in (0, 1)}
    fp8 |= {"model.layers.0.attention.query_key_value": (3 * 4096, hidden)}
    fp8 |= {"model.layers.0.attention.g_proj": (4096, hidden)}
    fp8 |= {"model.layers.1.attention.query_key_value": (5120, hidden)}
    return Release(
        config=heads_config(32, 4, 128),
        fp8=fp8,
        layers=(
            column(hidden, 3 * 4096),
            column(hidden, 4096),
            column(hidden, 4096, copied=[(512, 4), (512, 4)]),
            row(hidden, 4096),
        ),
    )


def _kimi_linear() -> Release:
    """Linear attention with gates of low rank, and multi-head latent attention without one for queries."""
    hidden, linear, full = 2304, "model.layers.0.self_attn", "model.layers.1.self_attn"
    fp8 = qkvo(linear, hidden, 4096, 4096)
    fp8 |= {f"{linear}.{name}_a_proj": (128, hidden) for name in "fg"}
    fp8 |= {f"{linear}.{name}_b_proj": (4096, 128) for name in "fg"}
    fp8 |= {
        f"{full}.q_proj": (32 * 192, hidden),
        f"{full}.kv_a_proj_with_mqa": (576, hidden),
        f"{full}.kv_b_proj": (32 * 256, 512),
        f"{full}.o_proj": (hidden, 4096),
    }
    return Release(
        config=heads_config(
            32, 32, 72, hidden_size=hidden, linear_attn_config={"num_heads": 32, "head_dim": 128}
        ),
        fp8=fp8,
        layers=(
            column(hidden, 3 * 4096),
            whole(128, hidden),
            column(128, 4096),
            row(hidden, 4096),
            column(hidden, 32 * 192),
            whole(576, hidden),
            column(512, 32 * 256),
        ),
        refused={},
    )


def _full_rank_gates(heads: int, gates: str, **fields: object) -> Release:
    """Linear attention whose gates of full rank are merged with queries, keys and values."""
    hidden, width, base = 4096, heads * 128, "model.layers.0.self_attn"
    leaves = ("q_proj", "k_proj", "v_proj", *gates.split())
    return Release(
        config=heads_config(32, 32, 128, hidden_size=hidden, **fields),
        fp8={f"{base}.{leaf}": (width, hidden) for leaf in leaves} | {f"{base}.o_proj": (hidden, width)},
        bf16={f"{base}.b_proj": (heads, hidden)},
        layers=(column(hidden, len(leaves) * width), row(hidden, width)),
    )


def _nemotron_h() -> Release:
    """State-space layers: gate, x, B, C and 128 heads' dt in one weight, which two ranks cannot divide."""
    hidden, layers = 4096, "backbone.layers"
    fp8: Shapes = {
        f"{layers}.0.mixer.in_proj": (2 * 8192 + 2 * 1024 + 128, hidden),
        f"{layers}.0.mixer.out_proj": (hidden, 8192),
        f"{layers}.1.mixer.up_proj": (21504, hidden),
        f"{layers}.1.mixer.down_proj": (hidden, 21504),
    }
    state_space = {"mamba_num_heads": 128, "mamba_head_dim": 64, "n_groups": 8, "ssm_state_size": 128}
    return Release(
        config=heads_config(32, 8, 128, hidden_size=hidden, **state_space),
        fp8=fp8,
        layers=(column(hidden, 18560), row(hidden, 8192), column(hidden, 21504), row(hidden, 21504)),
        refused={2: "dt gives a rank 64", 4: "dt", 8: "dt", 16: "8 state-space groups cannot be divided"},
    )


def _lfm2_moe() -> Release:
    """Short convolutions between one weight of B, C and x and another out of them; w1 and w3 side by side."""
    hidden = 2048
    fp8: Shapes = {
        "model.layers.0.conv.in_proj": (3 * hidden, hidden),
        "model.layers.0.conv.out_proj": (hidden, hidden),
        **mlp("model.layers.0.feed_forward", hidden, 7168, "w1 w3 w2"),
    }
    return Release(
        config=heads_config(32, 8, hidden_size=hidden),
        fp8=fp8,
        layers=(column(hidden, 3 * hidden), row(hidden, hidden), *mlp_cuts(hidden, 7168)),
        refused={16: "w1 gives a rank 448"},
    )


def _lfm2() -> Release:
    """The dense models between those with experts: w1 and w3 are layers of their own."""
    hidden, width, base = 2048, 8192, "model.layers.1.self_attn"
    fp8: Shapes = {
        "model.layers.0.conv.in_proj": (3 * hidden, hidden),
        "model.layers.0.conv.out_proj": (hidden, hidden),
        **{f"{base}.{name}_proj": (rows, hidden) for name, rows in (("q", hidden), ("k", 512), ("v", 512))},
        f"{base}.out_proj": (hidden, hidden),
        **mlp("model.layers.0.feed_forward", hidden, width, "w1 w3 w2"),
    }
    return Release(
        config=heads_config(32, 8, hidden_size=hidden, block_auto_adjust_ff_dim=False),
        fp8=fp8,
        layers=(
            column(hidden, 3 * hidden),
            column(hidden, hidden, copied=[(512, 8), (512, 8)]),
            row(hidden, hidden),
            column(hidden, width),
            row(hidden, width),
        ),
        refused={8: "k_proj gives a rank 64", 16: "k_proj gives a rank 64"},
    )


def _minicpm3() -> Release:
    """Multi-head latent attention whose two weights of low rank stay apart."""
    hidden, base = 2560, "model.layers.0.self_attn"
    return Release(
        config=heads_config(40, 40, hidden_size=hidden, scale_depth=1.4),
        fp8={
            f"{base}.q_a_proj": (768, hidden),
            f"{base}.kv_a_proj_with_mqa": (288, hidden),
            f"{base}.q_b_proj": (40 * 96, 768),
            f"{base}.kv_b_proj": (40 * 128, 256),
            f"{base}.o_proj": (hidden, 40 * 64),
        },
        layers=(
            whole(768, hidden),
            whole(288, hidden),
            column(768, 40 * 96),
            column(256, 40 * 128),
            row(hidden, 40 * 64),
        ),
        refused={4: "q_b_proj gives a rank 960", 8: "q_b_proj gives a rank 480", 16: "40 query heads"},
    )


def _glm5() -> Release:
    """Multi-head latent attention to chosen tokens, which an indexer chooses whole on each rank."""
    hidden, sizes = 6144, (64, 2048, 256, 448, 256)
    indexer = "model.layers.0.self_attn.indexer"
    fp8 = {
        **mla("model.layers.0.self_attn", hidden, *sizes),
        f"{indexer}.wq_b": (4096, 2048),
        f"{indexer}.wk": (128, hidden),
        **mlp("model.layers.0.mlp", hidden, 12288),
        **mlp("model.layers.3.mlp.shared_experts", hidden, 2048),
        **experts("model.layers.3.mlp", hidden, 2048),
    }
    chosen = (whole(4096, 2048), whole(128, hidden))
    layers = (*mla_cuts(hidden, *sizes), *chosen, *mlp_cuts(hidden, 12288), *mlp_cuts(hidden, 2048))
    return Release(config=heads_config(64, 64), fp8=fp8, layers=layers)


def _longcat() -> Release:
    hidden, sizes = 6144, (64, 1536, 192, 256, 128)
    fp8 = experts("model.layers.0.mlp", hidden, 2048)
    for half in (0, 1):
        fp8 |= mla(f"model.layers.0.self_attn.{half}", hidden, *sizes)
        fp8 |= mlp(f"model.layers.0.mlps.{half}", hidden, 12288)
    layers = (*mla_cuts(hidden, *sizes), *mlp_cuts(hidden, 12288))
    return Release(config={"num_attention_heads": 64}, fp8=fp8, layers=layers)


def _deepseek_r1() -> Release:
    hidden, sizes = 7168, (128, 1536, 192, 256, 128)
    fp8 = {
        **mla("model.layers.0.self_attn", hidden, *sizes),
        **mlp("model.layers.0.mlp", hidden, 18432),
        **mlp("model.layers.3.mlp.shared_experts", hidden, 2048),
        **experts("model.layers.3.mlp", hidden, 2048),
    }
    layers = (*mla_cuts(hidden, *sizes), *mlp_cuts(hidden, 18432), *mlp_cuts(hidden, 2048))
    return Release(
        config=heads_config(128, 128), fp8=fp8, layers=layers, refused={32: "gate_proj gives a rank 576"}
    )


def _deepseek_v4(base: str, scale: str, scale_dtype: str) -> Release:
    hidden = 4096
    names = {"wq_a": (1024, hidden), "wkv": (512, hidden), "wq_b": (32768, 1024), "wo_b": (hidden, 8192)}
    fp8: Shapes = {f"{base}.{name}": shape for name, shape in names.items()}
    return Release(
        config=heads_config(64, 1, 512),
        fp8=fp8 | {f"{base}.wo_a": (8192, 4096)},  # multiplied by in groups of heads
        scale=scale,
        scale_dtype=scale_dtype,
        layers=(whole(1536, hidden), column(1024, 32768), row(hidden, 8192)),
    )


def _minimax_m3() -> Release:
    """Heads that choose tokens: copied where there are fewer than ranks, with a single key."""
    hidden, base = 6144, "model.layers.0.self_attn"
    index = {f"{base}.index_q_proj": (512, hidden), f"{base}.index_k_proj": (128, hidden)}
    config = heads_config(
        64, 8, 128, sparse_attention_config={"sparse_num_index_heads": 4, "sparse_index_dim": 128}
    )
    return Release(
        config=config,
        fp8=qkvo(base, hidden, 8192, 1024) | index,
        layers=(
            column(hidden, 8192, copied=[(1024, 8), (1024, 8)]),
            column(hidden, copied=[(512, 4), (128, 1)]),
            row(hidden, 8192),
        ),
    )


def _step3() -> Release:
    """Queries through a shared low rank: q, k and v whole on each rank, and wq makes the heads."""
    base, hidden = "model.layers.0.self_attn", 7168
    attention = {
        f"{base}.{name}_proj": (rows, hidden) for name, rows in (("q", 2048), ("k", 256), ("v", 256))
    }
    fp8 = {
        **attention,
        f"{base}.wq": (16384, 2048),
        f"{base}.o_proj": (hidden, 16384),
        **mlp("model.layers.0.mlp", hidden, 18432),
        **mlp("model.layers.4.share_expert", hidden, 5120),
        **stacked("model.layers.4.moe", hidden, 5120),
    }
    text = {"hidden_size": hidden, "num_attention_heads": 64, "num_attention_groups": 1, "head_dim": 256}
    attention_cuts = (whole(2560, hidden), column(2048, 16384), row(hidden, 16384))
    return Release(
        config={"text_config": text, "quantization_config": BLOCKS},
        fp8=fp8,
        layers=(*attention_cuts, *mlp_cuts(hidden, 18432), *mlp_cuts(hidden, 5120)),
    )


HYBRID: dict[str, Release] = {
    "Qwen3.5-397B": _qwen3_5(4096, 32, 2, linear_values=64, width=1024, moe=True),
    "Qwen3.6-35B": _qwen3_5(2048, 16, 2, linear_values=32, width=512, moe=True),
    "Qwen3.5-27B": _qwen3_5(5120, 24, 4, linear_values=48, width=17408, moe=False),
    "Qwen3-Next-80B": _qwen3_next(),
    "step3": _step3(),
    "Ring-linear": _ring_linear(),
    "GLM-5": _glm5(),
    "LongCat-Flash": _longcat(),
    "DeepSeek-R1": _deepseek_r1(),
    "DeepSeek-V4": _deepseek_v4("layers.0.attn", "scale", "F8_E8M0"),
    "DeepSeek-V4 repacked": _deepseek_v4("model.layers.0.self_attn", "weight_scale", "F32"),
    "MiniMax-M3": _minimax_m3(),
    "Kimi-Linear": _kimi_linear(),
    "Nemotron-H": _nemotron_h(),
    "LFM2-MoE": _lfm2_moe(),
    "LFM2-1.2B": _lfm2(),
    "Ling-3": _full_rank_gates(32, "f_proj g_proj", no_kda_lora=True),
    "Kimi-K3": _full_rank_gates(
        96, "g_proj", linear_attn_config={"num_heads": 96, "use_full_rank_gate": True}
    ),
    "MiniCPM3-4B": _minicpm3(),
}
