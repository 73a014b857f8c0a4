"""core/dispatch.py: which kernel serves which M, from where, and what is said about it."""

from __future__ import annotations

import logging
from dataclasses import FrozenInstanceError

import pytest

from tilelang_gemm_wrapper import backends, configurer
from tilelang_gemm_wrapper.core import config_loader, default_choice, dispatch, kernel_registry
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.config_entry import Entry
from tilelang_gemm_wrapper.core.config_file import config_file_name, write_config_file
from tilelang_gemm_wrapper.core.device import DEVICE_ALIASES, KNOWN_DEVICES, cpu_device
from tilelang_gemm_wrapper.core.dispatch import Choice, DispatchTable, build_table, fallback_choice, log_notes

H200, L40S = KNOWN_DEVICES["NVIDIA_H200"], KNOWN_DEVICES["NVIDIA_L40S"]
N, K = 6144, 2560
SWAP = KernelConfig("swapAB", 64, 16, 128, 6, 128)
SPLIT = KernelConfig("splitK_swapAB", 64, 16, 128, 4, 128, 4)
BASE = KernelConfig("base", 128, 128, 128, 4, 256)
DEEP_GEMM, TRITON = KernelConfig("deep_gemm"), KernelConfig("triton")
DEFAULTS = [(16, SPLIT), (64, KernelConfig("swapAB", 64, 64, 128, 4, 128)), (65, BASE)]


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine with TileLang and every backend, one named config directory and nothing shipped."""
    for variable in (configurer.ENABLE, configurer.FALLBACK):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(configurer.CONFIG_DIR, str(tmp_path / "tuned"))
    monkeypatch.setattr(configurer, "shipped_config_directory", lambda: tmp_path / "shipped")
    monkeypatch.setattr(configurer, "why_tilelang_unfit", lambda: None)
    for directory in ("tuned", "shipped"):
        (tmp_path / directory).mkdir()
    for module in (dispatch, default_choice):
        monkeypatch.setattr(module, "default_entries", defaults)
    monkeypatch.setattr(dispatch, "_told", set())
    say(monkeypatch, "deep_gemm", lambda device: None if device.is_hopper else "DeepGEMM needs Hopper")
    say(monkeypatch, "triton", lambda device: None)


def defaults(N, K, device):
    return DEFAULTS


def say(monkeypatch, name, why_unavailable):
    monkeypatch.setattr(backends.backend(name), "why_unavailable", why_unavailable)


def put(tmp_path, entries, device_name=H200.name, directory="tuned", n=N, k=K, metadata=None):
    path = tmp_path / directory / config_file_name(n, k, device_name)
    write_config_file(path, [Entry(M, config) for M, config in entries], metadata)
    return path


def remarks(table, topic):
    return [remark.text for remark in table.remarks if remark.topic == topic]


def test_tuned_file(tmp_path):
    path = put(tmp_path, [(8, SPLIT), (64, SWAP), (4096, DEEP_GEMM)])
    table = build_table(N, K, H200)
    assert (table.N, table.K, table.device, table.notes) == (N, K, H200, ())
    assert table.bounds == (8, 64, 4096)
    assert [choice.kernel for choice in table.choices] == ["splitK_swapAB", "swapAB", "deep_gemm"]
    assert [choice.config for choice in table.choices] == [SPLIT, SWAP, None]
    assert {choice.source for choice in table.choices} == {str(path)}
    assert [choice.reason for choice in table.choices] == [f"tuned for M = {M}" for M in (8, 64, 4096)]


@pytest.mark.parametrize(
    ("M", "position"),
    [(1, 0), (7, 0), (8, 0), (9, 1), (63, 1), (64, 1), (65, 2), (4096, 2), (4097, 2), (2**31, 2)],
)
def test_the_smallest_tuned_m_that_is_enough(tmp_path, M, position):
    put(tmp_path, [(64, SWAP), (8, SPLIT), (4096, BASE)])
    assert build_table(N, K, H200).index(M) == position


@pytest.mark.parametrize("device", [H200, L40S])
def test_far_above_the_last_tuned_m_the_default_choice_goes_on(tmp_path, device):
    path = put(tmp_path, [(4, SWAP), (16, SPLIT)], device_name=device.name)
    table = build_table(N, K, device)
    assert table.bounds == (4, 31, 64, 65)
    assert [choice.config for choice in table.choices] == [SWAP, SPLIT, DEFAULTS[1][1], BASE]
    assert [choice.source for choice in table.choices] == [str(path)] * 2 + ["default choice"] * 2
    assert [choice.reason for choice in table.choices[1:]] == [
        "tuned for M = 16",
        "far above M = 16, the last tuned; default for M up to 64",
        "far above M = 16, the last tuned; default for M above 64",
    ]
    assert [table.index(M) for M in (16, 31, 32, 64, 65, 10**6)] == [1, 1, 2, 2, 3, 3]
    (text,) = remarks(table, "above the last tuned M")
    assert all(part in text for part in (str(path), "ends at M = 16", "from M = 32 on")), text
    assert table.notes == ()


@pytest.mark.parametrize("last", [2049, 4096, 8192])
def test_a_file_tuned_for_thousands_of_tokens_keeps_all_larger_m(tmp_path, monkeypatch, last):
    monkeypatch.setattr(default_choice, "default_entries", lambda *shape: pytest.fail("asked for defaults"))
    path = put(tmp_path, [(8, SWAP), (last, BASE)])
    table = build_table(N, K, H200)
    assert (table.bounds, table.remarks) == ((8, last), ())
    assert {choice.source for choice in table.choices} == {str(path)}


def test_a_workspace_that_grows_with_m_ends_with_the_tuned_m(tmp_path):
    """Ada's split of K at 4096 tokens was measured; for any number of tokens it would take all memory."""
    put(tmp_path, [(4096, SPLIT)], device_name=L40S.name)
    table = build_table(N, K, L40S)
    assert [choice.config for choice in table.choices] == [SPLIT, BASE]
    assert [table.index(M) for M in (4096, 8191, 8192, 10**6)] == [0, 0, 1, 1]
    put(tmp_path, [(4096, SPLIT)])
    assert len(build_table(N, K, H200).choices) == 1, "Hopper reduces within a cluster, without a workspace"


