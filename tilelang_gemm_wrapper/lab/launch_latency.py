"""What it costs to launch a kernel that does nothing: Triton, TileLang, PyTorch, and small GEMMs beside them.

After TritonBench's launch_latency: empty kernels with no, few and many arguments. Times are the host's, a
call as a program makes it, the queue never full; and a launch in a CUDA graph, where the host takes no part.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..core.conditions import record_conditions
from ..core.device import device_of
from ..core.environment import Environment
from ..core.failure_text import first_line
from ..core.host_overhead import host_us
from ..core.report import figure_text, markdown_table
from ..core.results import write_rows
from ..core.timing import time_interleaved

ARGUMENTS = (1, 5, 19)  # tensors: TritonBench's counts, but for its 0, which TileLang does not take


@dataclass(frozen=True, slots=True)
class LatencyRow(Environment):
    """Microseconds a launch. host: of the calling thread, over batches; graph: in a CUDA graph of launches
    one after another. reason: why there is no time."""

    name: str
    arguments: int
    host_p20_us: float | None = None
    host_p50_us: float | None = None
    host_p80_us: float | None = None
    graph_us: float | None = None
    reason: str = ""


def launch_latency() -> list[LatencyRow]:
    """Measure on the current CUDA device. Raises RuntimeError where there is none."""
    if not torch.cuda.is_available():
        raise RuntimeError("launch-latency needs a GPU, and torch sees none here")
    device = device_of(torch.cuda.current_device())
    environment = Environment.here(device.name, record_conditions().driver)
    calls: dict[tuple[str, int], Callable[[int], Any]] = {}
    reasons: dict[tuple[str, int], str] = {}
    makers = _makers(device.arch)
    for key, make in makers.items():
        try:
            call = make()
            call(0)
            torch.cuda.synchronize()
        except Exception as problem:
            reasons[key] = first_line(problem)
        else:
            calls[key] = call
    names = {f"{name} {count}": (name, count) for name, count in calls}
    by_name = {name: calls[key] for name, key in names.items()}
    with torch.inference_mode():
        host = host_us(by_name, torch.cuda.synchronize)
        graph = time_interleaved(by_name, 1)
    rows = []
    for key in makers:
        name = f"{key[0]} {key[1]}"
        common = LatencyRow(**environment.as_fields(), name=key[0], arguments=key[1])
        if key in reasons:
            rows.append(replace(common, reason=reasons[key]))
            continue
        deciles = statistics.quantiles(host[name], n=10, method="inclusive")
        rows.append(
            replace(
                common,
                host_p20_us=deciles[1],
                host_p50_us=deciles[4],
                host_p80_us=deciles[7],
                graph_us=graph[name].p50_us,
            )
        )
    return rows


def write(path: Path, rows: Sequence[LatencyRow]) -> None:
    """The rows as CSV, and their table as Markdown beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, rows, LatencyRow)
    path.with_suffix(".md").write_text(table(rows))


def table(rows: Sequence[LatencyRow]) -> str:
    """In Markdown."""
    lines = [
        [
            row.name,
            str(row.arguments),
            figure_text(row.host_p50_us, ".2f"),
            f"{row.host_p20_us:.2f}–{row.host_p80_us:.2f}"
            if row.host_p20_us and row.host_p80_us
            else row.reason,
            figure_text(row.graph_us, ".2f"),
        ]
        for row in rows
    ]
    head = ["launch", "tensors", "host µs", "p20–p80", "in a graph µs"]
    first = rows[0]
    return (
        f"Launch latency on {first.device}, torch {first.torch}, triton {first.triton}, tilelang "
        f"{first.tilelang}, {first.date}\n\n{markdown_table(head, lines)}"
    )


def _makers(arch: str) -> Mapping[tuple[str, int], Callable[[], Callable[[int], Any]]]:
    """Each launch by (name, number of tensors), as a function that prepares it."""
    makers: dict[tuple[str, int], Callable[[], Callable[[int], Any]]] = {
        ("torch: fill one value in place", 1): _torch_fill
    }
    for count in ARGUMENTS:
        makers["Triton: JIT call", count] = partial(_triton_nop, count)
        makers["Triton: compiled kernel", count] = partial(_triton_nop, count, compiled=True)
        makers["TileLang: kernel object", count] = partial(_tilelang_nop, count, arch, bare=False)
        makers["TileLang: TVM-FFI function", count] = partial(_tilelang_nop, count, arch, bare=True)
    makers["FP8 GEMM 8×512×512: this package", 5] = partial(_gemm, "tilelang_gemm")
    makers["FP8 GEMM 8×512×512: its kernel, bare", 5] = partial(_gemm, "bare_kernel")
    makers["FP8 GEMM 8×512×512: DeepGEMM", 5] = partial(_gemm, "deep_gemm")
    makers["FP8 GEMM 8×512×512: Triton", 5] = partial(_gemm, "triton")
    makers["FP8 GEMM 8×512×512: cuBLAS", 5] = partial(_gemm, "cublas")
    return makers


def _tensors(count: int) -> list[torch.Tensor]:
    return [torch.zeros(128, device="cuda") for _ in range(count)]


def _torch_fill() -> Callable[[int], Any]:
    value = torch.zeros(1, device="cuda")
    return lambda _: value.fill_(0.0)


def _triton_nop(count: int, *, compiled: bool = False) -> Callable[[int], Any]:
    from ._triton_nops import TRITON_NOPS

    kernel, tensors = TRITON_NOPS[count], _tensors(count)
    handle = kernel[(1,)](*tensors)
    if compiled:
        launch = handle[(1, 1, 1)]
        return lambda _: launch(*tensors)
    return lambda _: kernel[(1,)](*tensors)


def _tilelang_nop(count: int, arch: str, *, bare: bool) -> Callable[[int], Any]:
    from ..core.compile_cache import entry_function, tilelang_module
    from ._tilelang_nops import TILELANG_NOPS

    kernel = tilelang_module().compile(
        TILELANG_NOPS[count], target={"kind": "cuda", "arch": arch}, execution_backend="tvm_ffi"
    )
    launch, tensors = (entry_function(kernel) if bare else kernel), _tensors(count)
    return lambda _: launch(*tensors)


def _gemm(provider: str) -> Callable[[int], Any]:
    from ..core.bench_providers import HOST_PROVIDERS, Matrix

    return HOST_PROVIDERS[provider](
        Matrix.random(8, 512, 512, device_of(torch.cuda.current_device())).case(8)
    )
