"""`gemm_nt_f8f8bf16` and its company: validate, select, launch. The only file a caller needs to read."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.compiler import is_compiling

from tilelang_gemm_wrapper import backends
from tilelang_gemm_wrapper.core import compile_cache, wrapper
from tilelang_gemm_wrapper.core.arguments import size_of
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.device import Device, cpu_device, device_of, known_device, why_no_cuda
from tilelang_gemm_wrapper.core.dispatch import build_table, why_shape_unfit
from tilelang_gemm_wrapper.core.failure_text import first_line
from tilelang_gemm_wrapper.core.problem import check_tensors, checked_problem, is_nested, operand_problem
from tilelang_gemm_wrapper.core.progress import progress_bar

logger = logging.getLogger(__name__)


def gemm_nt_f8f8bf16(
    A: tuple[torch.Tensor, torch.Tensor],
    B: tuple[torch.Tensor, torch.Tensor],
    C: torch.Tensor | None = None,
) -> torch.Tensor:
    """C = (A * A_scale) @ (B * B_scale).T for FP8 operands with block scales.

    A: (values, scales): values (M, K) float8_e4m3fn, row-major; scales (M, ceil(K / 128)) float32, row-major
        or column-major (stride (1, >= M), as TMA-aligned quantisers give); neither is copied.
    B: (values, scales): values (N, K) float8_e4m3fn, row-major; scales (ceil(N / 128), ceil(K / 128))
        float32.
    C: (M, N) bfloat16, row-major, written in place and returned; allocated where None.

    All tensors on one device, A, B and C 16-byte aligned. M = 0 returns at once. NaN and Inf propagate.
    Products are accumulated in float32, each 128-wide step of K under its own scales; results repeat bit for
    bit.

    Runs on the current CUDA stream, in CUDA graphs (after `warmup`) and under torch.compile. Raises TypeError
    or ValueError, before any launch, for tensors that do not fit.
    """
    try:
        A_values, A_scale = A
        B_values, B_scale = B
        if C is None:
            shape = A_values.shape[0], B_values.shape[0]
            C = torch.empty(shape, dtype=torch.bfloat16, device=A_values.device)
    except (AttributeError, IndexError, TypeError, ValueError):
        raise operand_problem(A, B) from None
    except RuntimeError:
        if is_nested(A) or is_nested(B):
            raise operand_problem(A, B) from None
        raise  # out of memory
    if type(A_values) is torch.Tensor and not is_compiling():
        _launch(A_values, A_scale, B_values, B_scale, C)
    else:  # traced, fake or subclassed tensors go through the dispatcher
        check_tensors(A_values, A_scale, B_values, B_scale, C)
        torch.ops.tilelang_gemm.gemm_nt_f8f8bf16(A_values, A_scale, B_values, B_scale, C)
    return C


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which kernel would run a problem and why. `str()` gives a readable line, and one for each note.

    notes: what was refused or replaced on the way, and what else is worth knowing of the choice.
    """

    M: int
    N: int
    K: int
    device: str
    kernel: str
    config: KernelConfig | None
    source: str
    reason: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        tile = ""
        if self.config is not None:
            c = self.config
            tile = f" {c.block_M}x{c.block_N}x{c.block_K}, {c.num_stages} stages, {c.threads} threads"
            tile += f", split_k {c.split_k}" if c.split_k > 1 else ""
        problem = f"M={self.M}, N={self.N}, K={self.K} on {self.device}"
        first = f"{problem}: {self.kernel}{tile} [{self.source}: {self.reason}]"
        return "\n".join((first, *(f"  {note}" for note in self.notes)))


def explain(M: int, N: int, K: int, device: str | int | torch.device | Device | None = None) -> Explanation:
    """Which kernel a call with this M, N, K runs, from which file, and why; nothing is compiled or launched.

    device: a chip by name, such as "NVIDIA_H200" (one of `core.device.KNOWN_DEVICES` or an alias), or as a
        `Device`; a device of this machine as CUDA index, "cuda:1", "cpu" or torch.device; None for the
        current CUDA device, the CPU where there is none. What is installed is judged on this machine.

    Raises ValueError for sizes that are no whole numbers and for an unknown device, RuntimeError for a CUDA
    device that torch does not see.
    """
    M, N, K = size_of("M", M, 0), size_of("N", N, 1), size_of("K", K, 1)
    target = _device(device)
    if M == 0:
        return Explanation(M, N, K, target.name, "none", None, "entrypoint", "M = 0 has nothing to compute")
    table = build_table(N, K, target)
    choice = table.choices[table.index(M)]
    notes = (*table.notes, *(remark.text for remark in table.remarks))
    return Explanation(
        M, N, K, target.name, choice.kernel, choice.config, choice.source, choice.reason, notes
    )


