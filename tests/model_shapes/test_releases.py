"""The layers of released models on 1 to 32 ranks: those that SGLang builds, or its refusal."""

from __future__ import annotations

import pytest

from tilelang_gemm_wrapper import models
from tilelang_gemm_wrapper.model_shapes.checkpoint import Checkpoint

from .dense_releases import DENSE
from .hybrid_releases import HYBRID

RELEASES = DENSE | HYBRID
TP = (1, 2, 4, 8, 16, 32)
SERVED = [(name, tp) for name, release in RELEASES.items() for tp in TP[:5] if tp not in release.refused]
REFUSED = [(name, tp) for name, release in RELEASES.items() for tp in release.refused]


def weight_shapes_of(monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint, tp: int, **how: int):
    monkeypatch.setattr(models, "from_shipped", lambda _: checkpoint)
    return models.weight_shapes("qwen3-4b", tp, **how)


@pytest.mark.parametrize(("name", "tp"), SERVED)
def test_a_rank_of_a_released_model_runs_these_shapes(monkeypatch: pytest.MonkeyPatch, name: str, tp: int):
    found = weight_shapes_of(monkeypatch, RELEASES[name].checkpoint, tp)
    assert set(found.shapes) == RELEASES[name].on_rank(tp)


@pytest.mark.parametrize(("name", "tp"), REFUSED)
def test_a_released_model_is_refused_where_the_engine_refuses_it(
    monkeypatch: pytest.MonkeyPatch, name: str, tp: int
):
    words = RELEASES[name].refused[tp]
    with pytest.raises(ValueError, match=f"cannot run at tp {tp}: .*({words})"):
        weight_shapes_of(monkeypatch, RELEASES[name].checkpoint, tp)
