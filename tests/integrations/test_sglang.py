"""integrations/sglang.py in the real SGLang: `make test-sglang` runs this file once for each release."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("sglang", reason="make test-sglang brings SGLang's releases")

from integrations import sglang_processes as processes
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES
from tilelang_gemm_wrapper.integrations import sglang as plugin

# ---- launchers


def launch(model, backend, **environment):
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(model), "--device", "cpu"]
    command += ["--skip-tokenizer-init", "--load-format", "dummy", "--fp8-gemm-backend", backend]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=300
    )


def test_a_server_without_a_gpu_stops_with_one_message(model):
    done = launch(model, "tilelang")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "--fp8-gemm-backend tilelang cannot run: SGLang is to run on cpu" in last
    assert "Start with another --fp8-gemm-backend" in last and "sglang-check" in last


def test_a_server_that_is_told_to_load_no_plugin_knows_no_such_backend(model):
    done = launch(model, "tilelang", SGLANG_PLUGINS="another")
    assert done.returncode == 2
    assert "invalid choice: 'tilelang'" in done.stderr


def test_sglang_check():
    done = subprocess.run(
        [sys.executable, "-m", "tilelang_gemm_wrapper", "sglang-check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    rows = {
        line.rsplit("  ", 1)[0].strip(): line.rsplit("  ", 1)[1].strip()
        for line in done.stdout.splitlines()[1:-1]
    }
    assert rows.pop("the GPU") == "torch finds no CUDA GPU"
    assert set(rows) >= {hook.target for hook in plugin.HOOKS}
    assert set(rows.values()) == {"fits"}
    assert done.stdout.splitlines()[-1] == "--fp8-gemm-backend tilelang will not run here"


def test_an_sglang_without_plugins_is_told(scheduler, monkeypatch):
    """All the functions that we hook were there before plugins were."""
    find_spec = plugin.util.find_spec
    monkeypatch.setattr(
        plugin.util, "find_spec", lambda name: None if name == "sglang.srt.plugins" else find_spec(name)
    )
    account, runs = plugin.check()
    assert not runs and "loads no plugins: take 0.5.11 or newer" in account


def launched(monkeypatch, **settings):
    """What the hook on the launcher's check says of a server with these settings."""
    given = SimpleNamespace(fp8_gemm_runner_backend="tilelang", device="cuda", **settings)
    monkeypatch.setattr(plugin, "_resolved", lambda args: given)
    with pytest.raises(RuntimeError) as stopped:
        plugin._check_server_args(None)
    return str(stopped.value)


@pytest.fixture
def gpus(monkeypatch):
    """GPU 0 is too old, GPU 1 is not; there is no other."""
    h100 = KNOWN_DEVICES["NVIDIA_H100_80GB_HBM3"]
    devices = [replace(h100, name="NVIDIA_A100-SXM4-80GB", arch="sm_80"), h100]

    def device_of(index):
        if index >= len(devices):
            raise RuntimeError(f"there is no CUDA device {index}")
        return devices[index]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(plugin, "device_of", device_of)


def test_the_launcher_asks_the_gpu_that_the_server_begins_at(scheduler, gpus, monkeypatch):
    assert "A100-SXM4-80GB is sm_80" in launched(monkeypatch)
    assert "there is no CUDA device 2" in launched(monkeypatch, base_gpu_id=2)
    given = SimpleNamespace(fp8_gemm_runner_backend="tilelang", device="cuda", base_gpu_id=1)
    monkeypatch.setattr(plugin, "_resolved", lambda args: given)
    plugin._check_server_args(None)


def test_actors_of_ray_have_no_plugins(scheduler, gpus, monkeypatch):
    assert "cannot run: SGLang loads no plugins in the actors of --use-ray." in launched(
        monkeypatch, base_gpu_id=1, use_ray=True
    )


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TILELANG_GEMM_STATIC_WEIGHTS", "maybe"),
        ("TILELANG_GEMM_COMPILE_WORKERS", "many"),
        ("TILELANG_GEMM_FALLBACK", "cutlass"),
        ("SGLANG_ENABLE_TILELANG_GEMM", "sure"),
        ("SGLANG_TILELANG_GEMM_CONFIG_DIR", "~nobody-of-that-name/configs"),
    ],
)
def test_a_variable_that_cannot_be_meant_stops_before_weights_are_loaded(
    scheduler, gpus, monkeypatch, variable, value
):
    monkeypatch.setenv(variable, value)
    for stopped in (launched(monkeypatch, base_gpu_id=1), initialized(scheduler)):
        assert f"cannot run: {variable}='{value}': expected " in stopped
    account, runs = plugin.check()
    assert not runs and f"{variable}='{value}': expected " in account


