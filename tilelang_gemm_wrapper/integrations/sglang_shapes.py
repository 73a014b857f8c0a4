"""The block-FP8 layers that SGLang builds on rank 0 of some ranks, without a GPU and without weights.

`model_shapes.engine.Engine` runs this module and asks {"directory": <of config.json>, "tp": 2}, a line each.
The answer is a line too: the fields of `EngineShapes` that only the engine knows, or {"step": <what it did>,
"why": <its exception>}.

SGLang's own loader builds the model's class on torch's meta device, where weights take no memory. Stand-ins
are needed for the other ranks, for the GPU that is asked for its architecture, and for packages that do not
import without one. Each question is answered in a fork: SGLang keeps its arguments and groups in globals of
modules, and its imports take far longer than a model.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import inspect
import json
import os
import re
import sys
import traceback
import types
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib import import_module, metadata
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from tilelang_gemm_wrapper.core import child_process
from tilelang_gemm_wrapper.model_shapes.blocks import BLOCK

# Operators for GPUs, of which nothing runs here. Off CUDA, rotary embeddings import the one of vLLM.
_OPERATORS = ("sgl_kernel", "vllm", "vllm._custom_ops")
_HOPPER = (9, 0)
_SINGLE_EXPERT = re.compile(r"\bexperts\.\d")  # one of a list of modules, where others have a stacked weight
_LONGEST_REASON = 300  # characters


def main() -> None:
    """Answer the questions of standard input, each in a line, until it ends."""
    answers = child_process.begin()
    failure = None
    try:
        _import_engine()
    except Exception as error:  # whatever a package raises while it is imported
        failure = _failure("was imported", error)
    for line in sys.stdin:
        question = json.loads(line)
        answers.write((failure or _in_a_fork(Path(question["directory"]), question["tp"])) + "\n")


def _import_engine() -> None:
    sys.meta_path.insert(0, _Operators())
    torch.cuda.get_device_capability = lambda device=None: _HOPPER
    import_module("sglang.srt.server_args")
    utils: Any = import_module("sglang.srt.utils")
    utils.get_device = utils.common.get_device = lambda device_id=None: "meta"
    import_module("sglang.srt.model_loader.loader")
    import_module("sglang.srt.models.registry")  # imports the class of every model
    torch.cuda.Stream = torch.cuda.Event = _Nothing  # type: ignore[assignment,misc]


def _in_a_fork(directory: Path, tp: int) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as pipe:
                pipe.write(_answer(directory, tp))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    how = child_process.ending(os.waitstatus_to_exitcode(status))
    return answer or _failure("was asked", f"its process ended with {how}")


def _answer(directory: Path, tp: int) -> str:
    step = ["read config.json"]
    try:
        model, quantization, activations = _build(directory, tp, step)
        account = _account(model)
        account["not_covered"] += _about_scales(quantization)
        if account["layers"]:
            account["not_covered"] += _about_activations(activations)
        return json.dumps({"engine_version": _version(), **account})
    except (Exception, SystemExit) as error:  # the engine's refusal, whatever its kind
        return _failure(step[-1], error)


def _failure(step: str, why: BaseException | str) -> str:
    return json.dumps({"step": step, "why": why if isinstance(why, str) else _in_a_line(why)})


def _in_a_line(error: BaseException) -> str:
    """Its kind and text; the source line that raised it where it has no text, as an assertion's."""
    text = str(error).strip()
    if not text:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{frame.line} ({Path(frame.filename).name}:{frame.lineno})"
    return shorten(f"{type(error).__name__}: {text}", _LONGEST_REASON, placeholder=" ...")


def _version() -> str:
    try:
        return metadata.version("sglang")
    except metadata.PackageNotFoundError:  # a source tree on PYTHONPATH
        return str(import_module("sglang").__version__)


# ---- building


