"""integrations/preparation.py: what is said of a rank's shapes, and whether ranks agree."""

from __future__ import annotations

import pytest

from tilelang_gemm_wrapper import entrypoint
from tilelang_gemm_wrapper.core import wrapper
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES
from tilelang_gemm_wrapper.core.dispatch import build_table
from tilelang_gemm_wrapper.integrations import preparation
from tilelang_gemm_wrapper.ops import quant

H100 = KNOWN_DEVICES["NVIDIA_H100_80GB_HBM3"]
TUNED, UNTUNED, ODD = (6144, 2560), (3072, 2560), (100, 2560)


@pytest.fixture
def ready(monkeypatch):
    pytest.importorskip("tilelang")
    done = []
    monkeypatch.setattr(preparation, "device_of", lambda index: H100)
    monkeypatch.setattr(quant, "warmup", lambda *call: done.append(("quantizer", *call)))
    monkeypatch.setattr(entrypoint, "warmup", lambda *call, progress: done.append(call) or 7)
    monkeypatch.setattr(wrapper, "gemm_for", lambda N, K, index: wrapper.Gemm(build_table(N, K, H100), index))
    return preparation.prepare({TUNED: 36, UNTUNED: 2, ODD: 1}, 4160, 0, progress=False), done


def test_shapes_without_a_kernel_are_left_alone_and_named(ready):
    prepared, done = ready
    assert done == [("quantizer", 0, "sglang"), ([UNTUNED, TUNED], 4160, 0)]
    assert set(prepared.fallbacks) == {ODD} and set(prepared.selection) == {TUNED, UNTUNED}
    first, second = prepared.summary().splitlines()
    for text in (
        "39 layers of 3 (N, K)",
        "1 with a tuned file",
        "1 by the default choice",
        "7 kernels were not",
    ):
        assert text in first
    assert second.startswith("N=100, K=2560 (1 layers) stays") and "not a multiple of 16" in second


def test_ranks_that_chose_alike_agree(ready):
    prepared, _ = ready
    fewer = {TUNED: prepared.selection[TUNED]}  # a pipeline stage may lack a shape
    assert preparation.disagreement([prepared.selection, fewer, {}, prepared.selection]) is None


def test_the_first_difference_is_named(ready):
    prepared, _ = ready
    other = {**prepared.selection, TUNED: ((8, "triton", None), *prepared.selection[TUNED][1:])}
    text = preparation.disagreement([prepared.selection, prepared.selection, other])
    assert text.startswith("for N=6144, K=2560 rank 0 chose") and "rank 2 triton up to M=8" in text
    shorter = {TUNED: prepared.selection[TUNED][:-1]}
    assert "rank 1 nothing more" in preparation.disagreement([prepared.selection, shorter])
