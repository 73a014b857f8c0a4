"""The rules one by one: what is merged, shared, copied, divided or refused, and what a listing says of it."""

from __future__ import annotations

from typing import Any

import pytest

from tilelang_gemm_wrapper import models
from tilelang_gemm_wrapper.model_shapes.checkpoint import Checkpoint, Tensor
from tilelang_gemm_wrapper.models import ModelShapes, listing

from .checkpoints import BLOCKS
from .dense_releases import DENSE
from .hybrid_releases import HYBRID
from .release import Release, Shapes, experts, heads_config, mlp, qkvo, stacked

HIDDEN, LAYER = 1024, "model.layers.0"
DENSE_LAYER = qkvo(f"{LAYER}.self_attn", HIDDEN, 1024, 512) | mlp(f"{LAYER}.mlp", HIDDEN, 3072)


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch):
    """weight_shapes of a release, or of a model with the given weights and config."""

    def of(
        model: Release | Shapes, tp: int = 1, config: dict[str, Any] | None = None, **how: int
    ) -> ModelShapes:
        release = model if isinstance(model, Release) else Release(config or heads_config(8, 4), model, ())
        monkeypatch.setattr(models, "from_shipped", lambda _: release.checkpoint)
        return models.weight_shapes("qwen3-4b", tp, **how)

    return of


def the_note(shapes: ModelShapes, *words: str) -> str:
    (note,) = (note for note in shapes.not_covered if all(word in note for word in words))
    return note


# Merged layers of which a part is absent, shared or placed otherwise


def test_keys_that_serve_as_values_are_told_where_the_config_does_not_say_so(shapes):
    weights = {name: shape for name, shape in DENSE_LAYER.items() if not name.endswith("v_proj")}
    found = shapes(weights, 2)
    assert found.layers[512 + 2 * 256, HIDDEN] == ("qkv_proj",)
    assert "self_attn" in the_note(found, "whether keys serve as values", "attention_k_eq_v")
    said = shapes(weights, 2, heads_config(8, 4, attention_k_eq_v=True))
    assert (said.layers, said.not_covered) == (found.layers, ())


def test_a_gate_beside_queries_of_low_rank_is_said(shapes):
    base = f"{LAYER}.self_attn"
    low_rank = {f"{base}.q_a_proj": (512, HIDDEN), f"{base}.kv_a_proj_with_mqa": (192, HIDDEN)}
    found = shapes(low_rank | {f"{base}.g_proj": (1024, HIDDEN)}, 2)
    assert found.layers == {(704, HIDDEN): ("fused_qkv_a_proj_with_mqa",), (512, HIDDEN): ("g_proj",)}
    assert base in the_note(found, "whether g_proj is merged")
    assert shapes(low_rank).not_covered == ()


def test_queries_alone_stay_alone_unless_the_layer_reads_anothers_keys(shapes):
    weights = DENSE_LAYER | {"model.layers.1.self_attn.q_proj": (1024, HIDDEN)}
    assert "q_proj" in shapes(weights).layers[1024, HIDDEN]
    sharing = shapes(weights, 1, heads_config(8, 4, num_kv_shared_layers=1))
    assert not any("q_proj" in names for names in sharing.layers.values())


def test_values_in_another_dtype_are_no_absent_values(shapes):
    weights = {name: shape for name, shape in DENSE_LAYER.items() if not name.endswith("v_proj")}
    mixed = Release(heads_config(8, 4), weights, (), bf16={f"{LAYER}.self_attn.v_proj": (512, HIDDEN)})
    with pytest.raises(
        ValueError, match="q_proj in F8_E4M3 and v_proj in BF16; engines merge them into qkv_proj"
    ):
        shapes(mixed)


@pytest.mark.parametrize(
    ("leaves", "name"),
    [
        ("gate_proj up_proj down_proj", "gate_up_proj"),
        ("w1 w3 w2", "gate_up_proj"),
        ("c_fc_0 c_fc_1 c_proj", "gate_up_proj"),
    ],
)
def test_a_feed_forward_network_goes_by_many_names(shapes, leaves: str, name: str):
    found = shapes(mlp(f"{LAYER}.mlp", HIDDEN, 2048, leaves), 4)
    assert found.layers == {(1024, HIDDEN): (name,), (HIDDEN, 512): (leaves.rsplit(maxsplit=1)[-1],)}
    assert found.not_covered == ()


