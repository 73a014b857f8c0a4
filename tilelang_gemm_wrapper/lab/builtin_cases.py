"""The package's kernels as cases of the lab: inputs, launch and reference from where the tests have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from .. import core
from ..backends import triton as triton_backend
from ..core import kernel_registry
from ..core.arguments import size_of
from ..core.config import TILELANG_KERNELS, KernelConfig, why_invalid
from ..core.config_entry import TILE_FIELDS
from ..core.config_loader import find_config
from ..core.cost_model import CostModel
from ..core.default_choice import continued, default_entries
from ..core.device import KNOWN_DEVICES, Device, device_of
from ..core.dispatch import why_shape_unfit
from ..core.workload import Expected, Workload, random_workload
from . import capture
from .cases import Case, Launch, TileLangCase, TritonCase
from .resources import capability_of

DEFAULTS = {"M": 16, "N": 4096, "K": 2560}
_PACKAGE = __name__.rsplit(".", 2)[0]


@dataclass(frozen=True, slots=True)
class Builtin:
    """make: called with the parameters and the architecture. modules: those that the kernel may be built
    from, which are its Python level."""

    make: Callable[[Mapping[str, Any], str], Case]
    modules: tuple[str, ...]
    sizes: tuple[str, ...] = ("M", "N", "K")


def device_for(arch: str) -> Device:
    """The chip that configs are chosen and judged for: this machine's where it is of that architecture, else
    a full Hopper or, for all others, an L40S."""
    if torch.cuda.is_available():
        here = device_of(torch.cuda.current_device())
        if here.arch == arch:
            return here
    return KNOWN_DEVICES["NVIDIA_H100_80GB_HBM3" if arch == "sm_90a" else "NVIDIA_L40S"]


def chosen_config(kernel_type: str, M: int, N: int, K: int, device: Device) -> KernelConfig:
    """The tuned config for M where it is of this kernel type, else the cost model's first of that type.

    Raises ValueError where the kernel type has none for the shape.
    """
    file = find_config(N, K, device).file
    tuned = continued(file.entries, N, K, device) if file else []
    entries = [(entry.M, entry.config) for entry in tuned] or default_entries(N, K, device)
    serving = next((config for bound, config in entries if bound >= M), entries[-1][1] if entries else None)
    if serving is not None and serving.kernel_type == kernel_type:
        return serving
    space = [c for c in kernel_registry.search_space(N, K, device) if c.kernel_type == kernel_type]
    suited = [config for config in space if kernel_registry.suits(config, M, N, device)] or space
    if not suited:
        raise ValueError(
            f"{kernel_type} has no config for N = {N}, K = {K} on {device.name}; give one, as in "
            f"block_M=64,block_N=16,num_stages=4,threads=256, or take another kernel"
        )
    model = CostModel(device)
    return min(suited, key=lambda config: model.predict(config, M, N, K))


def gemm_config(
    kernel_type: str, given: Mapping[str, int], M: int, N: int, K: int, arch: str
) -> KernelConfig:
    """The config of a GEMM kernel from its fields, or with none given the one chosen for M.

    Raises ValueError for fields that are none, and where the config is invalid for the architecture.
    """
    device = device_for(arch)
    if not given:
        return chosen_config(kernel_type, M, N, K, device)
    _check_fields(given, {field.name for field in fields(KernelConfig)} - {"kernel_type"})
    needed = set(TILE_FIELDS) - {"block_K"} | ({"split_k"} if "splitK" in kernel_type else set())
    if missing := sorted(needed - given.keys()):
        raise ValueError(f"the config has no {', '.join(missing)}; give every field, or m=16 alone")
    config = KernelConfig(kernel_type, **given)
    why_not = why_invalid(config, N, K, device)
    if why_not is not None:
        raise ValueError(f"the config is invalid on {arch}: {why_not}")
    return config


def triton_tile(given: Mapping[str, int], M: int, N: int, K: int, arch: str) -> triton_backend.Tile:
    """The tile of the Triton GEMM from its fields, all of them, or with none given the one for this shape.

    Raises ValueError for fields that are none or missing.
    """
    if not given:
        device = device_for(arch)
        return triton_backend.choose_tile(M, N, K, device.sm_count, device.shared_memory_per_block)
    names = {field.name for field in fields(triton_backend.Tile)}
    _check_fields(given, names)
    if missing := sorted(names - given.keys()):
        raise ValueError(f"the config has no {', '.join(missing)}; give every field of the tile")
    tile = triton_backend.Tile(**given)
    why_not = _why_tile_invalid(tile)
    if why_not is not None:
        raise ValueError(f"the config is invalid: {why_not}")
    return tile


def _why_tile_invalid(tile: triton_backend.Tile) -> str | None:
    """Why Triton builds no kernel with this tile; what only shows in its stages is left to them."""
    for name, least, most in (("block_M", 16, 256), ("block_N", 16, 128), ("num_warps", 1, 32)):
        value = getattr(tile, name)
        if not least <= value <= most or value & (value - 1):
            return f"{name} = {value}; expected a power of 2 from {least} to {most}"
    for name in ("group_M", "num_stages"):
        if getattr(tile, name) < 1:
            return f"{name} = {getattr(tile, name)}; expected at least 1"
    return None


def _check_fields(given: Mapping[str, int], names: Set[str]) -> None:
    unknown = [name for name in given if name not in names]
    if unknown:
        raise ValueError(
            f"the config has no field {', '.join(unknown)}; its fields are {', '.join(sorted(names))}"
        )


def _workload(device: str, M: int, N: int, K: int) -> Workload:
    if device != "meta":
        return random_workload(M, N, K, device, scale_layout="column_tma")
    fp8 = partial(torch.empty, dtype=torch.float8_e4m3fn, device=device)
    padded = -(-M // 4) * 4
    A_scale = torch.empty((-(-K // 128), padded), device=device).t()[:M]
    return Workload(fp8(M, K), A_scale, fp8(N, K), torch.empty((-(-N // 128), -(-K // 128)), device=device))


def _tilelang_gemm(kernel_type: str, parameters: Mapping[str, Any], arch: str) -> TileLangCase:
    M, N, K = (parameters[name] for name in "MNK")
    config = KernelConfig(kernel_type, **parameters["config"])
    # Hopper has kernels of its own; the plain tensor-core ones, written for Ada, compile for all others.
    source_arch = "sm_90a" if arch == "sm_90a" else "sm_89"

    def launch(device: str) -> Launch:
        work = _workload(device, M, N, K)
        arguments = {
            "A": work.A,
            "A_scale": work.A_scale,
            "B": work.B,
            "B_scale": work.B_scale,
            "C": work.empty_output(),
        }
        if kernel_registry.needs_workspace(config, source_arch):
            arguments["partials"] = torch.empty((config.split_k, M, N), device=device)
        return Launch(arguments, ("C",), lambda: {"C": Expected.of(work)}, cold=("B", "B_scale"))

    # It imports the kernel's module when it is called: an edited one, where the lab runs it.
    function = kernel_registry.build(N, K, config, source_arch)
    pass_configs = kernel_registry.pass_configs(source_arch)
    if source_arch != "sm_90a" and capability_of(arch) > 90:
        # TileLang would specialise warps with Hopper's instructions, which these chips do not have.
        pass_configs = {**pass_configs, "tl.disable_warp_specialized": True}
    return TileLangCase(function, launch, pass_configs)


def _triton_gemm(parameters: Mapping[str, Any], arch: str) -> TritonCase:
    del arch  # the source is the same for all
    M, N, K = (parameters[name] for name in "MNK")
    tile = triton_backend.Tile(**parameters["config"])

    def recorded(device: str) -> tuple[capture.TritonLaunch, Workload]:
        work = _workload(device, M, N, K)
        tensors = (work.A, work.A_scale, work.B, work.B_scale, work.empty_output())
        return capture.triton_launch(lambda: triton_backend.launch(*tensors, tile=tile)), work

    def launch(device: str) -> Launch:
        found, work = recorded(device)
        return Launch(found.arguments, ("C",), lambda: {"C": Expected.of(work)}, cold=("B", "B_scale"))

    found, _ = recorded("meta")
    kernel = import_module(f"{_PACKAGE}.backends._triton_kernel").block_scaled_gemm
    return TritonCase(kernel, found.grid, launch, found.options)


def _gemv_problem(device: str, N: int, K: int) -> Any:
    from ..ops.gemv import Problem

    x, W = _normal(device, 1, K), _normal(device, N, K)
    return Problem(x, None, W, None, torch.full((1, N), torch.nan, dtype=torch.bfloat16, device=device))


def _normal(device: str, *shape: int) -> torch.Tensor:
    if device == "meta":
        return torch.empty(shape, dtype=torch.bfloat16, device=device)
    generator = torch.Generator(device).manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, device=device).bfloat16()


def _rmsnorm_rows(device: str, M: int, K: int) -> tuple[Any, torch.Tensor, Any]:
    from ..ops.arguments import rows_of

    x, out = _normal(device, M, K), torch.full((M, K), torch.nan, dtype=torch.bfloat16, device=device)
    x_rows, out_rows = rows_of(["x", "out"], [x, out])
    return x_rows, _normal(device, K), out_rows


_EPS = 1e-6


def _gemv_recorded(parameters: Mapping[str, Any], device: str, record: Callable[[Any], Any]) -> Any:
    """The launch that `record` makes of the problem, and the problem's right result by output."""
    problem = _gemv_problem(device, parameters["N"], parameters["K"])
    return record(problem), lambda: {"out": problem.x.float() @ problem.W.float().t()}


