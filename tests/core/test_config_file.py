"""core/config_file.py: names, files refused as a whole, provenance, and writing that survives a kill."""

from __future__ import annotations

import errno
import io
import json
import math
import os
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tilelang_gemm_wrapper.core.config import KERNEL_TYPES, KernelConfig
from tilelang_gemm_wrapper.core.config_entry import KNOWN_FIELDS, Entry
from tilelang_gemm_wrapper.core.config_file import (
    ConfigFileError,
    config_file_name,
    metadata_path,
    parse_config_file,
    write_config_file,
)
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES

H200 = KNOWN_DEVICES["NVIDIA_H200"]
H100 = KNOWN_DEVICES["NVIDIA_H100_80GB_HBM3"]
N, K = 6144, 2560
NAME = "N=6144,K=2560,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json"

SWAP = {
    "kernel_type": "swapAB",
    "block_M": 64,
    "block_N": 16,
    "block_K": 128,
    "num_stages": 6,
    "threads": 128,
}
SPLIT = {**SWAP, "kernel_type": "splitK_swapAB", "split_k": 4}
ENTRIES = (
    Entry(1, KernelConfig("splitK_swapAB", 64, 8, 128, 4, 128, 4), 0.0073, 4.31),
    Entry(16, KernelConfig("swapAB", 64, 16, 128, 6, 128), 0.0089, 56.5),
    Entry(64, KernelConfig("deep_gemm"), 0.0078),
    Entry(1024, KernelConfig("base", 128, 128, 128, 4, 256)),
    Entry(8192, KernelConfig("triton")),
)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / NAME


def read(path, content, device=H200):
    """Parse `content` (text, bytes, or a value to encode) as the file at `path`."""
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return parse_config_file(path, N, K, device)


# --- names -----------------------------------------------------------------------------------------------


def test_file_name_is_upstreams_and_made_safe():
    assert config_file_name(N, K, "NVIDIA H200") == config_file_name(N, K, "NVIDIA_H200") == NAME


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (NAME.replace("N=6144", "N=6145"), ["N=6145,K=2560", "N=6144,K=2560 is wanted", "rename"]),
        (NAME.replace("K=2560", "K=256"), ["N=6144,K=256 ", "is wanted"]),
        (NAME.replace("H200", "H20"), ["found for NVIDIA_H20, this is NVIDIA_H200", "tune"]),
        (NAME.replace("H200", "L40S"), ["found for NVIDIA_L40S, this is NVIDIA_H200"]),
        (NAME.replace("H200", "H100"), ["found for NVIDIA_H100, this is NVIDIA_H200"]),
        (NAME.replace("fp8_w8a8", "int8_w8a8"), ["dtype=int8_w8a8", "fp8_w8a8 alone"]),
        (NAME.replace(",dtype=fp8_w8a8", ""), ["dtype=None", "fp8_w8a8 alone"]),
        (NAME.replace("128, 128", "64, 128"), ["block_shape=[64, 128]", "[128, 128]", "rename"]),
        (NAME.replace("128, 128", "128,128"), ["block_shape=[128,128]", NAME, "rename"]),
        (NAME.replace(",block_shape=[128, 128]", ""), ["block_shape=None", NAME]),
        ("mine.json", ["not of the form", NAME, "rename"]),
        (NAME + ".bak", ["not of the form"]),
        ("X" + NAME, ["not of the form"]),
    ],
)
def test_file_whose_name_disagrees_is_refused_unread(tmp_path, name, says):
    path = tmp_path / name  # never written: the name alone decides
    with pytest.raises(ConfigFileError) as refusal:
        parse_config_file(path, N, K, H200)
    assert [part for part in [str(path), *says] if part not in str(refusal.value)] == [], str(refusal.value)


def test_name_of_the_same_chip_is_accepted(tmp_path):
    file = read(tmp_path / config_file_name(N, K, "NVIDIA_H100"), {"16": SWAP}, H100)
    assert file.device_name == "NVIDIA_H100"
    assert [entry.M for entry in file.entries] == [16]


# --- what is read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_editors_encodings_load(path, encoding):
    assert len(read(path, json.dumps({"16": SWAP}).encode(encoding)).entries) == 1


