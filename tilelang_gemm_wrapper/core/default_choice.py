"""The choice for shapes that nobody tuned: what the cost model takes for the fastest, never wrong."""

from __future__ import annotations

from tilelang_gemm_wrapper.core import kernel_registry
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.cost_model import CostModel
from tilelang_gemm_wrapper.core.device import Device

# Each is a kernel to compile before the first call. Between two of them a tile of the larger is at most half
# padding.
_M_VALUES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def default_entries(N: int, K: int, device: Device) -> list[tuple[int, KernelConfig]]:
    """(M, config) pairs in ascending M, each valid on `device`: up to that M, the last for all larger M too.

    Empty where no TileLang kernel is valid.
    """
    model = CostModel(device)
    space = list(kernel_registry.search_space(N, K, device))
    entries: list[tuple[int, KernelConfig]] = []
    for M in _M_VALUES:
        suited = [config for config in space if kernel_registry.suits(config, M, N, device)]
        if not suited:
            continue
        best = min(suited, key=lambda config: model.predict(config, M, N, K))
        if entries and entries[-1][1] == best:
            entries.pop()
        entries.append((M, best))
    return entries