def _rmsnorm_recorded(parameters: Mapping[str, Any], device: str, record: Callable[..., Any]) -> Any:
    x, weight, out = _rmsnorm_rows(device, parameters["M"], parameters["K"])

    def expected() -> dict[str, torch.Tensor]:
        values = x.tensor.double()
        norm = values * (values.square().mean(-1, keepdim=True) + _EPS).rsqrt()
        return {"out": (norm * weight.double()).float()}

    return record(x, weight, out), expected


def _triton_op(
    parameters: Mapping[str, Any],
    arch: str,
    *,
    recorded: Callable[..., Any],
    kernel: Any,
    record: Callable[..., capture.TritonLaunch],
    cold: str,
) -> TritonCase:
    early = {"PDL": capability_of(arch) >= 90}
    options = {"launch_pdl": True} if early["PDL"] else {}

    def launch(device: str) -> Launch:
        found, expected = recorded(parameters, device, record)
        return Launch(found.arguments | early, ("out",), expected, cold=(cold,))

    found, _ = recorded(parameters, "meta", record)
    options = {k: v for k, v in found.options.items() if k != "launch_pdl"} | options
    return TritonCase(kernel, found.grid, launch, options)


def _gemv_triton(parameters: Mapping[str, Any], arch: str) -> TritonCase:
    module = import_module(f"{_PACKAGE}.ops.gemv.triton")
    tile = module.tile_of(1, parameters["K"], False)
    return _triton_op(
        parameters,
        arch,
        recorded=_gemv_recorded,
        kernel=module.gemv_kernel,
        record=lambda problem: capture.triton_launch(lambda: module.launch_tile(problem, tile)),
        cold="W",
    )


