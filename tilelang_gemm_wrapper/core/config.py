"""`KernelConfig`: which kernel, with which tile; and `why_invalid`, the one judge of it."""

from __future__ import annotations

from dataclasses import dataclass

from tilelang_gemm_wrapper.core.device import Device

TILELANG_KERNELS = ("base", "swapAB", "splitK", "splitK_swapAB")
FALLBACK_KERNELS = ("deep_gemm", "triton")
KERNEL_TYPES = TILELANG_KERNELS + FALLBACK_KERNELS

SCALE_BLOCK = 128  # width of a scale block along K, hence the only block_K: one fp32 promotion a K step
MAX_BLOCK = 256  # the widest WGMMA; taller tiles than four of its 64 rows spill
MATH_THREADS = (128, 256, 384)
MAX_SPLIT_K = 8  # Hopper's portable cluster size: the partial sums of a tile meet in one cluster


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """One way to run a problem.

    The MMA tile is `block_M` x `block_N`. For base and splitK block_M runs along M (tokens) and block_N along
    N (weights); the swapAB kinds compute C^T = B A^T, so there block_M runs along N and block_N along M.
    `threads` counts math threads (128, 256 or 384); on Hopper the kernel adds loading warps of its own.
    `num_stages` 0 and 1 both mean a single buffer. The fallback kinds (deep_gemm, triton) use no other field.
    """

    kernel_type: str
    block_M: int = 0
    block_N: int = 0
    block_K: int = SCALE_BLOCK
    num_stages: int = 0
    threads: int = 0
    split_k: int = 1

    @property
    def is_tilelang(self) -> bool:
        return self.kernel_type in TILELANG_KERNELS

    @property
    def is_swap_ab(self) -> bool:
        return self.kernel_type in ("swapAB", "splitK_swapAB")

    @property
    def is_split_k(self) -> bool:
        return self.kernel_type in ("splitK", "splitK_swapAB")

    @property
    def tile_tokens(self) -> int:
        """Rows of C (along M) that one tile covers."""
        return self.block_N if self.is_swap_ab else self.block_M

    @property
    def tile_weights(self) -> int:
        """Columns of C (along N) that one tile covers."""
        return self.block_M if self.is_swap_ab else self.block_N


def splits_of(K: int) -> list[int]:
    """Into how many equal parts K can be split, ascending: 1 and whatever else divides its K steps."""
    return [split for split in range(1, MAX_SPLIT_K + 1) if K // SCALE_BLOCK % split == 0]


def why_invalid(config: KernelConfig, N: int, K: int, device: Device) -> str | None:
    """Why `config` cannot run a problem of this N and K on `device`, or None where it can.

    Loader, tuner and run time all ask here. The answer is a clause that names field, value, reason and, where
    there is one, the remedy; the caller adds where the config came from.
    """
    if config.kernel_type not in KERNEL_TYPES:
        return f"kernel_type is {config.kernel_type!r}; expected one of {', '.join(KERNEL_TYPES)}"
    if not config.is_tilelang:
        return _why_fallback_invalid(config, N, K, device)
    return (
        _why_problem_unfit(config, N, K, device)
        or _why_tile_invalid(config, device)
        or _why_split_invalid(config, K)
        or _why_kernel_refuses(config, N, K, device)
    )


def _why_fallback_invalid(config: KernelConfig, N: int, K: int, device: Device) -> str | None:
    from tilelang_gemm_wrapper import backends  # the module of a backend imports torch

    if config != KernelConfig(config.kernel_type):
        return f"kernel_type {config.kernel_type!r} takes no tile, stages, threads or split_k; leave them out"
    if not device.is_cuda:
        return f"kernel_type {config.kernel_type!r} needs a CUDA device and this is {device.name}"
    if config.kernel_type == "deep_gemm" and not device.is_hopper:
        return f"kernel_type 'deep_gemm' needs Hopper and {device.name} is {device.arch}; use 'triton'"
    why = backends.backend(config.kernel_type).why_unsupported(N, K)
    return f"kernel_type {config.kernel_type!r}: {why}; use 'triton'" if why else None


def _why_problem_unfit(config: KernelConfig, N: int, K: int, device: Device) -> str | None:
    if not device.runs_tilelang:
        return (
            f"kernel_type {config.kernel_type!r} is built for sm_90a and sm_89 and {device.name} is "
            f"{device.arch}; use a fallback kernel"
        )
    if N <= 0 or N % 16:
        return f"N = {N} is not a positive multiple of 16, as the TileLang kernels need; use 'triton'"
    if K <= 0 or K % SCALE_BLOCK:
        return f"K = {K} is not a positive multiple of 128, as the TileLang kernels need; use 'triton'"
    return None


def _why_tile_invalid(config: KernelConfig, device: Device) -> str | None:
    if config.block_K != SCALE_BLOCK:
        return f"block_K = {config.block_K}; the 128-wide scale blocks allow {SCALE_BLOCK} alone"
    # A WGMMA has 64 rows, an m16n8k32 MMA 16; either has a multiple of 8 columns.
    rows = 64 if device.is_hopper else 16
    for field, value, unit in (("block_M", config.block_M, rows), ("block_N", config.block_N, 8)):
        if not unit <= value <= MAX_BLOCK or value % unit:
            return f"{field} = {value}; {device.arch} needs a multiple of {unit} from {unit} to {MAX_BLOCK}"
    if config.threads not in MATH_THREADS:
        return f"threads = {config.threads}; expected one of {', '.join(map(str, MATH_THREADS))} math threads"
    if config.num_stages < 0:
        return f"num_stages = {config.num_stages}; expected 0 or more"
    return None


def _why_split_invalid(config: KernelConfig, K: int) -> str | None:
    if not config.is_split_k:
        if config.split_k == 1:
            return None
        split_kind = "splitK_swapAB" if config.is_swap_ab else "splitK"
        return f"split_k = {config.split_k} with kernel_type {config.kernel_type!r}; use 1, or {split_kind!r}"
    steps = K // SCALE_BLOCK
    fitting = splits_of(K)[1:]
    if config.split_k in fitting:
        return None
    remedy = f"use one of {', '.join(map(str, fitting))}" if fitting else "use a kernel without split"
    return (
        f"split_k = {config.split_k}; it must be 2 to {MAX_SPLIT_K} and divide the {steps} "
        f"steps of {SCALE_BLOCK} along K = {K}: {remedy}"
    )


def _why_kernel_refuses(config: KernelConfig, N: int, K: int, device: Device) -> str | None:
    from tilelang_gemm_wrapper.core.kernels import resources  # it imports KernelConfig from here

    refusal = resources.why_unbuildable(config, N, K, device.arch)
    if refusal is not None:
        return refusal
    needed = resources.shared_memory_bytes(config, N, K, device.arch)
    if needed > device.shared_memory_per_block:
        return (
            f"num_stages = {config.num_stages} of {config.block_M} x {config.block_N} tiles needs {needed} "
            f"bytes of shared memory and a block on {device.name} has {device.shared_memory_per_block}; "
            f"use fewer stages or a smaller tile"
        )
    return None
