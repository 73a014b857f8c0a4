"""The tuner's check of a candidate, on the CPU: what is wrong in however few elements must not be timed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tilelang_gemm_wrapper.backends import torch_reference
from tilelang_gemm_wrapper.core import bench_providers, conditions, device, timing, workload
from tilelang_gemm_wrapper.core.conditions import Conditions
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES
from tilelang_gemm_wrapper.core.timing import Timing
from tilelang_gemm_wrapper.core.tuner.bench import (
    GUARD_ROWS,
    CandidateError,
    DeviceLostError,
    GpuBench,
    Timed,
)

M, N, K = 128, 256, 256
CANDIDATE = KernelConfig("swapAB", 64, 16, 128, 4, 128)
RAGGED_M = 17  # a row more than the candidate's tile has

Damage = Callable[..., None]


class DamagedBench(GpuBench):
    """Its one candidate gives the right result, rounded once, and then does `damage` to its tensors."""

    damage: Damage

    def launcher(self, config: KernelConfig) -> Callable[..., None]:
        def launch(A, A_scale, B, B_scale, C):
            torch_reference.gemm(A, A_scale, B, B_scale, C)
            self.damage(A, A_scale, B, B_scale, C)

        return launch


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> DamagedBench:
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(device, "device_of", lambda index: KNOWN_DEVICES["NVIDIA_H200"])
    monkeypatch.setattr(timing, "streaming_floor_us", lambda weights: 5.0)
    monkeypatch.setattr(conditions, "record_conditions", Conditions)
    monkeypatch.setattr(bench_providers, "cold_copies", lambda size, l2_bytes: 2)
    for name in ("random_workload", "integer_workload"):
        make = getattr(workload, name)
        monkeypatch.setattr(
            bench_providers, name, lambda m, n, k, device, seed, make=make: make(m, n, k, "cpu", seed)
        )
    return DamagedBench()


def refusal(bench: DamagedBench, damage: Damage, m_max: int = M) -> CandidateError:
    bench.damage = damage
    bench.open(N, K, m_max)
    with pytest.raises(CandidateError) as refused:
        bench.check(CANDIDATE, M)
    return refused.value


def test_a_right_candidate_passes(bench: DamagedBench) -> None:
    bench.damage = lambda *tensors: None
    bench.open(N, K, M)
    assert 1e-6 < bench.check(CANDIDATE, M) < 1.6e-6
    assert bench.check(CANDIDATE, 1) < 3e-6


def flip_one_sign(A, A_scale, B, B_scale, C) -> None:
    C[-1, C[-1].abs().argmax()] *= -1


def leave_the_last_elements_zero(A, A_scale, B, B_scale, C) -> None:
    C[-1, -3:] = 0


def round_one_element_wrong(A, A_scale, B, B_scale, C) -> None:
    """By a unit in the last place, far within what right kernels may be off on random data."""
    C[-1, C[-1].abs().argmax()] *= 1 + 2**-7


def lose_a_token_scale(A, A_scale, B, B_scale, C) -> None:
    """The last token's second scale is not the one for its second group of K, in one tile of the result."""
    scale = A_scale[-1:].clone()
    scale[0, 1] *= 1 + 2**-3
    torch_reference.gemm(A[-1:], scale, B[:64], B_scale[:1], C[-1:, :64])


DAMAGES = [flip_one_sign, leave_the_last_elements_zero, round_one_element_wrong, lose_a_token_scale]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_few_wrong_elements_are_refused(bench: DamagedBench, damage: Damage) -> None:
    def at_m(A, A_scale, B, B_scale, C) -> None:
        if len(A) == M:
            damage(A, A_scale, B, B_scale, C)

    refused = refusal(bench, at_m)
    assert refused.kind == "wrong"
    assert f"at M = {M} " in str(refused)
    assert f"element ({M - 1}, " in str(refused)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_few_wrong_elements_of_a_ragged_m_are_refused(bench: DamagedBench, damage: Damage) -> None:
    def at_ragged_m(A, A_scale, B, B_scale, C) -> None:
        if len(A) == RAGGED_M:
            assert A_scale.is_contiguous(), "row-major scales are checked there"
            damage(A, A_scale, B, B_scale, C)

    refused = refusal(bench, at_ragged_m)
    assert refused.kind == "wrong"
    assert f"at M = {RAGGED_M} " in str(refused)
    assert f"element ({RAGGED_M - 1}, " in str(refused)


