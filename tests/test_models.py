"""The shape lists that benchmarks and tuner name."""

from __future__ import annotations

import pytest
from fresh_python import printed_by

from tilelang_gemm_wrapper.models import (
    PUBLIC_M,
    PUBLIC_SHAPES,
    QWEN3_4B_FP8,
    shape_list_names,
    shapes_of,
    weight_shapes,
)

# hidden, query heads, intermediate; all have 8 key-value heads of 128
QWEN3_DENSE = {
    "qwen3-0.6b": (1024, 16, 3072),
    "qwen3-1.7b": (2048, 16, 6144),
    "qwen3-4b": (2560, 32, 9728),
    "qwen3-8b": (4096, 32, 12288),
    "qwen3-14b": (5120, 40, 17408),
    "qwen3-32b": (5120, 64, 25600),
}


def test_the_public_grid_is_25_shapes_by_23_m():
    assert len(set(PUBLIC_SHAPES)) == 25
    assert len(set(PUBLIC_M)) == 23
    assert list(PUBLIC_M) == sorted(PUBLIC_M)
    assert {(512, 1024), (2048, 6144), (5120, 17408), (17408, 5120)} <= set(PUBLIC_SHAPES)


def test_qwen3_4b_is_its_four_layers_in_running_order():
    assert tuple(QWEN3_4B_FP8.items()) == (
        ((6144, 2560), "qkv_proj"),
        ((2560, 4096), "o_proj"),
        ((19456, 2560), "gate_up_proj"),
        ((2560, 9728), "down_proj"),
    )
    assert shapes_of("qwen3-4b") == tuple(QWEN3_4B_FP8)


@pytest.mark.parametrize("name", QWEN3_DENSE)
def test_dense_qwen3_shapes_follow_from_the_dimensions(name: str):
    hidden, heads, intermediate = QWEN3_DENSE[name]
    assert shapes_of(name) == (
        ((heads + 2 * 8) * 128, hidden),
        (hidden, heads * 128),
        (2 * intermediate, hidden),
        (hidden, intermediate),
    )
    assert set(shapes_of(name)) <= set(shapes_of("qwen3-dense"))


def test_the_dense_qwen3_list_has_each_shape_once():
    union = {shape for name in QWEN3_DENSE for shape in shapes_of(name)}
    assert sorted(shapes_of("qwen3-dense")) == sorted(union)


@pytest.mark.parametrize("model", ["V3", "V3-0324", "R1", "R1-0528"])
def test_deepseek_v3_and_its_successors(model: str):
    found = weight_shapes(f"deepseek-ai/DeepSeek-{model}", offline=True)
    assert found.layers == {
        (2112, 7168): ("fused_qkv_a_proj_with_mqa",),
        (24576, 1536): ("q_b_proj",),
        (32768, 512): ("kv_b_proj",),
        (7168, 16384): ("o_proj",),
        (36864, 7168): ("gate_up_proj",),
        (7168, 18432): ("down_proj",),
        (4096, 7168): ("shared_experts.gate_up_proj",),
        (7168, 2048): ("shared_experts.down_proj",),
    }
    assert "256 in each of 59 layers" in found.not_covered[0]  # 58 and the one of multi-token prediction


def test_deepseek_v3_on_eight_ranks():
    assert weight_shapes("deepseek-v3", 8).shapes == (
        (2112, 7168),
        (3072, 1536),
        (4096, 512),
        (7168, 2048),
        (4608, 7168),
        (7168, 2304),
        (512, 7168),
        (7168, 256),
    )


def test_sparse_qwen3_models_have_their_attention_alone():
    assert shapes_of("qwen3-30b-a3b") == ((5120, 2048), (2048, 4096))
    assert shapes_of("qwen3-235b-a22b") == ((9216, 4096), (4096, 8192))
    (experts,) = weight_shapes("qwen3-235b-a22b").not_covered
    assert "128 in each of 94 layers" in experts
    assert "gate_up_proj (3072, 4096), down_proj (4096, 1536)" in experts


def test_llama_on_one_rank_and_on_more_than_it_has_key_value_heads():
    assert shapes_of("llama-3.1-8b") == ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
    assert weight_shapes("llama-3.1-8b", 16).shapes == ((512, 4096), (4096, 256), (1792, 4096), (4096, 896))


@pytest.mark.parametrize("name", shape_list_names())
def test_every_shape_has_a_tilelang_kernel(name: str):
    assert all(N % 16 == 0 and K % 128 == 0 for N, K in shapes_of(name))


def test_every_listed_name_has_shapes():
    assert {"public", "qwen3-dense", *QWEN3_DENSE} <= set(shape_list_names())
    assert all(shapes_of(name) for name in shape_list_names())


def test_an_unknown_name_says_which_there_are():
    with pytest.raises(ValueError, match=r"no shape list 'qwen9'.*public.*qwen3-4b"):
        shapes_of("qwen9")


def test_shape_lists_load_no_heavy_package():
    code = (
        "import sys, tilelang_gemm_wrapper.models as models; models.shapes_of('qwen3-4b')\n"
        "print({'torch', 'numpy', 'safetensors', 'huggingface_hub', 'transformers'} & set(sys.modules))"
    )
    assert printed_by(code).strip() == "set()"