def _rmsnorm_triton(parameters: Mapping[str, Any], arch: str) -> TritonCase:
    module = import_module(f"{_PACKAGE}.ops.rmsnorm.triton")
    return _triton_op(
        parameters,
        arch,
        recorded=_rmsnorm_recorded,
        kernel=module.rmsnorm_kernel,
        record=lambda x, weight, out: capture.triton_launch(
            lambda: module.launch(x, None, weight, out, _EPS, 0.0)
        ),
        cold="x",
    )


def _tilelang_op(
    parameters: Mapping[str, Any],
    arch: str,
    *,
    recorded: Callable[..., Any],
    record: Callable[..., capture.TileLangLaunch],
    cold: str,
) -> TileLangCase:
    found, _ = recorded(parameters, "cpu", record)
    early = {name: capability_of(arch) >= 90 for name in ("early",) if name in found.shape._fields}
    function = found.build(found.shape._replace(**early))
    names = [parameter.name.removesuffix("_handle") for parameter in function.params]

    def launch(device: str) -> Launch:
        found, expected = recorded(parameters, device, record)
        return Launch(dict(zip(names, found.arguments, strict=True)), ("out",), expected, cold=(cold,))

    return TileLangCase(function, launch, found.pass_configs)


def _gemv_tilelang(parameters: Mapping[str, Any], arch: str) -> TileLangCase:
    module = import_module(f"{_PACKAGE}.ops.gemv.tilelang")
    config = module.default_config(1, parameters["K"], False)
    return _tilelang_op(
        parameters,
        arch,
        recorded=_gemv_recorded,
        record=lambda problem: capture.tilelang_launch(module, lambda: module.launch_config(problem, config)),
        cold="W",
    )


