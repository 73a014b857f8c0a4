"""SGLang's own objects as its processes make them, on a machine without a GPU."""

from __future__ import annotations

import inspect
import json
import multiprocessing
from pathlib import Path
from typing import Any

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


def fp8_method() -> Any:
    from sglang.srt.layers.quantization.fp8 import Fp8Config, Fp8LinearMethod

    config = Fp8Config(
        is_checkpoint_fp8_serialized=True, activation_scheme="dynamic", weight_block_size=[128, 128]
    )
    return Fp8LinearMethod(config)


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


def chosen_linear(args: Any) -> tuple[str, str]:
    """The class or name of the linear that a layer gets, and of SGLang's own inside it."""
    begin_scheduler(args)
    initialize(args)
    linear = fp8_method().w8a8_block_fp8_linear
    inner = getattr(linear, "engine_linear", linear)
    return getattr(linear, "__name__", type(linear).__name__), inner.__name__


def without_dispatch(args: Any) -> None:
    """SGLang has renamed a function that we hook."""
    from sglang.srt.layers.quantization import fp8_utils

    del fp8_utils.dispatch_w8a8_block_fp8_linear
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


def linear_takes_other_names(args: Any) -> None:
    from sglang.srt.layers.quantization import fp8_utils

    fp8_utils.triton_w8a8_block_fp8_linear = lambda x, w, block_size, weight_scale, input_scale, bias: x
    begin_scheduler(args)
    initialize(args)
