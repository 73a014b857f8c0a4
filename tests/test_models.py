"""The shape lists that benchmarks and tuner name."""

from __future__ import annotations

import pytest

from tilelang_gemm_wrapper.models import (
    MODELS,
    PUBLIC_M,
    PUBLIC_SHAPES,
    QWEN3_4B_FP8,
    shape_list_names,
    shapes_of,
)


def test_the_public_grid_is_25_shapes_by_23_m():
    assert len(set(PUBLIC_SHAPES)) == 25
    assert len(set(PUBLIC_M)) == 23
    assert list(PUBLIC_M) == sorted(PUBLIC_M)
    assert {(512, 1024), (2048, 6144), (5120, 17408), (17408, 5120)} <= set(PUBLIC_SHAPES)


def test_qwen3_4b_shapes_follow_from_its_dimensions():
    hidden, heads, kv_heads, head, intermediate = 2560, 32, 8, 128, 9728
    assert set(QWEN3_4B_FP8) == {
        ((heads + 2 * kv_heads) * head, hidden),
        (hidden, heads * head),
        (2 * intermediate, hidden),
        (hidden, intermediate),
    }


@pytest.mark.parametrize("shapes", [PUBLIC_SHAPES, *map(tuple, MODELS.values())])
def test_every_shape_has_a_tilelang_kernel(shapes):
    assert all(N % 16 == 0 and K % 128 == 0 for N, K in shapes)


def test_every_listed_name_has_shapes():
    assert "public" in shape_list_names()
    assert all(shapes_of(name) for name in shape_list_names())


def test_an_unknown_name_says_which_there_are():
    with pytest.raises(ValueError, match=r"no shape list 'qwen9'.*public.*qwen3-4b"):
        shapes_of("qwen9")
