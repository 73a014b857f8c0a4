"""The choice for shapes that nobody tuned: what the cost model takes for the fastest, never wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tilelang_gemm_wrapper.core import kernel_registry
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.config_entry import Entry
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


def continued(tuned: Sequence[Entry], N: int, K: int, device: Device) -> list[Entry]:
    """The entries of a tuned file, and above them the default choice's: each serves up to its `M`.

    tuned: in ascending M. Its last entry serves below twice its M, where its tile is still in proportion, and
    the default choice from there on. A file that reaches that half of the default choice's last M keeps every
    larger M: at so many tokens, what was measured is the better guess. That holds for no kernel whose
    workspace grows with M.
    """
    if not tuned:
        return []
    last = tuned[-1]
    reach = 2 * last.M
    needs_workspace = kernel_registry.needs_workspace(last.config, device.arch)
    if reach > _M_VALUES[-1] and not needs_workspace:
        return list(tuned)
    defaults = default_entries(N, K, device)
    above = [(M, config) for M, config in defaults if reach <= M]
    if not above and needs_workspace:
        above = [(reach, config) for _, config in defaults[-1:]]
    if not above:
        return list(tuned)
    return [*tuned[:-1], replace(last, M=reach - 1), *(Entry(M, config) for M, config in above)]
