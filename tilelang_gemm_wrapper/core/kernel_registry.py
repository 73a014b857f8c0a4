"""kernel_type -> builder and search space, for each architecture that TileLang kernels exist for."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from tilelang_gemm_wrapper.core import code_identity, kernels
from tilelang_gemm_wrapper.core.config import SCALE_BLOCK, KernelConfig, splits_of, why_invalid
from tilelang_gemm_wrapper.core.device import Device
from tilelang_gemm_wrapper.core.kernels import build_settings

_MODULES = {
    "base": "base",
    "swapAB": "swap_ab",
    "splitK": "split_k",
    "splitK_swapAB": "split_k_swap_ab",
}

FULL_HOPPER_SMS = 132  # of H100 SXM, H200 and GH200


def build(
    N: int,
    K: int,
    config: KernelConfig,
    arch: str,
    static_weights: bool = False,
    sm_count: int = FULL_HOPPER_SMS,
) -> Any:
    """The TileLang PrimFunc of `config` for `arch` ("sm_90a" or "sm_89"); imports tilelang.

    Parameters of the PrimFunc: A, A_scale, B, B_scale, C and, where `needs_workspace`, the float32 partials.
    static_weights: whether Hopper's kernels may read B before the stream's preceding kernel is done.
    sm_count: how many SMs share out the tiles of Hopper's persistent `base`; another number is only slower.
    """
    module = import_module(f"{kernels.__name__}.{_MODULES[config.kernel_type]}")
    builder = getattr(module, arch)
    if arch != "sm_90a":
        return builder(N, K, config)
    if config.kernel_type == "base":
        return builder(N, K, config, static_weights, sm_count)
    return builder(N, K, config, static_weights)


# A hand-specialised kernel must not be specialised a second time by TileLang's own pass. Its roles are told
# apart by a warp index that TileLang's search for missing barriers cannot follow; each is written out.
_PASS_CONFIGS: dict[str, dict[str, Any]] = {
    "sm_90a": {"tl.disable_warp_specialized": True, "tl.disable_thread_storage_sync": True},
    "sm_89": {},
}


ARCHITECTURES = tuple(_PASS_CONFIGS)


def pass_configs(arch: str) -> dict[str, Any]:
    """TileLang compiler options of the kernels for `arch`."""
    return _PASS_CONFIGS[arch]


def build_options(arch: str) -> dict[str, Any]:
    """What is built into every kernel for `arch`, whatever its job."""
    return {
        "pass_configs": _PASS_CONFIGS.get(arch),
        "lanes_that_arrive": build_settings.lanes_that_arrive,
    }


def sources() -> str:
    """Names the code that builds kernels: comments, layout and the search space have no part in it."""
    builders = [
        (f"{kernels.__name__}.{module}", arch) for module in _MODULES.values() for arch in ARCHITECTURES
    ]
    return code_identity.digest([(__name__, "build"), *builders])


def needs_workspace(config: KernelConfig, arch: str) -> bool:
    """Whether the launch takes a (split_k, M, N) float32 workspace after C."""
    return config.is_split_k and arch != "sm_90a"


def search_space(N: int, K: int, device: Device) -> Iterator[KernelConfig]:
    """Every config worth considering for this (N, K) on `device`: valid, and not pointless for every M."""
    for config in _candidates(K, device):
        if why_invalid(config, N, K, device) is None and not _is_pointless(config, N, K, device):
            yield config


def suits(config: KernelConfig, M: int, N: int, device: Device) -> bool:
    """Whether the token tile is in proportion to M: not mostly padding, nor weights read again and again."""
    tokens = config.tile_tokens
    area = config.block_M * config.block_N
    if (M >= 2048 and area < 64 * 128) or (M >= 512 and area < 64 * 64):
        return False
    if config.is_split_k:
        tiles = -(-M // tokens) * -(-N // config.tile_weights)
        if M > 2048 or tiles >= 3 * device.sm_count:
            return False
    if config.is_swap_ab:
        return M <= 1024 and tokens <= max(2 * M, 8, _least_swapped(device)) and 16 * tokens >= M
    return tokens <= max(2 * M, 64)


def _least_swapped(device: Device) -> int:
    return 8 if device.is_hopper else 16


def _is_pointless(config: KernelConfig, N: int, K: int, device: Device) -> bool:
    """A ring deeper than the K steps that fill it, or K split where the tiles along N fill the SMs anyway."""
    tiles = -(-N // config.tile_weights)
    if config.is_split_k and (tiles >= 2 * device.sm_count or tiles * config.split_k > 4 * device.sm_count):
        return True
    return config.num_stages > max(3, K // SCALE_BLOCK // config.split_k)


def _candidates(K: int, device: Device) -> Iterator[KernelConfig]:
    candidates = _hopper_candidates if device.is_hopper else _ada_candidates
    for split in splits_of(K):
        yield from candidates(split)


# Hopper's swapped tiles: threads -> tokens up to which they lead anywhere in the kept tuning journals.
_HOPPER_SWAPPED = {128: 32, 256: 64}

# Hopper's straight tiles: rows -> the threads and rings worth trying. 64 rows are shared by two or three
# warpgroups in turns, which the ring's stages must allow; each warpgroup of a taller tile has 64 of its own,
# or 128 in two waves, of which one width is worth it.
_HOPPER_ROWS = {
    64: ((256, (4, 6, 8, 10)), (384, (6,))),
    128: ((256, (3, 4, 5, 6)),),
    192: ((384, (3, 4)),),
    256: ((256, (3,)),),
}
_WIDTHS_IN_WAVES = (128,)
# A ring so deep leads nowhere but with tiles so narrow that two CTAs with a shorter one fit on an SM, where
# some SMs then have two and others none.
_RING_OF_NARROW_TILES, _NARROW_TILE = 10, 32


def _hopper_candidates(split: int) -> Iterator[KernelConfig]:
    for threads, most_tokens in _HOPPER_SWAPPED.items():
        for stages in (3, 4, 6, 8):
            for weights in (64, 128):
                for tokens in (8, 16, 32, 64):
                    if tokens <= most_tokens:
                        yield _candidate(True, weights, tokens, stages, threads, split)
    for rows, variants in _HOPPER_ROWS.items():
        for threads, rings in variants:
            for stages in rings:
                widest = 192 if stages < _RING_OF_NARROW_TILES else _NARROW_TILE
                for weights in _WIDTHS_IN_WAVES if rows > 192 else range(16, widest + 1, 16):
                    yield _candidate(False, rows, weights, stages, threads, split)


def _ada_candidates(split: int) -> Iterator[KernelConfig]:
    for threads in (128, 256):
        for stages in (2, 3, 4):
            for weights in (64, 128):
                for tokens in (16, 32, 64):
                    yield _candidate(True, weights, tokens, stages, threads, split)
            for rows in (16, 32, 64, 128):
                for weights in (16, 32, 64, 128):
                    yield _candidate(False, rows, weights, stages, threads, split)


def _candidate(
    swapped: bool, block_M: int, block_N: int, stages: int, threads: int, split: int
) -> KernelConfig:
    kinds = ("base", "splitK", "swapAB", "splitK_swapAB")
    return KernelConfig(kinds[2 * swapped + (split > 1)], block_M, block_N, 128, stages, threads, split)
