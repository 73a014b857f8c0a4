"""Which numbers of heads in a config are a module's: by its tower, its layer, and the rows of its weights."""

from __future__ import annotations

import pytest

from tilelang_gemm_wrapper.model_shapes.heads import (
    HeadNumbers,
    Section,
    match_heads,
    numbers_of,
    section_for,
    sections_of,
    split_fused,
)

TEXT = {"hidden_size": 1024, "num_attention_heads": 8}
OTHER = {"hidden_size": 512, "num_attention_heads": 4}


def test_each_model_inside_a_config_is_a_section_and_settings_of_its_layers_are_not():
    config = {
        "text_config": TEXT | {"attention_other_setting": {"num_attention_heads": 12}},
        "x": {"y": OTHER},
    }
    assert [section.path for section in sections_of(config)] == ["text_config", "x.y"]


@pytest.mark.parametrize(
    ("module", "path"),
    [
        ("model.layers.0.self_attn", "text_config"),
        ("visual.blocks.0.attn", "vision_config"),
        ("model.vision_tower.layers.0.attn", "vision_config"),
        ("audio_tower.layers.0.self_attn", ""),
        ("thinker.visual.blocks.0.attn", "vision_config"),
    ],
)
def test_a_module_is_described_by_the_section_of_its_tower(module: str, path: str):
    sections = sections_of({"vision_config": OTHER, "draft_config": OTHER, "text_config": TEXT})
    assert section_for(module, sections).path == path


def test_the_language_models_section_comes_before_the_whole_config():
    sections = sections_of({**OTHER, "language_config": TEXT})
    assert section_for("model.layers.0.self_attn", sections).path == "language_config"


def test_numbers_of_a_layer_come_before_those_of_all_and_those_before_others():
    fields = {
        "swa_num_attention_heads": 16,
        "num_attention_heads": 8,
        "num_attention_heads_per_layer": [4, 2, "all"],
        "num_key_value_heads": 2,
        "global_head_dim": 512,
        "head_dim": 256,
        "v_head_dim": 128,
        "other_setting": {"num_attention_groups": 1},
    }
    numbers = numbers_of(Section("", fields), layer=1)
    assert numbers.query == (2, 8, 16, 4)
    assert numbers.key_value == (2, 1)
    assert (numbers.dimensions, numbers.value_dimensions) == ((256, 512), (128,))
    assert numbers_of(Section("", fields), layer=2).query == (8, 16, 4, 2)  # "all" is no number
    assert numbers_of(Section("", fields), layer=None).query[0] == 8


def test_numbers_of_another_model_inside_are_not_this_ones():
    fields = TEXT | {"vision_config": {"hidden_size": 512, "num_heads": 3}}
    fields |= {"linear_key_head_dim": 64, "mamba_head_dim": 32, "qk_rope_head_dim": 16, "index_head_dim": 8}
    assert numbers_of(Section("", fields), layer=0) == HeadNumbers(query=(8,), dimensions=(128,))


@pytest.mark.parametrize(
    ("numbers", "query_rows", "key_rows", "heads"),
    [
        (HeadNumbers((8,), (4,)), 1024, 512, (8, 4)),
        (HeadNumbers((8,), (4,)), 2048, 512, (8, 4)),  # a gate beside each query head
        (HeadNumbers((8,)), 1024, 1024, (8, 8)),
        (HeadNumbers((8,)), 1024, 256, (8, 2)),  # no field says so, but a head has 128 rows
        (HeadNumbers((32,), (16, 4), dimensions=(256, 512)), 16384, 2048, (32, 4)),
        # 8 and 2 heads of 128, or 4 and 1 of 256: the size of a head decides
        (HeadNumbers((4, 8), (1, 2), dimensions=(128,)), 1024, 256, (8, 2)),
        (HeadNumbers((4, 8), (1, 2), dimensions=(256,)), 1024, 256, (4, 1)),
        (HeadNumbers((5, 6), (5,)), 1024, 256, (5, 5)),  # nothing fits: the config's word, to be refused
        (HeadNumbers((4, 8), (4,), dimensions=(128,)), 1024, None, (8, 4)),
        (HeadNumbers((5, 8), (4,)), 1024, None, (8, 4)),
        (HeadNumbers((8,), (4,)), None, None, (8, 4)),
    ],
)
def test_heads_are_those_that_explain_the_rows(
    numbers: HeadNumbers, query_rows: int | None, key_rows: int | None, heads: tuple[int, int]
):
    assert match_heads(numbers, query_rows, key_rows) == heads


@pytest.mark.parametrize(
    ("numbers", "rows", "parts"),
    [
        (HeadNumbers((8,), (2,), dimensions=(128,)), 1536, (8, 2, 1024, 256, 256)),
        (HeadNumbers((8,), (2,), dimensions=(128,)), 2560, (8, 2, 2048, 256, 256)),  # gated queries
        (HeadNumbers((8,), (2,), dimensions=(128,)), 3072, (8, 8, 1024, 1024, 1024)),
        (HeadNumbers((8,), (2,)), 1536, (8, 2, 1024, 256, 256)),
        (
            HeadNumbers((8,), (2,), dimensions=(192,), value_dimensions=(128,)),
            8 * 192 + 2 * 320,
            (8, 2, 1536, 384, 256),
        ),
        (HeadNumbers((8,), (2,), dimensions=(128,)), 1537, None),
        (HeadNumbers(), 1536, None),
    ],
)
def test_fused_rows_are_taken_apart(numbers: HeadNumbers, rows: int, parts: tuple[int, ...] | None):
    found = split_fused(numbers, rows)
    fields = ("query_heads", "key_value_heads", "query_rows", "key_rows", "value_rows")
    assert (found and tuple(getattr(found, name) for name in fields)) == parts