def _rmsnorm_tilelang(parameters: Mapping[str, Any], arch: str) -> TileLangCase:
    module = import_module(f"{_PACKAGE}.ops.rmsnorm.tilelang")
    return _tilelang_op(
        parameters,
        arch,
        recorded=_rmsnorm_recorded,
        record=lambda x, weight, out: capture.tilelang_launch(
            module, lambda: module.launch(x, None, weight, out, _EPS, 0.0)
        ),
        cold="x",
    )


def _kernel_modules() -> tuple[str, ...]:
    folder = Path(core.__file__).with_name("kernels")
    return tuple(
        f"{_PACKAGE}.core.kernels.{path.stem}"
        for path in sorted(folder.glob("*.py"))
        if path.stem != "__init__"
    )


def _ops(*names: str) -> tuple[str, ...]:
    return tuple(f"{_PACKAGE}.ops.{name}" for name in names)


BUILTIN: dict[str, Builtin] = {
    **{name: Builtin(partial(_tilelang_gemm, name), _kernel_modules()) for name in TILELANG_KERNELS},
    "triton_gemm": Builtin(_triton_gemm, (f"{_PACKAGE}.backends._triton_kernel",)),
    "gemv_triton": Builtin(_gemv_triton, _ops("gemv.triton"), ("N", "K")),
    "gemv_tilelang": Builtin(_gemv_tilelang, _ops("gemv.tilelang", "simt"), ("N", "K")),
    "rmsnorm_triton": Builtin(_rmsnorm_triton, _ops("rmsnorm.triton", "quant.triton"), ("M", "K")),
    "rmsnorm_tilelang": Builtin(_rmsnorm_tilelang, _ops("rmsnorm.tilelang", "simt"), ("M", "K")),
}


def parameters_of(kernel: str, given: Mapping[str, int | None], config: Mapping[str, int], arch: str) -> dict:
    """All that decides the kernel, JSON-safe: sizes with their defaults, and the config of a GEMM in full.

    Raises ValueError for a size or a config that the kernel does not take.
    """
    sizes = BUILTIN[kernel].sizes
    unwanted = [name for name, value in given.items() if value is not None and name not in sizes]
    if unwanted:
        raise ValueError(f"{kernel} has no {', '.join(unwanted)}; its sizes are {', '.join(sizes)}")
    parameters: dict[str, Any] = {
        name: DEFAULTS[name] if given.get(name) is None else size_of(name, given[name]) for name in sizes
    }
    if kernel in TILELANG_KERNELS:
        why_not = why_shape_unfit(parameters["N"], parameters["K"])
        if why_not is not None:
            raise ValueError(f"{why_not}; triton_gemm takes any")
        chosen = gemm_config(kernel, config, parameters["M"], parameters["N"], parameters["K"], arch)
        parameters["config"] = {k: v for k, v in asdict(chosen).items() if k != "kernel_type"}
    elif kernel == "triton_gemm":
        tile = triton_tile(config, parameters["M"], parameters["N"], parameters["K"], arch)
        parameters["config"] = asdict(tile)
    elif config:
        raise ValueError(f"{kernel} has no config; it chooses its own by M, N and K")
    return parameters
