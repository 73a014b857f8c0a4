"""Helpers for tests of whole runs: a driver in this process on a simulated GPU, and what it should find."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from simulated_gpu import true_us

from tilelang_gemm_wrapper.core import kernel_registry
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.config_file import ConfigFile, config_file_name, parse_config_file
from tilelang_gemm_wrapper.core.config_loader import choose
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES, Device
from tilelang_gemm_wrapper.core.tuner.child import ChildLimits
from tilelang_gemm_wrapper.core.tuner.cluster import Cluster, LocalCompiler, LocalGpu
from tilelang_gemm_wrapper.core.tuner.driver import Driver, Listener, ShapeResult
from tilelang_gemm_wrapper.core.tuner.effort import EFFORTS
from tilelang_gemm_wrapper.core.tuner.search import PEERS

H200 = KNOWN_DEVICES["NVIDIA_H200"]
BENCH = "simulated_gpu:SimulatedGpu"
COMPILER = "simulated_gpu"
WITHIN = 1.03


class Recorder(Listener):
    """Keeps what a run told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.records: list[tuple[str, object]] = []

    def recorded(self, gpu: str, record: object) -> None:
        self.records.append((gpu, record))

    def warned(self, message: str) -> None:
        self.warnings.append(message)


def tune(
    out: Path,
    shapes: Sequence[tuple[int, int]],
    m_values: Sequence[int],
    *,
    effort: str = "standard",
    resume: bool = False,
    listener: Listener | None = None,
    step_s: float = 30.0,
) -> list[ShapeResult]:
    """A run in this process; the caller has set what is simulated."""
    limits = ChildLimits(start_s=60.0, open_s=60.0, step_s=step_s)
    cluster = Cluster([LocalCompiler(module=COMPILER)], [LocalGpu(bench=BENCH, limits=limits)])
    try:
        return Driver(cluster, shapes, m_values, EFFORTS[effort], out, resume=resume, listener=listener).run()
    finally:
        cluster.close()


def written(out: Path, N: int, K: int, device: Device = H200) -> ConfigFile:
    """The file of a shape, which every entry of has to be usable."""
    file = parse_config_file(out / config_file_name(N, K, device.name), N, K, device)
    assert not file.refused
    return file


def assert_near_optimum(
    file: ConfigFile, m_values: Iterable[int], device: Device = H200, without: Iterable[KernelConfig] = ()
) -> None:
    """What the file gives each M is within 3 % of the best of the whole search space and the peers."""
    losses = losses_by_m(file, m_values, device, without)
    assert {M: loss for M, loss in losses.items() if loss > WITHIN} == {}


def losses_by_m(
    file: ConfigFile, m_values: Iterable[int], device: Device = H200, without: Iterable[KernelConfig] = ()
) -> dict[int, float]:
    """What the file gives each M, over the best of the whole search space and the peers at that very M."""
    N, K, left_out = file.N, file.K, set(without)
    space = [c for c in kernel_registry.search_space(N, K, device) if c not in left_out]
    losses = {}
    for M in m_values:
        entry = choose(file.entries, M)
        assert entry is not None
        assert entry.config not in left_out
        suited = [config for config in space if kernel_registry.suits(config, M, N, device)]
        best_us = min(true_us(config, M, N, K, device) for config in (*suited, *PEERS))
        losses[M] = true_us(entry.config, M, N, K, device) / best_us
    return losses
