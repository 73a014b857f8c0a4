"""core/config_entry.py: the schema of an entry, read through its file so that each sentence is whole."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.config_entry import Entry
from tilelang_gemm_wrapper.core.config_file import config_file_name, parse_config_file
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES

H200 = KNOWN_DEVICES["NVIDIA_H200"]
L40S = KNOWN_DEVICES["NVIDIA_L40S"]
N, K = 6144, 2560  # 20 steps along K

SWAP = {
    "kernel_type": "swapAB",
    "block_M": 64,
    "block_N": 16,
    "block_K": 128,
    "num_stages": 6,
    "threads": 128,
}
SPLIT = {**SWAP, "kernel_type": "splitK_swapAB", "split_k": 4}


def without(fields, *names):
    return {name: value for name, value in fields.items() if name not in names}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / config_file_name(N, K, H200.name)


def read(path, content, device=H200):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return parse_config_file(path, N, K, device)


def test_upstreams_entries_load_with_hints_and_measurements(path):
    swap = {**SWAP, "c_scale_local": True, "a_scale_shm": False, "latency_ms": 0.0089, "tflops": 56.5}
    split = {**SPLIT, "b_scale_shm": True, "out_dtype": "bfloat16", "accum_dtype": "float32", "latency_ms": 1}
    base = {**SWAP, "kernel_type": "base", "block_M": 128, "split_k": 1, "num_stages": 0}
    file = read(path, {"1024": base, "16": swap, "8": split, "64": {"kernel_type": "deep_gemm", "tflops": 0}})
    assert file.refused == ()
    assert file.entries == (
        Entry(8, KernelConfig("splitK_swapAB", 64, 16, 128, 6, 128, 4), 1),
        Entry(16, KernelConfig("swapAB", 64, 16, 128, 6, 128), 0.0089, 56.5),
        Entry(64, KernelConfig("deep_gemm"), None, 0),
        Entry(1024, KernelConfig("base", 128, 16, 128, 0, 128)),
    )
    assert (file.path, file.N, file.K, file.device_name, file.metadata) == (path, N, K, "NVIDIA_H200", {})


# key, JSON of the entry, what the sentence says beside file and key
REFUSED_ENTRIES = [
    ("0", SWAP, ["from 1 to"]),
    ("-8", SWAP, ["whole number"]),
    ("+8", SWAP, ["whole number"]),
    (" 8", SWAP, ["whole number"]),
    ("8_0", SWAP, ["whole number"]),
    ("8.0", SWAP, ["whole number"]),
    ("", SWAP, ["whole number"]),
    ("default", SWAP, ["whole number"]),
    ("\u0668", SWAP, ["whole number", "\\u0668"]),  # int() reads this Arabic-Indic digit as 8
    ("2147483648", SWAP, ["to 2147483647"]),
    ("9" * 5_000, SWAP, ["whole number"]),
    ("8", None, ["None", "null", "expected an object"]),
    ("8", [SWAP], ["expected an object"]),
    ("8", "swapAB", ["'swapAB'", "a string", "expected an object"]),
    ("8", 64, ["64", "expected an object"]),
    ("8", {}, ["kernel_type is missing", "splitK_swapAB"]),
    ("8", without(SWAP, "kernel_type"), ["kernel_type is missing"]),
    ("8", {**SWAP, "kernel_type": "swap_ab"}, ["kernel_type = 'swap_ab'", "perhaps 'swapAB'"]),
    ("8", {**SWAP, "kernel_type": "deepgemm"}, ["kernel_type = 'deepgemm'", "perhaps 'deep_gemm'"]),
    ("8", {**SWAP, "kernel_type": "zzz"}, ["kernel_type = 'zzz'", "known are base, swapAB"]),
    ("8", {**SWAP, "kernel_type": None}, ["kernel_type = None", "known are"]),
    ("8", {**SWAP, "kernel_type": ["base"]}, ["kernel_type = ['base']", "known are"]),
    ("8", {**SWAP, "blockM": 64}, ["unknown field 'blockM' = 64", "perhaps 'block_M'"]),
    ("8", {**SWAP, "BLOCK_N": 64}, ["unknown field 'BLOCK_N' = 64", "perhaps 'block_N'"]),
    ("8", {**SWAP, "stages": 6}, ["unknown field 'stages' = 6", "perhaps 'num_stages'"]),
    ("8", {**SWAP, "xyz": 6}, ["unknown field 'xyz' = 6", "known are kernel_type, block_M"]),
    ("8", {**SWAP, "\ud800": 1}, ["unknown field", "\\ud800"]),
    *[
        ("8", without(SWAP, name), [f"{name} is missing", "needs block_M"])
        for name in SWAP
        if name != "kernel_type"
    ],
    ("8", without(SPLIT, "split_k"), ["split_k is missing", "'splitK_swapAB' needs"]),
    *[
        ("8", {**SPLIT, name: wrong}, [f"{name} = {shown}", kind, "expected a whole number"])
        for name in ("block_M", "block_N", "block_K", "num_stages", "threads", "split_k")
        for wrong, shown, kind in [
            (True, "True", "a truth value"),
            (64.0, "64.0", "fraction"),
            ("64", "'64'", "a string"),
            (None, "None", "null"),
            ([64], "[64]", "a list"),
        ]
    ],
    ("8", {**SWAP, "c_scale_local": 1}, ["c_scale_local = 1", "expected true or false"]),
    ("8", {**SWAP, "a_scale_shm": "yes"}, ["a_scale_shm = 'yes'", "expected true or false"]),
    ("8", {**SWAP, "b_scale_shm": None}, ["b_scale_shm = None", "expected true or false"]),
    ("8", {**SWAP, "out_dtype": "float16"}, ["out_dtype = 'float16'", "'bfloat16' alone"]),
    ("8", {**SWAP, "accum_dtype": "float16"}, ["accum_dtype = 'float16'", "'float32' alone"]),
    ("8", {**SWAP, "latency_ms": math.nan}, ["latency_ms = nan", "cannot have been measured"]),
    ("8", {**SWAP, "latency_ms": math.inf}, ["latency_ms = inf", "cannot have been measured"]),
    ("8", {**SWAP, "latency_ms": -1}, ["latency_ms = -1", "cannot have been measured"]),
    ("8", {**SWAP, "latency_ms": 10**12}, ["latency_ms = 1000000000000", "cannot have been measured"]),
    ("8", {**SWAP, "latency_ms": 10**400}, ["latency_ms = 1000", "cannot have been measured"]),
    ("8", {**SWAP, "latency_ms": True}, ["latency_ms = True", "expected a number"]),
    ("8", {**SWAP, "latency_ms": "0.01"}, ["latency_ms = '0.01'", "expected a number"]),
    ("8", {**SWAP, "tflops": None}, ["tflops = None", "expected a number"]),
    ("8", {"kernel_type": "triton", "block_M": 64}, ["block_M = 64", "'triton'", "leave it out"]),
    ("8", {"kernel_type": "deep_gemm", "split_k": 1}, ["split_k = 1", "'deep_gemm'"]),
    ("8", {"kernel_type": "deep_gemm", "a_scale_shm": True}, ["a_scale_shm = True", "'deep_gemm'"]),
    # and what why_invalid says of the config itself
    ("8", {**SWAP, "num_stages": 99}, ["num_stages = 99", "bytes of shared memory", "232448"]),
    ("8", {**SPLIT, "split_k": 3}, ["split_k = 3", "20 steps", "use one of 2, 4, 5"]),
    ("8", {**SWAP, "threads": 192}, ["threads = 192", "128, 256"]),
    ("8", {**SWAP, "block_M": 72}, ["block_M = 72", "multiple of 64"]),
    ("8", {**SWAP, "block_N": 10**30}, ["block_N = 1000", "to 256"]),
    ("8", {**SWAP, "block_K": 64}, ["block_K = 64", "128 alone"]),
]


@pytest.mark.parametrize(("key", "fields", "says"), REFUSED_ENTRIES, ids=lambda value: repr(value)[:60])
def test_unusable_entry_is_left_out_and_the_rest_stays(path, key, fields, says):
    file = read(path, {"16": SWAP, key: fields, "32": SWAP})
    assert [entry.M for entry in file.entries] == [16, 32]
    (refusal,) = file.refused
    assert refusal.endswith(".") and "\n" not in refusal and refusal.isascii() and len(refusal) < 500
    shown_key = repr(key) if len(key) < 20 and key.isascii() else ""
    assert [part for part in [str(path), f"entry {shown_key}", *says] if part not in refusal] == [], refusal


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"kernel_type": "deep_gemm"}, ["'deep_gemm'", "Hopper", "NVIDIA_L40S"]),
        ({**SWAP, "block_M": 64, "block_N": 8}, ["block_N = 8", "sm_89"]),
        ({**SWAP, "block_N": 128, "threads": 256}, ["101376", "NVIDIA_L40S"]),
    ],
)
def test_entry_that_only_another_chip_can_run_is_left_out(path, entry, says):
    path = path.with_name(config_file_name(N, K, L40S.name))
    file = read(path, {"16": {"kernel_type": "triton"}, "8": entry}, L40S)
    assert [entry.M for entry in file.entries] == [16]
    assert [part for part in says if part not in file.refused[0]] == [], file.refused[0]


@pytest.mark.parametrize(
    ("text", "kept", "keys", "says"),
    [
        ('{"8": %(a)s, "16": %(a)s, "8": %(b)s}', [16], ["'8'"], "it is given several times and"),
        ('{"8": %(a)s, "16": %(a)s, "08": %(b)s}', [16], ["'8'", "'08'"], "M = 8 has another entry"),
        (
            '{"8": {"kernel_type": "triton", "kernel_type": "base"}, "16": %(a)s}',
            [16],
            ["'8'"],
            "kernel_type is",
        ),
        (
            '{"8": {"block_M": 64, "block_M": 128}, "16": %(a)s}',
            [16],
            ["'8'"],
            "block_M is given several times",
        ),
    ],
)
def test_what_is_given_twice_is_refused_not_guessed(path, text, kept, keys, says):
    file = read(path, text % {"a": json.dumps(SWAP), "b": json.dumps(SPLIT)})
    assert [entry.M for entry in file.entries] == kept
    assert len(file.refused) == len(keys)
    for key, refusal in zip(keys, file.refused, strict=True):
        assert f"entry {key} " in refusal and says in refusal, refusal


def test_the_largest_m_and_figure_that_are_taken(path):
    file = read(path, {"2147483647": {**SWAP, "latency_ms": 10**12 - 0.5}})
    assert (file.entries[0].M, file.entries[0].latency_ms) == (2**31 - 1, 10**12 - 0.5)
    with pytest.raises(FrozenInstanceError):  # every call's table shares it
        file.entries[0].M = 1
