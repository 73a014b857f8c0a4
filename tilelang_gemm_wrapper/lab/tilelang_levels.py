"""TileLang's levels: from Python, or from an edited file of any level, on to the cubin and its launcher.

TileLang's own lowering makes the CUDA source and the host code, which holds the grid, the TMA descriptors and
the launch attributes. Its compiler callback is replaced for as long as that takes: the lab's runs nvcc and
ptxas one after the other and puts the edited level in the place of theirs. TileLang's caches are passed by.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.compile_cache import entry_function, tilelang_module
from ..core.cuda_toolchain import cubin_of, ptx_of
from . import tir_text
from .built import Built
from .cases import Launch, TileLangCase

_CALLBACK = "tilelang_callback_cuda_compile"


def build(case: TileLangCase, arch: str, start: str, content: str | bytes) -> Built:
    """Compile `case` for `arch`, from Python (start="python") or from `content`, the text of level `start`.

    Raises RuntimeError where TileLang, nvcc or ptxas refuses the kernel.
    """
    tilelang_module()
    from tilelang.jit.kernel import JITKernel

    function = case.function
    if start == "tir":
        assert isinstance(content, str)
        function = tir_text.parsed(content, function)
    compiler = _Compiler(arch, start, content)
    if start in ("python", "tir"):
        compiler.levels["tir"] = content if start == "tir" else tir_text.printed(function)
    with _compiling_by(compiler):
        try:
            kernel = JITKernel(
                function,
                target={"kind": "cuda", "arch": arch},
                execution_backend="tvm_ffi",
                pass_configs=dict(case.pass_configs),
            )
        except Exception as problem:
            raise compiler.failure or RuntimeError(
                f"TileLang refuses the kernel for {arch}: {problem}"
            ) from problem
    launches = {
        str(name.name_hint): _launch_of(device.attrs)
        for name, device in kernel.artifact.device_mod.functions.items()
    }
    return Built(compiler.levels, launches, lambda: _launcher(kernel))


def reads_back(case: TileLangCase, arch: str, built: Built) -> str | None:
    """Why the text of the TIR is for reading only, or None: it leads to the same CUDA source."""
    try:
        again = tir_text.parsed(str(built.levels["tir"]), case.function)
        source = build(TileLangCase(again, case.launch, case.pass_configs), arch, "source only", b"")
    except RuntimeError as problem:
        return str(problem).strip().splitlines()[0]
    if _same_but_for_names(str(source.levels["cu"]), str(built.levels["cu"])):
        return None
    return "read back, it makes another CUDA source"


def _same_but_for_names(one: str, other: str) -> bool:
    """Whether two sources are one and the same after renaming: each name of one for one of the other."""
    tokens = [re.findall(r"[A-Za-z_]\w*|\S", text) for text in (one, other)]
    if len(tokens[0]) != len(tokens[1]):
        return False
    forth: dict[str, str] = {}
    back: dict[str, str] = {}
    return all(
        forth.setdefault(a, b) == b and back.setdefault(b, a) == a for a, b in zip(*tokens, strict=True)
    )


@dataclass
class _Compiler:
    """Stands for TileLang's compiler callback: CUDA source -> cubin, level by level."""

    arch: str
    start: str
    content: str | bytes
    levels: dict[str, str | bytes] = field(default_factory=dict)
    failure: RuntimeError | None = None

    def __call__(self, code: str, target: Any, pass_config: Any = None) -> bytearray:
        del target
        try:
            return bytearray(self._cubin(str(code), dict(pass_config or {})))
        except RuntimeError as failure:  # TVM would wrap it in a page of its own frames
            self.failure = failure
            raise

    def _cubin(self, code: str, pass_config: Mapping[str, Any]) -> bytes:
        levels, content = self.levels, self.content
        if self.start == "source only":
            levels["cu"], levels["cubin"] = code, b""
            return b""
        nvcc_options, ptxas_options = _options(pass_config)
        if self.start == "cubin":
            levels["cubin"] = content
        elif self.start == "ptx":
            levels["ptx"] = content
        else:
            levels["cu"] = content if self.start == "cu" else code
            levels["ptx"] = ptx_of(str(levels["cu"]), self.arch, nvcc_options)
        if "cubin" not in levels:
            levels["cubin"], _ = cubin_of(str(levels["ptx"]), self.arch, ptxas_options)
        cubin = levels["cubin"]
        assert isinstance(cubin, bytes)
        return cubin


def _options(pass_config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What TileLang gives nvcc for the compiler options of a kernel, and the part of it that ptxas takes.

    But for line information, which changes no instruction: it would put a folder's name into every cubin.
    """
    package = Path(tilelang_module().__file__).parent
    options = ["-std=c++20", "-O3", "-w"]
    options += [f"-I{package / 'src'}", f"-I{package / '3rdparty/cutlass/include'}"]
    flags = pass_config.get("tl.device_compile_flags") or ()
    for flag in (flags,) if isinstance(flags, str) else flags:
        options += shlex.split(str(flag))
    if pass_config.get("tl.enable_fast_math"):
        options.append("--use_fast_math")
    ptxas = ["-O3"]
    level = pass_config.get("tl.ptxas_register_usage_level")
    if level is not None:
        ptxas.append(f"--register-usage-level={int(level)}")
    return options, ptxas


@contextmanager
def _compiling_by(compiler: _Compiler) -> Iterator[None]:
    import tvm_ffi

    usual = tvm_ffi.get_global_func(_CALLBACK)
    tvm_ffi.register_global_func(_CALLBACK, compiler, override=True)
    try:
        yield
    finally:
        tvm_ffi.register_global_func(_CALLBACK, usual, override=True)


def _launch_of(attributes: Any) -> tuple[int, int]:
    extents = attributes["thread_extent"]
    threads = 1
    for axis in "xyz":
        threads *= int(extents.get(f"threadIdx.{axis}", 1))
    return threads, int(attributes.get("dyn_shared_memory_buf", 0))


def _launcher(kernel: Any) -> Callable[[Launch], None]:
    function = entry_function(kernel)

    def run(launch: Launch) -> None:
        function(*launch.arguments.values())

    return run
