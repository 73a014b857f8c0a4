"""The one way to time: cold weights, one CUDA graph per provider, replays interleaved, medians.

A decode step reads every weight once, from DRAM. So each provider's graph walks over copies of the weights
that together exceed L2 several times, and a launch finds its weights cold; activations, scales and output
stay where the previous launch left them. Replays alternate A, B, A, B ..., so that a change of clock or
temperature meets all alike. The time of a launch is the time of a replay over its number of launches.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from .device import Device, canonical_name
from .failure_text import first_line

if TYPE_CHECKING:
    import torch

# Under random replacement a rotation of 4 x L2 finds 2 % of its lines again, one of 2 x L2 20 %.
L2_MULTIPLE = 4
MIN_ROUNDS = 5  # fewer replays make no p20 and p80
MAX_ROUNDS = 100
# From p20 to p80, over the median: a kernel that has the GPU to itself hardly spreads so far.
MAX_SPREAD = 0.25
MAX_ATTEMPTS = 3
MIN_GRAPH_US = 1000.0  # what starting a graph costs (a few us) must vanish beside the launches in it
IDEAL_FLOPS = 1450e12  # what the best FP8 GEMMs with fp32 promotion reach on a full Hopper

# Dense FP8 tensor-core peaks of the data sheets, FLOP/s: nothing right can be faster.
PEAK_FP8_FLOPS: dict[str, float] = {
    "NVIDIA_H100_80GB_HBM3": 1979e12,
    "NVIDIA_H100_PCIe": 1513e12,
    "NVIDIA_H100_NVL": 1671e12,
    "NVIDIA_H200": 1979e12,
    "NVIDIA_H200_NVL": 1671e12,
    "NVIDIA_H800": 1979e12,
    "NVIDIA_H20": 296e12,
    "NVIDIA_H20-3e": 296e12,
    "NVIDIA_GH200_480GB": 1979e12,
    "NVIDIA_GH200_144G_HBM3e": 1979e12,
    "NVIDIA_L40S": 733e12,
    "NVIDIA_L40": 362e12,
    "NVIDIA_L20": 239e12,
    "NVIDIA_L4": 242.5e12,
    "NVIDIA_GeForce_RTX_4090": 660.6e12,
    "NVIDIA_GeForce_RTX_4090_D": 588.4e12,
    "NVIDIA_GeForce_RTX_4080": 389.9e12,
    "NVIDIA_RTX_6000_Ada_Generation": 728.5e12,
    "NVIDIA_RTX_5000_Ada_Generation": 522.1e12,
}


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds a launch, over `replays` graph replays of `launches` launches each."""

    p20_us: float
    p50_us: float
    p80_us: float
    replays: int
    launches: int


class TimingError(RuntimeError):
    """A provider failed while it was warmed up or captured; `provider` names it, the cause is chained."""

    def __init__(self, provider: str, cause: BaseException) -> None:
        super().__init__(f"{provider} cannot be timed: {first_line(cause)}")
        self.provider = provider


class Event(Protocol):
    def record(self) -> Any: ...
    def elapsed_time(self, end_event: Any) -> float: ...


class Replay(Protocol):
    """A captured run over the weight copies: call it to enqueue it."""

    launches: int

    def __call__(self) -> None: ...
    def release(self) -> None: ...


class Recorder(Protocol):
    """What `time_interleaved` asks of a device; `CudaGraphs` is the real one, tests bring a simulated one."""

    def __enter__(self) -> Recorder: ...
    def __exit__(self, *exc: Any) -> None: ...
    def capture(self, call: Callable[[int], Any], copies: int) -> Replay: ...
    def event(self) -> Event: ...
    def synchronize(self) -> None: ...


class _GraphReplay:
    def __init__(self, graph: torch.cuda.CUDAGraph, launches: int) -> None:
        self._graph = graph
        self.launches = launches

    def __call__(self) -> None:
        self._graph.replay()

    def release(self) -> None:
        self._graph.reset()


