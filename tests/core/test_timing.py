"""Timing without a GPU: a simulated device runs the real loop, so order, medians and budget are checked."""

from __future__ import annotations

import random
import statistics

import pytest
import torch

from tilelang_gemm_wrapper.core import timing
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES, Device
from tilelang_gemm_wrapper.core.timing import (
    MAX_ATTEMPTS,
    MAX_ROUNDS,
    MIN_ROUNDS,
    TimingError,
    cold_copies,
    ideal_us,
    time_interleaved,
    why_impossible,
)

H200 = KNOWN_DEVICES["NVIDIA_H200"]
UNKNOWN = Device("Some_GPU", "sm_90a", 100, 232448, 50 << 20, 0.0)


class SimulatedEvent:
    def __init__(self, device):
        self.device = device
        self.at = None

    def record(self):
        self.at = self.device.now_us

    def elapsed_time(self, end):
        return (end.at - self.at) / 1e3


class SimulatedReplay:
    def __init__(self, device, name, calls):
        self.device, self.name, self.calls, self.launches = device, name, calls, len(calls)
        self.released = False

    def __call__(self):
        assert self.device.entered and not self.released
        self.device.order.append(self.name)
        self.device.now_us += self.launches * self.device.launch_us(self.name)

    def release(self):
        self.released = True


class SimulatedDevice:
    """A recorder whose clock moves by what `launch_us(provider)` says; a call gives its provider's name."""

    def __init__(self, launch_us, launches=10):
        self.launch_us = launch_us
        self.rotations = launches
        self.now_us = 0.0
        self.order = []
        self.replays = []
        self.entered = False

    def __enter__(self):
        self.entered = True
        return self

    def __exit__(self, *exc):
        self.entered = False

    def capture(self, call, copies):
        calls = [call(i) for i in range(copies)] * self.rotations
        self.replays.append(SimulatedReplay(self, calls[0][0], calls))
        return self.replays[-1]

    def event(self):
        return SimulatedEvent(self)

    def synchronize(self):
        pass


def provider(name):
    return lambda i: (name, i)