@pytest.mark.parametrize("device", [H200, L40S])
@pytest.mark.parametrize("last", [1, 16, 512, 2048, 8192])
@pytest.mark.parametrize("last_config", [SPLIT, DEEP_GEMM, TRITON])
def test_no_workspace_at_large_m_whatever_was_tuned_last(tmp_path, monkeypatch, device, last, last_config):
    monkeypatch.undo()  # the real default choice
    monkeypatch.setenv(configurer.CONFIG_DIR, str(tmp_path / "tuned"))
    monkeypatch.setattr(configurer, "why_tilelang_unfit", lambda: None)
    put(tmp_path, [(last, last_config)], device_name=device.name)
    table = build_table(N, K, device)
    assert list(table.bounds) == sorted(set(table.bounds))
    served = table.choices[table.index(max(16384, 2 * last))].config
    assert served is None or not kernel_registry.needs_workspace(served, device.arch)


def test_a_replaced_last_entry_counts_among_the_tuned(tmp_path, monkeypatch):
    put(tmp_path, [(8, SWAP), (16, DEEP_GEMM)])
    say(monkeypatch, "deep_gemm", lambda device: "deep_gemm is not installed")
    table = build_table(N, K, H200)
    (note,) = table.notes
    assert "1 entries of" in note
    assert [choice.config for choice in table.choices] == [SWAP, SPLIT, DEFAULTS[1][1], BASE]


def test_a_file_tuned_with_other_kernels_serves_and_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(config_loader, "code_version", lambda: "tilelang 0.1.16 kernels " + "f" * 64)
    told = {}
    for kernels in ("tilelang 0.1.15 kernels " + "0" * 64, "tilelang 0.1.16 kernels " + "f" * 64, None, 7):
        path = put(tmp_path, [(8192, BASE)], metadata={"device": H200.name, "kernels": kernels})
        table = build_table(N, K, H200)
        assert table.choices[0].config == BASE
        assert table.notes == ()
        told[kernels] = remarks(table, "tuned with other kernels")
    (text,) = told.pop("tilelang 0.1.15 kernels " + "0" * 64)
    assert text.startswith(
        f"{path}: tuned with tilelang 0.1.15 kernels 000000000000, running tilelang 0.1.16 kernels "
        "ffffffffffff: "
    )
    assert list(told.values()) == [[], [], []]
    put(tmp_path, [(8192, BASE)])
    assert build_table(N, K, H200).remarks == (), "a file without a sidecar says nothing of its kernels"