def test_the_small_projections_of_linear_attention_are_merged_and_as_a_rule_too_small(shapes):
    for weights in ({"in_proj_ba": 256}, {"in_proj_b": 128, "in_proj_a": 128}):
        named = {f"{LAYER}.linear_attn.{name}": (rows, HIDDEN) for name, rows in weights.items()}
        assert shapes(named).layers == {(256, HIDDEN): ("linear_attn.in_proj_ba",)}
        with pytest.raises(ValueError, match=r"linear_attn\.in_proj_ba .* 64 of its 128 rows"):
            shapes(named, 2)


def test_a_layer_without_its_partner_is_divided_all_the_same(shapes):
    weights = {f"{LAYER}.mlp.up_proj": (2048, HIDDEN), f"{LAYER}.mlp.down_proj": (HIDDEN, 2048)}
    assert shapes(weights, 4).layers == {(512, HIDDEN): ("up_proj",), (HIDDEN, 512): ("down_proj",)}


@pytest.mark.parametrize("leaf", ["qkv_proj", "query_key_value", "W_pack", "Wqkv", "wqkv"])
def test_fused_attention_goes_by_many_names(shapes, leaf: str):
    found = shapes({f"{LAYER}.attention.{leaf}": (2048, HIDDEN)}, 8)  # 8 and twice 4 heads of 128
    assert found.layers == {(128 + 2 * 128, HIDDEN): (leaf,)}


def test_fused_attention_that_the_config_does_not_explain_is_refused_above_one_rank(shapes):
    weights = {f"{LAYER}.attention.query_key_value": (2048 + 8, HIDDEN)}
    assert shapes(weights).shapes == ((2056, HIDDEN),)
    with pytest.raises(ValueError, match=r"no numbers of heads in config\.json explain 2056 rows"):
        shapes(weights, 2)


def test_a_gate_has_the_heads_of_its_own_layer(shapes):
    """Layer 1 has 6 heads where the model has 8: three ranks divide them, four do not."""
    base = "model.layers.1.self_attn"
    weights = qkvo(base, HIDDEN, 768, 384) | {f"{base}.g_proj": (768, HIDDEN)}
    config = heads_config(8, 3, 128, num_attention_heads_per_layer=[8, 6])
    assert shapes(weights, 3, config).layers[256, HIDDEN] == ("g_proj",)
    with pytest.raises(ValueError, match="its 6 query heads cannot be divided over 4 ranks"):
        shapes(weights, 4, config)


def test_the_module_that_chooses_tokens_is_whole_on_each_rank(shapes):
    weights = DENSE_LAYER | {f"{LAYER}.self_attn.indexer.wq_b": (640, 384)}
    found = shapes(weights, 2)
    assert found.layers[640, 384] == ("indexer.wq_b",)
    assert found.not_covered == ()


# Where the config tells of heads


@pytest.mark.parametrize(
    "path", [(), ("llm_config",), ("thinker_config", "text_config"), ("a", "language", "b")]
)
def test_the_language_models_heads_are_found_at_any_depth(shapes, path: tuple[str, ...]):
    config: dict[str, Any] = heads_config(8, 4, 128, hidden_size=HIDDEN)
    for key in reversed(path):
        config = {"vision_config": {"hidden_size": 512, "num_attention_heads": 3}, key: config}
    found = shapes(DENSE_LAYER, 8, config)
    assert found.layers[128 + 2 * 128, HIDDEN] == ("qkv_proj",)


