"""SGLang: `--fp8-gemm-backend tilelang`. With `sglang_layers.py` the only file that knows that engine.

SGLang calls `register` in each of its processes, through the entry-point group `sglang.srt.plugins`. Hooks on
three of its functions do the rest; nothing of SGLang is edited:

    ServerArgs.check_server_args      in the launcher: stop here if the backend cannot run
    initialize_fp8_gemm_config        in a scheduler: verify the hooks, leave SGLang at its own choice of GEMM
    ModelRunner.load_model            on every rank, before CUDA graphs: compile, compare ranks, take over the
                                      layers whose calls are ours, report

Until the model is loaded SGLang has its own linear functions everywhere, so that what it decides by them
(formats of scales, BF16 copies) comes out as without this backend. SGLang only logs a plugin or hook that
fails and goes on. So the second hook verifies that the others are in place: else it raises, and the server
stops.
"""

from __future__ import annotations

import inspect
import logging
import os
import pkgutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any

import torch

from tilelang_gemm_wrapper import configurer
from tilelang_gemm_wrapper.core.device import device_of
from tilelang_gemm_wrapper.core.failure_text import first_line
from tilelang_gemm_wrapper.integrations import preparation, sglang_layers
from tilelang_gemm_wrapper.integrations.block_fp8_linear import Shape
from tilelang_gemm_wrapper.integrations.sglang_layers import LINEAR, Layer

logger = logging.getLogger(__name__)

BACKEND = "tilelang"  # of --fp8-gemm-backend
PLUGIN = "tilelang_gemm"  # the entry point's name, for SGLANG_PLUGINS
PLUGIN_GROUP = "sglang.srt.plugins"
TESTED_VERSIONS = ("0.5.11", "0.5.23")  # first with plugins, newest

_QUANTIZATION = "sglang.srt.layers.quantization"
_FP8_UTILS = f"{_QUANTIZATION}.fp8_utils"
_LINEAR_PARAMETERS = ("input", "weight", "block_size", "weight_scale", "input_scale", "bias")
_HOLDERS = (  # what computes a layer, by the linear function that it keeps
    f"{_QUANTIZATION}.fp8.Fp8LinearMethod.apply",
    f"{_QUANTIZATION}.compressed_tensors.schemes.compressed_tensors_w8a8_fp8."
    "CompressedTensorsW8A8Fp8.apply_weights",
)


# ---- hooks


@dataclass(frozen=True, slots=True)
class Hook:
    """A function of SGLang and what we put around it."""

    target: str
    kind: str  # a name of SGLang's HookType
    function: Callable[..., Any]
    deep: bool  # lies in modules that only a process with a scheduler imports anyway


def register() -> None:
    """The plugin: offer the backend on the command line and register the hooks. Called by SGLang."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    problems = [problem for hook in HOOKS if not hook.deep and (problem := _why_not_hookable(hook))]
    if problems:
        logger.error(
            "--fp8-gemm-backend %s is not offered: %s. Use an SGLang from %s to %s, or a newer "
            "tilelang-gemm-wrapper",
            BACKEND,
            "; ".join(problems),
            *TESTED_VERSIONS,
        )
        return
    from sglang.srt.server_args import add_fp8_gemm_runner_backend_choices

    add_fp8_gemm_runner_backend_choices([BACKEND])
    # Launchers parse arguments and end; to import a scheduler's modules there takes seconds for nothing.
    has_scheduler = "sglang.srt.managers.scheduler" in sys.modules
    for hook in HOOKS:
        if has_scheduler or not hook.deep:
            HookRegistry.register(hook.target, hook.function, HookType[hook.kind])


def _check_server_args(server_args: Any, *args: Any, **kwargs: Any) -> None:
    """In the launcher, before any process is started: say what is wrong while one message is all there is."""
    settings = _resolved(server_args)
    if settings.fp8_gemm_runner_backend == BACKEND:
        device = getattr(settings, "device", None)
        _stop_if(
            f"SGLang is to run on {device}" if device not in (None, "cuda") else why_device_unfit(0),
            *map(_why_not_hookable, HOOKS),
            _why_linear_unfit(),
        )


def _initialize_fp8_gemm_config(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """SGLang's enum of backends refuses ours: leave it at "auto", whose choice we take over from later."""
    server_args = args[0] if args else kwargs.get("server_args")
    if server_args is None:  # from 0.5.19 on
        server_args = import_module("sglang.srt.runtime_context").get_server_args()
    if _resolved(server_args).fp8_gemm_runner_backend != BACKEND:
        return original(*args, **kwargs)
    _stop_if(*map(_why_not_hooked, HOOKS), _why_linear_unfit())
    fp8_utils: Any = import_module(_FP8_UTILS)
    fp8_utils.FP8_GEMM_RUNNER_BACKEND = fp8_utils.Fp8GemmRunnerBackend.AUTO