def test_a_file_whose_sidecar_names_another_device_is_refused(tmp_path):
    put(tmp_path, [(8192, BASE)], metadata={"device": "NVIDIA_H100_80GB_HBM3"})
    table = build_table(N, K, H200)
    assert {choice.source for choice in table.choices} == {"default choice"}
    (note,) = table.notes
    assert "tuned on 'NVIDIA_H100_80GB_HBM3', this is NVIDIA_H200" in note


@pytest.mark.parametrize(("n", "k"), [(16, 128), (6160, 384)])
def test_every_multiple_of_16_by_128_is_ours(n, k):
    assert {choice.source for choice in build_table(n, k, H200).choices} == {"default choice"}


def test_named_directory_before_shipped(tmp_path, monkeypatch):
    shipped = put(tmp_path, [(8, SWAP)], directory="shipped")
    assert build_table(N, K, H200).choices[0].source == str(shipped)
    named = put(tmp_path, [(8, SPLIT)])
    assert build_table(N, K, H200).choices[0].source == str(named)
    assert build_table(N, K, H200).choices[0].config == SPLIT


def test_file_under_another_name_of_the_chip(tmp_path):
    alias, name = next(iter(DEVICE_ALIASES.items()))
    path = put(tmp_path, [(8, SWAP)], device_name=alias)
    assert build_table(N, K, KNOWN_DEVICES[name]).choices[0].source == str(path)


def test_refused_entries_become_notes(tmp_path):
    path = put(tmp_path, [(8, SPLIT), (4096, SWAP)])
    path.write_text(path.read_text().replace('"split_k": 4', '"split_k": 3'))
    table = build_table(N, K, H200)
    assert table.bounds == (4096,)
    (note,) = table.notes
    assert all(text in note for text in (f"{path}: entry '8'", "split_k = 3", "20 steps")), note


def test_a_file_without_a_usable_entry_is_as_none(tmp_path):
    path = put(tmp_path, [(8, SWAP)])
    path.write_text(path.read_text()[:-20])
    table = build_table(N, K, H200)
    assert {choice.source for choice in table.choices} == {"default choice"}
    (note,) = table.notes
    assert str(path) in note
    assert len(remarks(table, "no tuned file")) == 1


def test_deep_gemm_entry_where_it_is_missing(tmp_path, monkeypatch):
    """The default for the M of such an entry takes its place, never DeepGEMM again."""
    tuned = [(8, SWAP), (64, DEEP_GEMM), (65, DEEP_GEMM), (4096, DEEP_GEMM)]
    put(tmp_path, tuned)
    say(monkeypatch, "deep_gemm", lambda device: "deep_gemm is not installed: pip install sgl-deep-gemm")
    table = build_table(N, K, H200)
    kept, *replaced = table.choices
    assert table.bounds == (8, 64, 65, 4096)
    assert kept.config == SWAP
    assert [choice.config for choice in replaced] == [DEFAULTS[1][1], BASE, BASE]
    for choice, (M, _) in zip(replaced, tuned[1:], strict=True):
        assert (choice.kernel, choice.source) == (choice.config.kernel_type, "default choice")
        assert f"tuned for M = {M} with deep_gemm, which cannot run here" in choice.reason
        assert "sgl-deep-gemm" in choice.reason


def test_triton_entry_where_it_is_missing(tmp_path, monkeypatch):
    put(tmp_path, [(8, TRITON)], device_name=L40S.name)
    say(monkeypatch, "triton", lambda device: "triton cannot be imported")
    choice = build_table(N, K, L40S).choices[0]
    assert (choice.config, choice.source) == (SPLIT, "default choice")
    assert "with triton, which cannot run here: triton cannot be imported" in choice.reason


def test_an_entry_that_cannot_run_where_there_is_no_default(tmp_path, monkeypatch):
    put(tmp_path, [(8, DEEP_GEMM)])
    say(monkeypatch, "deep_gemm", lambda device: "not installed")
    for module in (dispatch, default_choice):
        monkeypatch.setattr(module, "default_entries", lambda *shape: [])
    (choice,) = build_table(N, K, H200).choices
    assert (choice.kernel, choice.source) == ("triton", "fallback")
    assert "tuned for M = 8 with deep_gemm, which cannot run here: not installed" in choice.reason


def test_triton_entry(tmp_path):
    path = put(tmp_path, [(4096, TRITON)], device_name=L40S.name)
    (choice,) = build_table(N, K, L40S).choices
    assert (choice.kernel, choice.config, choice.source) == ("triton", None, str(path))