def test_a_file_of_a_mebibyte_is_the_largest_that_is_read(path):
    text = json.dumps({"16": SWAP}).ljust(1 << 20)
    assert len(read(path, text).entries) == 1
    with pytest.raises(ConfigFileError, match="1048577 bytes"):
        read(path, text + " ")


def test_what_was_read_cannot_be_changed(path):
    with pytest.raises(FrozenInstanceError):
        read(path, {"16": SWAP}).N = 1


def test_leading_zeros_are_one_more_spelling_of_m(path):
    assert [entry.M for entry in read(path, {"0016": SWAP}).entries] == [16]


# --- whole files refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", ["no JSON"]),
        ("not json", ["no JSON"]),
        (json.dumps({"16": SWAP})[:-20], ["truncated", "tune again or delete"]),
        (b"\xff\xfe\xfa", ["no JSON"]),
        (b'{"16": "\x80"}', ["no JSON", "utf-8"]),
        ("[" * 100_000, ["no JSON", "recursion"]),
        (
            '{"16": ' + "9" * 5_000 + "}",
            [],
        ),  # more digits than Python converts: whole file or entry, by version
        ([SWAP], ["top level", "expected an object"]),
        ("null", ["top level is None", "expected an object"]),
        ("3.5", ["top level is 3.5"]),
        ({"16": {"BLOCK_SIZE_M": 64, "num_warps": 4}}, ["BLOCK_SIZE_M", "Triton", "another directory"]),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_unusable_file_is_refused_as_a_whole(path, content, says):
    try:
        file = read(path, content)
    except ConfigFileError as error:
        refusal = str(error)
    else:
        assert file.entries == ()
        (refusal,) = file.refused
    assert [part for part in [str(path), "not used", *says] if part not in refusal] == [], refusal


def test_file_without_entries_says_so(path):
    file = read(path, {})
    assert file.entries == ()
    assert "no entry" in file.refused[0] and str(path) in file.refused[0]


def test_missing_file_directory_pipe_and_dangling_link_are_refused(path):
    cases = {"No such file": lambda: None, "not a regular file": path.mkdir}
    if hasattr(os, "mkfifo"):  # opening a pipe without a writer would hang here
        cases["not a regular file "] = lambda: (path.rmdir(), os.mkfifo(path))
    cases["No such file "] = lambda: (path.unlink(), path.symlink_to(path.with_name("nowhere")))
    for says, arrange in cases.items():
        arrange()
        with pytest.raises(ConfigFileError, match=says.strip()) as refusal:
            parse_config_file(path, N, K, H200)
        assert str(path) in str(refusal.value) and "cannot be read" in str(refusal.value)


