"""A cell of the benchmark, on the CPU: what is checked before it is timed, and what becomes of what fails."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tilelang_gemm_wrapper import configurer
from tilelang_gemm_wrapper.core import bench_measure, bench_providers, workload
from tilelang_gemm_wrapper.core.bench import PROVIDER_NAMES
from tilelang_gemm_wrapper.core.bench_measure import DeviceLostError
from tilelang_gemm_wrapper.core.bench_providers import PROVIDERS, Refused
from tilelang_gemm_wrapper.core.compile_cache import CompileJob
from tilelang_gemm_wrapper.core.conditions import Conditions
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.default_choice import default_entries
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES
from tilelang_gemm_wrapper.core.dispatch import Choice, DispatchTable
from tilelang_gemm_wrapper.core.environment import Environment
from tilelang_gemm_wrapper.core.timing import Timing, TimingError
from tilelang_gemm_wrapper.core.wrapper import Gemm

N, K, COPIES = 256, 256, 3
SWAP = KernelConfig("swapAB", 64, 8, 128, 2, 128)
ENVIRONMENT = Environment("2026-01-02", "NVIDIA_H200", "580", "0.1.0", "2.11", "0.1.15", "3.6", "")


def right(case):
    def call(i):
        case.matrix.weights[i]  # an index beyond the copies would raise
        case.C.copy_(case.expected.result)
        return case.C

    return call


def half_written(case):
    def call(i):
        case.C[:, : N // 2].copy_(case.expected.result[:, : N // 2])
        return case.C

    return call


def off_by_a_scale(case):
    return lambda i: (case.expected.result * 1.01).bfloat16()


def one_sign_flipped(case):
    def call(i):
        case.C.copy_(case.expected.result)
        case.C[-1, -1] *= -1
        return case.C

    return call


def one_element_rounded_wrong(case):
    """By a unit in the last place, which only exact results show: right kernels may be further off."""

    def call(i):
        case.C.copy_(case.expected.result)
        case.C[-1, case.C[-1].abs().argmax()] *= 1 + 2**-7
        return case.C

    return call


def refusing(case):
    raise Refused("deep_gemm is not installed")


def raising(case):
    def call(i):
        raise RuntimeError("M must be above 1\nand a long trace")

    return call


@pytest.fixture
def bench(monkeypatch):
    """Runs `measure_shape` on CPU tensors with given providers; `timed` collects what reached the timing."""
    timed = []

    def run(providers, ms=(4,), us=10.0, fail_in_capture=(), floor_us=5.0, names_at=None):
        def time_interleaved(calls, copies, budget_ms):
            timed.append(tuple(calls))
            for name, call in calls.items():
                if name in fail_in_capture:
                    raise TimingError(name, RuntimeError("not permitted under capture"))
                call(copies - 1)
            return {name: Timing(us * 0.9, us, us * 1.1, 20, 48) for name in calls}

        for name in ("random_workload", "integer_workload"):
            make = getattr(workload, name)
            monkeypatch.setattr(
                bench_providers, name, lambda m, n, k, device, seed, make=make: make(m, n, k, "cpu", seed)
            )
        monkeypatch.setattr(bench_providers, "cold_copies", lambda size, l2_bytes: COPIES)
        monkeypatch.setattr(bench_measure, "PROVIDERS", providers)
        monkeypatch.setattr(bench_measure, "time_interleaved", time_interleaved)
        monkeypatch.setattr(bench_measure, "streaming_floor_us", lambda weights: floor_us)
        monkeypatch.setattr(bench_measure, "record_conditions", lambda: Conditions(sm_clock_mhz=1980.0))
        monkeypatch.setattr(bench_measure, "device_of", lambda index: KNOWN_DEVICES["NVIDIA_H200"])
        monkeypatch.setattr(bench_measure, "chosen_kernel", lambda M, N, K: ("swapAB", "block_M=64"))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        names_at = names_at or dict.fromkeys(ms, tuple(providers))
        cells = bench_measure.measure_shape(N, K, names_at, ENVIRONMENT)
        return [{row.provider: row for row in cell} for cell in cells]

    return SimpleNamespace(run=run, timed=timed)


def test_a_right_provider_is_timed_and_its_row_is_complete(bench):
    (cell,) = bench.run({"tilelang_gemm": right, "deep_gemm": right})

    ours = cell["tilelang_gemm"]
    assert (ours.p20_us, ours.p50_us, ours.p80_us, ours.replays, ours.launches) == (9.0, 10.0, 11.0, 20, 48)
    assert (ours.kernel, ours.config) == ("swapAB", "block_M=64")
    assert ours.tflops == pytest.approx(2 * 4 * N * K / 10e-6 / 1e12)
    assert ours.gb_per_s == pytest.approx((4 * K + N * K + 4 * (4 * 2 + 4) + 2 * 4 * N) / 10e-6 / 1e9)
    assert (ours.floor_us, ours.ideal_us, ours.pct_of_floor) == (5.0, 5.0, 50.0)
    assert ours.error < 3e-6
    assert ours.x_deep_gemm == 1.0
    assert ours.sm_clock_mhz == 1980.0
    assert ours.device == "NVIDIA_H200"
    assert cell["deep_gemm"].kernel == ""


def test_every_m_has_its_own_cell_on_the_same_weights(bench):
    cells = bench.run({"triton": right}, ms=(1, 3))
    assert [cell["triton"].cell for cell in cells] == [(1, N, K), (3, N, K)]
    assert all(cell["triton"].p50_us for cell in cells)


def test_each_m_is_measured_with_its_own_providers(bench):
    names_at = {4: ("triton",), 1: ("cublas", "triton")}
    cells = bench.run({"cublas": right, "triton": right}, names_at=names_at)
    assert [tuple(cell) for cell in cells] == [("triton",), ("cublas", "triton")]


@pytest.mark.parametrize(("wrong", "error"), [(half_written, float("inf")), (off_by_a_scale, 5e-5)])
def test_a_wrong_provider_is_never_timed(bench, wrong, error):
    # It runs after a right one, whose result must not be taken for its own.
    (cell,) = bench.run({"triton": right, "deep_gemm": wrong})

    assert bench.timed == [("triton",)]
    assert cell["deep_gemm"].p50_us is None
    assert cell["deep_gemm"].error == pytest.approx(error, rel=0.1)
    assert cell["deep_gemm"].reason.startswith("wrong: error")
    assert cell["triton"].p50_us == 10.0


@pytest.mark.parametrize(
    ("wrong", "where"),
    [(one_sign_flipped, "element (999, 255) is"), (one_element_rounded_wrong, "on integers ")],
)
def test_one_wrong_element_in_a_quarter_of_a_million_is_never_timed(bench, wrong, where):
    (cell,) = bench.run({"triton": right, "deep_gemm": wrong}, ms=(1000,))

    assert bench.timed == [("triton",)]
    assert cell["deep_gemm"].p50_us is None
    assert cell["deep_gemm"].error < 3e-6, "the mean does not see it"
    assert cell["deep_gemm"].reason.startswith(f"wrong: {where}")
    assert "expected" in cell["deep_gemm"].reason


def a_row_too_many(case):
    def call(i):
        case.C.copy_(case.expected.result)
        case.matrix.C[case.M] = 0
        return case.C

    return call


@pytest.mark.parametrize("ms", [(3, 4), (4,)])
def test_rows_beyond_m_are_never_timed(bench, ms):
    """Behind the last M too."""
    for cell in bench.run({"triton": right, "deep_gemm": a_row_too_many}, ms=ms):
        assert cell["triton"].p50_us == 10.0
        assert cell["deep_gemm"].p50_us is None
        assert "it wrote outside its " in cell["deep_gemm"].reason


def wrong_from_the_third_call_on(case):
    calls = iter(range(10**6))

    def call(i):
        case.C.copy_(case.expected.result)
        if next(calls) >= 2:
            case.C[-1, -1] *= -1
        return case.C

    return call


def raising_from_the_third_call_on(case):
    calls = iter(range(10**6))

    def call(i):
        if next(calls) >= 2:
            raise RuntimeError("misaligned address")
        case.C.copy_(case.expected.result)
        return case.C

    return call


@pytest.mark.parametrize(
    ("provider", "reason"),
    [
        (wrong_from_the_third_call_on, "element (3, 255) is"),
        (raising_from_the_third_call_on, "RuntimeError: misaligned address"),
    ],
)
def test_what_is_wrong_after_it_was_timed_has_no_time(bench, provider, reason):
    (cell,) = bench.run({"triton": provider, "cublas": right})
    assert cell["triton"].p50_us is None
    assert cell["triton"].reason.startswith("wrong after it was timed: ") and reason in cell["triton"].reason
    assert cell["cublas"].p50_us == 10.0


def test_a_k_whose_integer_sums_are_not_exact_is_compared_within_bounds_alone(bench, monkeypatch):
    monkeypatch.setattr(bench_providers, "MAX_INTEGER_K", K - 1)
    (cell,) = bench.run({"deep_gemm": one_element_rounded_wrong}, ms=(1000,))
    assert cell["deep_gemm"].p50_us == 10.0


@pytest.mark.parametrize(
    ("provider", "reason"),
    [(refusing, "deep_gemm is not installed"), (raising, "RuntimeError: M must be above 1")],
)
def test_a_provider_that_cannot_run_leaves_its_reason_and_the_rest_goes_on(bench, provider, reason):
    (cell,) = bench.run({"cublas": provider, "triton": right})

    assert cell["cublas"].reason == reason
    assert cell["cublas"].p50_us is None
    assert cell["triton"].p50_us == 10.0


def test_a_provider_that_cannot_be_captured_leaves_its_reason_and_the_rest_is_timed(bench):
    (cell,) = bench.run({"cublas": right, "triton": right}, fail_in_capture={"cublas"})

    assert bench.timed == [("cublas", "triton"), ("triton",)]
    assert "not permitted under capture" in cell["cublas"].reason
    assert cell["triton"].p50_us == 10.0


def test_a_time_below_the_physical_limit_is_a_measurement_bug_not_a_result(bench):
    (cell,) = bench.run({"triton": right}, us=0.01)  # 65 KB in 10 ns is 6.5 TB/s

    assert cell["triton"].p50_us is None
    assert cell["triton"].reason.startswith("measurement bug")


def test_an_impossible_floor_is_left_out_and_said(bench, caplog):
    (cell,) = bench.run({"triton": right}, floor_us=0.01)

    assert (cell["triton"].floor_us, cell["triton"].ideal_us, cell["triton"].pct_of_floor) == (None,) * 3
    assert cell["triton"].p50_us == 10.0
    assert "no floor is given: 0.01 us" in caplog.text


def test_a_lost_device_ends_the_run(bench, monkeypatch):
    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def breaking(case):
        monkeypatch.setattr(torch.cuda, "synchronize", lost)
        return raising(case)

    with pytest.raises(DeviceLostError, match="triton has left the CUDA context unusable"):
        bench.run({"triton": breaking, "cublas": right})


def test_the_command_names_the_providers_that_exist():
    assert tuple(PROVIDERS) == PROVIDER_NAMES


@pytest.mark.parametrize(
    ("device", "config", "early"),
    [("NVIDIA_H200", SWAP, True), ("NVIDIA_H200", None, False), ("NVIDIA_L40S", SWAP, False)],
)
def test_static_weights_are_timed_where_they_make_another_kernel(monkeypatch, device, config, early):
    """On Hopper and not of a fallback, whatever the environment says of the package's other rows."""
    monkeypatch.delenv(configurer.STATIC_WEIGHTS, raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    choice = Choice("swapAB" if config else "deep_gemm", config, "a test", "a test")
    table = DispatchTable(N, K, KNOWN_DEVICES[device], (8,), (choice,))
    monkeypatch.setattr(bench_providers, "gemm_for", lambda N, K, index: Gemm(table, index))
    job = bench_providers.static_weights_job(4, N, K)
    assert (job is not None) == early
    if early:
        assert job == CompileJob(N, K, SWAP, "sm_90a", static_weights=True)
    else:
        case = SimpleNamespace(M=4, matrix=SimpleNamespace(N=N, K=K))
        with pytest.raises(Refused, match="no kernel of this package that reads weights early"):
            PROVIDERS["tilelang_gemm_static_weights"](case)


@pytest.mark.parametrize(("device", "early"), [("NVIDIA_H200", True), ("NVIDIA_L40S", False)])
def test_the_untuned_choice_is_timed_whatever_file_there_is(monkeypatch, device, early):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(bench_providers, "device_of", lambda index: KNOWN_DEVICES[device])
    entries = dict(default_entries(6144, 2560, KNOWN_DEVICES[device]))
    for M, covering in ((1, 8), (8, 8), (100_000, max(entries))):
        job = bench_providers.untuned_job(M, 6144, 2560)
        assert (job is not None) == early
        if job is not None:
            assert job == CompileJob(6144, 2560, entries[covering], "sm_90a", True, 132)


def test_nothing_is_timed_untuned_where_no_kernel_is_valid(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(bench_providers, "device_of", lambda index: KNOWN_DEVICES["NVIDIA_H200"])
    case = SimpleNamespace(M=4, matrix=SimpleNamespace(N=100, K=100))
    with pytest.raises(Refused, match="default choice"):
        PROVIDERS["tilelang_gemm_untuned"](case)


def test_the_environment_names_installed_versions():
    environment = Environment.here("NVIDIA_H200", None)
    assert environment.torch == torch.__version__
    assert environment.driver == ""
    assert environment.as_fields()["device"] == "NVIDIA_H200"
