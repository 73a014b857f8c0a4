"""What the plugin takes from SGLang's settings, and the file of shapes: `make test-sglang`."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest
import torch

pytest.importorskip("sglang", reason="make test-sglang brings SGLang's releases")

from integrations.linear_calls import K, N
from integrations.sglang_processes import layer, load
from tilelang_gemm_wrapper.integrations import preparation
from tilelang_gemm_wrapper.integrations import sglang as plugin
from tilelang_gemm_wrapper.integrations.sglang_layers import largest_m, why_weights_move

# ---- rows


def prefill_graphs(backend, rows):
    return SimpleNamespace(prefill=SimpleNamespace(backend=backend, max_bs=rows))


@pytest.mark.parametrize(
    ("settings", "m_max"),
    [
        ({"chunked_prefill_size": 4096, "max_running_requests": 64}, 4160),
        ({"chunked_prefill_size": -1, "max_prefill_tokens": 16384, "context_length": 40960}, 40960),
        ({"chunked_prefill_size": 2048, "cuda_graph_max_bs": 32, "speculative_num_draft_tokens": 4}, 2176),
        ({"chunked_prefill_size": None}, 1),
        (
            {
                "chunked_prefill_size": 2048,
                "cuda_graph_config": SimpleNamespace(decode=SimpleNamespace(max_bs=8)),
            },
            2056,
        ),
        ({"chunked_prefill_size": 4096, "enable_dynamic_chunking": True, "pp_size": 2}, 5120),
        (
            {
                "chunked_prefill_size": 4096,
                "enable_dynamic_chunking": True,
                "pp_size": 2,
                "max_prefill_tokens": 16384,
            },
            16384,
        ),
        ({"chunked_prefill_size": 4096, "enable_dynamic_chunking": True, "pp_size": 1}, 4096),
        # graphs of prefill that are larger than a chunk
        ({"chunked_prefill_size": 2048, "piecewise_cuda_graph_max_tokens": 4096}, 4096),
        (
            {
                "chunked_prefill_size": 2048,
                "piecewise_cuda_graph_max_tokens": 4096,
                "disable_piecewise_cuda_graph": True,
            },
            2048,
        ),
        ({"chunked_prefill_size": 2048, "cuda_graph_config": prefill_graphs("breakable", 4096)}, 4096),
        ({"chunked_prefill_size": 2048, "cuda_graph_config": prefill_graphs("disabled", 4096)}, 2048),
        # data-parallel attention: the settings are a rank's, but max_running_requests
        ({"chunked_prefill_size": 1024, "enable_dp_attention": True, "dp_size": 8, "tp_size": 8}, 8192),
        ({"chunked_prefill_size": 1024, "attn_dp_size": 8, "dp_size": 1, "tp_size": 8}, 8192),
        (
            {"chunked_prefill_size": 512, "attn_dp_size": 4, "max_running_requests": 256, "tp_size": 4},
            4 * (512 + 64),
        ),
        ({"chunked_prefill_size": 513, "attn_dp_size": 2, "tp_size": 8}, 2 * 516),
        ({"chunked_prefill_size": 1024, "enable_dp_attention": False, "dp_size": 8, "tp_size": 1}, 1024),
    ],
)
def test_the_largest_m_is_the_engines(settings, m_max):
    assert largest_m(SimpleNamespace(**settings)) == m_max


def test_layers_behind_data_parallel_attention_are_warmed_for_the_rows_of_all_ranks(
    data_parallel_attention, group, hopper, monkeypatch
):
    """SGLang itself divides the chunk by the ranks of attention, whose rows it then gathers."""
    args = data_parallel_attention
    assert plugin._resolved(args).chunked_prefill_size == 1024
    prepared = []
    monkeypatch.setattr(
        preparation, "prepare", lambda shapes, m_max, *_, **__: prepared.append(m_max) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        load(args, layer())
    assert 8192 <= prepared[0] < 8192 + 8 * 512


# ---- static weights


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"cpu_offload_gb": 4}, "cpu_offload_gb=4"),
        ({"cpu_offload_gb": 0.5}, "cpu_offload_gb=0.5"),
        ({"offload_group_size": 2}, "offload_group_size=2"),
        ({"forward_hooks": [{"name": "mine"}]}, "forward_hooks"),
        ({"cpu_offload_gb": 0, "offload_group_size": -1, "forward_hooks": None}, None),
        ({"enable_memory_saver": True, "enable_lora": True, "enable_eplb": True}, None),
    ],
)
@pytest.mark.parametrize("asked", [None, "0", "1"])
def test_static_weights_are_off_where_weights_move(
    scheduler, group, hopper, told, monkeypatch, settings, reason, asked
):
    if asked is None:
        monkeypatch.delenv("TILELANG_GEMM_STATIC_WEIGHTS", raising=False)
    else:
        monkeypatch.setenv("TILELANG_GEMM_STATIC_WEIGHTS", asked)
    before = dict(os.environ)
    given = SimpleNamespace(fp8_gemm_runner_backend="tilelang", chunked_prefill_size=64, **settings)
    monkeypatch.setattr(plugin, "_resolved", lambda args: given)
    load(scheduler, layer())
    assert {job.static_weights for job in hopper.jobs} == {reason is None and asked != "0"}
    assert dict(os.environ) == before
    said = [line for _, line in told() if line.startswith("Static weights are off: ")]
    assert len(said) == (reason is not None) and all(reason in line for line in said)
    assert (why_weights_move(given) is None) == (reason is None)


def test_sglang_has_the_settings_that_move_weights(scheduler):
    settings = plugin._resolved(scheduler)
    for name in ("cpu_offload_gb", "offload_group_size", "forward_hooks"):
        assert hasattr(settings, name)


# ---- weights that SGLang resizes


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"enable_cp_decode_attn_tp": True, "attn_cp_size": 4}, "enable_cp_decode_attn_tp cuts"),
        ({"dcp_replicate_q_proj": True, "dcp_size": 4}, "dcp_replicate_q_proj gathers"),
        ({"enable_cp_decode_attn_tp": True, "attn_cp_size": 1}, None),
        ({"dcp_replicate_q_proj": None, "dcp_size": 4}, None),
    ],
)
def test_calls_with_weights_of_another_size_are_told(
    scheduler, group, hopper, told, monkeypatch, settings, reason
):
    """Such calls go to SGLang's own GEMM: their (N, K) was not prepared."""
    given = SimpleNamespace(fp8_gemm_runner_backend="tilelang", chunked_prefill_size=64, **settings)
    monkeypatch.setattr(plugin, "_resolved", lambda args: given)
    load(scheduler, layer())
    said = [line for _, line in told()[1:]]
    assert len(said) == (reason is not None)
    assert all("SGLang's own GEMM runs the calls whose weights" in line and reason in line for line in said)


