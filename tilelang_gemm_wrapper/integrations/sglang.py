"""SGLang: `--fp8-gemm-backend tilelang`. The only file that knows that engine.

SGLang calls `register` in each of its processes, through the entry-point group `sglang.srt.plugins`. Hooks on
four of its functions do the rest; nothing of SGLang is edited:

    ServerArgs.check_server_args      in the launcher: stop here if the backend cannot run
    initialize_fp8_gemm_config        in a scheduler: take note that the backend was asked for
    dispatch_w8a8_block_fp8_linear    as layers are made: hand out `BlockFp8Linear` around SGLang's own choice
    ModelRunner.load_model            on every rank, before CUDA graphs: compile, compare ranks, report

SGLang only logs a plugin or hook that fails and goes on. So each hook verifies that the others are in place,
and the last one that every block-FP8 layer of the model has our linear: else it raises, and the server stops.
"""

from __future__ import annotations

import inspect
import logging
import os
import pkgutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module, metadata, util
from typing import Any

import torch
from torch.compiler import is_compiling

from tilelang_gemm_wrapper import configurer, gemm_nt_f8f8bf16, per_token_group_quant_fp8
from tilelang_gemm_wrapper.core.device import device_of
from tilelang_gemm_wrapper.core.dispatch import why_shape_unfit
from tilelang_gemm_wrapper.integrations import preparation

logger = logging.getLogger(__name__)

BACKEND = "tilelang"  # of --fp8-gemm-backend
PLUGIN = "tilelang_gemm"  # the entry point's name, for SGLANG_PLUGINS
PLUGIN_GROUP = "sglang.srt.plugins"
TESTED_VERSIONS = ("0.5.11", "0.5.23")  # first with plugins, newest

_BLOCK = [128, 128]
_FP8_UTILS = "sglang.srt.layers.quantization.fp8_utils"
_LINEAR_PARAMETERS = ("input", "weight", "block_size", "weight_scale", "input_scale", "bias")


# ---- what SGLang calls for a layer


class BlockFp8Linear:
    """`input @ weight.T + bias` for FP8 weights with 128 x 128 scales, in the place of SGLang's own function.

    What our GEMM does not take goes to `engine_linear`, the function that SGLang would use without this
    backend; each reason is logged once.
    """

    def __init__(self, engine_linear: Callable[..., torch.Tensor], why_never: str | None = None) -> None:
        """why_never: why every call has to go to `engine_linear`, where that is known beforehand."""
        self.engine_linear = engine_linear
        self._why_never = why_never

    def __call__(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        block_size: list[int],
        weight_scale: torch.Tensor,
        input_scale: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        **others: Any,
    ) -> torch.Tensor:
        """The output (..., N) bfloat16 of a layer.

        input: (..., K) bfloat16, quantised here per token and 128 columns with column-major scales; or e4m3
            already, with `input_scale` (M, K / 128) float32, row-major or column-major.
        weight: (N, K) e4m3; weight_scale: (ceil(N / 128), K / 128) float32; bias: (N,) or None.
        """
        why_not = self._why_never or _why_not(input, weight, block_size, weight_scale, input_scale, others)
        if why_not is not None:
            if not is_compiling():
                _log_delegation(why_not)
            return self.engine_linear(
                input=input,
                weight=weight,
                block_size=block_size,
                weight_scale=weight_scale,
                input_scale=input_scale,
                bias=bias,
                **others,
            )
        rows = input.view(-1, input.shape[-1])
        if input_scale is not None:
            A = rows, input_scale
        else:
            A = per_token_group_quant_fp8(
                rows,
                scale_layout="column_tma",
                rounding="sglang",
                backend="tilelang" if rows.is_cuda else "torch",  # the one that `prepare` has compiled
            )
        C = gemm_nt_f8f8bf16(A, (weight, weight_scale))
        if bias is not None:
            C += bias
        return C.view(*input.shape[:-1], weight.shape[0])


