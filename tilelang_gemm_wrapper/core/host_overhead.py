"""What one eager call costs the host: Python, checks, dispatch and launch, without the kernel's own time."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .failure_text import first_line
from .results import HostRow

if TYPE_CHECKING:
    from .environment import Environment

TOKENS = 8
CALLS = 20  # a batch: short enough that the launch queue never fills and no call waits for the device
BATCHES = 101


def host_overhead(N: int, K: int, environment: Environment) -> list[HostRow]:
    """Microseconds of host time a call takes at M = 8, on the current CUDA device, a row per provider.

    In inference mode, as engines call it. Beside the package's entrypoint stand DeepGEMM with prepared and
    with row-major scales, cuBLAS, our Triton kernel, and the compiled kernel that the entrypoint ends in,
    called bare.
    """
    import torch

    from .bench_providers import HOST_PROVIDERS, Matrix
    from .device import device_of

    case = Matrix.random(TOKENS, N, K, device_of(torch.cuda.current_device())).case(TOKENS)
    common = environment.as_fields() | {"M": TOKENS, "N": N, "K": K}
    reasons: dict[str, str] = {}
    calls: dict[str, Callable[[int], Any]] = {}
    for name, provider in HOST_PROVIDERS.items():
        try:
            call = provider(case)
            call(0)
        except Exception as failure:
            reasons[name] = first_line(failure)
        else:
            calls[name] = call
    with torch.inference_mode():
        spans = host_us(calls, torch.cuda.synchronize)
    rows = []
    for name in HOST_PROVIDERS:
        if name in reasons:
            rows.append(HostRow(**common, provider=name, reason=reasons[name]))
            continue
        deciles = statistics.quantiles(spans[name], n=10, method="inclusive")
        rows.append(
            HostRow(
                **common,
                provider=name,
                p20_us=deciles[1],
                p50_us=deciles[4],
                p80_us=deciles[7],
                batches=len(spans[name]),
            )
        )
    return rows


def host_us(
    calls: Mapping[str, Callable[[int], Any]],
    synchronize: Callable[[], None],
    *,
    batches: int = BATCHES,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, list[float]]:
    """Host microseconds a call, one figure a batch of `CALLS`, the providers' batches interleaved.

    `synchronize` empties the device's queue before each batch; `clock` gives nanoseconds.
    """
    spans: dict[str, list[float]] = {name: [] for name in calls}
    collecting = gc.isenabled()
    gc.disable()  # a collection would fall on whichever provider runs then
    try:
        for _ in range(batches + 1):
            for name, call in calls.items():
                synchronize()
                start = clock()
                for _ in range(CALLS):
                    call(0)
                spans[name].append((clock() - start) / 1e3 / CALLS)
    finally:
        synchronize()
        if collecting:
            gc.enable()
    return {name: figures[1:] for name, figures in spans.items()}  # the first batch warms up