def _build(directory: Path, tp: int, step: list[str]) -> tuple[torch.nn.Module, Any, torch.dtype]:
    """The model of rank 0, its quantization config and activations; appends to `step` what SGLang is at."""
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.model_loader import loader
    from sglang.srt.model_loader.utils import set_default_torch_dtype
    from sglang.srt.server_args import ServerArgs

    arguments = ServerArgs(
        model_path=str(directory),
        tp_size=tp,
        device="cpu",
        load_format="dummy",
        skip_tokenizer_init=True,
        # Those that every model takes; layers are the same with others. SGLang takes this backend on Hopper,
        # and refuses others for models whose first layer has no attention or whose windows slide.
        attention_backend="fa3",
        disable_radix_cache=True,
        # Whether they are fused depends on the server's other arguments; a tuner can leave out no layer.
        disable_shared_experts_fusion=True,
    )
    _publish(arguments)
    model_config = ModelConfig.from_server_args(arguments)
    step.append(f"set up {tp} ranks")
    _stand_in_for_ranks(tp, arguments, model_config)
    step.append("looked for the model's class")
    _import_own_class(model_config.hf_config.architectures or ())
    step.append("read the quantization config")
    load_config = LoadConfig(load_format="dummy")
    quantization = loader._get_quantization_config(model_config, load_config)
    step.append("built the model")
    with set_default_torch_dtype(model_config.dtype), torch.device("meta"), _MetaForCuda():
        model = loader._initialize_model(model_config, load_config, quantization)
    return model, quantization, model_config.dtype


def _publish(arguments: Any) -> None:
    """Make them this process's arguments, as a scheduler does first.

    From here on the device is CUDA: on a CPU models take other classes for what has no weights, and some of
    these refuse what a GPU serves. SGLang must not look for that device while it resolves its arguments.
    """
    getattr(arguments, "resolve_once", lambda: None)()  # from 0.5.20 on
    try:
        from sglang.srt import runtime_context
        from sglang.srt.runtime_context import publish
    except ImportError:
        arguments.device = "cuda"
        import_module("sglang.srt.server_args").set_global_server_args_for_scheduler(arguments)
        return
    ranks = getattr(runtime_context, "SpawnRanks", None)
    settings = {"ranks": ranks(world_rank=0)} if ranks else {}
    publish(arguments, role="scheduler", **settings).override(__name__, device="cuda")


def _stand_in_for_ranks(tp: int, arguments: Any, model_config: Any) -> None:
    """Let SGLang make its own groups, as rank 0 of `tp` ranks of which the others do not exist."""
    from sglang.srt.distributed import parallel_state
    from sglang.srt.layers import dp_attention
    from torch.testing._internal.distributed.fake_pg import FakeStore

    class Alone(parallel_state.GroupCoordinator):
        def __init__(self, **settings: Any) -> None:
            no_communicator = {name: False for name in settings if name.startswith("use_")}
            super().__init__(**(settings | no_communicator))

    new_group = torch.distributed.new_group
    torch.distributed.new_group = lambda ranks, **others: new_group(ranks, backend="fake")
    parallel_state.GroupCoordinator = Alone
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=tp)
    parallel_state.init_distributed_environment(world_size=tp, rank=0, local_rank=0, backend="fake")
    _call(parallel_state.initialize_model_parallel, tensor_model_parallel_size=tp)
    _call(dp_attention.initialize_dp_attention, server_args=arguments, model_config=model_config)


def _call(function: Any, **offered: Any) -> None:
    """Call it with those of the arguments that it takes in this release."""
    taken = inspect.signature(function).parameters
    function(**{name: value for name, value in offered.items() if name in taken})


def _import_own_class(architectures: Iterable[str]) -> None:
    """Raise what keeps SGLang from importing its own class of the model, if it has one.

    Its registry passes over a module that does not import. SGLang would then take the class of transformers,
    whose layers are others, or say that it does not support the model.
    """
    from sglang.srt import models
    from sglang.srt.models.registry import ModelRegistry

    for architecture in architectures:
        if architecture in ModelRegistry.get_supported_archs():
            continue
        for file in Path(models.__path__[0]).glob("*.py"):
            if f"\nclass {architecture}(" in file.read_text(encoding="utf-8"):
                import_module(f"{models.__name__}.{file.stem}")