def test_every_round_runs_every_provider_in_turn_and_each_capture_walks_all_copies():
    device = SimulatedDevice(lambda name: {"a": 5.0, "b": 20.0}[name])

    timings = time_interleaved({"a": provider("a"), "b": provider("b")}, 3, budget_ms=5, recorder=device)

    assert device.order == ["a", "b"] * (len(device.order) // 2)
    assert [i for _, i in device.replays[0].calls[:6]] == [0, 1, 2, 0, 1, 2]
    assert timings["a"].p50_us == pytest.approx(5.0)
    assert timings["b"].p50_us == pytest.approx(20.0)
    assert timings["a"].launches == 30


def test_percentiles_are_of_the_replays_without_the_round_that_fills_the_queue():
    noise = random.Random(0)
    spans = []

    def launch_us(name):
        # The estimate and the first timed round are slow, as on a device that must wait for its host.
        spans.append(1000.0 if len(spans) < 2 else noise.uniform(9, 11))
        return spans[-1]

    timings = time_interleaved({"a": provider("a")}, 1, budget_ms=200, recorder=SimulatedDevice(launch_us))

    counted = spans[2:]
    deciles = statistics.quantiles(counted, n=10, method="inclusive")
    assert timings["a"].replays == len(counted) == 20  # 200 ms over an estimate of 10 x 1 ms
    assert timings["a"].p50_us == pytest.approx(statistics.median(counted))
    assert (timings["a"].p20_us, timings["a"].p80_us) == pytest.approx((deciles[1], deciles[7]))


@pytest.mark.parametrize(("budget_ms", "rounds"), [(0.001, MIN_ROUNDS), (3.0, 30), (1e6, MAX_ROUNDS)])
def test_the_budget_sets_the_rounds_within_bounds(budget_ms, rounds):
    device = SimulatedDevice(lambda name: 10.0)  # a replay takes 0.1 ms

    timings = time_interleaved({"a": provider("a")}, 1, budget_ms=budget_ms, recorder=device)

    assert timings["a"].replays == rounds


def test_what_a_disturbed_gpu_gave_is_timed_again():
    """Another process takes turns on the GPU during the first attempt: every other replay takes 2.5 times."""
    replays = []

    def launch_us(name):
        replays.append(name)
        turn = (len(replays) - 1) // 2  # the estimate is round 0, the first attempt comes up to round 6
        return {"a": 10.0, "b": 20.0}[name] * (2.5 if turn <= MIN_ROUNDS + 1 and turn % 2 else 1.0)

    device = SimulatedDevice(launch_us)
    timings = time_interleaved({"a": provider("a"), "b": provider("b")}, 1, budget_ms=0.1, recorder=device)

    assert (timings["a"].p50_us, timings["a"].p80_us) == pytest.approx((10.0, 10.0))
    assert (timings["b"].p50_us, timings["b"].p80_us) == pytest.approx((20.0, 20.0))
    assert len(replays) == 2 * (1 + 2 * (MIN_ROUNDS + 1)), "two attempts, each of both providers"


def test_on_a_gpu_that_stays_disturbed_the_calmest_attempt_counts():
    attempts = iter([3.0, 2.0, 4.0])
    factor, replays = 1.0, 0

    def launch_us(name):
        nonlocal factor, replays
        if replays and (replays - 1) % (MIN_ROUNDS + 1) == 0:
            factor = next(attempts)
        replays += 1
        return 10.0 * (factor if replays % 2 else 1.0)

    device = SimulatedDevice(launch_us)
    timings = time_interleaved({"a": provider("a")}, 1, budget_ms=0.001, recorder=device)

    assert replays == 1 + MAX_ATTEMPTS * (MIN_ROUNDS + 1)
    assert timings["a"].p80_us == pytest.approx(20.0)


def test_a_provider_that_fails_is_named_and_the_captured_graphs_are_freed():
    device = SimulatedDevice(lambda name: 1.0)

    def failing(i):
        raise ValueError("no such shape")

    with pytest.raises(TimingError, match=r"bad cannot be timed: ValueError: no such shape") as caught:
        time_interleaved({"good": provider("good"), "bad": failing}, 2, recorder=device)

    assert caught.value.provider == "bad"
    assert [replay.released for replay in device.replays] == [True]
    assert not device.entered


def test_graphs_are_freed_after_a_good_run():
    device = SimulatedDevice(lambda name: 1.0)

    time_interleaved({"a": provider("a")}, 2, recorder=device)

    assert device.replays[0].released


def test_no_provider_needs_no_device():
    assert time_interleaved({}, 1) == {}


def test_no_copy_of_the_weights_is_refused():
    with pytest.raises(ValueError, match="copies is 0"):
        time_interleaved({"a": provider("a")}, 0)


class RecordedGraph:
    """Stands for torch.cuda.CUDAGraph: notes what is done to it."""

    def __init__(self, log):
        self.log = log

    def capture_begin(self, **options):
        self.log.append("begin")

    def capture_end(self):
        self.log.append("end")

    def replay(self):
        self.log.append("replay")


class RecordedCuda:
    """As much of torch.cuda as a capture touches; an eager launch takes `launch_us`."""

    def __init__(self, launch_us):
        self.log = []
        self.now_us = 0.0
        self._launch_us = launch_us

    def call(self, i):
        self.log.append(i)
        self.now_us += self._launch_us

    def CUDAGraph(self):
        return RecordedGraph(self.log)

    def Event(self, enable_timing):
        assert enable_timing
        return SimulatedEvent(self)


def recorder_on(cuda, monkeypatch):
    recorder = timing.CudaGraphs()
    stream = type("Stream", (), {"synchronize": lambda self: cuda.log.append("sync")})()
    monkeypatch.setattr(recorder, "_torch", type("Torch", (), {"cuda": cuda}), raising=False)
    monkeypatch.setattr(recorder, "_stream", stream, raising=False)
    monkeypatch.setattr(recorder, "_pool", (0, 1), raising=False)
    return recorder


@pytest.mark.parametrize(
    ("launch_us", "copies", "launches"),
    [
        (20.0, 4, 48),  # 1 ms of launches, in whole rotations
        (20.0, 200, 200),  # a rotation that is long enough by itself
        (5000.0, 3, 3),  # one rotation at least
    ],
)
def test_a_capture_holds_whole_rotations_and_enough_launches(launch_us, copies, launches, monkeypatch):
    cuda = RecordedCuda(launch_us)

    replay = recorder_on(cuda, monkeypatch).capture(cuda.call, copies)

    captured = cuda.log[cuda.log.index("begin") + 1 : cuda.log.index("end")]
    assert replay.launches == len(captured) == launches
    assert captured == list(range(copies)) * (launches // copies)


def test_the_first_call_is_made_and_waited_for_before_the_capture(monkeypatch):
    cuda = RecordedCuda(20.0)

    recorder_on(cuda, monkeypatch).capture(cuda.call, 2)

    assert cuda.log[:2] == [0, "sync"]
    assert cuda.log.index("sync") < cuda.log.index("begin")


def test_a_failure_under_capture_ends_the_capture_and_is_the_error_told(monkeypatch):
    cuda = RecordedCuda(20.0)

    def call(i):
        if "begin" in cuda.log:
            raise RuntimeError("allocates under capture")
        cuda.call(i)

    with pytest.raises(RuntimeError, match="allocates under capture"):
        recorder_on(cuda, monkeypatch).capture(call, 2)

    assert cuda.log[-1] == "end"


@pytest.mark.parametrize(
    ("bytes_per_copy", "l2_bytes", "copies"),
    [
        (10 << 20, 60 << 20, 24),
        ((10 << 20) + 1, 60 << 20, 24),  # rounded up: 24 copies of a little more
        ((10 << 20) - 1, 60 << 20, 25),
        (1 << 30, 60 << 20, 2),  # the same weights twice in a row would be half warm at the seam
    ],
)
def test_cold_copies_exceed_l2_four_times(bytes_per_copy, l2_bytes, copies):
    assert cold_copies(bytes_per_copy, l2_bytes) == copies
    assert copies * bytes_per_copy >= timing.L2_MULTIPLE * l2_bytes


def test_empty_weights_have_no_copies():
    with pytest.raises(ValueError, match="bytes_per_copy is 0"):
        cold_copies(0, 1 << 20)


def test_faster_than_dram_is_impossible():
    weight_bytes = 48e6  # 10 us at 4.8 TB/s
    assert why_impossible(10.1, weight_bytes, 0, H200) is None
    assert "not cold" in why_impossible(9.9, weight_bytes, 0, H200)


def test_faster_than_the_tensor_cores_is_impossible():
    flops = 1979e12 * 100e-6
    assert why_impossible(101, 0, flops, H200) is None
    assert "above the dense FP8 peak of 1979" in why_impossible(99, 0, flops, H200)


@pytest.mark.parametrize("time_us", [0.0, -1.0, float("nan")])
def test_no_time_at_all_is_impossible_on_any_device(time_us):
    assert why_impossible(time_us, 0, 0, UNKNOWN)


def test_an_unknown_device_limits_nothing():
    assert why_impossible(1e-3, 1e9, 1e15, UNKNOWN) is None


def test_every_known_device_has_a_peak():
    assert set(timing.PEAK_FP8_FLOPS) == set(KNOWN_DEVICES)


def test_ideal_is_the_floor_for_few_tokens_and_arithmetic_for_many():
    assert ideal_us(10.0, 1450e12 * 5e-6, H200) == 10.0
    assert ideal_us(10.0, 1450e12 * 50e-6, H200) == pytest.approx(50.0)
    # A chip whose data sheet promises less than 1450 TFLOPS is held to its data sheet.
    assert ideal_us(10.0, 296e12 * 50e-6, KNOWN_DEVICES["NVIDIA_H20"]) == pytest.approx(50.0)
    assert ideal_us(10.0, 1e18, UNKNOWN) == 10.0


def test_streaming_reads_take_whole_copies_of_one_size_only():
    streaming = pytest.importorskip("tilelang_gemm_wrapper.core._streaming_read")
    good = torch.zeros(16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="strides"):
        streaming.streaming_reads([good, torch.zeros(16, 32, dtype=torch.uint8)[:, :16]])
    with pytest.raises(ValueError, match="multiple of 16"):
        streaming.streaming_reads([torch.zeros(3, 5, dtype=torch.uint8)])