def _load_model(result: Any, runner: Any, *args: Any, **kwargs: Any) -> None:
    """After the weights are there, on every rank: get ready for its layers, and take them over."""
    settings = _resolved(runner.server_args)
    serves, file = settings.fp8_gemm_runner_backend == BACKEND, _shapes_out()
    if not serves and file is None:
        return
    layers = list(
        sglang_layers.block_fp8_layers(runner.model, getattr(runner, "dtype", None) or torch.bfloat16)
    )
    if file is not None:
        _write_shapes(file, layers, settings, runner)
    if serves:
        _stop_if(why_device_unfit(runner.gpu_id))
        _serve(layers, settings, runner)


def _serve(layers: Sequence[Layer], settings: Any, runner: Any) -> None:
    from sglang.srt.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    speaks = group.rank_in_group == 0
    if not speaks:  # what one rank says holds for all; errors are errors on any
        logging.getLogger("tilelang_gemm_wrapper").setLevel(logging.ERROR)
    never, moving = sglang_layers.why_never(settings), sglang_layers.why_weights_move(settings)
    reasons = [never or layer.why_not() for layer in layers]
    ready = preparation.prepare(
        {layer.shape for layer, why in zip(layers, reasons, strict=True) if why is None},
        sglang_layers.largest_m(settings),
        runner.gpu_id,
        progress=speaks,
        static_weights=moving is None and configurer.static_weights(default=True),
    )
    torch.cuda.empty_cache()  # SGLang sizes its KV cache by what is free now
    if group.world_size > 1:
        ready = _agreed(ready, group)
    reasons = [why or ready.refused.get(layer.shape) for layer, why in zip(layers, reasons, strict=True)]
    served, logged = frozenset(ready.selection), set[str]()
    for layer, why in zip(layers, reasons, strict=True):
        if why is None:
            layer.serve(served, logged)
    if speaks:
        counted = [(layer.shape, why) for layer, why in zip(layers, reasons, strict=True)]
        _report(ready, counted, moving, type(runner.model).__name__, group.world_size)


def _report(
    ready: preparation.Preparation,
    layers: Sequence[tuple[Shape, str | None]],
    moving: str | None,
    model: str,
    ranks: int,
) -> None:
    """layers: as of `preparation.account`. moving: why static weights are off, if SGLang moves weights."""
    if not layers:
        logger.warning("The tilelang backend has nothing to do: %s has no block-quantized FP8 layer", model)
        return
    active = any(why is None for _, why in layers)
    for line in preparation.account(ready, layers, "SGLang", model):
        logger.log(logging.INFO if active else logging.WARNING, "%s", line)
    if active and moving:
        logger.info("Static weights are off: %s", moving)
    if active and ranks > 1:
        logger.info("All %d tensor-parallel ranks chose the same kernels", ranks)


def _agreed(ready: preparation.Preparation, group: Any) -> preparation.Preparation:
    """On every rank of the group, also where it has nothing to prepare: the others wait for it."""
    ranks: list[Any] = [None] * group.world_size
    torch.distributed.all_gather_object(ranks, ready, group=group.cpu_group)
    try:
        return preparation.agreed(ready, ranks)
    except RuntimeError as difference:
        _stop_if(str(difference))
        raise


def _shapes_out() -> Path | None:
    try:
        return configurer.shapes_out()
    except ValueError as problem:  # no reason to serve nothing
        logger.warning("no shapes are written: %s", problem)
        return None


def _write_shapes(file: Path, layers: Sequence[Layer], settings: Any, runner: Any) -> None:
    """The file that a tuner reads, from the first rank alone. What fails is said, and stops nothing."""
    try:
        from sglang.srt.distributed.parallel_state import get_pp_group, get_tp_group

        if get_tp_group().rank_in_group or get_pp_group().rank_in_group:
            return
        from tilelang_gemm_wrapper.model_shapes.shapes_file import EngineShapes, read_shapes_file

        shapes = Counter(layer.shape for layer in layers)
        experts = Counter(sglang_layers.stacked_experts(runner.model))
        if getattr(runner, "is_draft_worker", False):  # the model that it drafts for has written its own
            target = read_shapes_file(file)
            shapes, experts = Counter(target.layers) + shapes, Counter(target.experts) + experts
        EngineShapes("sglang", _version(), settings.model_path, settings.tp_size, shapes, experts).write(file)
    except Exception as problem:
        logger.warning("%s: %s was not written: %s", configurer.SHAPES_OUT, file, first_line(problem))
        return
    stages = get_pp_group().world_size
    part = f" of the first of {stages} pipeline stages" if stages > 1 else ""
    logger.info("Wrote (N, K) of %d block-FP8 layers%s to %s", shapes.total(), part, file)
    for why, count in Counter(filter(None, (layer.why_not() for layer in layers))).items():
        logger.info("%d of these layers would not run with --fp8-gemm-backend %s: %s", count, BACKEND, why)


