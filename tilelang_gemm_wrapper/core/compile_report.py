"""Cross-compile a kernel without a GPU and read off what it will need: registers, shared memory, spills."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tilelang_gemm_wrapper.core import kernel_registry
from tilelang_gemm_wrapper.core.compile_cache import tilelang_module
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.cuda_toolchain import cubin_of, ptx_of

# The PTX instructions that show which path a kernel takes through the chip.
INSTRUCTIONS = {
    "wgmma e4m3": r"wgmma\.mma_async\.sync\.aligned\.m64n\d+k32\.f32\.e4m3\.e4m3",
    "mma e4m3": r"mma\.sync\.aligned\.m16n8k32\.row\.col\.f32\.e4m3\.e4m3\.f32",
    "TMA load": r"cp\.async\.bulk\.tensor\.\dd\.shared::\w+\.global",
    "TMA store": r"cp\.async\.bulk\.tensor\.\dd\.global\.shared::cta",
    "cp.async": r"cp\.async\.c[ag]\.shared\.global",
    "ldmatrix": r"ldmatrix\.sync",
    "cluster store": r"st\.async\.shared::cluster",
}


@dataclass(frozen=True, slots=True)
class CompileReport:
    """What the compiler said of one kernel; the figures of its worst launch where it has two."""

    registers: int  # a thread
    shared_memory_bytes: int  # a CTA, static and dynamic
    spill_bytes: int  # stores and loads
    stack_bytes: int  # a thread: registers that are kept in memory, because an index to them is not constant
    instructions: Counter[str] = field(default_factory=Counter)  # static counts, by name in INSTRUCTIONS
    ptx: str = field(default="", repr=False)


def cross_compile(N: int, K: int, config: KernelConfig, arch: str) -> CompileReport:
    """Compile `config` for `arch` ("sm_90a" or "sm_89") to a cubin with the local CUDA toolkit.

    Raises RuntimeError where nvcc is missing, or it or ptxas rejects the kernel.
    """
    tilelang_module()
    function = kernel_registry.build(N, K, config, arch)
    return cross_compile_primfunc(function, arch, kernel_registry.pass_configs(arch))


def cross_compile_primfunc(function: Any, arch: str, pass_configs: Mapping[str, Any]) -> CompileReport:
    """As `cross_compile`, of any TileLang PrimFunc."""
    tilelang = tilelang_module()
    tvm = tilelang.tvm
    target = tvm.target.Target({"kind": "cuda", "arch": arch})
    with tvm.transform.PassContext(config=dict(pass_configs)), target:
        artifact = tilelang.lower(function, target=target)
    dynamic = max(
        int(function.attrs.get("dyn_shared_memory_buf", 0))
        for function in artifact.device_mod.functions.values()
    )
    include = Path(tilelang.__file__).parent
    includes = [f"-I{include / 'src'}", f"-I{include / '3rdparty/cutlass/include'}"]
    # TileLang's own compilation gives nvcc this flag for that pass config.
    fast_math = ["--use_fast_math"] if pass_configs.get("tl.enable_fast_math") else []
    ptx = ptx_of(artifact.kernel_source, arch, ["-std=c++17", "-w", *fast_math, *includes])
    # ptxas refuses a kernel above the static limit; the dynamic part it does not know.
    _, info = cubin_of(ptx, arch)
    return CompileReport(
        registers=max(_figures(r"Used (\d+) registers", info)),
        shared_memory_bytes=dynamic + max(_figures(r"(\d+) bytes smem", info), default=0),
        spill_bytes=sum(_figures(r"(\d+) bytes spill", info)),
        stack_bytes=max(_figures(r"(\d+) bytes stack frame", info)),
        instructions=Counter({name: len(re.findall(pattern, ptx)) for name, pattern in INSTRUCTIONS.items()}),
        ptx=ptx,
    )


def _figures(pattern: str, text: str) -> list[int]:
    return [int(figure) for figure in re.findall(pattern, text)]
