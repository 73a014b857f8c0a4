"""Real checkpoints of each family -> the layers of one rank; and which are refused, with what words."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tilelang_gemm_wrapper.model_shapes import shipped
from tilelang_gemm_wrapper.model_shapes.checkpoint import Checkpoint, read_directory
from tilelang_gemm_wrapper.model_shapes.linears import linears_of
from tilelang_gemm_wrapper.models import listing, weight_shapes

from .checkpoints import DEEPSEEK, FAMILIES, LLAMA, QWEN3, QWEN3_MOE, Family, tensors_of, write, write_family

CASES = [(name, tp) for name, family in FAMILIES.items() for tp in family.layers]
Q, SCALE = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.weight_scale_inv"


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(("name", "tp"), CASES)
def test_a_rank_runs_these_layers(tmp_path: Path, name: str, tp: int, shards: int):
    family = FAMILIES[name]
    found = weight_shapes(write_family(tmp_path, family, shards), tp)
    assert found.layers == family.layers[tp]
    assert found.shapes == tuple(family.layers[tp])  # in running order, whatever the order in the files
    assert (found.model, found.tp, found.source) == (str(tmp_path), tp, f"directory {tmp_path}")


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "deepseek"])
def test_shape_files_and_checkpoints_of_the_same_dimensions_agree(tmp_path: Path, name: str):
    family = replace(FAMILIES[name], bf16={})
    real = read_directory(write_family(tmp_path, family), "files")
    made = Checkpoint("dimensions", family.config, shipped.tensors_of(family.config))
    shapes = [
        {name: tensor.shape for name, tensor in checkpoint.tensors.items()} for checkpoint in (real, made)
    ]
    assert shapes[0] == shapes[1]
    assert linears_of(real) == linears_of(made)


def test_scales_under_compressed_tensors_name_serve_too(tmp_path: Path):
    config = LLAMA.config | {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": {"strategy": "block", "block_structure": [128, 128]}}},
        }
    }
    write(tmp_path, config, tensors_of(LLAMA, scale="weight_scale"))
    assert weight_shapes(tmp_path).layers == LLAMA.layers[1]


def test_the_language_model_inside_another_config_gives_the_heads(tmp_path: Path):
    config = {"text_config": QWEN3.config, "quantization_config": QWEN3.config["quantization_config"]}
    write(tmp_path, config, tensors_of(QWEN3))
    assert weight_shapes(tmp_path, 4).layers == QWEN3.layers[4]


def test_routed_experts_are_named_with_their_shapes(tmp_path: Path):
    (sentence,) = weight_shapes(write_family(tmp_path, QWEN3_MOE)).not_covered
    assert "4 in each of 2 layers" in sentence
    assert "gate_up_proj (1024, 256), down_proj (256, 512)" in sentence


def test_large_bf16_layers_are_named_and_small_ones_and_embeddings_are_not(tmp_path: Path):
    assert weight_shapes(write_family(tmp_path / "llama", LLAMA)).not_covered == (
        "kept in BF16: lm_head (1024, 512)",
    )
    assert weight_shapes(write_family(tmp_path / "qwen3", QWEN3)).not_covered == ()
    notes = weight_shapes(write_family(tmp_path / "deepseek", DEEPSEEK)).not_covered
    assert "kept in BF16: eh_proj (512, 1024)" in notes
    assert any(note.startswith("shared_experts, where the engine fuses them") for note in notes)


def test_an_unknown_layer_is_listed_whole_and_said(tmp_path: Path):
    family = replace(QWEN3, fp8=QWEN3.fp8 | {"model.layers.0.self_attn.blender.mix": (640, 384)})
    write_family(tmp_path, family)
    found = weight_shapes(tmp_path, 2)
    assert found.layers == QWEN3.layers[2] | {(640, 384): ("blender.mix",)}
    (sentence,) = found.not_covered
    assert "blender.mix, unknown here; listed whole" in sentence and "no rank of 2 runs them" in sentence
    (sentence,) = weight_shapes(tmp_path, 1).not_covered
    assert sentence.endswith("listed whole, as on each rank")


def test_fp8_tensors_of_another_form_are_said(tmp_path: Path):
    tensors = tensors_of(QWEN3)
    tensors["model.layers.0.mlp.table"] = torch.zeros(2, 128, 128).to(torch.float8_e4m3fn)
    (sentence,) = weight_shapes(write(tmp_path, QWEN3.config, tensors)).not_covered
    assert "1, such as model.layers.0.mlp.table (2, 128, 128)" in sentence


def test_the_listing_has_a_line_for_each_shape_and_for_what_is_not_covered(tmp_path: Path):
    lines = listing(weight_shapes(write_family(tmp_path, DEEPSEEK), 4)).splitlines()
    assert lines[0] == f"{tmp_path} at tp 4: 6 shapes on each rank, from directory {tmp_path}"
    rows = [line.split(maxsplit=2) for line in lines[1:8]]
    assert rows[0] == ["N", "K", "layers"]
    assert rows[1] == ["448", "512", "fused_qkv_a_proj_with_mqa"]
    assert rows[6] == ["512", "512", "down_proj, shared_experts.gate_up_proj"]
    assert [line.startswith("Not covered: ") for line in lines[8:]] == [True] * 3


@pytest.mark.parametrize(
    ("family", "tp", "message"),
    [
        # 1536 / 8 = 192 columns of down_proj; the earlier layers would fit
        (QWEN3, 8, r"tp 8: gate_up_proj .*gate_proj gives a rank 192 of its 1536 rows.*that fit: 1, 2, 4$"),
        (QWEN3, 3, r"tp 3: qkv_proj .*8 query heads cannot be divided over 3 ranks"),
        (QWEN3, 16, r"tp 16: qkv_proj .*8 query heads cannot be divided over 16 ranks"),
        (DEEPSEEK, 8, r"tp 8: q_b_proj .*gives a rank 192 of its 1536 rows.*that fit: 1, 2, 4$"),
    ],
)
def test_a_tp_that_does_not_fit_is_refused_with_those_that_do(
    tmp_path: Path, family: Family, tp: int, message: str
):
    with pytest.raises(ValueError, match=message):
        weight_shapes(write_family(tmp_path, family), tp)


def test_key_value_heads_are_copied_to_whole_multiples_of_ranks_alone(tmp_path: Path):
    heads = {"num_attention_heads": 12, "num_key_value_heads": 4}
    attention = {"q_proj": (12 * 128, 256), "k_proj": (512, 256), "v_proj": (512, 256)}
    fp8 = {f"model.layers.0.self_attn.{name}": shape for name, shape in attention.items()}
    write_family(tmp_path, Family(config=heads, fp8=fp8))
    assert weight_shapes(tmp_path, 12).shapes == ((3 * 128, 256),)  # a query, a key and a value head
    with pytest.raises(ValueError, match="4 key-value heads cannot be copied to 6 ranks evenly"):
        weight_shapes(tmp_path, 6)
    with pytest.raises(ValueError, match="4 key-value heads cannot be divided over 3 ranks evenly"):
        weight_shapes(tmp_path, 3)


@pytest.mark.parametrize(("name", "rows", "tp"), [("q_b_proj", 6 * 192, 9), ("kv_b_proj", 6 * 256, 4)])
def test_the_heads_of_mla_are_not_cut(tmp_path: Path, name: str, rows: int, tp: int):
    fp8 = {f"model.layers.0.self_attn.{name}": (rows, 256)}
    write_family(tmp_path, Family(config={"num_attention_heads": 6}, fp8=fp8))
    with pytest.raises(ValueError, match=f"6 query heads cannot be divided over {tp} ranks evenly"):
        weight_shapes(tmp_path, tp)  # though each rank would have whole blocks of rows


def test_layers_of_one_name_and_size_but_other_parts_are_named_once(tmp_path: Path):
    wide, even = "model.layers.0.self_attn", "model.layers.1.self_attn"
    fp8 = {f"{wide}.q_proj": (1024, 256), f"{wide}.k_proj": (256, 256), f"{wide}.v_proj": (256, 256)}
    fp8 |= {f"{even}.{name}": (512, 256) for name in ("q_proj", "k_proj", "v_proj")}
    write_family(tmp_path, Family(config={}, fp8=fp8))
    assert weight_shapes(tmp_path).layers == {(1536, 256): ("qkv_proj",)}


def test_a_row_parallel_layer_keeps_whole_blocks_of_k(tmp_path: Path):
    family = Family(config={}, fp8={"model.layers.0.mlp.down_proj": (256, 384)})
    write_family(tmp_path, family)
    assert weight_shapes(tmp_path, 3).shapes == ((256, 128),)
    with pytest.raises(ValueError, match=r"down_proj .*K = 384 over 2 ranks is 192 each.*that fit: 1, 3$"):
        weight_shapes(tmp_path, 2)


def test_heads_that_the_config_does_not_tell_matter_above_one_rank_alone(tmp_path: Path):
    write_family(tmp_path, replace(QWEN3, config={}))
    assert weight_shapes(tmp_path).layers == QWEN3.layers[1]
    with pytest.raises(ValueError, match=r"config\.json has no num_attention_heads"):
        weight_shapes(tmp_path, 2)


@pytest.mark.parametrize("tp", [0, -1, 2.0, True, "2"])
def test_tp_must_be_a_number_of_ranks(tp: object):
    with pytest.raises(ValueError, match="expected a whole number of ranks"):
        weight_shapes("qwen3-4b", tp)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (None, r"q_proj\.weight of shape \(1024, 256\) is F8_E4M3 without a scale; expected .*\(8, 2\)"),
        ((8, 1), r"weight_scale_inv of shape \(8, 1\); expected weight_scale_inv of shape \(8, 2\)"),
        ((), r"weight_scale_inv of shape \(\);.*a scale per tensor or row"),
        ((1024, 1), r"weight_scale_inv of shape \(1024, 1\);.*a scale per tensor or row"),
    ],
)
def test_scales_that_are_not_of_128_by_128_blocks_are_refused(
    tmp_path: Path, scale: tuple[int, ...] | None, message: str
):
    tensors = tensors_of(QWEN3)
    del tensors[SCALE]
    if scale is not None:
        tensors[SCALE] = torch.ones(scale)
    with pytest.raises(ValueError, match=message):
        weight_shapes(write(tmp_path, QWEN3.config, tensors))


@pytest.mark.parametrize(
    "quantization",
    [
        {"weight_block_size": [1, 128]},
        {"config_groups": {"group_0": {"weights": {"strategy": "block", "block_structure": [1, 128]}}}},
    ],
)
def test_another_block_size_is_refused(tmp_path: Path, quantization: dict[str, object]):
    config = QWEN3.config | {"quantization_config": quantization}
    with pytest.raises(ValueError, match=r"weight blocks of \[1, 128\]; the kernels have \[128, 128\]"):
        weight_shapes(write(tmp_path, config, tensors_of(QWEN3)))


@pytest.mark.parametrize("size", [128, 8.5, True, math.nan, "128", [128], {"rows": 128}, []])
def test_a_block_size_of_any_kind_is_refused(tmp_path: Path, size: object):
    config = QWEN3.config | {"quantization_config": {"weight_block_size": size}}
    with pytest.raises(ValueError, match=r"weight blocks of .*; the kernels have \[128, 128\]"):
        weight_shapes(write(tmp_path, config, tensors_of(QWEN3)))


@pytest.mark.parametrize("groups", [5, [1], {"group_0": 5}, {"group_0": {"weights": [1]}}])
def test_groups_without_a_block_size_name_none(tmp_path: Path, groups: object):
    config = QWEN3.config | {"quantization_config": {"config_groups": groups}}
    assert weight_shapes(write(tmp_path, config, tensors_of(QWEN3))).shapes


def test_a_bf16_model_is_refused_with_what_it_holds(tmp_path: Path):
    tensors = {
        name: tensor.to(torch.bfloat16) for name, tensor in tensors_of(QWEN3).items() if "scale" not in name
    }
    with pytest.raises(ValueError, match=r"no FP8 \(F8_E4M3\) linear weight; its 2-D weights are: 15 BF16"):
        weight_shapes(write(tmp_path, {}, tensors))


def test_merged_layers_of_two_dtypes_are_refused(tmp_path: Path):
    tensors = tensors_of(QWEN3)
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors[name] = tensors[name].to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn has q_proj in F8_E4M3 and k_proj in BF16"):
        weight_shapes(write(tmp_path, QWEN3.config, tensors))


def test_merged_layers_of_two_widths_are_refused(tmp_path: Path):
    fp8 = {"model.layers.0.mlp.gate_proj": (256, 256), "model.layers.0.mlp.up_proj": (256, 384)}
    with pytest.raises(ValueError, match="differ in K and cannot be merged into gate_up_proj"):
        weight_shapes(write_family(tmp_path, Family(config={}, fp8=fp8)))


def test_ragged_blocks_cannot_be_merged_on_one_rank_either(tmp_path: Path):
    fp8 = {
        "model.layers.0.self_attn.q_a_proj": (200, 256),
        "model.layers.0.self_attn.kv_a_proj_with_mqa": (192, 256),
    }
    with pytest.raises(ValueError, match=r"tp 1: fused_qkv_a_proj_with_mqa .*q_a_proj gives a rank 200 rows"):
        weight_shapes(write_family(tmp_path, Family(config={}, fp8=fp8)))
