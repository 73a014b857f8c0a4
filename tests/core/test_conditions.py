"""What nvidia-smi says becomes one reading; what it does not say is None."""

from __future__ import annotations

import os
import subprocess

import pytest

from tilelang_gemm_wrapper.core import conditions
from tilelang_gemm_wrapper.core.conditions import Conditions, record_conditions


@pytest.fixture(autouse=True)
def card(monkeypatch):
    monkeypatch.setattr(conditions, "_card", lambda index: "GPU-1234")


def answering(line="NVIDIA H200, 580.1, 1980, 1980, 3201, 41, 310.5\n", slowdown="0x0", processes=""):
    def ask(card, query, form):
        assert card == "--id=GPU-1234"
        if query.startswith("--query-compute-apps"):
            return processes
        return slowdown if "event_reasons" in query else line

    return ask


def test_a_reading_of_a_quiet_card():
    reading = record_conditions(0, answering(slowdown="0x0000000000000004"))

    assert reading == Conditions(
        gpu="NVIDIA H200",
        driver="580.1",
        sm_clock_mhz=1980,
        max_sm_clock_mhz=1980,
        memory_clock_mhz=3201,
        temperature_c=41,
        power_w=310.5,
        slowdown=False,
    )
    assert reading.warnings() == ()


def test_a_hot_card_and_another_process_are_said():
    reading = record_conditions(0, answering(slowdown="0x40", processes=f"4242\n{os.getpid()}\n"))

    assert reading.other_processes == (4242,)
    slow, busy = reading.warnings()
    assert "slows itself down" in slow
    assert "4242" in busy


def test_what_the_driver_does_not_tell_is_none():
    reading = record_conditions(0, answering("NVIDIA L4, 550.2, [N/A], 2040, 6251, 33, [Not Supported]\n"))

    assert reading.sm_clock_mhz is None
    assert reading.power_w is None
    assert reading.temperature_c == 33


def test_a_driver_that_refuses_the_slowdown_field_still_gives_the_rest():
    def ask(card, query, form):
        if "event_reasons" in query:
            raise subprocess.CalledProcessError(2, "nvidia-smi")
        return answering()(card, query, form)

    reading = record_conditions(0, ask)
    assert reading.slowdown is None
    assert reading.sm_clock_mhz == 1980


def test_without_nvidia_smi_the_reading_is_empty():
    def ask(*arguments):
        raise FileNotFoundError("nvidia-smi")

    assert record_conditions(0, ask) == Conditions()
