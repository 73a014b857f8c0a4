"""core/device.py: names of the same chip, and what the driver's description becomes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tilelang_gemm_wrapper.core import device as device_module
from tilelang_gemm_wrapper.core.device import (
    DEVICE_ALIASES,
    KNOWN_DEVICES,
    canonical_name,
    cpu_device,
    device_of,
    file_safe_name,
    known_device,
    names_of_same_chip,
)

SAME_CHIP = [
    ("NVIDIA_H100", "NVIDIA_H100_80GB_HBM3"),
    ("NVIDIA H100 80GB HBM3", "NVIDIA_H100"),
    ("NVIDIA_GH200_120GB", "NVIDIA_GH200_480GB"),
    ("NVIDIA_RTX_4090", "NVIDIA GeForce RTX 4090"),
]
OTHER_CHIP = [
    ("NVIDIA_H200", "NVIDIA_H100"),
    ("NVIDIA_H100_PCIe", "NVIDIA_H100"),
    ("NVIDIA_H20-3e", "NVIDIA_H20"),
    ("NVIDIA_H20", "NVIDIA_H200"),
    ("NVIDIA_L40", "NVIDIA_L40S"),
    ("NVIDIA_GeForce_RTX_4090_D", "NVIDIA_GeForce_RTX_4090"),
]


@pytest.fixture(autouse=True)
def forget_devices():
    device_of.cache_clear()
    yield
    device_of.cache_clear()


def driver_says(monkeypatch, count=1, hip=None, **properties):
    described = {
        "name": "NVIDIA H200",
        "major": 9,
        "minor": 0,
        "multi_processor_count": 132,
        "shared_memory_per_block_optin": 232448,
        "L2_cache_size": 60 << 20,
        **properties,
    }
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(**described))
    monkeypatch.setattr(torch.version, "hip", hip)


@pytest.mark.parametrize(("one", "other"), SAME_CHIP)
def test_documented_names_of_one_chip_lead_to_each_other(one, other):
    assert canonical_name(one) == canonical_name(other)
    assert file_safe_name(other) in names_of_same_chip(one)
    assert file_safe_name(one) in names_of_same_chip(other)
    assert names_of_same_chip(one)[0] == file_safe_name(one), "the name asked for comes first"


@pytest.mark.parametrize(("one", "other"), OTHER_CHIP)
def test_chips_that_differ_in_memory_or_sms_share_no_name(one, other):
    assert canonical_name(one) != canonical_name(other)
    assert not set(names_of_same_chip(one)) & set(names_of_same_chip(other))


def test_every_alias_leads_to_a_known_device_and_is_none_itself():
    assert set(DEVICE_ALIASES.values()) <= set(KNOWN_DEVICES)
    assert not set(DEVICE_ALIASES) & set(KNOWN_DEVICES)


@pytest.mark.parametrize("name", KNOWN_DEVICES)
def test_known_devices_are_described_in_full(name):
    known = KNOWN_DEVICES[name]
    assert known.name == name == file_safe_name(name)
    assert known.runs_tilelang and known.is_cuda
    assert known.is_hopper != known.is_ada
    assert known.shared_memory_per_block == (232448 if known.is_hopper else 101376)
    assert 40 <= known.sm_count <= 144
    assert 48 << 20 <= known.l2_bytes <= 96 << 20
    assert 2e11 < known.dram_bytes_per_s < 6e12


def test_h200_is_what_the_driver_says(monkeypatch):
    driver_says(monkeypatch)
    assert device_of(0) == KNOWN_DEVICES["NVIDIA_H200"]


@pytest.mark.parametrize(
    ("major", "minor", "arch", "runs_tilelang"),
    [(9, 0, "sm_90a", True), (8, 9, "sm_89", True), (8, 0, "sm_80", False), (10, 0, "sm_100", False)],
)
def test_architecture_follows_the_capability(monkeypatch, major, minor, arch, runs_tilelang):
    driver_says(monkeypatch, major=major, minor=minor)
    assert (device_of(0).arch, device_of(0).runs_tilelang) == (arch, runs_tilelang)


def test_rocm_gfx90a_is_not_hopper_though_its_capability_is_9_0(monkeypatch):
    driver_says(monkeypatch, hip="6.4", name="AMD Instinct MI210", gcnArchName="gfx90a:sramecc+:xnack-")
    assert device_of(0).arch == "gfx90a"
    assert not device_of(0).is_hopper and not device_of(0).is_cuda


def test_unknown_chip_has_a_safe_name_and_no_dram_speed(monkeypatch):
    driver_says(monkeypatch, name="Quadro RTX 6000/8000 ")
    assert device_of(0).name == "Quadro_RTX_6000_8000"
    assert device_of(0).dram_bytes_per_s == 0.0


def test_alias_name_from_the_driver_keeps_its_name_and_has_the_known_dram_speed(monkeypatch):
    driver_says(monkeypatch, name="NVIDIA GH200 120GB")
    assert (device_of(0).name, device_of(0).dram_bytes_per_s) == ("NVIDIA_GH200_120GB", 4.0e12)


@pytest.mark.parametrize("index", [-1, 1])
def test_missing_device_is_refused_with_the_count(monkeypatch, index):
    driver_says(monkeypatch, count=1)
    with pytest.raises(RuntimeError, match=rf"no CUDA device {index}: torch sees 1"):
        device_of(index)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("H200", ["NVIDIA_H200", "NVIDIA_H200_NVL"]),
        ("nvidia_h200_nvl", ["NVIDIA_H200_NVL"]),
        ("NVIDIA H20O", ["NVIDIA_H20", "NVIDIA_H200"]),
        ("rtx 4090", ["NVIDIA_GeForce_RTX_4090", "NVIDIA_GeForce_RTX_4090_D"]),
        ("L4S", ["NVIDIA_L40S", "NVIDIA_L4"]),
        ("H100_SXM", ["NVIDIA_H100_80GB_HBM3"]),
    ],
)
def test_an_unknown_name_is_answered_with_near_ones(name, near):
    with pytest.raises(ValueError) as refusal:
        known_device(name)
    suggestion = str(refusal.value).partition("? Known are ")[0]
    assert suggestion == f"device {name!r} is not known; did you mean {' or '.join(near)}"


@pytest.mark.parametrize("name", ["", "a toaster"])
def test_a_name_that_is_near_to_none_suggests_none(name):
    with pytest.raises(ValueError, match="is not known; known are NVIDIA_H100_80GB_HBM3, "):
        known_device(name)


def test_driver_is_asked_once(monkeypatch):
    driver_says(monkeypatch)
    first = device_of(0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", None)  # a second question would raise
    assert device_of(0) is first


def test_cpu_runs_no_kernel():
    assert cpu_device().name == cpu_device().arch == "cpu"
    assert not cpu_device().is_cuda and not cpu_device().runs_tilelang
    assert device_module.cpu_device() is cpu_device()
