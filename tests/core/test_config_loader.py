"""core/config_loader.py: which file serves a shape, what is said of the others, and which entry serves M."""

from __future__ import annotations

import json
import os
from dataclasses import FrozenInstanceError
from importlib.metadata import PackageNotFoundError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilelang_gemm_wrapper import configurer
from tilelang_gemm_wrapper.core import config_loader
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.config_entry import Entry
from tilelang_gemm_wrapper.core.config_file import config_file_name, write_config_file
from tilelang_gemm_wrapper.core.config_loader import choose, find_config, why_other_kernels
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES, Device, cpu_device

H200 = KNOWN_DEVICES["NVIDIA_H200"]
H100 = KNOWN_DEVICES["NVIDIA_H100_80GB_HBM3"]
N, K = 6144, 2560
TRITON = Entry(8, KernelConfig("triton"))
BAD = '{"8": {"kernel_type": "nope"}}'


def put(directory, entries=(TRITON,), device_name=H200.name, n=N, k=K):
    """A tuned file in `directory`: of entries, or with `entries` as its text."""
    path = directory / config_file_name(n, k, device_name)
    if isinstance(entries, str):
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(entries)
    else:
        write_config_file(path, entries)
    return path


@pytest.fixture
def first(tmp_path):
    return tmp_path / "first"


@pytest.fixture
def second(tmp_path):
    return tmp_path / "second"


def test_first_directory_with_the_file_wins(first, second):
    path = put(first)
    put(second, [Entry(1, KernelConfig("deep_gemm"))])
    search = find_config(N, K, H200, [first, second])
    assert search.file is not None and search.file.path == path
    assert search.file.entries == (TRITON,)
    assert (search.tried, search.refused) == ((path,), ())
    with pytest.raises(FrozenInstanceError):
        search.file = None


@pytest.mark.parametrize("content", ["", "[]", "{}", BAD, '{"8": {"kernel_type": "bas'], ids=repr)
def test_useless_file_gives_way_to_the_next_directory_and_is_named(first, second, content):
    bad, good = put(first, content), put(second)
    search = find_config(N, K, H200, [first, second])
    assert search.file is not None and search.file.path == good
    assert search.tried == (bad, good)
    assert len(search.refused) == 1 and str(bad) in search.refused[0]


def test_file_with_one_good_entry_is_used_and_the_bad_one_named(first, second):
    path = put(first, '{"8": {"kernel_type": "triton"}, "16": {"kernel_type": "nope"}}')
    put(second)
    search = find_config(N, K, H200, [first, second])
    assert search.file is not None and search.file.path == path
    assert [entry.M for entry in search.file.entries] == [8]
    assert len(search.refused) == 1 and "entry '16'" in search.refused[0]


def test_nothing_found_lists_every_path_looked_for(first, second):
    first.mkdir()
    second.mkdir()
    search = find_config(N, K, H100, [first, second])
    assert search.file is None and search.refused == ()
    names = [config_file_name(N, K, name) for name in ("NVIDIA_H100_80GB_HBM3", "NVIDIA_H100")]
    for path in (directory / name for directory in (first, second) for name in names):
        assert path in search.tried


@pytest.mark.parametrize(
    ("asked", "stored"),
    [("NVIDIA_H100_80GB_HBM3", "NVIDIA_H100"), ("NVIDIA_H100", "NVIDIA_H100_80GB_HBM3")],
)
def test_other_name_of_the_same_chip_serves_both_ways(first, asked, stored):
    path = put(first, device_name=stored)
    device = Device(asked, "sm_90a", 132, H100.shared_memory_per_block, H100.l2_bytes, 0.0)
    search = find_config(N, K, device, [first])
    assert search.file is not None and (search.file.path, search.file.device_name) == (path, stored)
    assert search.refused == ()


def test_own_name_is_preferred_to_the_alias_and_a_broken_one_gives_way_to_it(first):
    alias = put(first, device_name="NVIDIA_H100")
    own = put(first, device_name=H100.name)
    search = find_config(N, K, H100, [first])
    assert search.file is not None and search.file.path == own
    put(first, "{", device_name=H100.name)
    search = find_config(N, K, H100, [first])
    assert search.file is not None and search.file.path == alias
    assert len(search.refused) == 1 and str(own) in search.refused[0]


def test_files_of_other_chips_are_refused_by_name(first, second):
    h20, h100 = put(first, device_name="NVIDIA_H20"), put(first, device_name="NVIDIA_H100")
    put(first, device_name="NVIDIA_H20", n=N + 16)  # another shape: not worth a word
    mine = put(second)
    search = find_config(N, K, H200, [first, second])
    assert search.file is not None and search.file.path == mine
    assert len(search.refused) == 2
    for path, name, sentence in zip((h100, h20), ("NVIDIA_H100", "NVIDIA_H20"), search.refused, strict=True):
        assert str(path) in sentence and f"found for {name}, this is NVIDIA_H200" in sentence