def _resolved(server_args: Any) -> Any:
    """From 0.5.19 on the record keeps what the user said, and a view what SGLang made of it."""
    try:
        from sglang.srt.arg_groups.overrides import resolving_view
    except ImportError:
        return server_args
    return resolving_view(server_args)


HOOKS = (
    Hook("sglang.srt.server_args.ServerArgs.check_server_args", "BEFORE", _check_server_args, False),
    Hook(f"{_FP8_UTILS}.initialize_fp8_gemm_config", "AROUND", _initialize_fp8_gemm_config, True),
    Hook("sglang.srt.model_executor.model_runner.ModelRunner.load_model", "AFTER", _load_model, True),
)


# ---- can it run, and why not


def why_device_unfit(index: int) -> str | None:
    """Why the TileLang kernels do not run on CUDA device `index` of this machine, or None."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA GPU"
    return configurer.why_tilelang_unavailable(device_of(index))


def _stop_if(*problems: str | None) -> None:
    """Raise one error that has all problems, if there are any."""
    found = [problem for problem in problems if problem]
    if found:
        raise RuntimeError(
            f"--fp8-gemm-backend {BACKEND} cannot run: {'; '.join(found)}. Start with another "
            "--fp8-gemm-backend, or see `tilelang-gemm sglang-check`."
        )


def _why_not_hookable(hook: Hook) -> str | None:
    try:
        pkgutil.resolve_name(hook.target)
    except Exception as error:  # a module of SGLang may fail in any way while it is imported
        return f"{hook.target} cannot be hooked in SGLang {_version()} ({type(error).__name__}: {error})"
    return None


def _why_not_hooked(hook: Hook) -> str | None:
    """Why not, in a process in which SGLang has applied its plugins' hooks: it only logs those that fail."""
    why = _why_not_hookable(hook)
    if why is None and not hasattr(pkgutil.resolve_name(hook.target), "__wrapped__"):
        why = f"SGLang {_version()} did not apply the hook on {hook.target}"
    return why


def _why_linear_unfit() -> str | None:
    """Why linear functions of this SGLang are not kept, or not called, as ours can be."""
    target = f"{_FP8_UTILS}.triton_w8a8_block_fp8_linear"
    try:
        parameters = inspect.signature(pkgutil.resolve_name(target)).parameters
        for target in _HOLDERS:
            if LINEAR not in inspect.unwrap(pkgutil.resolve_name(target)).__code__.co_names:
                return f"{target} of SGLang {_version()} does not call {LINEAR}"
    except Exception as error:
        return f"{target} cannot be read ({type(error).__name__}: {error})"
    missing = [name for name in _LINEAR_PARAMETERS if name not in parameters]
    return f"FP8 linear functions of SGLang {_version()} take no {', '.join(missing)}" if missing else None


def _version() -> str:
    try:
        return metadata.version("sglang")
    except metadata.PackageNotFoundError:
        return "of unknown version"


def check() -> tuple[str, bool]:
    """The account of `tilelang-gemm sglang-check`, and whether the backend would run. Changes nothing.

    Raises RuntimeError where SGLang is not installed.
    """
    if util.find_spec("sglang") is None:
        raise RuntimeError("SGLang is not installed in this environment: pip install sglang")
    findings: list[tuple[str, str | None]] = [(hook.target, _why_not_hookable(hook)) for hook in HOOKS]
    findings.append(("the call of a linear function", _why_linear_unfit()))
    findings.append((f"the plugin {PLUGIN!r}", _why_not_loaded()))
    findings.append(("the GPU", why_device_unfit(0)))
    width = max(len(name) for name, _ in findings)
    lines = [f"SGLang {_version()}; tested are {TESTED_VERSIONS[0]} to {TESTED_VERSIONS[1]}"]
    lines += [f"  {name:{width}}  {why or 'fits'}" for name, why in findings]
    runs = not any(why for _, why in findings)
    lines.append(f"--fp8-gemm-backend {BACKEND} {'will run' if runs else 'will not run'} here")
    return "\n".join(lines), runs


def _why_not_loaded() -> str | None:
    """Why SGLang would not load the plugin."""
    if PLUGIN not in {entry.name for entry in metadata.entry_points(group=PLUGIN_GROUP)}:
        return f"no entry point in {PLUGIN_GROUP}: reinstall tilelang-gemm-wrapper"
    allowed = os.environ.get("SGLANG_PLUGINS", "")
    if allowed and PLUGIN not in {name.strip() for name in allowed.split(",")}:
        return f"SGLANG_PLUGINS={allowed} leaves it out"
    return None