class _Operators(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds stand-ins for `_OPERATORS`, before the packages, which may be installed."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name in _OPERATORS or name.startswith("sgl_kernel."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _AnyModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to run."""


class _MetaForCuda(TorchFunctionMode):
    """Tensors that are made on a GPU by name go to the meta device.

    The numbers of a linspace stay real: vision towers read a rate for each layer back from them.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device")).startswith("cuda"):
            kwargs["device"] = "meta"
        elif function is torch.linspace:
            kwargs.setdefault("device", "cpu")
        return function(*args, **kwargs)


class _Nothing:
    """A stream or an event."""

    def __init__(self, *args: Any, **settings: Any) -> None: ...


class _AnyClass(type):
    def __getattr__(cls, name: str) -> str:
        return _not_special(name)


class _AnyModule(types.ModuleType):
    def __getattr__(self, name: str) -> type:
        return _AnyClass(_not_special(name), (), {})


def _not_special(name: str) -> str:
    """Python asks for special names to learn what an object can do."""
    if name.startswith("__"):
        raise AttributeError(name)
    return name


# ---- what was built


def _account(model: torch.nn.Module) -> dict[str, Any]:
    """The fields of `EngineShapes` that the model tells, shapes and counts as lists."""
    layers: Counter[tuple[int, ...]] = Counter()
    experts: Counter[tuple[int, ...]] = Counter()
    others: list[str] = []
    single_experts = shared_experts = 0
    for module, name, weight, scale in _fp8_weights(model):
        shape = tuple(weight.shape)
        if not _has_our_blocks(shape, scale) or (len(shape) == 2 and name != "weight"):
            scales = "no scales" if scale is None else f"{scale.dtype} scales {tuple(scale.shape)}"
            others.append(f"{module}.{name} {shape} with {scales}")
        elif len(shape) == 2:
            layers[shape] += 1
            single_experts += bool(_SINGLE_EXPERT.search(module))
            shared_experts += "shared_expert" in module
        else:
            experts[shape] += 1
    return {
        "layers": [[*shape, count] for shape, count in layers.items()],
        "experts": [[*shape, count] for shape, count in experts.items()],
        "not_covered": [
            *_about_others(others),
            *_unless_fused("layers of single experts", single_experts),
            *_unless_fused("layers of shared experts", shared_experts if experts else 0),
        ],
    }


def _fp8_weights(model: torch.nn.Module) -> Iterator[tuple[str, str, torch.Tensor, torch.Tensor | None]]:
    """(module, name in it, weight, its scales if there are any) of each e4m3 parameter."""
    for module_name, module in model.named_modules():
        parameters = dict(module.named_parameters(recurse=False))
        for name, weight in parameters.items():
            if weight.dtype is torch.float8_e4m3fn:
                scale = parameters.get(f"{name}_scale_inv", parameters.get(f"{name}_scale"))
                yield module_name, name, weight, scale


def _has_our_blocks(shape: tuple[int, ...], scale: torch.Tensor | None) -> bool:
    """Whether an (N, K) or (E, N, K) weight has a float32 scale for each 128 x 128 block."""
    blocks = (*shape[:-2], *(-(-size // BLOCK) for size in shape[-2:]))
    return scale is not None and scale.dtype is torch.float32 and tuple(scale.shape) == blocks


def _about_others(others: list[str]) -> Iterator[str]:
    if others:
        yield (
            f"FP8 weights that are no linear layer's with a float32 scale for each {BLOCK} x {BLOCK} block: "
            f"{len(others)}, such as {others[0]}"
        )


def _unless_fused(what: str, count: int) -> Iterator[str]:
    """The server's arguments, the GPU and the model's code decide it, and none of these is known here."""
    if count:
        yield f"{count} {what}, where the server runs them in its grouped GEMM; listed as if it did not"


def _about_scales(quantization: Any) -> Iterator[str]:
    if getattr(quantization, "scale_fmt", None) == "ue8m0":  # releases that do not heed it have no such field
        yield "calls of these layers, which SGLang keeps for its own kernels because scale_fmt is ue8m0"


def _about_activations(dtype: torch.dtype) -> Iterator[str]:
    if dtype is not torch.bfloat16:  # SGLang's choice where config.json says float32, or nothing, is float16
        yield (
            f"calls of these layers, which SGLang keeps for its own kernels because it takes {dtype} "
            "activations of this model; serve it with --dtype bfloat16"
        )


if __name__ == "__main__":
    main()
