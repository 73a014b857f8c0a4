"""`gemm_nt_f8f8bf16` and its company: validate, select, launch. The only file a caller needs to read."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.compiler import is_compiling

from tilelang_gemm_wrapper import backends
from tilelang_gemm_wrapper.core import compile_cache, wrapper
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES, Device, canonical_name, cpu_device, device_of
from tilelang_gemm_wrapper.core.dispatch import build_table
from tilelang_gemm_wrapper.core.problem import check_tensors, checked_problem, operand_problem
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


def explain(M: int, N: int, K: int, device: str | Device | None = None) -> Explanation:
    """Which kernel a call with this M, N, K runs, from which file, and why; nothing is compiled or launched.

    device: a device name such as "NVIDIA_H200" (one of `core.device.KNOWN_DEVICES` or an alias), a `Device`,
        or None for the current CUDA device, the CPU where there is none. What is installed is judged on this
        machine.
    """
    for name, value, least in (("M", M, 0), ("N", N, 1), ("K", K, 1)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}, expected a whole number of at least {least}")
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
    device: int | None = None,
    progress: bool = True,
    static_weights: bool | None = None,
    fallbacks: bool = True,
) -> int:
    """Compile and load every kernel that calls with these (N, K) and M up to `m_max` can need.

    TileLang kernels are compiled in parallel processes into a cache that later processes find; backends that
    the tables name (DeepGEMM, Triton) compile what they pick for the M at which the tables switch to them.

    device: CUDA device index; None for the current one. progress: show a progress bar. static_weights:
    whether the kernels of these shapes may read B early, from now on; None leaves it to
    TILELANG_GEMM_STATIC_WEIGHTS. fallbacks: whether to warm up and name what takes the place of kernels that
    fail to compile; an engine has its own GEMM for that.
    Returns how many TileLang kernels the cache did not have. Does nothing off-GPU. Call it before capturing
    CUDA graphs.
    """
    if not torch.cuda.is_available():
        return 0
    index = torch.cuda.current_device() if device is None else device
    gemms = [wrapper.gemm_for(N, K, index, static_weights) for N, K in dict.fromkeys(shapes)]
    wanted = [gemm.job(position) for gemm in gemms for position in gemm.reachable(m_max)]
    jobs = [job for job in wanted if job is not None]
    missing = sum(not compile_cache.is_compiled(job) for job in dict.fromkeys(jobs))
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
                _warm_backend(gemm, position, m_max, index)
    return missing


def _warm_backend(gemm: wrapper.Gemm, position: int, m_max: int, index: int) -> None:
    bounds = gemm.table.bounds
    first = bounds[position - 1] + 1 if position else 1
    last = m_max if position == len(bounds) - 1 else min(bounds[position], m_max)
    # Backends pick by M too; the ends of the range and the powers of two in between cover their tiles.
    m_values = sorted({first, last, *(1 << p for p in range(m_max.bit_length()) if first <= 1 << p <= last)})
    backend = backends.backend(gemm.choices[position].kernel)
    backend.warmup(gemm.table.N, gemm.table.K, m_values, torch.device("cuda", index))


def _device(device: str | Device | None) -> Device:
    if isinstance(device, Device):
        return device
    if device is None:
        return device_of(torch.cuda.current_device()) if torch.cuda.is_available() else cpu_device()
    known = KNOWN_DEVICES.get(canonical_name(device)) if isinstance(device, str) else None
    if known is None:
        raise ValueError(f"device is {device!r}, expected one of {', '.join(KNOWN_DEVICES)} or an alias")
    return known


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