# ---- the file of shapes


@pytest.fixture
def shapes_file(monkeypatch):
    """Stands for `model_shapes/shapes_file.py`."""

    @dataclass(frozen=True, slots=True)
    class EngineShapes:
        engine: str
        engine_version: str
        model: str
        tp: int
        layers: dict
        experts: dict = field(default_factory=dict)
        not_covered: tuple = ()

        def write(self, path):
            written[path] = self
            path.write_text(json.dumps(self.model))

    written = {}
    module = ModuleType("tilelang_gemm_wrapper.model_shapes.shapes_file")
    module.EngineShapes = EngineShapes
    monkeypatch.setattr(plugin, "_built", {})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return written


class Experts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name, shape in (("w13_weight", (4, 2 * N, K)), ("w2_weight", (4, K, N))):
            weight = torch.zeros(shape).to(torch.float8_e4m3fn)
            self.register_parameter(name, torch.nn.Parameter(weight, requires_grad=False))


@pytest.mark.parametrize("backend", ["tilelang", "triton"])
def test_the_first_rank_writes_what_its_layers_are(
    model, servers, group, hopper, told, monkeypatch, tmp_path, shapes_file, backend
):
    file = tmp_path / "shapes.json"
    monkeypatch.setenv("TILELANG_GEMM_SHAPES_OUT", str(file))
    args = servers[backend]
    layers = [layer(), layer(), layer(16, K), layer(weight_block_size=[32, 32]), Experts()]
    group.rank_in_group = 1
    load(args, *layers)
    assert not shapes_file
    group.rank_in_group = 0
    load(args, *layers)
    written = shapes_file[file]
    assert (written.engine, written.engine_version) == ("sglang", plugin._version())
    assert (written.model, written.tp) == (str(model), 2)
    assert written.layers == {(N, K): 3, (16, K): 1}, "whatever serves them"
    assert written.experts == {(4, 2 * N, K): 1, (4, K, N): 1}
    said = [line for _, line in told()]
    assert f"Wrote (N, K) of 4 block-FP8 layers to {file}" in said
    assert any(line.startswith("1 of these layers would not run") and "[32, 32]" in line for line in said)
    assert len(written.not_covered) == 1 and written.not_covered[0] in said, "a tuner is told too"
    assert bool(hopper.jobs) == (backend == "tilelang")
    shapes_file.clear()  # another replica of the server has just written the same file, with its draft model
    load(args, layer(32, K), is_draft_worker=True)
    assert shapes_file[file].layers == Counter({(N, K): 3, (16, K): 1, (32, K): 1}), "the draft model's too"
    assert shapes_file[file].not_covered == written.not_covered