class CudaGraphs:
    """Captures calls into CUDA graphs on a stream of its own, on the current device.

    `torch.cuda.graph` is not used: it empties the allocator's cache before every capture, which costs more
    than the timing when thousands of cells are timed in one process.
    """

    IDLE_CACHE_BYTES = 8 << 30

    def __enter__(self) -> CudaGraphs:
        import torch

        self._torch = torch
        self._stream = torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        self._scope = torch.cuda.stream(self._stream)
        self._scope.__enter__()
        self._pool = torch.cuda.graph_pool_handle()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        cuda = self._torch.cuda
        self._scope.__exit__(kind, value, traceback)
        cuda.current_stream().wait_stream(self._stream)
        # What a dead graph's pool holds serves nobody else until it is given back.
        if cuda.memory_reserved() - cuda.memory_allocated() > self.IDLE_CACHE_BYTES:
            cuda.empty_cache()

    def capture(self, call: Callable[[int], Any], copies: int) -> _GraphReplay:
        cuda = self._torch.cuda
        call(0)  # whatever compiles, loads or allocates once does so outside the capture
        self._stream.synchronize()
        trial = min(copies, 8)
        start, stop = self.event(), self.event()
        start.record()
        for i in range(trial):
            call(i)
        stop.record()
        self._stream.synchronize()
        # An eager call is host-bound where it is short: then the graph is shorter than asked for, not empty.
        launch_us = max(start.elapsed_time(stop) * 1e3 / trial, 1.0)
        rotations = max(1, round(MIN_GRAPH_US / (launch_us * copies)))

        graph = cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            for _ in range(rotations):
                for i in range(copies):
                    call(i)
        except BaseException:
            with suppress(RuntimeError):  # the capture is void already; the first error is the one to tell
                graph.capture_end()
            raise
        graph.capture_end()
        return _GraphReplay(graph, rotations * copies)

    def event(self) -> torch.cuda.Event:
        return self._torch.cuda.Event(enable_timing=True)

    def synchronize(self) -> None:
        self._stream.synchronize()


def time_interleaved(
    providers: Mapping[str, Callable[[int], Any]],
    copies: int,
    *,
    budget_ms: float = 25.0,
    least_rounds: int = MIN_ROUNDS,
    recorder: Recorder | None = None,
) -> dict[str, Timing]:
    """Time every provider on the current CUDA device, interleaved, and give each its percentiles.

    A provider is called with a rotation index i in [0, copies) and must launch once, on the current stream,
    with weight copy i. `budget_ms` is what the replays of one provider may take on average; at least
    `least_rounds` replays are made, two or more. Where the times of one spread as only a disturbed GPU's do,
    all are taken again, `MAX_ATTEMPTS` times at most, and those of the calmest attempt are given. Raises
    ValueError for copies < 1, and TimingError naming the provider whose warm-up or capture failed.
    """
    if copies < 1:
        raise ValueError(f"copies is {copies}: at least one copy of the weights is needed, see cold_copies()")
    if not providers:
        return {}
    with recorder or CudaGraphs() as device:
        replays: dict[str, Replay] = {}
        try:
            for name, call in providers.items():
                try:
                    replays[name] = device.capture(call, copies)
                except Exception as error:
                    raise TimingError(name, error) from error
            round_ms = sum(spans[0] for spans in _run_rounds(device, replays, 1).values())
            wanted = budget_ms * len(replays) / max(round_ms, 1e-6)
            rounds = int(min(max(wanted, least_rounds), MAX_ROUNDS))
            calmest: dict[str, Timing] = {}
            for _ in range(MAX_ATTEMPTS):
                # One round more, and dropped: while it runs the host gets ahead, so no later replay waits.
                spans_ms = _run_rounds(device, replays, rounds + 1)
                timings = {name: _timing(spans_ms[name][1:], replays[name].launches) for name in replays}
                calmest = min(calmest or timings, timings, key=_widest)
                if _widest(calmest) <= MAX_SPREAD:
                    break
            return calmest
        finally:
            device.synchronize()
            for replay in replays.values():
                replay.release()