@pytest.mark.parametrize(
    ("written", "instead"),
    [("[128, 128]", "[128,128]"), (",block_shape=[128, 128]", ""), ("fp8_w8a8", "int8_w8a8")],
)
def test_misspelt_file_is_named_not_silently_missed(first, written, instead):
    path = put(first)
    odd = path.rename(path.with_name(path.name.replace(written, instead)))
    search = find_config(N, K, H200, [first])
    assert search.file is None
    assert len(search.refused) == 1 and str(odd) in search.refused[0]


def test_missing_directory_file_as_directory_and_nul_are_sentences(tmp_path, first):
    put(first)
    (tmp_path / "file").write_text("")
    odd = [tmp_path / "missing", tmp_path / "file", tmp_path / "a\0b"]
    search = find_config(N, K, H200, [*odd, first])
    assert search.file is not None
    assert len(search.refused) == 3
    for directory, sentence in zip(odd, search.refused, strict=True):
        assert f"config directory {directory} is not used" in sentence
        assert configurer.CONFIG_DIR in sentence


def test_directory_without_permission_is_a_sentence(first, second, monkeypatch):
    put(first)
    put(second)
    lstat, listdir = os.lstat, os.listdir

    def deny(call):
        def checked(path, *arguments, **named):
            if os.fspath(path).startswith(str(first)):
                raise PermissionError(13, "Permission denied")
            return call(path, *arguments, **named)

        return checked

    monkeypatch.setattr(os, "lstat", deny(lstat))  # a mode of 000 does not stop root, who may run this
    monkeypatch.setattr(os, "listdir", deny(listdir))
    search = find_config(N, K, H200, [first, second])
    assert search.file is not None and search.file.path.parent == second
    assert len(search.refused) == 1 and f"{first} is not used: Permission denied" in search.refused[0]


def test_default_directories_are_the_environments_then_the_shipped_ones(first, second, monkeypatch):
    monkeypatch.setenv(configurer.CONFIG_DIR, f"{first}{os.pathsep}{second}")
    path = put(second)
    search = find_config(N, K, H200)
    assert search.file is not None and search.file.path == path
    search = find_config(16, 128, Device("NO_SUCH_CHIP", "sm_90a", 1, 232448, 0, 0.0))
    shipped = configurer.shipped_config_directory()
    assert [path.parent for path in search.tried] == [first, second, shipped]


def test_shape_without_a_file_and_device_without_any_find_nothing_without_a_word(first):
    put(first, n=N + 16)
    for device in (H200, cpu_device()):
        search = find_config(N, K, device, [first])
        assert (search.file, search.refused) == (None, ())


@pytest.mark.parametrize(
    ("M", "chosen"), [(1, 1), (2, 8), (8, 8), (9, 64), (64, 64), (65, 1024), (1024, 1024), (10**9, 1024)]
)
def test_smallest_tuned_m_at_or_above_else_the_largest(M, chosen):
    entries = [Entry(tuned, KernelConfig("triton")) for tuned in (1, 8, 64, 1024)]
    assert choose(entries, M) == Entry(chosen, KernelConfig("triton"))


@given(st.sets(st.integers(1, 300)), st.integers(1, 310))
def test_choice_is_the_rule_for_any_table(tuned, M):
    entries = [Entry(m, KernelConfig("triton")) for m in sorted(tuned)]
    expected = min((m for m in tuned if m >= M), default=max(tuned, default=None))
    entry = choose(entries, M)
    assert (entry.M if entry else None) == expected


def test_a_file_tuned_with_other_kernels_is_told_and_one_that_says_nothing_is_not(first, monkeypatch):
    running = "tilelang 0.1.15 kernels " + "5" * 64
    monkeypatch.setattr(config_loader, "code_version", lambda: running)

    def why(tuned_with):
        write_config_file(put(first), (TRITON,), {"kernels": tuned_with} if tuned_with else None)
        file = find_config(N, K, H200, [first]).file
        return why_other_kernels(file)

    assert why(running) is None and why(None) is None and why(7) is None
    for digit in "46":
        short = "tilelang 0.1.15 kernels"
        assert why(f"{short} {digit * 64}") == f"tuned with {short} {digit * 12}, running {short} {'5' * 12}"
    assert why(" ".join(["abcdefghij"] * 20)).startswith(f"tuned with {('abcdefghij ' * 8)[:80]}, running")

    def no_tilelang():
        raise PackageNotFoundError("tilelang")

    monkeypatch.setattr(config_loader, "code_version", no_tilelang)
    assert why("tilelang 0.1.0") is None


def test_shipped_files_are_usable_to_the_last_entry():
    shipped = configurer.shipped_config_directory()
    assert shipped.is_dir()
    for path in shipped.glob("N=*.json"):
        if path.name.endswith(".meta.json"):
            assert json.loads(path.read_text())
            continue
        n, k, device_name = (part.partition("=")[2] for part in path.name.split(",")[:3])
        search = find_config(int(n), int(k), KNOWN_DEVICES[device_name], [shipped])
        assert search.file is not None and search.file.path == path
        assert search.file.refused == ()