def test_default_choice_says_which_m_it_serves(monkeypatch):
    table = build_table(N, K, L40S)
    assert table.bounds == (16, 64, 65)
    assert [choice.config for choice in table.choices] == [config for _, config in DEFAULTS]
    assert {choice.source for choice in table.choices} == {"default choice"}
    said = [choice.reason.removeprefix("no tuned file; default for ") for choice in table.choices]
    assert said == ["M up to 16", "M up to 64", "M above 64"]
    monkeypatch.setattr(dispatch, "default_entries", lambda *shape: DEFAULTS[:1])
    assert build_table(N, K, L40S).choices[0].reason == "no tuned file; default for every M"


def test_no_default_is_a_fallback(monkeypatch):
    monkeypatch.setattr(dispatch, "default_entries", lambda *shape: [])
    table = build_table(N, K, H200)
    assert [choice.source for choice in table.choices] == ["fallback"]
    assert f"no TileLang kernel is valid for N = {N}, K = {K}" in table.choices[0].reason
    assert "no tuned file" in table.choices[0].reason


def test_missing_file_is_named_with_its_directories(tmp_path):
    (note,) = remarks(build_table(N, K, H200), "no tuned file")
    assert f"'{config_file_name(N, K, H200.name)}'" in note
    assert f"{tmp_path / 'tuned'}, {tmp_path / 'shipped'}" in note
    assert f"tune N={N}, K={K}" in note
    assert configurer.CONFIG_DIR in note


FALLBACKS = [
    (N + 8, K, H200, "deep_gemm", f"N = {N + 8} is not a multiple of 16"),
    (N + 1, K, H200, "triton", f"N = {N + 1} is not a multiple of 16"),  # DeepGEMM wants a multiple of 8
    (N, K + 64, H200, "triton", f"K = {K + 64} is not a multiple of 128"),
    (3884, 3884, L40S, "triton", "N = 3884"),
    (N, K, cpu_device(), "torch", "cpu"),
]


@pytest.mark.parametrize(("n", "k", "device", "kernel", "why"), FALLBACKS)
def test_fallback_for_shapes_and_devices_without_a_kernel(n, k, device, kernel, why):
    table = build_table(n, k, device)
    (choice,) = table.choices
    assert (choice.kernel, choice.config, choice.source) == (kernel, None, "fallback")
    assert why in choice.reason
    assert f"{kernel} runs on {device.name}" in choice.reason
    assert {table.index(M) for M in (1, 2, 10**6)} == {0}