def test_a_tower_is_divided_by_its_own_heads(shapes):
    tower = {"visual.blocks.0.attn.qkv": (3 * 512, 512), "visual.blocks.0.attn.proj": (512, 512)}
    config = {"text_config": heads_config(8, 4, hidden_size=HIDDEN)}
    vision = {"vision_config": {"hidden_size": 512, "num_heads": 4}}
    found = shapes(DENSE_LAYER | tower, 4, config | vision)
    assert found.layers[3 * 128, 512] == ("qkv",) and found.layers[512, 128] == ("proj",)
    with pytest.raises(ValueError, match="no num_attention_heads for vision"):
        shapes(DENSE_LAYER | tower, 4, config)


def test_towers_that_the_engine_does_not_run_are_not_listed(shapes):
    found = shapes(DENSE_LAYER | qkvo("talker.model.layers.0.self_attn", 512, 512, 512))
    assert found.layers == shapes(DENSE_LAYER).layers
    assert "talker, which SGLang does not run" in the_note(found)


@pytest.mark.parametrize("heads", [None, 0, "8", True])
def test_heads_that_are_no_number_are_not_guessed(shapes, heads: object):
    with pytest.raises(ValueError, match=r"has no num_attention_heads \(a whole number\)"):
        shapes(DENSE_LAYER, 2, {"num_attention_heads": heads})


# What ranks divide, and what the engine refuses


def test_heads_of_half_a_block_are_refused_where_a_rank_has_one(shapes):
    weights = qkvo(f"{LAYER}.self_attn", HIDDEN, 1024, 256)
    config = heads_config(16, 4, 64)
    assert shapes(weights, 2, config).layers[512 + 2 * 128, HIDDEN] == ("qkv_proj",)
    with pytest.raises(ValueError, match="k_proj gives a rank 64 of its 256 rows"):
        shapes(weights, 4, config)


def test_rows_that_are_no_whole_heads_are_refused(shapes):
    weights = {f"{LAYER}.self_attn.q_b_proj": (1028, HIDDEN)}
    with pytest.raises(ValueError, match="q_b_proj has 1028 rows, which are not 8 query heads of one size"):
        shapes(weights, 2)


def test_linear_attention_in_one_weight_is_divided_in_parts(shapes):
    """Each rank of 32 would hold 64 rows of the keys, though 384 of all."""
    attention = {
        f"{LAYER}.linear_attn.in_proj_qkvz": (12288, 2048),
        f"{LAYER}.linear_attn.out_proj": (2048, 4096),
    }
    with pytest.raises(ValueError, match=r"in_proj_qkvz .*: q gives a rank 64 of its 2048 rows"):
        shapes(attention, 32)


def test_the_heads_of_linear_attention_are_not_cut(shapes):
    weights = {f"{LAYER}.linear_attn.in_proj_z": (3072, HIDDEN)}
    assert shapes(weights, 4).shapes == ((768, HIDDEN),)
    with pytest.raises(ValueError, match="6 heads of linear attention cannot be divided over 4 ranks"):
        shapes(weights, 4, heads_config(8, 4, linear_num_value_heads=6))


def test_values_smaller_than_keys_need_no_whole_blocks(shapes):
    config = heads_config(4, 4, 192, v_head_dim=128)
    weights = qkvo(f"{LAYER}.self_attn", HIDDEN, 4 * 192, 4 * 192, 4 * 128, out=4 * 128)
    assert shapes(weights, 4, config).layers[192 + 192 + 128, HIDDEN] == ("qkv_proj",)
    even = qkvo(f"{LAYER}.self_attn", HIDDEN, 4 * 192, 4 * 192)
    with pytest.raises(ValueError, match="q_proj gives a rank 192"):
        shapes(even, 4, heads_config(4, 4, 192))


@pytest.mark.parametrize(
    ("leaf", "rows", "scale_rows"),
    [
        ("self_attn.qkv_proj", 2048 + 64, 18),  # 17 blocks; of two shards 2 * 9
        ("mlp.gate_up_proj", 2 * 1088, 18),
        ("self_attn.q_proj", 4 * 192, 8),  # of four heads 4 * 2
    ],
)
def test_scale_rows_may_be_rounded_up_for_each_shard(shapes, leaf: str, rows: int, scale_rows: int):
    name = f"{LAYER}.{leaf}"
    found = shapes(Release(heads_config(8, 4), {name: (rows, HIDDEN)}, (), scale_rows={name: scale_rows}))
    assert found.shapes == ((rows, HIDDEN),)


