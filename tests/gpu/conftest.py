"""Tests that launch kernels: skipped, with the reason, where no Hopper GPU is present."""

from __future__ import annotations

import pytest
import torch

from tilelang_gemm_wrapper.core.compile_cache import CompileJob, compile_many
from tilelang_gemm_wrapper.core.device import device_of

from .cases import ALL_CONFIGS, SHAPES, valid


def _why_skipped() -> str | None:
    if not torch.cuda.is_available():
        return "needs a Hopper GPU; no CUDA device is present"
    device = device_of(0)
    return None if device.is_hopper else f"needs a Hopper GPU; {device.name} is {device.arch}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = _why_skipped()
    if reason is not None:
        for item in items:
            if "/gpu/" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def compiled() -> None:
    """Compile what the variant tests use in parallel; alone each kernel takes seconds."""
    device = device_of(0)
    failures = compile_many(
        CompileJob.on(N, K, config, device)
        for N, K in SHAPES
        for config in ALL_CONFIGS
        if valid(config, N, K)
    )
    assert not failures, failures