def warmup(
    shapes: Iterable[tuple[int, int]],
    m_max: int = 8192,
    device: int | str | torch.device | None = None,
    progress: bool = True,
    static_weights: bool | None = None,
    fallbacks: bool = True,
) -> int:
    """Compile and load every kernel that calls with these (N, K) and M up to `m_max` can need.

    TileLang kernels are compiled in parallel processes into a cache that later processes find; backends that
    the tables name (DeepGEMM, Triton) compile what they pick for the M at which the tables switch to them.

    device: CUDA device as index, "cuda:1" or torch.device; None for the current one. progress: show a
    progress bar. static_weights: whether the kernels of these shapes may read B early, from now on; None
    leaves it to TILELANG_GEMM_STATIC_WEIGHTS. fallbacks: whether to warm up and name what takes the place of
    kernels that fail to compile; an engine has its own GEMM for that.

    Returns how many TileLang kernels the cache did not have. Without a GPU, and for the CPU, it checks its
    arguments and does nothing. Call it before capturing CUDA graphs.

    Raises ValueError for shapes that are no pairs of whole numbers, an `m_max` or a device that is none,
    RuntimeError for a CUDA device that torch does not see.
    """
    return warm_up(shapes, m_max, device, progress, static_weights, fallbacks).missing


@dataclass(frozen=True, slots=True)
class Warmup:
    """What `warm_up` did. `str()` gives a line, and one more for each reason why shapes have no kernel.

    missing: TileLang kernels that the cache did not have. compiled, cached: those that are loaded, made now
    or found there. failed: those that are not. unserved: why no TileLang kernel takes a (N, K). why_idle:
    why nothing was done.
    """

    missing: int = 0
    compiled: int = 0
    cached: int = 0
    failed: int = 0
    unserved: Mapping[tuple[int, int], str] = field(default_factory=dict)
    why_idle: str | None = None

    def __str__(self) -> str:
        first = f"TileLang kernels: {self.compiled} compiled, {self.cached} already in the cache"
        if self.failed:
            first += f", {self.failed} did not compile: other kernels take their place"
        if self.why_idle is not None:
            first = f"nothing was compiled: {self.why_idle}"
        shapes: dict[str, list[str]] = {}
        for (N, K), why in self.unserved.items():
            shapes.setdefault(why, []).append(f"N={N}, K={K}")
        rest = (f"no TileLang kernel for {'; '.join(those)}: {why}" for why, those in shapes.items())
        return "\n".join((first, *rest))


def warm_up(
    shapes: Iterable[tuple[int, int]],
    m_max: int = 8192,
    device: int | str | torch.device | None = None,
    progress: bool = True,
    static_weights: bool | None = None,
    fallbacks: bool = True,
) -> Warmup:
    """As `warmup`, with an account of what it did."""
    wanted, m_max = _shapes(shapes), size_of("m_max", m_max)
    index = _index(device)
    if index is None:
        expected = 'expected a CUDA index, "cuda:1", a torch.device or None'
        raise ValueError(f"device is {device!r}, {expected}")
    if index == _CPU:
        unfit = {shape: why for shape in wanted if (why := why_shape_unfit(*shape)) is not None}
        idle = why_no_cuda() or "the device is the CPU"
        return Warmup(unserved=unfit, why_idle=f"{idle}, and kernels are compiled for the GPU they run on")
    device_of(index)  # whether there is one
    gemms = [wrapper.gemm_for(N, K, index, static_weights) for N, K in wanted]
    job_of = {
        (gemm, position): job
        for gemm in gemms
        for position in gemm.reachable(m_max)
        if (job := gemm.job(position)) is not None
    }
    jobs = list(job_of.values())
    missing = {job for job in jobs if not compile_cache.is_compiled(job)}
    with progress_bar("compiling FP8 GEMM kernels", "kernel", progress) as show:
        for failure in compile_cache.compile_many(jobs, show):
            logger.warning("%s", failure)
    backends_named: list[tuple[wrapper.Gemm, int]] = []
    for gemm in gemms:
        for position in gemm.reachable(m_max):
            gemm.prepare(position, tell=fallbacks)
            choice = gemm.choices[position]
            if choice.config is None and (fallbacks or choice.source != "fallback"):
                backends_named.append((gemm, position))
    if backends_named:
        with compile_cache.alone("backends"):  # the ranks of an engine share their caches too
            for gemm, position in backends_named:
                try:
                    _warm_backend(gemm, position, m_max, index)
                except Exception as problem:  # any compiler failure
                    if fallbacks:
                        raise
                    choice = gemm.choices[position]
                    why = f"{choice.kernel} did not compile ({first_line(problem)})"
                    gemm.choices[position] = replace(choice, source="fallback", cause=why)
    failed = {job for (gemm, position), job in job_of.items() if gemm.choices[position].config is None}
    return Warmup(
        missing=len(missing),
        compiled=len(missing - failed),
        cached=len(set(jobs) - missing - failed),
        failed=len(failed),
        unserved={
            (gemm.table.N, gemm.table.K): gemm.table.choices[0].reason
            for gemm in gemms
            if all(choice.source == "fallback" for choice in gemm.table.choices)
        },
    )


