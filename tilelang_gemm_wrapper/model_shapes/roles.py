"""What engines make of a checkpoint's weights, told by their names: the tables to extend for a new model.

A weight is named `<module>.<leaf>.weight`. `ROLES` says how ranks share the layer of a leaf, and which heads
its rows consist of; `MERGES` which leaves of one module read the same input and become one layer;
`FUSED_QKV` and `FUSED_GATE_UP` which leaves hold such a merged layer already. `NO_LINEAR_CALL` are weights
that no FP8 linear call reads. The tables follow SGLang. A leaf that is in none of them is listed whole, and
the listing says that its division is unknown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .layer import Split


@dataclass(frozen=True, slots=True)
class Role:
    """How ranks share a layer; `heads`: which heads its rows are, if they are heads."""

    split: Split
    heads: str | None = None


@dataclass(frozen=True, slots=True)
class Merge:
    """A layer of several leaves; where models with such leaves differ, a field of config.json tells."""

    name: str  # of the merged layer, which has a role of its own
    leaves: tuple[str, ...]  # in the order of its rows
    where: str = ""  # a field that must be set
    unless: str = ""  # a field that only models without the merged layer set


QUERY, KEY_VALUE = "query heads", "key-value heads"
INDEX, INDEX_KEY = "index heads", "index keys"  # of attention to chosen tokens

_COLUMN, _ROW, _WHOLE = Role("column"), Role("row"), Role("replicated")
_QUERY, _KEY_VALUE = Role("column", QUERY), Role("column", KEY_VALUE)

FUSED_QKV = ("qkv_proj", "query_key_value", "q_k_v_proj", "wqkv", "Wqkv", "W_pack", "c_attn", "qkv")
FUSED_GATE_UP = ("gate_up_proj", "gate_and_up_proj", "input_linear", "dense_h_to_4h")

# In the order in which a model runs them, which is the order of a listing.
ROLES: dict[str, Role] = {
    # Into a hidden state of low rank: small, and needed whole by every rank's heads.
    "fused_qkv_a_proj_with_mqa": _WHOLE,
    "q_a_proj": _WHOLE,
    "kv_a_proj_with_mqa": _WHOLE,
    "wkv_a_with_mqa": _WHOLE,
    "wqkv_a": _WHOLE,
    "wq_a": _WHOLE,
    "wkv": _WHOLE,
    # Attention: whole heads for each rank.
    **dict.fromkeys(FUSED_QKV, _COLUMN),
    **dict.fromkeys(("q_proj", "wq", "query", "q"), _QUERY),
    **dict.fromkeys(("k_proj", "wk", "key", "k"), _KEY_VALUE),
    **dict.fromkeys(("v_proj", "wv", "value", "v"), _KEY_VALUE),
    **dict.fromkeys(("q_b_proj", "wq_b"), _QUERY),
    **dict.fromkeys(("kv_b_proj", "wkv_b"), _QUERY),  # run in FP8 where attention is not absorbed: in prefill
    "index_qkv_proj": _COLUMN,
    "index_q_proj": Role("column", INDEX),
    "index_k_proj": Role("column", INDEX_KEY),
    "index_v_proj": Role("column", INDEX_KEY),
    "gqkv_proj": _COLUMN,
    "linear_q": _QUERY,
    "linear_k": _COLUMN,
    **dict.fromkeys(("val_proj1", "val_proj2"), _WHOLE),
    # Gates of the attention's output, a value or a vector for each query head.
    **dict.fromkeys(("g_proj", "o_gate", "z_proj", "attn_gate", "linear_gate"), _QUERY),
    **dict.fromkeys(("output_gate", "output_gate_proj"), _QUERY),
    # Linear attention and state-space layers.
    "in_proj_qkvz": _COLUMN,
    "in_proj_qkv": _COLUMN,
    "in_proj_z": _COLUMN,
    "in_proj_ba": _COLUMN,
    "in_proj_b": _COLUMN,
    "in_proj_a": _COLUMN,
    "in_proj": _COLUMN,
    "fused_qkvg_proj": _COLUMN,
    "fused_qkvfg_proj": _COLUMN,
    "f_proj": _QUERY,
    "b_proj": _QUERY,
    "f_a_proj": _WHOLE,
    "g_a_proj": _WHOLE,
    "f_b_proj": _QUERY,
    "g_b_proj": _QUERY,
    **dict.fromkeys(("o_proj", "out_proj", "wo", "wo_b", "dense", "c_proj", "proj"), _ROW),
    # Feed-forward networks and experts.
    "gate_up_proj": _COLUMN,
    **dict.fromkeys(FUSED_GATE_UP, _COLUMN),
    **dict.fromkeys(("gate_proj", "up_proj", "w1", "w3", "c_fc_0", "c_fc_1"), _COLUMN),
    **dict.fromkeys(("fc1", "c_fc", "fc_in", "linear_fc1", "linear_left"), _COLUMN),
    **dict.fromkeys(("down_proj", "w2", "output_linear", "dense_4h_to_h"), _ROW),
    **dict.fromkeys(("fc2", "fc_out", "linear_fc2", "linear_right"), _ROW),
    # Between widths of the hidden state: around experts, in embeddings by layer, before predicted tokens.
    **dict.fromkeys(("fc1_latent_proj", "fc2_latent_proj"), _WHOLE),
    **dict.fromkeys(("routed_expert_down_proj", "routed_expert_up_proj"), _WHOLE),
    **dict.fromkeys(("pre_expert_proj", "post_expert_proj"), _WHOLE),
    **dict.fromkeys(("per_layer_input_gate", "per_layer_projection"), _WHOLE),
    **dict.fromkeys(("eh_proj", "e_proj", "h_proj"), _WHOLE),
}

MERGES: tuple[Merge, ...] = (
    # A depth that scales residuals tells MiniCPM3, whose class is older than the merged layer.
    Merge("fused_qkv_a_proj_with_mqa", ("q_a_proj", "kv_a_proj_with_mqa"), unless="scale_depth"),
    Merge("fused_qkv_a_proj_with_mqa", ("wq_a", "wkv_a_with_mqa")),
    Merge("wqkv_a", ("wq_a", "wkv")),
    # Linear attention whose gates are of full rank.
    Merge("fused_qkvg_proj", ("q_proj", "k_proj", "v_proj", "g_proj"), where="use_full_rank_gate"),
    Merge("fused_qkvfg_proj", ("q_proj", "k_proj", "v_proj", "f_proj", "g_proj"), where="no_kda_lora"),
    Merge("qkv_proj", ("q_proj", "k_proj", "v_proj")),
    Merge("qkv_proj", ("wq", "wk", "wv")),
    Merge("qkv_proj", ("query", "key", "value")),
    Merge("qkv_proj", ("q", "k", "v")),
    Merge("index_qkv_proj", ("index_q_proj", "index_k_proj", "index_v_proj")),
    Merge("index_qkv_proj", ("index_q_proj", "index_k_proj")),
    Merge("in_proj_qkvz", ("in_proj_qkv", "in_proj_z")),
    Merge("in_proj_ba", ("in_proj_b", "in_proj_a")),
    Merge("wkv_gate", ("wkv", "wgate")),
    Merge("gate_up_proj", ("gate_proj", "up_proj")),
    Merge("gate_up_proj", ("w1", "w3"), unless="block_auto_adjust_ff_dim"),  # dense LFM2
    Merge("gate_up_proj", ("w2", "w1"), where="no_bias"),  # the first Qwen, whose way out is c_proj
    Merge("gate_up_proj", ("c_fc_0", "c_fc_1")),
)

# Modules that choose tokens or experts: each rank runs them whole, whatever their leaves are called.
WHOLE_MODULES = ("indexer", "compressor", "router")

_OUTPUT = "the output layer, which SGLang does not run in FP8"
_EMBEDDING = "looked up, not multiplied by"
NO_LINEAR_CALL: dict[str, str] = {
    "lm_head": _OUTPUT,
    "output": _OUTPUT,
    "embed_out": _OUTPUT,
    "head": _OUTPUT,
    "embed_tokens": _EMBEDDING,
    "word_embeddings": _EMBEDDING,
    "tok_embeddings": _EMBEDDING,
    "wo_a": "a product for each group of heads in one call, which is no linear layer's",
}

# Parts of a model beside the one that answers in text, by the words in their modules' names.
TOWERS: dict[str, re.Pattern[str]] = {
    tower: re.compile(rf"(^|[._])({words})([._]|$)", re.IGNORECASE)
    for tower, words in (
        ("vision", "vision|visual|vit|image"),
        ("audio", "audio|speech|whisper"),
        ("talker", "talker|code2wav|token2wav"),
    )
}
UNSERVED_TOWERS = ("talker",)  # SGLang loads and runs none of it


def role_of(module: str, leaf: str, siblings: frozenset[str]) -> Role | None:
    """The role of `leaf` in `module`, which holds the leaves `siblings`; None where the tables do not say.

    A leaf's neighbours matter twice: where `wq` stands beside `q_proj`, the queries take a detour of low rank
    (multi-matrix factorization attention). Then q, k and v are needed whole, and `wq` makes the heads. And
    `proj` is not an attention's output where an MLP follows it, as in the merger of GLM's vision towers.
    """
    if module.rpartition(".")[2] in WHOLE_MODULES:
        return _WHOLE
    if leaf in ("qkv_proj", "q_proj", "k_proj", "v_proj") and {"wq", "q_proj"} <= siblings:
        return _WHOLE
    if leaf == "proj" and "down_proj" in siblings:
        return _WHOLE
    if leaf == "dense" and module.endswith(".intermediate"):  # of BERT's MLP
        return _COLUMN
    return ROLES.get(leaf)


def towers_of(words: str) -> frozenset[str]:
    """The `TOWERS` that the dotted or underscored name `words` speaks of; none for the language model."""
    return frozenset(tower for tower, names in TOWERS.items() if names.search(words))