def test_where_integers_are_not_exact_the_bounds_alone_count(
    bench: DamagedBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_providers, "MAX_INTEGER_K", K - 1)
    bench.damage = round_one_element_wrong
    bench.open(N, K, M)
    assert bench.check(CANDIDATE, M) < 3e-6
    assert refusal(bench, flip_one_sign).kind == "wrong"


def test_a_mean_that_is_off_is_refused(bench: DamagedBench) -> None:
    refused = refusal(bench, lambda A, A_scale, B, B_scale, C: C.mul_(2))
    assert refused.kind == "wrong"
    assert "error 0.2 is above 3e-06" in str(refused)


@pytest.mark.parametrize("which", ["random data", "integers"])
def test_inputs_that_are_changed_end_the_process(bench: DamagedBench, which: str) -> None:
    """Even if the candidate is out for what came of it: the next one would be checked on other data."""

    def change(A, A_scale, B, B_scale, C) -> None:
        is_integer = bool((A.float().abs() <= 3).all())
        if is_integer == (which == "integers") and len(A) == M:
            A[0, 0] = 1.5

    refused = refusal(bench, change)
    assert isinstance(refused, DeviceLostError)
    assert refused.kind == "out_of_bounds"


@pytest.mark.parametrize("row", [-1, M])
def test_a_row_beside_the_result_is_out_of_bounds(bench: DamagedBench, row: int) -> None:
    def write_beside(A, A_scale, B, B_scale, C) -> None:
        whole = torch.empty(0, dtype=C.dtype).set_(C.untyped_storage()).view(-1, N)
        whole[GUARD_ROWS + row, 3] = 1

    assert refusal(bench, write_beside).kind == "out_of_bounds"


def test_results_that_do_not_repeat_are_refused(bench: DamagedBench) -> None:
    calls = iter(range(10**6))

    def differ(A, A_scale, B, B_scale, C) -> None:
        if next(calls) % 2:  # on data where one unit more is right as well
            C[0, C[0].abs().argmax()] *= 1 + 2**-7

    assert refusal(bench, differ).kind == "not_repeatable"


@pytest.mark.parametrize(
    ("config", "m_max", "ragged"),
    [(CANDIDATE, M, RAGGED_M), (CANDIDATE, 10, 10), (KernelConfig("triton"), M, 9)],
)
def test_the_ragged_m_is_a_row_more_than_a_tile_where_there_are_so_many(
    bench: DamagedBench, config: KernelConfig, m_max: int, ragged: int
) -> None:
    """A fallback kind says nothing of its tiles: 8 tokens are taken for one."""
    launched: list[int] = []
    bench.damage = lambda A, *_: launched.append(len(A))
    bench.open(N, K, m_max)
    bench.check(config, 1)
    assert set(launched) == {ragged, 1}
    launched.clear()
    bench.check(config, 2)
    assert set(launched) == {2}, "a candidate's ragged M is checked once"


def wrong_row_major_scales_behind_the_second_tile(A, A_scale, B, B_scale, C) -> None:
    if A_scale.is_contiguous() and len(A) > 32:
        torch_reference.gemm(A[32:], A_scale[:-32].contiguous(), B, B_scale, C[32:])


def take_the_stride_of_column_major_scales_for_m(A, A_scale, B, B_scale, C) -> None:
    if A_scale.stride(0) == 1 and len(A) > 1:
        packed = A_scale.as_strided((A_scale.shape[1], len(A)), (len(A), 1))
        torch_reference.gemm(A, packed.t(), B, B_scale, C)


def lose_the_last_row_of_the_last_tile_if_it_is_ragged(A, A_scale, B, B_scale, C) -> None:
    if len(A) % 16 > 1:
        C[-1] = 0


