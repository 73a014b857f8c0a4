"""Triton's levels: from Python, or from an edited file of any level, on to the cubin, by Triton's own stages.

The stages are those that `triton.compile` takes from the backend, called here one by one, so that nothing is
read from Triton's caches and nothing is written to them.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import ASTSource, CompiledKernel, make_backend

from .built import Built
from .cases import Launch, TritonCase
from .resources import capability_of

_TYPES = {
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e5m2: "fp8e5",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
    torch.bool: "i1",
}


def build(
    case: TritonCase, arch: str, start: str, content: str | bytes, metadata: Mapping[str, Any]
) -> Built:
    """Compile `case` for `arch`, from Python (start="python") or from `content`, the text of level `start`.

    `metadata` is what the compiler noted on the way to the unedited level; empty when starting from Python.
    Raises RuntimeError where a stage refuses the kernel.
    """
    from triton._C.libtriton import ir

    target = GPUTarget("cuda", capability_of(arch), 32)
    backend = make_backend(target)
    source = source_of(case)
    noted = dict(metadata)
    given = {**case.options, **_warps_of(start, content)}
    options = _stage("its options", lambda: backend.parse_options(given))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    if start == "python":
        noted |= {"hash": source.hash(), "target": target, **options.__dict__}
        noted["triton_version"] = triton.__version__
        module = _stage("python", lambda: _make_ir(source, target, options, backend, context))
    else:
        noted |= {"target": target, **_warps_of(start, content)}
        module = _stage(start, lambda: _parsed(ir, context, start, content))
    stages: dict[str, Callable[[Any, dict[str, Any]], Any]] = {}
    backend.add_stages(stages, options, source.language)
    levels: dict[str, str | bytes] = {}
    names = list(stages)
    for name in names[names.index(start) + 1 :] if start in names else names:
        module = _stage(name, partial(stages[name], module, noted))
        levels[name] = module if isinstance(module, bytes) else str(module)
    if start != "python":
        levels[start] = content
    kept = json.loads(json.dumps(noted, default=vars))
    kept.pop("extern_libs", None)  # paths of this machine; parse_options finds them again
    return Built(
        levels=levels,
        launches={noted["name"]: (32 * noted["num_warps"], noted["shared"])},
        metadata=kept,
        launcher=lambda: _launcher(case, source, levels["cubin"], noted),
    )


def source_of(case: TritonCase) -> ASTSource:
    """The kernel with the types, constants and alignments that Triton's JIT sees in the launch."""
    kernel = case.kernel
    if not hasattr(kernel, "arg_names") or not hasattr(kernel, "params"):
        raise ValueError(
            f"the kernel is a {type(kernel).__name__}; expected a @triton.jit function: of an autotuned one "
            f"take .fn, and give the values of one configuration"
        )
    arguments = case.launch("meta").arguments
    missing = [name for name in kernel.arg_names if name not in arguments]
    if missing:
        raise ValueError(f"the launch has no value for {', '.join(missing)}; every argument is needed")
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        kind = _type(value, parameter)
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[parameter.name] = value
        elif _is_aligned(value) and not (
            parameter.do_not_specialize or getattr(parameter, "do_not_specialize_on_alignment", False)
        ):
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes)


def _type(value: Any, parameter: Any) -> str:
    if parameter.is_constexpr or value is None:
        return "constexpr"
    if isinstance(value, torch.Tensor):
        if value.dtype not in _TYPES:
            raise ValueError(f"{parameter.name} is {value.dtype}, which Triton has no pointer type for")
        return ("*k" if parameter.is_const else "*") + _TYPES[value.dtype]
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        if value == 1 and not parameter.do_not_specialize:
            return "constexpr"
        return "i32" if -(2**31) <= value < 2**31 else "i64" if value < 2**63 else "u64"
    if isinstance(value, float):
        return "fp32"
    raise ValueError(
        f"{parameter.name} is a {type(value).__name__}; the lab launches tensors, numbers and None"
    )


def _is_aligned(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return (
            value.storage_offset() * value.element_size() % 16 == 0
        )  # allocations begin at 16 bytes or more
    return isinstance(value, int) and not isinstance(value, bool) and value % 16 == 0


def _make_ir(source: ASTSource, target: GPUTarget, options: Any, backend: Any, context: Any) -> Any:
    common = (options, backend.get_codegen_implementation(options), backend.get_module_map(), context)
    # Triton 3.4 does not pass the target.
    with_target = "target" in inspect.signature(source.make_ir).parameters
    return source.make_ir(target, *common) if with_target else source.make_ir(*common)


def _parsed(ir: Any, context: Any, level: str, content: str | bytes) -> Any:
    if level not in ("ttir", "ttgir"):
        return content
    with tempfile.NamedTemporaryFile("w", suffix=f".{level}") as file:
        file.write(content if isinstance(content, str) else content.decode())
        file.flush()
        module = ir.parse_mlir_module(file.name, context)
    module.context = context
    return module


def _warps_of(level: str, content: str | bytes) -> dict[str, int]:
    """An edited ttgir may have another number of warps than the options that made it."""
    found = re.search(r'"ttg\.num-warps" = (\d+)', content) if level == "ttgir" else None  # type: ignore[arg-type]
    return {"num_warps": int(found[1])} if found else {}


def _stage(name: str, run: Callable[[], Any]) -> Any:
    """What Triton prints of a failure, the whole PTX with it, is kept off the terminal."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            return run()
    except Exception as problem:
        raise RuntimeError(
            f"Triton {triton.__version__} refuses the kernel at {name}: {problem}"
        ) from problem


def _launcher(
    case: TritonCase, source: ASTSource, cubin: str | bytes, metadata: Mapping[str, Any]
) -> Callable[[Launch], None]:
    """Triton's own launcher around the cubin, on the current stream."""
    assert isinstance(cubin, bytes)
    directory = tempfile.TemporaryDirectory(prefix="lab-triton-")
    files = {"kernel.json": json.dumps(metadata, default=vars).encode(), "kernel.cubin": cubin}
    for name, data in files.items():
        Path(directory.name, name).write_bytes(data)
    group = {name: str(Path(directory.name, name)) for name in files}
    compiled = CompiledKernel(source, group, metadata["hash"])
    directory.cleanup()  # it has been read
    launch_on = compiled[(*case.grid, 1, 1)[:3]]
    names = case.kernel.arg_names

    def run(launch: Launch) -> None:
        launch_on(*(launch.arguments[name] for name in names))

    return run