def test_fallback_where_tilelang_is_missing_or_off(tmp_path, monkeypatch):
    put(tmp_path, [(8, SWAP)])
    monkeypatch.setattr(configurer, "why_tilelang_unfit", lambda: "tilelang is not installed; pip install it")
    (choice,) = build_table(N, K, H200).choices
    assert choice.kernel == "deep_gemm"
    assert "tilelang is not installed; pip install it" in choice.reason
    monkeypatch.setenv(configurer.ENABLE, "0")
    (choice,) = build_table(N, K, H200).choices
    assert f"{configurer.ENABLE}=0" in choice.reason


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ([4096], ["1 entries of", "tuned for M = 4096 with deep_gemm", "base runs instead"]),
        ([64, 4096], ["2 entries of", "tuned for M = 64 with deep_gemm", "others run instead"]),
    ],
)
def test_replaced_entries_are_counted_and_the_first_is_told(tmp_path, monkeypatch, missing, says):
    """Of a directory with a relative path too, whose name sorts after that of any other source."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(configurer.CONFIG_DIR, "tuned")
    put(tmp_path, [(8, SWAP), *((M, DEEP_GEMM) for M in missing)])
    say(monkeypatch, "deep_gemm", lambda device: "deep_gemm is not installed")
    (note,) = build_table(N, K, H200).notes
    assert [part for part in says if part not in note] == [], note


def test_two_defaults_share_all_m(monkeypatch):
    monkeypatch.setattr(dispatch, "default_entries", lambda *shape: [DEFAULTS[0], DEFAULTS[2]])
    reasons = [choice.reason for choice in build_table(N, K, H200).choices]
    assert [reason.partition("default for ")[2] for reason in reasons] == ["M up to 16", "M above 16"]


def test_only_a_table_of_fallbacks_alone_is_told_as_one_and_by_its_first(caplog):
    caplog.set_level(logging.WARNING)
    ours = Choice("swapAB", SWAP, "tuned/file.json", "tuned for M = 8")
    first, second = (Choice(name, None, "fallback", f"why {name}") for name in ("triton", "torch"))
    for choices in ((ours,), (ours, first), (first, ours)):
        log_notes(DispatchTable(N, K, H200, (8, 16)[: len(choices)], choices))
    assert caplog.records == []
    log_notes(DispatchTable(N, K, H200, (8, 16), (first, second)))
    assert [record.getMessage() for record in caplog.records] == [f"N={N}, K={K} runs on triton: why triton"]


def test_a_table_is_shared_and_cannot_be_changed(tmp_path):
    put(tmp_path, [(4096, SWAP)])
    table = build_table(N, K, H200)
    with pytest.raises(FrozenInstanceError):
        table.bounds = (1,)
    with pytest.raises(FrozenInstanceError):
        table.choices[0].kernel = "base"
    (remark,) = build_table(N, 2 * K, H200).remarks
    with pytest.raises(FrozenInstanceError):
        remark.text = ""


def test_fallback_choice_gives_both_reasons(monkeypatch):
    say(monkeypatch, "deep_gemm", lambda device: "deep_gemm is not installed")
    choice = fallback_choice(N, K, H200, "it did not compile")
    assert choice.kernel == "triton"
    assert "it did not compile" in choice.reason
    assert "deep_gemm is not installed" in choice.reason


def test_a_shape_that_falls_back_is_a_warning(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    put(tmp_path, [(4096, SWAP)])
    log_notes(build_table(N, K, H200))
    assert caplog.records == []
    log_notes(build_table(N + 8, K, H200))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"N={N + 8}, K={K} runs on deep_gemm: N = {N + 8} is not")
    assert config_file_name(N + 8, K, H200.name) in record.getMessage()


def test_what_is_no_fault_is_one_line_a_process_for_all_shapes(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    other = {"kernels": "tilelang 0.1.0 kernels 0"}
    for factor in (2, 3, 4):  # a topic each, three shapes each
        log_notes(build_table(N * factor, K, H200))
        put(tmp_path, [(16, SWAP)], n=N, k=K * factor)
        log_notes(build_table(N, K * factor, H200))
        put(tmp_path, [(4096, BASE)], n=N * factor, k=K * factor, metadata=other)
        log_notes(build_table(N * factor, K * factor, H200))
    assert {record.levelname for record in caplog.records} == {"INFO"}
    missing, above, kernels = (record.getMessage() for record in caplog.records)
    assert f"no tuned file {config_file_name(2 * N, K, H200.name)!r}" in missing
    assert "ends at M = 16" in above
    assert "tuned with tilelang 0.1.0 kernels 0, running" in kernels
    assert all("`tilelang-gemm explain M N K`" in line for line in (missing, above, kernels))


def test_a_tuned_file_may_name_a_backend_for_a_shape_that_tilelang_refuses(tmp_path):
    put(tmp_path, [(4096, KernelConfig("triton"))], n=N + 8)
    (choice,) = build_table(N + 8, K, H200).choices
    assert (choice.kernel, choice.source.endswith(".json")) == ("triton", True)


def test_replaced_entries_are_logged_once(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.WARNING)
    put(tmp_path, [(8, SWAP), (64, KernelConfig("deep_gemm")), (4096, KernelConfig("deep_gemm"))])
    say(monkeypatch, "deep_gemm", lambda device: "deep_gemm is not installed")
    log_notes(build_table(N, K, H200))
    (record,) = caplog.records
    assert "2 entries" in record.getMessage()
    assert "deep_gemm is not installed" in record.getMessage()


def _shipped_files():
    from tilelang_gemm_wrapper.core.config_file import _FILE_NAME

    directory = configurer.shipped_config_directory()
    return [
        pytest.param(path, int(match["N"]), int(match["K"]), match["device"], id=path.name)
        for path in sorted(directory.glob("*.json"))
        if (match := _FILE_NAME.fullmatch(path.name))
    ]


@pytest.mark.parametrize(("path", "n", "k", "name"), _shipped_files())
def test_every_shipped_file_is_used_whole(path, n, k, name, monkeypatch):
    """No shipped entry is refused, whichever kernel its M came out best with."""
    monkeypatch.setattr(configurer, "shipped_config_directory", lambda: path.parent)
    table = build_table(n, k, KNOWN_DEVICES[name])
    assert [note for note in table.notes if str(path) in note] == []
    assert {choice.source for choice in table.choices} == {str(path)}