def initialized(args):
    with pytest.raises(RuntimeError) as stopped:
        processes.initialize(args)
    return str(stopped.value)


# ---- schedulers


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (processes.without_load_model, "ModelRunner.load_model cannot be hooked in SGLang"),
        (processes.hook_fails_to_apply, "did not apply the hook on sglang.srt.model_executor"),
    ],
)
def test_a_changed_sglang_stops(model, change, reason):
    args = processes.server_args(model, fp8_gemm_runner_backend="tilelang")
    error = processes.in_scheduler(change, args)
    assert isinstance(error, RuntimeError)
    assert str(error).startswith("--fp8-gemm-backend tilelang cannot run: ") and reason in str(error)


def test_a_changed_sglang_serves_with_another_backend(model):
    other = processes.server_args(model, fp8_gemm_runner_backend="triton")
    assert processes.in_scheduler(processes.without_load_model, other) is None


def test_an_sglang_that_keeps_its_settings_elsewhere_serves_with_another_backend(
    scheduler, monkeypatch, caplog
):
    """The hooks run in every server, with or without this backend."""
    monkeypatch.setattr(plugin, "_published", lambda: None)
    elsewhere, called = SimpleNamespace(), []
    plugin._check_server_args(elsewhere)
    assert plugin._initialize_fp8_gemm_config(lambda *args: called.append(args), elsewhere) is None
    assert plugin._initialize_fp8_gemm_config(lambda *args: called.append(args)) is None
    assert called == [(elsewhere,), ()]
    plugin._load_model(None, SimpleNamespace())
    assert not caplog.records


def test_linears_of_other_parameters_stop(scheduler, monkeypatch):
    from sglang.srt.layers.quantization import fp8_utils

    assert plugin._why_linear_unfit() is None
    monkeypatch.setattr(
        fp8_utils, "triton_w8a8_block_fp8_linear", lambda x, w, block_size, weight_scale, bias: x
    )
    with pytest.raises(RuntimeError, match=r"cannot run: FP8 linear functions of SGLang .* take no input, "):
        processes.initialize(scheduler)


def test_methods_that_call_another_function_stop(scheduler, monkeypatch):
    from sglang.srt.layers.quantization.fp8 import Fp8LinearMethod

    monkeypatch.setattr(Fp8LinearMethod, "apply", lambda self, layer, x, bias=None: x)
    with pytest.raises(RuntimeError, match=r"Fp8LinearMethod.apply of SGLang .* does not call w8a8_block"):
        processes.initialize(scheduler)


def test_without_the_launchers_hook_the_backend_is_not_offered(monkeypatch, caplog):
    monkeypatch.setattr(
        plugin, "HOOKS", (plugin.Hook("sglang.srt.server_args.gone", "BEFORE", print, False),)
    )
    offered = []
    monkeypatch.setattr("sglang.srt.server_args.add_fp8_gemm_runner_backend_choices", offered.append)
    plugin.register()
    assert not offered
    assert "is not offered: sglang.srt.server_args.gone cannot be hooked" in caplog.text


def test_hooks_are_applied_where_sglang_imported_the_functions(scheduler):
    from sglang.srt.layers.quantization import fp8_utils
    from sglang.srt.managers import scheduler as scheduler_module
    from sglang.srt.model_executor.model_runner import ModelRunner

    assert scheduler_module.initialize_fp8_gemm_config is fp8_utils.initialize_fp8_gemm_config
    assert ModelRunner.load_model.__wrapped__


def test_activation_leaves_sglang_at_auto_and_the_environment_alone(scheduler):
    from sglang.srt.layers.quantization import fp8_utils

    assert fp8_utils.get_fp8_gemm_runner_backend() is fp8_utils.Fp8GemmRunnerBackend.AUTO
    assert "TILELANG_GEMM_STATIC_WEIGHTS" not in os.environ
