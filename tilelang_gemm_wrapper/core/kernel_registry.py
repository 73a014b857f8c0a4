"""kernel_type -> builder and search space, for each architecture that TileLang kernels exist for."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from tilelang_gemm_wrapper.core.config import KernelConfig, splits_of, why_invalid
from tilelang_gemm_wrapper.core.device import Device

_MODULES = {
    "base": "base",
    "swapAB": "swap_ab",
    "splitK": "split_k",
    "splitK_swapAB": "split_k_swap_ab",
}

# A hand-specialised kernel must not be specialised a second time by TileLang's own pass.
_PASS_CONFIGS: dict[str, dict[str, Any]] = {"sm_90a": {"tl.disable_warp_specialized": True}, "sm_89": {}}


def build(N: int, K: int, config: KernelConfig, arch: str) -> Any:
    """The TileLang PrimFunc of `config` for `arch` ("sm_90a" or "sm_89"); imports tilelang.

    Parameters of the PrimFunc: A, A_scale, B, B_scale, C and, where `needs_workspace`, the float32 partials.
    """
    module = import_module(f"tilelang_gemm_wrapper.core.kernels.{_MODULES[config.kernel_type]}")
    return getattr(module, arch)(N, K, config)


def pass_configs(arch: str) -> dict[str, Any]:
    """TileLang compiler options of the kernels for `arch`."""
    return _PASS_CONFIGS[arch]


def needs_workspace(config: KernelConfig, arch: str) -> bool:
    """Whether the launch takes a (split_k, M, N) float32 workspace after C."""
    return config.is_split_k and arch != "sm_90a"


def search_space(N: int, K: int, device: Device) -> Iterator[KernelConfig]:
    """Every valid config that a tuner should consider for this (N, K) on `device`."""
    for config in _candidates(K, device):
        if why_invalid(config, N, K, device) is None:
            yield config


def _candidates(K: int, device: Device) -> Iterator[KernelConfig]:
    stages = (3, 4, 5, 6, 8) if device.is_hopper else (2, 3, 4)
    tokens_when_swapped = (8, 16, 32, 64, 128) if device.is_hopper else (16, 32, 64)
    token_rows = (64, 128, 256) if device.is_hopper else (16, 32, 64, 128)
    for split in splits_of(K):
        swapped = "swapAB" if split == 1 else "splitK_swapAB"
        straight = "base" if split == 1 else "splitK"
        for threads in (128, 256):
            for num_stages in stages:
                for weights in (64, 128):
                    for tokens in tokens_when_swapped:
                        yield KernelConfig(swapped, weights, tokens, 128, num_stages, threads, split)
                for tokens in token_rows:
                    for weights in (16, 32, 64, 128):
                        yield KernelConfig(straight, tokens, weights, 128, num_stages, threads, split)