def _warm_backend(gemm: wrapper.Gemm, position: int, m_max: int, index: int) -> None:
    bounds = gemm.table.bounds
    first = bounds[position - 1] + 1 if position else 1
    last = m_max if position == len(bounds) - 1 else min(bounds[position], m_max)
    # Backends pick by M too; the ends of the range and the powers of two in between cover their tiles.
    m_values = sorted({first, last, *(1 << p for p in range(m_max.bit_length()) if first <= 1 << p <= last)})
    backend = backends.backend(gemm.choices[position].kernel)
    backend.warmup(gemm.table.N, gemm.table.K, m_values, torch.device("cuda", index))


def _shapes(shapes: Any) -> list[tuple[int, int]]:
    """Each (N, K) once, in their order. ValueError names the first that is no pair of whole numbers."""
    expected = "expected pairs (N, K) of whole numbers, as in [(6144, 2560)]"
    try:
        listed = list(shapes)
    except TypeError:
        raise ValueError(f"shapes is {shapes!r}, {expected}") from None
    found = []
    for shape in listed:
        try:
            N, K = shape
        except (TypeError, ValueError):
            raise ValueError(f"shapes has {shape!r}, {expected}") from None
        found.append((size_of(f"N of shape {shape!r}", N, 1), size_of(f"K of shape {shape!r}", K, 1)))
    return list(dict.fromkeys(found))


_CPU = -1  # where an index is meant, as `Tensor.get_device` has it


def _index(device: int | str | torch.device | None) -> int | None:
    """The index of a device of this machine, `_CPU` for the CPU; None where `device` names no such thing."""
    if type(device) is int:
        return device if device >= 0 else None
    if device is None:
        return torch.cuda.current_device() if torch.cuda.is_available() else _CPU
    name = str(device) if isinstance(device, str | torch.device) else ""
    if name == "cpu":
        return _CPU
    cuda = re.fullmatch(r"cuda(?::([0-9]{1,4}))?", name)
    if cuda is None:
        return None
    if cuda[1] is not None:
        return int(cuda[1])
    return torch.cuda.current_device() if torch.cuda.is_available() else 0


def _device(device: str | int | torch.device | Device | None) -> Device:
    if isinstance(device, Device):
        return device
    index = _index(device)
    if index is not None:
        return device_of(index) if index != _CPU else cpu_device()
    if isinstance(device, str):
        return known_device(device)
    raise ValueError(
        f"device is {device!r}, expected the name of a chip such as 'NVIDIA_H200', a CUDA index, or torch's "
        f"name of a CUDA device or the CPU"
    )


def _launch(A, A_scale, B, B_scale, C) -> None:
    launched = wrapper.run_compiled(A, A_scale, B, B_scale, C)
    if launched is True:
        return
    M, N, K, index = checked_problem(A, A_scale, B, B_scale, C)
    if M:
        wrapper.run(M, N, K, index, A, A_scale, B, B_scale, C, launched)


_library = torch.library.Library("tilelang_gemm", "DEF")
_library.define(
    "gemm_nt_f8f8bf16(Tensor A, Tensor A_scale, Tensor B, Tensor B_scale, Tensor(a!) C) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.impl("gemm_nt_f8f8bf16", _launch, "CompositeExplicitAutograd")


@torch.library.register_fake("tilelang_gemm::gemm_nt_f8f8bf16", lib=_library)
def _fake(A, A_scale, B, B_scale, C) -> None:
    """The result is written to C: tracing has nothing to make."""