@pytest.mark.parametrize(
    ("leaf", "rows", "scale_rows"),
    [
        ("self_attn.qkv_proj", 2112, 21),  # of 7 shards with 3 rows each, but 7 are not equal
        ("self_attn.qkv_proj", 2048, 32),  # blocks of 64 rows
        ("self_attn.qkv_proj", 2112, 2112),
        ("mlp.down_proj", 2112, 18),  # no merged layer, which no ranks wrote in shards
    ],
)
def test_other_scale_rows_are_refused(shapes, leaf: str, rows: int, scale_rows: int):
    name = f"{LAYER}.{leaf}"
    with pytest.raises(ValueError, match=rf"has weight_scale_inv of shape \({scale_rows}, 8\)"):
        shapes(Release(heads_config(8, 4), {name: (rows, HIDDEN)}, (), scale_rows={name: scale_rows}))


# Experts


def test_routed_experts_that_ranks_cannot_divide_are_refused_with_the_ranks_that_can(shapes):
    weights = DENSE_LAYER | experts(f"{LAYER}.mlp", HIDDEN, 384)
    assert shapes(weights, 1).layers == shapes(DENSE_LAYER, 1).layers
    message = (
        r"tp 2: routed experts, experts\.gate_up_proj of .*gate_proj gives a rank 192 of its 384 rows.*"
        r"with expert parallelism they fit: ep 2\. The tp that fit: 1$"
    )
    with pytest.raises(ValueError, match=message):
        shapes(weights, 2)


def test_expert_parallelism_divides_experts_over_the_ranks_of_a_group_alone(shapes):
    weights = DENSE_LAYER | experts(f"{LAYER}.mlp", HIDDEN, 256)
    found = shapes(weights, 4, ep=2)
    assert found.layers == shapes(DENSE_LAYER, 4).layers
    assert listing(found).startswith("qwen3-4b at tp 4, ep 2: ")
    with pytest.raises(ValueError, match="with expert parallelism they fit: ep 2, 4"):
        shapes(weights, 4)


@pytest.mark.parametrize("ep", [0, -1, 2.0, True, 3, 8])
def test_expert_parallelism_must_divide_the_ranks(shapes, ep: object):
    with pytest.raises(ValueError, match=r"ep = .*: expected a (whole number of ranks|divisor of tp = 4)"):
        shapes(DENSE_LAYER, 4, ep=ep)


def test_experts_of_half_a_block_are_refused_on_one_rank_too(shapes):
    with pytest.raises(ValueError, match=r"tp 1: routed experts, .*gate_proj gives a rank 320 rows"):
        shapes(DENSE_LAYER | experts(f"{LAYER}.mlp", HIDDEN, 320))


@pytest.mark.parametrize("base", ["mlp.experts", "moe", "block_sparse_moe"])
def test_stacked_experts_go_by_many_names(shapes, base: str):
    found = shapes(DENSE_LAYER | stacked(f"{LAYER}.{base}", HIDDEN, 384))
    assert "48 in each of 1 layer" in the_note(found, "routed experts")


@pytest.mark.parametrize("transposed", [False, True])
def test_stacked_experts_are_called_experts_and_their_ranks_named(shapes, transposed: bool):
    weights = stacked(f"{LAYER}.mlp.experts", HIDDEN, 384)
    if transposed:
        weights = {name: (count, K, N) for name, (count, N, K) in weights.items()}
    config = heads_config(8, 4, hidden_size=HIDDEN)
    found = shapes(DENSE_LAYER | weights, 2, config)
    assert found.layers == shapes(DENSE_LAYER, 2, config).layers
    assert "gate_up_proj (768, 1024), down_proj (1024, 384)" in the_note(found, "48 in each of 1 layer)")
    note = the_note(found, "routed experts on 2 ranks", "SGLang refuses")
    assert "gate_proj gives a rank 192 of its 384 rows" in note and "the tp that fit: 1, 3;" in note
    assert not [
        note for note in shapes(DENSE_LAYER | weights, 2, config, ep=2).not_covered if "refuses" in note
    ]