def test_file_without_permission_is_refused(path, monkeypatch):
    def deny(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", deny)  # a mode of 000 does not stop root, who may run this
    with pytest.raises(
        ConfigFileError, match=r"cannot be read \(Permission denied\); correct its permissions"
    ):
        read(path, {"16": SWAP})


def test_path_with_a_nul_is_refused(tmp_path):
    with pytest.raises(ConfigFileError, match="cannot be read"):
        parse_config_file(tmp_path / "a\0b" / NAME, N, K, H200)


# --- provenance ------------------------------------------------------------------------------------------


def test_metadata_is_read_from_the_reserved_key_and_the_sidecar(path):
    metadata_path(path).write_text('{"driver": "575", "date": "2026-01-02"}')
    file = read(path, {"_metadata": {"date": "2025-01-01", "gpu": "H200"}, "16": SWAP})
    assert file.metadata == {"driver": "575", "date": "2026-01-02", "gpu": "H200"}
    assert file.refused == () and len(file.entries) == 1


@pytest.mark.parametrize(
    "tuned_on", ["NVIDIA_H100_80GB_HBM3", "NVIDIA_H100", "NVIDIA_H200_NVL", "", 7, ["H200"]]
)
@pytest.mark.parametrize("place", ["sidecar", "reserved key"])
def test_a_file_tuned_on_another_device_is_refused_whatever_its_name(path, tuned_on, place):
    """As a copy under another name is, with its sidecar."""
    table = {"16": SWAP}
    if place == "sidecar":
        metadata_path(path).write_text(json.dumps({"device": tuned_on}))
    else:
        table["_metadata"] = {"device": tuned_on}
    with pytest.raises(ConfigFileError) as refused:
        read(path, table)
    said = str(refused.value)
    assert said.startswith(f"{path} is not used: its {metadata_path(path).name} says that it was tuned on ")
    assert f"{tuned_on!r}, this is NVIDIA_H200; tune N={N},K={K} on this device" in said


@pytest.mark.parametrize(
    "metadata", [{"device": "NVIDIA_H200"}, {"device": "NVIDIA H200"}, {"device": None}, {}]
)
def test_a_file_tuned_on_this_device_or_on_one_not_named_serves(path, metadata):
    metadata_path(path).write_text(json.dumps(metadata))
    file = read(path, {"16": SWAP})
    assert (len(file.entries), file.refused) == (1, ())


def test_a_file_tuned_on_the_same_chip_under_another_name_serves(tmp_path):
    h100 = KNOWN_DEVICES["NVIDIA_H100_80GB_HBM3"]
    path = tmp_path / config_file_name(N, K, h100.name)
    write_config_file(path, ENTRIES, {"device": "NVIDIA_H100"})
    assert parse_config_file(path, N, K, h100).entries == ENTRIES


@pytest.mark.parametrize("sidecar", ["", "[]", "{", b"\xff"])
def test_broken_sidecar_costs_the_provenance_alone(path, sidecar):
    metadata_path(path).write_bytes(sidecar if isinstance(sidecar, bytes) else sidecar.encode())
    file = read(path, {"16": SWAP})
    assert len(file.entries) == 1 and file.metadata == {}
    assert len(file.refused) == 1 and str(metadata_path(path)) in file.refused[0]


@pytest.mark.parametrize("embedded", [None, 3, [1]])
def test_broken_reserved_key_costs_the_provenance_alone(path, embedded):
    file = read(path, {"_metadata": embedded, "16": SWAP})
    assert len(file.entries) == 1 and file.metadata == {}
    assert len(file.refused) == 1 and "_metadata" in file.refused[0] and str(path) in file.refused[0]


# --- writing ---------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(path):
    metadata = {"driver": "575.57", "method": {"cold": True}}
    write_config_file(path, reversed(ENTRIES), metadata)
    file = parse_config_file(path, N, K, H200)
    assert (file.entries, file.refused, file.metadata) == (ENTRIES, (), metadata)


def test_written_file_can_be_read_by_upstreams_loader(path):
    write_config_file(path, ENTRIES, {"driver": "575.57"})
    table = {int(key): value for key, value in json.loads(path.read_text()).items()}  # as SGLang reads it
    assert list(table) == [1, 16, 64, 1024, 8192]
    assert table[1] == {
        "kernel_type": "splitK_swapAB",
        "block_M": 64,
        "block_N": 8,
        "block_K": 128,
        "num_stages": 4,
        "threads": 128,
        "split_k": 4,
        "latency_ms": 0.0073,
        "tflops": 4.31,
    }
    assert "split_k" not in table[1024]
    assert table[64] == {"kernel_type": "deep_gemm", "latency_ms": 0.0078}
    assert set().union(*table.values()) <= set(KNOWN_FIELDS)


def test_written_files_are_indented_by_two_as_those_in_the_repository(path):
    write_config_file(path, ENTRIES, {"method": {"cold": True}})
    assert path.read_text().startswith('{\n  "1": {\n    "kernel_type": "splitK_swapAB",\n')
    assert metadata_path(path).read_text() == '{\n  "method": {\n    "cold": true\n  }\n}\n'


def test_new_directory_is_made_and_nothing_else_is_left_in_it(tmp_path):
    path = tmp_path / "new" / "deep" / NAME
    write_config_file(path, ENTRIES, {"a": 1})
    assert sorted(os.listdir(path.parent)) == sorted([NAME, metadata_path(path).name])
    write_config_file(path, ENTRIES)
    assert os.listdir(path.parent) == [NAME], "provenance of the entries before must not outlive them"


@pytest.mark.parametrize("dies_at", ["fsync", "replace"])
def test_writer_killed_midway_leaves_the_old_entries(path, monkeypatch, dies_at):
    write_config_file(path, ENTRIES, {"run": "old"})
    old = path.read_bytes()

    def die(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, dies_at, die)
        write_config_file(path, ENTRIES[:1], {"run": "new"})
    assert path.read_bytes() == old
    assert parse_config_file(path, N, K, H200).metadata == {}, "provenance may be lost, never mixed up"
    assert os.listdir(path.parent) == [NAME]


def test_writer_killed_before_the_sidecar_leaves_new_entries_without_provenance(path, monkeypatch):
    write_config_file(path, ENTRIES, {"run": "old"})
    replace = os.replace

    def die_at_sidecar(source, target):
        if target == metadata_path(path):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", die_at_sidecar)
        write_config_file(path, ENTRIES[:1], {"run": "new"})
    file = parse_config_file(path, N, K, H200)
    assert (file.entries, file.metadata) == (ENTRIES[:1], {})


@pytest.mark.parametrize(
    ("entries", "metadata", "says"),
    [
        ([ENTRIES[0], ENTRIES[0]], None, "M = 1 has several entries"),
        ([Entry(8, KernelConfig("triton"), math.nan)], None, "not JSON compliant"),
        (ENTRIES, {"clock": math.inf}, "not JSON compliant"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(path, entries, metadata, says):
    write_config_file(path, ENTRIES, {"run": "old"})
    with pytest.raises(ValueError, match=says):
        write_config_file(path, entries, metadata)
    assert parse_config_file(path, N, K, H200).metadata == {"run": "old"}


# --- any content at all ----------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
near_entries = st.dictionaries(
    st.sampled_from(KNOWN_FIELDS) | st.text(max_size=8),
    st.sampled_from([*KERNEL_TYPES, 0, 1, 2, 16, 64, 128, True]) | json_values,
    max_size=9,
).map(lambda fields: {**SPLIT, **fields})
near_tables = st.dictionaries(
    st.sampled_from(["1", "8", "08", "_metadata"]) | st.text(max_size=4),
    near_entries | json_values,
    max_size=4,
)
small_runs = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def check_any(path, content):
    try:
        file = read(path, content)
    except ConfigFileError as error:
        refused, entries = (str(error),), ()
    else:
        refused, entries = file.refused, file.entries
    assert entries or refused
    assert all(str(path) in sentence and sentence.endswith(".") for sentence in refused)
    ms = [entry.M for entry in entries]
    assert ms == sorted(set(ms)) and all(isinstance(entry.config, KernelConfig) for entry in entries)


@small_runs
@given(content=st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(path, content):
    check_any(path, content)


@small_runs
@given(value=json_values | near_tables)
def test_any_json_is_read_or_refused(path, value):
    check_any(path, json.dumps(value))


@small_runs
@given(data=st.data())
def test_every_truncation_is_refused(path, data):
    whole = json.dumps({"8": SPLIT, "16": SWAP}).encode()
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ConfigFileError, match="truncated"):
        read(path, whole[:cut])


def test_a_full_disk_leaves_the_old_pair(path, monkeypatch):
    from tilelang_gemm_wrapper.core import whole_file

    class Full(io.StringIO):
        def flush(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    write_config_file(path, ENTRIES, {"run": "old"})
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(whole_file.Path, "open", lambda *_, **__: Full())
        write_config_file(path, ENTRIES[:1], {"run": "new"})
    file = parse_config_file(path, N, K, H200)
    assert (file.entries, file.metadata) == (ENTRIES, {"run": "old"})


def test_a_sidecar_that_cannot_be_written_costs_no_entry(path, monkeypatch, caplog):
    replace = os.replace

    def full_at_sidecar(source, target):
        if target == metadata_path(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full_at_sidecar)
    write_config_file(path, ENTRIES, {"run": "new"})
    assert parse_config_file(path, N, K, H200).entries == ENTRIES
    assert "is written, but not what it was tuned with" in caplog.text
