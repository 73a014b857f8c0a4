"""A GPU and a compiler that only model time, for tests: run in the tuner's real child processes.

`SIMULATED_GPU` (JSON, or a path to such a file) sets: `device`, `speed` (1 is real time; larger sleeps less),
`noise`, and `faults`, a map from fault to the fields that the KernelConfig it befalls must have; `by_gpu` has
other settings for a GPU, named by `SIMULATED_NODE` and its visible index. `log` is a file for what was done.
`true_us` is what the search must find.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES, Device
from tilelang_gemm_wrapper.core.tuner.bench import CandidateError, DeviceLostError, Timed

NAME = os.environ.get("SIMULATED_NODE", "") + os.environ.get("CUDA_VISIBLE_DEVICES", "")


def _settings() -> dict[str, Any]:
    text = os.environ.get("SIMULATED_GPU", "{}")
    settings = json.loads(text if text.startswith("{") else Path(text).read_text())
    return {**settings, **settings.get("by_gpu", {}).get(NAME, {})}


SETTINGS = _settings()


def device() -> Device:
    return KNOWN_DEVICES[SETTINGS.get("device", "NVIDIA_H200")]


def befalls(fault: str, config: KernelConfig) -> bool:
    """Whether `config` is one that the test wants to suffer this fault."""
    wanted = SETTINGS.get("faults", {}).get(fault)
    return wanted is not None and all(getattr(config, name) == value for name, value in wanted.items())


def true_us(config: KernelConfig, M: int, N: int, K: int, chip: Device) -> float:
    """Time by bytes and waves: DRAM, K steps of each wave, a fixed price for split K, padding paid for."""
    if config.kernel_type == "triton":
        return 3.0 * N * K / chip.dram_bytes_per_s * 1e6 + 20 + 2.0 * M * N * K / 0.6e15 * 1e6
    if config.kernel_type == "deep_gemm":
        # Like the real one it computes whole tiles, and picks bad ones now and then, for whole ranges of M.
        tiles = -(-M // 64)
        flops_per_s = 0.6e15 if tiles > 16 and tiles % 16 < 5 else 1.2e15
        return 1.4 * N * K / chip.dram_bytes_per_s * 1e6 + 3 + 2.0 * 64 * tiles * N * K / flops_per_s * 1e6
    tokens, weights = config.tile_tokens, config.tile_weights
    clusters = -(-M // tokens) * -(-N // weights)
    waves = -(-clusters // (2 * clusters_at_once(config.split_k, chip)))
    steps = K / 128 / config.split_k
    hidden = min(config.num_stages, 6) / 6
    step_us = 0.05 + 6e-5 * tokens * weights * (128 / config.threads) ** 0.3
    dram_us = (N * K + M * K + 2 * M * N) / chip.dram_bytes_per_s * 1e6
    waves_us = waves * (steps * step_us / hidden + 0.2)
    # The smoother maximum: what is hidden behind the longer one still costs something.
    return 2.0 + (dram_us**4 + waves_us**4) ** 0.25 + (1.0 if config.is_split_k else 0.0)


def clusters_at_once(ctas: int, chip: Device) -> int:
    """A cluster lies in one GPC, and these differ: 18 SMs in some, what is left over in the last."""
    whole, rest = divmod(chip.sm_count, 18)
    return whole * (18 // ctas) + rest // ctas


class SimulatedGpu:
    def __init__(self) -> None:
        if "dies" in SETTINGS.get("start", ""):
            raise RuntimeError("no device is visible")
        self._random = random.Random(SETTINGS.get("seed", 0))
        self._log(f"start {os.getpid()}")

    def device(self) -> Device:
        return device()

    def environment(self) -> dict[str, Any]:
        return {"gpu": device().name, "driver": "simulated", "kernels": SETTINGS.get("kernels", "1")}

    def open(self, N: int, K: int, m_max: int) -> dict[str, Any]:
        if SETTINGS.get("cannot_open") == [N, K]:
            raise MemoryError("the weights do not fit")
        self._shape = N, K
        self._log(f"open {N} {K} {os.getpid()}")
        return {
            "floor_us": N * K / device().dram_bytes_per_s * 1e6,
            "sm_clock_mhz": 1980.0,
            "temperature_c": 40.0,
            "power_w": 300.0,
            "warnings": SETTINGS.get("warnings", []),
        }

    def check(self, config: KernelConfig, M: int) -> float:
        self._log(f"check {M} {config}")
        if befalls("hang", config):
            time.sleep(3600)
        if befalls("crash", config):
            os.kill(os.getpid(), signal.SIGSEGV)
        if befalls("illegal_access", config):
            raise DeviceLostError("illegal_access", "an illegal memory access was encountered")
        if befalls("out_of_memory", config):
            raise CandidateError("out_of_memory", "CUDA out of memory")
        if befalls("wrong", config):
            raise CandidateError("wrong", "error 0.1 is above 3e-06")
        return 1.4e-6

    def time(self, configs: list[KernelConfig], M: int, budget_ms: float, rounds: int) -> list[Timed]:
        timed = []
        for config in configs:
            if befalls("hang_when_timed", config):
                time.sleep(3600)
            if befalls("error_when_timed", config):
                raise CandidateError("error", "a capture failed")
            us = true_us(config, M, *self._shape, device())
            if befalls("wrong", config):
                us = 0.5  # fast and wrong: it must not win
            us *= 1 + self._random.uniform(-1, 1) * SETTINGS.get("noise", 0.0)
            timed.append(Timed(us, us, us, 5))
        time.sleep(budget_ms * len(configs) / 1e3 / SETTINGS.get("speed", 10.0))
        for config in configs:
            self._log(f"timed {self._shape} {M} {budget_ms} {config}")
        return timed

    def _log(self, line: str) -> None:
        path = SETTINGS.get("log")
        if path:
            with open(path, "a") as file:
                file.write(f"{NAME} {line}\n")


def _serve_compiles() -> None:
    """A compiler that succeeds at once, but for the faults."""
    for line in sys.stdin:
        fields = json.loads(line)
        error = None
        if "config" in fields:
            config = KernelConfig(**fields["config"])
            if befalls("compile_error", config):
                error = "ptxas: too many registers"
            if befalls("compile_hang", config):
                time.sleep(3600)
            if befalls("compile_crash", config):
                os._exit(9)
        print(json.dumps({"error": error}), flush=True)


if __name__ == "__main__":
    _serve_compiles()
