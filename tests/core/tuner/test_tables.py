"""What a run takes for the choice in place before it."""

from __future__ import annotations

from pathlib import Path

from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.config_entry import Entry
from tilelang_gemm_wrapper.core.config_file import config_file_name, write_config_file
from tilelang_gemm_wrapper.core.default_choice import default_entries
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES
from tilelang_gemm_wrapper.core.tuner.effort import EFFORTS
from tilelang_gemm_wrapper.core.tuner.tables import Tables

H200 = KNOWN_DEVICES["NVIDIA_H200"]
N, K = 6144, 2560
OLD = KernelConfig("swapAB", 64, 16, 128, 4, 128)
M_VALUES = (1, 16, 31, 4096)


def choices(out: Path) -> dict[int, KernelConfig]:
    return dict(Tables(out, M_VALUES, EFFORTS["quick"]).choices(N, K, H200))


def test_the_choice_in_place_is_what_a_call_runs_above_the_last_tuned_m_too(tmp_path: Path) -> None:
    assert choices(tmp_path) == {}
    write_config_file(tmp_path / config_file_name(N, K, H200.name), [Entry(16, OLD)])
    assert choices(tmp_path) == {1: OLD, 16: OLD, 31: OLD, 4096: dict(default_entries(N, K, H200))[4096]}


def test_a_file_of_another_device_is_no_choice_in_place(tmp_path: Path) -> None:
    path = tmp_path / config_file_name(N, K, H200.name)
    write_config_file(path, [Entry(16, OLD)], {"device": "NVIDIA_L40S"})
    assert choices(tmp_path) == {}