def _run_rounds(device: Recorder, replays: Mapping[str, Replay], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every replay, by provider, in the order run."""
    marks: dict[str, list[tuple[Event, Event]]] = {name: [] for name in replays}
    for _ in range(rounds):
        for name, replay in replays.items():
            start, stop = device.event(), device.event()
            start.record()
            replay()
            stop.record()
            marks[name].append((start, stop))
    device.synchronize()
    return {name: [start.elapsed_time(stop) for start, stop in pairs] for name, pairs in marks.items()}


def _widest(timings: Mapping[str, Timing]) -> float:
    """The largest spread of a provider's times."""
    return max((timing.p80_us - timing.p20_us) / (timing.p50_us or 1.0) for timing in timings.values())


def _timing(replay_ms: Sequence[float], launches: int) -> Timing:
    deciles = statistics.quantiles([ms * 1e3 / launches for ms in replay_ms], n=10, method="inclusive")
    return Timing(deciles[1], deciles[4], deciles[7], len(replay_ms), launches)


def cold_copies(bytes_per_copy: int, l2_bytes: int, multiple: float = L2_MULTIPLE) -> int:
    """How many copies of the weights a rotation needs so that L2 keeps nothing of one until its next turn."""
    if bytes_per_copy < 1:
        raise ValueError(f"bytes_per_copy is {bytes_per_copy}: a copy of the weights has at least one byte")
    return max(2, -int(-multiple * l2_bytes // bytes_per_copy))


def streaming_floor_us(weights: Sequence[torch.Tensor], *, budget_ms: float = 5.0) -> float:
    """Microseconds of the fastest plain read of one weight copy, in the same harness as everything else.

    `weights` are the copies, each contiguous on the current CUDA device, of a size that is a multiple of
    16 bytes, and together larger than L2 several times (`cold_copies`). No kernel that reads its weights
    once from DRAM can be much faster: this is the floor of a GEMM with few tokens.
    """
    from ._streaming_read import streaming_reads

    timings = time_interleaved(streaming_reads(weights), len(weights), budget_ms=budget_ms)
    return min(timing.p50_us for timing in timings.values())


def ideal_us(floor_us: float, flops: float, device: Device) -> float:
    """The larger of the streaming floor and the arithmetic at the best rate seen on such a chip."""
    peak = PEAK_FP8_FLOPS.get(canonical_name(device.name), 0.0)
    return max(floor_us, flops / min(peak, IDEAL_FLOPS) * 1e6 if peak else 0.0)


def why_impossible(time_us: float, weight_bytes: float, flops: float, device: Device) -> str | None:
    """Why a measured time cannot be true, or None: below what the data sheet's DRAM or tensor cores allow.

    `weight_bytes` are those which each launch reads cold. Unknown figures of a device limit nothing.
    """
    if not time_us > 0:
        return f"a launch cannot take {time_us} us"
    if device.dram_bytes_per_s and weight_bytes / device.dram_bytes_per_s * 1e6 > time_us:
        return (
            f"{time_us:.2f} us for {weight_bytes / 1e6:.1f} MB of cold weights is "
            f"{weight_bytes / time_us / 1e6:.2f} TB/s, above the {device.dram_bytes_per_s / 1e12:.2f} "
            f"of {device.name}: the weights were not cold, or not read"
        )
    peak = PEAK_FP8_FLOPS.get(canonical_name(device.name), 0.0)
    if peak and flops / peak * 1e6 > time_us:
        return (
            f"{time_us:.2f} us is {flops / time_us / 1e6:.0f} TFLOPS, above the dense FP8 peak of "
            f"{peak / 1e12:.0f} of {device.name}: the work was not done"
        )
    return None