def test_a_pipeline_stage_says_that_it_is_one(servers, group, told, monkeypatch, tmp_path, shapes_file):
    monkeypatch.setenv("TILELANG_GEMM_SHAPES_OUT", str(tmp_path / "shapes.json"))
    group.world_size = 4
    load(servers["triton"], layer())
    assert "of 1 block-FP8 layers of the first of 4 pipeline stages to" in told()[0][1]
    [written] = shapes_file.values()
    assert written.not_covered == ("layers of other pipeline stages; these are of the first of 4",)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("/proc/no/shapes.json", "/proc/no/shapes.json was not written: FileNotFoundError"),
        ("~nobody-of-that-name/shapes.json", "TILELANG_GEMM_SHAPES_OUT='~nobody-of-that-name/shapes.json'"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_warning(
    scheduler, group, hopper, told, monkeypatch, shapes_file, file, said
):
    monkeypatch.setenv("TILELANG_GEMM_SHAPES_OUT", file)
    load(scheduler, layer())
    (level, line), (_, account) = told()
    assert level == "WARNING" and said in line
    assert "is active on" in account


def test_fp8_weights_of_another_kind_are_told(servers, group, monkeypatch, tmp_path, shapes_file):
    """Else a tuner that is given the file would say that the model has none."""
    monkeypatch.setenv("TILELANG_GEMM_SHAPES_OUT", str(tmp_path / "shapes.json"))
    other = torch.nn.Linear(K, N, bias=False).requires_grad_(False)  # as with a scale a channel
    other.weight.data = other.weight.data.to(torch.float8_e4m3fn)
    load(servers["triton"], layer(), other, torch.nn.Linear(8, 8))
    [written] = shapes_file.values()
    assert written.layers == {(N, K): 1}
    assert written.not_covered == ("FP8 weights that SGLang multiplies with no block-FP8 linear: 1",)


def test_a_model_that_cannot_be_read_is_one_warning(servers, group, told, monkeypatch, tmp_path, shapes_file):
    monkeypatch.setenv("TILELANG_GEMM_SHAPES_OUT", str(tmp_path / "shapes.json"))
    load(servers["triton"], model=SimpleNamespace())
    [(level, line)] = told()
    assert level == "WARNING" and "shapes.json was not written: AttributeError" in line


def test_without_the_variable_nothing_is_written(scheduler, group, hopper, monkeypatch, shapes_file):
    monkeypatch.delenv("TILELANG_GEMM_SHAPES_OUT", raising=False)
    load(scheduler, layer())
    assert not shapes_file