def _why_not(
    input: torch.Tensor,
    weight: torch.Tensor,
    block_size: list[int],
    weight_scale: torch.Tensor,
    input_scale: torch.Tensor | None,
    others: dict[str, Any],
) -> str | None:
    """Why a call is not ours, in a sentence without M, or None."""
    if any(value is not None for value in others.values()):
        return f"SGLang passes {', '.join(sorted(others))}, which this backend does not know"
    if list(block_size) != _BLOCK:
        return f"the weights are quantised in blocks of {list(block_size)}, expected {_BLOCK}"
    if weight.dtype is not torch.float8_e4m3fn or not weight.is_contiguous():
        return f"the weights are {weight.dtype} of strides {weight.stride()}, expected contiguous e4m3"
    N, K = weight.shape
    if weight_scale.dtype is not torch.float32 or weight_scale.shape != (-(-N // 128), -(-K // 128)):
        return f"the weight scales are packed or of another format ({weight_scale.dtype})"
    if input_scale is None:
        if input.dtype is not torch.bfloat16:
            return f"the activations are {input.dtype}, expected bfloat16"
    elif input.dtype is not torch.float8_e4m3fn or input_scale.dtype is not torch.float32:
        return (
            f"the activations are {input.dtype} with {input_scale.dtype} scales, expected e4m3 with float32"
        )
    elif input_scale.shape != (input.numel() // K, K // 128):
        return "the activations' scales are not one a token and 128 columns"
    if input.numel() == 0:
        return "the batch is empty (an idle data-parallel rank)"
    return _fallbacks.get((N, K)) or why_shape_unfit(N, K)


_fallbacks: dict[preparation.Shape, str] = {}  # shapes without a TileLang kernel, as warm-up found them
_delegations: set[str] = set()


def _log_delegation(why: str) -> None:
    if why not in _delegations:
        _delegations.add(why)
        logger.warning("SGLang's own FP8 GEMM runs where the tilelang backend does not: %s", why)


# ---- hooks


@dataclass(frozen=True, slots=True)
class Hook:
    """A function of SGLang and what we put around it."""

    target: str
    kind: str  # a name of SGLang's HookType
    function: Callable[..., Any]
    deep: bool  # lies in modules that only a process with a scheduler imports anyway


@dataclass(slots=True)
class _Activation:
    """What a scheduler process knows once the backend was asked for."""

    why_never: str | None  # why SGLang's own linear has to serve every layer, if it has to


_activation: _Activation | None = None


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
    """SGLang's enum of backends refuses ours: leave it at "auto", whose choice we wrap."""
    global _activation  # noqa: PLW0603  (a process serves with one backend)
    server_args = args[0] if args else kwargs.get("server_args")
    if server_args is None:  # from 0.5.19 on
        server_args = import_module("sglang.srt.runtime_context").get_server_args()
    settings = _resolved(server_args)
    if settings.fp8_gemm_runner_backend != BACKEND:
        _activation = None
        return original(*args, **kwargs)
    _stop_if(*map(_why_not_hooked, HOOKS), _why_linear_unfit())
    # In an engine no kernel writes weights right before a GEMM reads them, unless they are moved about.
    offloads = (getattr(settings, "cpu_offload_gb", 0) or 0) > 0
    offloads |= (getattr(settings, "offload_group_size", 0) or 0) > 0
    if not offloads:
        os.environ.setdefault(configurer.STATIC_WEIGHTS, "1")
    _activation = _Activation(_why_never(settings))
    fp8_utils: Any = import_module(_FP8_UTILS)
    fp8_utils.FP8_GEMM_RUNNER_BACKEND = fp8_utils.Fp8GemmRunnerBackend.AUTO


def _dispatch_w8a8_block_fp8_linear(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    engine_linear = original(*args, **kwargs)
    if _activation is None:
        return engine_linear
    arguments = inspect.signature(original).bind(*args, **kwargs).arguments
    why_never = _activation.why_never
    if arguments.get("act_scale_ue8m0"):  # from 0.5.21 on
        why_never = why_never or "the checkpoint's scales are UE8M0 (powers of two)"
    return BlockFp8Linear(engine_linear, why_never)


def _load_model(result: Any, runner: Any, *args: Any, **kwargs: Any) -> None:
    """After the weights are there, on every rank: get ready for the shapes that its layers have."""
    settings = _resolved(runner.server_args)
    if settings.fp8_gemm_runner_backend != BACKEND:
        return
    _stop_if(
        None if _activation else f"SGLang never called {_FP8_UTILS}.initialize_fp8_gemm_config",
        why_device_unfit(runner.gpu_id),
    )
    layers: Counter[preparation.Shape] = Counter()
    strays = 0
    for weight, linear in _block_fp8_layers(runner.model):
        if isinstance(linear, BlockFp8Linear):
            layers[tuple(weight.shape)] += 1  # type: ignore[index]
        else:
            strays += 1
    _stop_if(f"{strays} FP8 layers of the model were made without it" if strays else None)
    name = type(runner.model).__name__
    if not layers:
        logger.warning("The tilelang backend has nothing to do: %s has no block-quantised FP8 layer", name)
        return
    assert _activation is not None
    if _activation.why_never:
        _log_delegation(_activation.why_never)
        return
    _prepare(layers, settings, runner.gpu_id)


def _prepare(layers: Counter[preparation.Shape], settings: Any, gpu: int) -> None:
    from sglang.srt.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    speaks = group.rank_in_group == 0
    if not speaks:  # what one rank says holds for all; errors are errors on any
        logging.getLogger("tilelang_gemm_wrapper").setLevel(logging.ERROR)
    ready = preparation.prepare(layers, _largest_m(settings), gpu, progress=speaks)
    torch.cuda.empty_cache()  # SGLang sizes its KV cache by what is free now
    _fallbacks.update(ready.fallbacks)
    if group.world_size > 1:
        selections = [None] * group.world_size
        torch.distributed.all_gather_object(selections, ready.selection, group=group.cpu_group)
        _stop_if(preparation.disagreement(selections))  # type: ignore[arg-type]
    if speaks:
        for line in ready.summary().splitlines():
            logger.info("%s", line)
        if group.world_size > 1:
            logger.info("All %d tensor-parallel ranks chose the same kernels", group.world_size)


def _largest_m(settings: Any) -> int:
    """The most rows that a GEMM of this server gets: a prefill with the decodes that may ride along."""

    def setting(name: str) -> int:
        value = getattr(settings, name, None)
        return value if isinstance(value, int) and value > 0 else 0

    prefill = setting("chunked_prefill_size") or max(setting("max_prefill_tokens"), setting("context_length"))
    requests = max(map(setting, ("max_running_requests", "cuda_graph_max_bs", "cuda_graph_max_bs_decode")))
    return max(1, prefill + requests * max(1, setting("speculative_num_draft_tokens")))


def _block_fp8_layers(model: torch.nn.Module) -> Iterator[tuple[torch.Tensor, Callable[..., Any]]]:
    """The weight of each layer that SGLang multiplies through a block-FP8 linear, and that linear."""
    for layer in model.modules():
        weight = getattr(layer, "weight", None)
        # compressed-tensors keeps the function in the layer's scheme, FP8 checkpoints in its method.
        for holder in (getattr(layer, "quant_method", None), getattr(layer, "scheme", None)):
            linear = getattr(holder, "w8a8_block_fp8_linear", None)
            if (
                linear is not None
                and isinstance(weight, torch.Tensor)
                and weight.dtype is torch.float8_e4m3fn
            ):
                yield weight, linear
                break


def _why_never(settings: Any) -> str | None:
    for name in ("enable_deterministic_inference", "rl_on_policy_target"):
        if getattr(settings, name, None):
            return f"{name} asks for results that do not depend on the batch, and our kernels change with M"
    return None


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
    Hook(f"{_FP8_UTILS}.dispatch_w8a8_block_fp8_linear", "AROUND", _dispatch_w8a8_block_fp8_linear, True),
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
    """Why a linear function of this SGLang is not called as ours can be."""
    target = f"{_FP8_UTILS}.triton_w8a8_block_fp8_linear"
    try:
        parameters = inspect.signature(pkgutil.resolve_name(target)).parameters
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