def test_stacked_experts_that_no_rank_can_hold_are_said(shapes):
    weights = DENSE_LAYER | stacked(f"{LAYER}.mlp.experts", HIDDEN, 320)
    note = the_note(shapes(weights, 1), "routed experts, which SGLang refuses: ")
    assert note.endswith("gate_proj gives a rank 320 rows, and not a multiple of 128; the tp that fit: none")
    assert the_note(shapes(weights, 2), "routed experts on 2 ranks").endswith("the tp that fit: none")


def test_shared_experts_beside_stacked_ones_are_listed_and_said(shapes):
    found = shapes(HYBRID["step3"], 16)
    note = the_note(found, "share_expert.gate_up_proj", "whether any rank runs")
    assert "320 of its 5120 rows" in note and "the tp that fit: 1, 2, 4, 5, 8, 10, 20, 40" in note
    assert not [note for note in shapes(HYBRID["step3"], 8).not_covered if "whether any rank runs" in note]


def test_shared_experts_that_an_all_to_all_backend_leaves_whole_are_said(shapes):
    weights = (
        DENSE_LAYER | experts(f"{LAYER}.mlp", HIDDEN, 512) | mlp(f"{LAYER}.mlp.shared_experts", HIDDEN, 512)
    )
    note = the_note(shapes(weights, 2), "DeepEP")
    assert "runs them whole on a rank: gate_up_proj (1024, 1024), down_proj (1024, 512)" in note
    assert "DeepEP" not in the_note(shapes(weights, 1), "shared_experts")
    with pytest.raises(ValueError, match=r"rank 64 of its 512 rows.*all-to-all.*\(DeepEP\) run it whole"):
        shapes(weights, 8, ep=8)


def test_a_router_is_whole_on_each_rank_whatever_its_leaves_are_called(shapes):
    found = shapes(DENSE_LAYER | {f"{LAYER}.mlp.router.down_proj": (256, HIDDEN)}, 4)
    assert found.layers[(256, HIDDEN)] == ("router.down_proj",)
    assert found.not_covered == ()


# What no linear call of these kernels runs


def test_an_fp8_output_layer_is_not_listed_but_said(shapes):
    assert (
        "lm_head (151936, 4096) in F8_E4M3: the output layer, which SGLang does not run in FP8"
        in the_note(shapes(DENSE["FP8 output layer"]), "lm_head")
    )


def test_scales_of_weights_in_four_bits_are_no_fp8_weights(monkeypatch: pytest.MonkeyPatch):
    name = f"{LAYER}.mlp.up_proj.weight"
    four_bits = {name: Tensor("U8", (3072, 512)), f"{name}_scale": Tensor("F8_E4M3", (3072, 64))}
    checkpoint = Checkpoint("headers", heads_config(8, 4), four_bits)
    monkeypatch.setattr(models, "from_shipped", lambda _: checkpoint)
    with pytest.raises(ValueError, match=r"no FP8 \(F8_E4M3\) linear weight; its 2-D weights are: 1 U8"):
        models.weight_shapes("qwen3-4b")


def test_products_in_groups_of_heads_are_not_listed_but_said(shapes):
    note = the_note(shapes(HYBRID["DeepSeek-V4"]), "wo_a (8192, 4096)")
    assert "no linear layer's" in note


def test_scales_that_are_powers_of_two_are_said(shapes):
    assert "scales in F8_E8M0" in the_note(shapes(HYBRID["DeepSeek-V4"]), "float32")
    assert not [note for note in shapes(HYBRID["DeepSeek-V4 repacked"]).not_covered if "scales" in note]
    config = heads_config(8, 4) | {"quantization_config": BLOCKS | {"scale_fmt": "ue8m0"}}
    assert "SGLang from 0.5.21 on" in the_note(shapes(DENSE_LAYER, 1, config), "scale_fmt ue8m0")
