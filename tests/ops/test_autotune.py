"""ops.autotune without a GPU: what it refuses, what it keeps, and which of the timed ones it takes."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES
from tilelang_gemm_wrapper.core.timing import Timing
from tilelang_gemm_wrapper.ops import autotune, measured
from tilelang_gemm_wrapper.ops.gemv import Problem, as_problem

H100 = KNOWN_DEVICES["NVIDIA_H100_80GB_HBM3"]
X, W = torch.ones(1, 2560).bfloat16(), torch.ones(640, 2560).bfloat16()
FOUND = {"lanes": 256, "groups": 1, "rows": 1, "steps": 2}


@pytest.fixture(autouse=True)
def own_tables(monkeypatch, tmp_path):
    monkeypatch.setenv("TILELANG_GEMM_CACHE_DIR", str(tmp_path))
    measured.forget()
    yield
    measured.forget()


def test_the_cpu_is_refused_with_the_reason():
    with pytest.raises(RuntimeError, match="'tilelang' cannot run: the tensors are on the CPU"):
        autotune.tune(X, W)


def test_nothing_is_tuned_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="being captured; tune before"):
        autotune.tune(X, W)


@pytest.mark.parametrize("save", [True, False])
def test_what_is_found_serves_shapes_of_its_class(monkeypatch, save):
    monkeypatch.setattr(Problem, "implementation", lambda self, backend: None)
    monkeypatch.setattr(autotune, "device_of", lambda index: H100)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    monkeypatch.setattr(autotune, "_best_config", lambda problem, arch: FOUND)
    monkeypatch.setattr(autotune, "_race", lambda problem, config, l2: ("tilelang", config))
    entry = autotune.tune(X, W, save=save)
    assert (entry.backend, entry.config, entry.versions) == ("tilelang", FOUND, measured.versions())
    kept = measured.config("gemv", "bfloat16", 1, 650, 2500, H100)
    assert (kept == FOUND) == save


def test_what_is_found_is_given_where_it_cannot_be_kept(monkeypatch, tmp_path, caplog):
    (tmp_path / "tilelang_gemm_ops").write_text("a file where the tables' folder would be")
    monkeypatch.setattr(Problem, "implementation", lambda self, backend: None)
    monkeypatch.setattr(autotune, "device_of", lambda index: H100)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    monkeypatch.setattr(autotune, "_best_config", lambda problem, arch: FOUND)
    monkeypatch.setattr(autotune, "_race", lambda problem, config, l2: ("tilelang", config))
    assert autotune.tune(X, W).config == FOUND
    assert "tilelang for N=640, K=2560 is not kept for later processes: " in caplog.text


@pytest.mark.parametrize(
    ("times", "backend", "is_found"),
    [
        ({"found": 2.0, "default": 3.0, "triton": 4.0, "torch": 5.0}, "tilelang", True),
        ({"found": 3.0, "default": 2.0, "triton": 4.0, "torch": 5.0}, "tilelang", False),
        ({"found": 3.0, "default": 3.5, "triton": 2.0, "torch": 5.0}, "triton", True),
        ({"found": 3.0, "default": 3.5, "triton": 4.0, "torch": 1.0}, "torch", True),
    ],
)
def test_the_race(monkeypatch, times, backend, is_found):
    pytest.importorskip("tilelang")
    from tilelang_gemm_wrapper.ops.gemv.tilelang import default_config

    timed = []

    def time_interleaved(calls, copies):
        timed.append((set(calls), copies))
        return {name: Timing(us, us, us, 5, copies) for name, us in times.items()}

    monkeypatch.setattr(autotune, "time_interleaved", time_interleaved)
    monkeypatch.setattr(Problem, "implementation", lambda self, backend: autotune)
    monkeypatch.setattr(autotune, "launch", None, raising=False)
    best, config = autotune._race(as_problem(X, W), FOUND, 8 << 20)
    assert best == backend
    assert config == (FOUND if is_found else asdict(default_config(1, 2560, False)))
    assert timed == [({"found", "default", "triton", "torch"}, 11)]  # four times L2 by weights of 3.3 MB
