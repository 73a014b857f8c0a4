"""SGLang's own objects as its processes make them, on a machine without a GPU."""

from __future__ import annotations

import inspect
import json
import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from integrations.linear_calls import K, N
from tilelang_gemm_wrapper import per_block_quant_fp8
from tilelang_gemm_wrapper.integrations import sglang as plugin

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 128,
    "hidden_size": 256,
    "intermediate_size": 512,
    "max_position_embeddings": 4096,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
}


def write_model(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def server_args(model: Path, **settings: Any) -> Any:
    """Resolved, as a launcher hands them to its children."""
    from sglang.srt.server_args import ServerArgs

    given = {"device": "cpu", "skip_tokenizer_init": True, "load_format": "dummy"} | settings
    args = ServerArgs(model_path=str(model), **given)
    getattr(args, "resolve_once", lambda: None)()  # from 0.5.20 on, launchers call it
    return args


def begin_scheduler(args: Any) -> None:
    """The beginning of `run_scheduler_process`: plugins, then the process-wide settings."""
    from sglang.srt.managers import scheduler  # noqa: F401  (the function lies in it)
    from sglang.srt.plugins import load_plugins

    load_plugins()
    publish(args)


def publish(args: Any) -> None:
    try:
        from sglang.srt.runtime_context import publish
    except ImportError:
        from sglang.srt.server_args import set_global_server_args_for_scheduler

        set_global_server_args_for_scheduler(args)
    else:
        publish(args, role="scheduler")


def initialize(args: Any) -> None:
    """As Scheduler.__init__ calls it: from 0.5.19 on without arguments."""
    from sglang.srt.layers.quantization import fp8_utils

    function = fp8_utils.initialize_fp8_gemm_config
    function(*([args] if inspect.signature(function).parameters else []))


def layer(
    n: int = N, k: int = K, dtype: torch.dtype = torch.bfloat16, bias: bool = False, **checkpoint: Any
) -> Any:
    """A linear layer made and loaded as SGLang does, of an FP8 checkpoint whose quantization_config has
    `checkpoint` too. The function that SGLang gave it is kept as `made_with`."""
    from sglang.srt.layers.linear import ReplicatedLinear
    from sglang.srt.layers.quantization.fp8 import Fp8Config

    config = Fp8Config.from_config({**CONFIG["quantization_config"], **checkpoint})
    made = ReplicatedLinear(k, n, bias=bias, quant_config=config, params_dtype=dtype)
    made.made_with = made.quant_method.w8a8_block_fp8_linear
    if checkpoint.get("weight_block_size", [128, 128]) == [128, 128]:
        weight, scale = per_block_quant_fp8(torch.randn(n, k))
        made.weight.data.copy_(weight)
        made.weight_scale_inv.data.copy_(scale)
    else:
        made.weight_scale_inv.data.fill_(1.0)
    if bias:
        made.bias.data.normal_()
    made.quant_method.process_weights_after_loading(made)
    return made


def load(args: Any, *layers: torch.nn.Module, **runner: Any) -> None:
    """What SGLang's hook runs after a model of these layers was loaded on this rank."""
    model = torch.nn.ModuleList(layers)
    given = {"server_args": args, "gpu_id": 0, "model": model, "dtype": torch.bfloat16, **runner}
    plugin._load_model(None, SimpleNamespace(**given))


def in_scheduler(function: Any, args: Any) -> Any:
    """What `function(args)` returns in a process started as a server starts its schedulers."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(function, args, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def _child(function: Any, args: Any, sender: Any) -> None:
    try:
        sender.send(function(args))
    except Exception as error:
        sender.send(error)


# ---- what is run there


def without_load_model(args: Any) -> None:
    """SGLang has renamed a function that we hook."""
    from sglang.srt.model_executor.model_runner import ModelRunner

    del ModelRunner.load_model
    begin_scheduler(args)
    initialize(args)


def hook_fails_to_apply(args: Any) -> None:
    """SGLang only logs a hook that it could not apply."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    original = HookRegistry._apply_target.__func__

    def refuse(cls: Any, target: str, hooks: Any) -> None:
        if target.endswith("load_model"):
            raise RuntimeError("not today")
        original(cls, target, hooks)

    HookRegistry._apply_target = classmethod(refuse)
    begin_scheduler(args)
    initialize(args)