@pytest.mark.parametrize(
    "damage",
    [
        wrong_row_major_scales_behind_the_second_tile,
        take_the_stride_of_column_major_scales_for_m,
        lose_the_last_row_of_the_last_tile_if_it_is_ragged,
    ],
)
def test_what_is_right_at_the_wanted_m_and_layout_alone_is_refused(
    bench: DamagedBench, damage: Damage
) -> None:
    """An entry serves other M too, and calls with scales of either layout."""
    assert refusal(bench, damage).kind == "wrong"


class AddingBench(DamagedBench):
    """Its candidate adds to what its output held, NaN taken for 0 as a maximum with 0 does."""

    def launcher(self, config: KernelConfig) -> Callable[..., None]:
        def launch(A, A_scale, B, B_scale, C):
            held = C.nan_to_num(0)
            torch_reference.gemm(A, A_scale, B, B_scale, C)
            C.add_(held)

        return launch


def test_a_result_that_is_added_to_the_output_is_refused(bench: DamagedBench) -> None:
    del bench  # what it replaces on the CPU is wanted
    assert refusal(AddingBench(), lambda *tensors: None).kind == "not_repeatable"


def test_an_output_at_the_place_of_the_first_call_is_refused(bench: DamagedBench) -> None:
    """As of a launcher that keeps a descriptor of its first output."""
    first: list[torch.Tensor] = []

    def write_there(A, A_scale, B, B_scale, C) -> None:
        first.append(C)
        result = C.clone()
        C.fill_(torch.nan)
        first[0][: len(C)] = result[: len(first[0])]

    assert refusal(bench, write_there).kind == "out_of_bounds"


def test_rows_beside_the_result_of_the_second_run_are_out_of_bounds(bench: DamagedBench) -> None:
    calls = iter(range(10**6))

    def write_beside(A, A_scale, B, B_scale, C) -> None:
        if next(calls) % 2:
            whole = torch.empty(0, dtype=C.dtype).set_(C.untyped_storage()).view(-1, N)
            whole[-1, 3] = 1

    assert refusal(bench, write_beside).kind == "out_of_bounds"


def test_outputs_lie_at_two_places_with_guard_rows_on_either_side(bench: DamagedBench) -> None:
    places: set[tuple[int, int]] = set()

    def note(A, A_scale, B, B_scale, C) -> None:
        before, rows = C.storage_offset() // N, C.untyped_storage().size() // (2 * N)
        places.add((before, rows - before - len(C)))

    bench.damage = note
    bench.open(N, K, M)
    bench.check(CANDIDATE, M)
    assert len({before for before, _ in places}) == 2
    assert min(map(min, places)) >= GUARD_ROWS


def timed_after(bench: DamagedBench, monkeypatch: pytest.MonkeyPatch, damage: Damage) -> list[Timed]:
    """What `time` gives of a candidate that is right when it is checked, and damaged from then on."""

    def time_interleaved(calls, copies, budget_ms, least_rounds):
        for call in calls.values():
            call(copies - 1)
        return {name: Timing(9.0, 10.0, 11.0, 20, 48) for name in calls}

    monkeypatch.setattr(timing, "time_interleaved", time_interleaved)
    bench.damage = lambda *tensors: None
    bench.open(N, K, M)
    bench.check(CANDIDATE, M)
    bench.damage = damage
    return bench.time([CANDIDATE], M, 1.0, 3)


def test_a_candidate_that_stays_right_is_timed(bench: DamagedBench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert timed_after(bench, monkeypatch, lambda *tensors: None) == [Timed(9.0, 10.0, 11.0, 20)]


def test_a_candidate_that_is_wrong_after_it_was_timed_is_refused(
    bench: DamagedBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CandidateError, match=f"after it was timed, at M = {M} .*element") as refused:
        timed_after(bench, monkeypatch, flip_one_sign)
    assert refused.value.kind == "wrong"


def test_what_a_candidate_raises_is_its_refusal(bench: DamagedBench) -> None:
    def fail(*tensors) -> None:
        raise RuntimeError("misaligned address")

    refused = refusal(bench, fail)
    assert not isinstance(refused, DeviceLostError)
    assert (refused.kind, "misaligned address" in str(refused)) == ("error", True)
