"""ops.measured and what `auto` makes of it: nearest entries, this machine's own, versions, broken files."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest

from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES
from tilelang_gemm_wrapper.ops import backends, measured
from tilelang_gemm_wrapper.ops.measured import Entry

H100 = KNOWN_DEVICES["NVIDIA_H100_80GB_HBM3"]
BF16 = "bfloat16"
CONFIG = {"lanes": 64, "groups": 2, "rows": 1, "steps": 4}


@pytest.fixture(autouse=True)
def tables(monkeypatch, tmp_path):
    """Shipped tables in one folder, this machine's own in another."""
    monkeypatch.setattr(measured, "TABLES", tmp_path / "shipped")
    monkeypatch.setenv("TILELANG_GEMM_CACHE_DIR", str(tmp_path / "own"))
    (tmp_path / "shipped").mkdir()
    measured.forget()
    yield tmp_path
    measured.forget()


def ship(*entries):
    measured.write(measured.TABLES / f"{H100.name}.json", entries)
    measured.forget()


def own(**given):
    fields = {"op": "gemv", "dtype": BF16, "M": 1, "N": 4096, "K": 4096, "backend": "tilelang"}
    return Entry(**{**fields, "config": CONFIG, "versions": measured.versions(), **given})


def test_without_a_table_it_is_triton():
    assert measured.best("gemv", BF16, 1, 4096, 4096, H100) == "triton"
    assert measured.config("gemv", BF16, 1, 4096, 4096, H100) is None


def test_a_chip_without_a_table_takes_that_of_one_with_the_same_sms():
    ship(Entry("gemv", BF16, 1, 4096, 4096, "tilelang", CONFIG))
    h200, l40s, h20 = (KNOWN_DEVICES[f"NVIDIA_{name}"] for name in ("H200", "L40S", "H20"))
    assert measured.best("gemv", BF16, 1, 4096, 4096, h200) == "tilelang"
    assert measured.config("gemv", BF16, 1, 4096, 4096, h200) == CONFIG
    for other in (l40s, h20):
        assert measured.best("gemv", BF16, 1, 4096, 4096, other) == measured.DEFAULT
    measured.write(measured.TABLES / f"{h200.name}.json", [Entry("gemv", BF16, 1, 4096, 4096, "torch")])
    measured.forget()
    assert measured.best("gemv", BF16, 1, 4096, 4096, h200) == "torch"  # its own


def test_the_nearest_shape_of_the_same_op_and_dtype_decides():
    ship(
        Entry("gemv", BF16, 1, 4096, 4096, "tilelang"),
        Entry("gemv", BF16, 8, 4096, 4096, "torch"),
        Entry("gemv", BF16, 1, 1024, 16384, "triton"),
        Entry("gemv", "float8_e4m3fn", 1, 1000, 16000, "torch"),
        Entry("rmsnorm", BF16, 1, 0, 4096, "triton"),
    )
    best = lambda *shape: measured.best("gemv", BF16, *shape, H100)  # noqa: E731
    assert best(1, 5000, 3000) == "tilelang"
    assert best(6, 5000, 3000) == "torch"
    assert best(1, 1000, 16000) == "triton"
    assert measured.best("gemv", "float16", 1, 1000, 16000, H100) == "triton"  # as bfloat16
    assert measured.best("gemv", "bfloat16 x float8_e4m3fn", 1, 5000, 3000, H100) == measured.DEFAULT
    assert measured.best("silu_mul_quant_fp8", BF16, 1, 0, 4096, H100) == "triton"


def test_what_this_machine_measured_goes_first_for_its_class_alone():
    ship(Entry("gemv", BF16, 1, 4096, 4096, "torch"))
    measured.add(H100, own())
    assert measured.best("gemv", BF16, 1, 4200, 4000, H100) == "tilelang"
    assert measured.best("gemv", BF16, 1, 8192, 4096, H100) == "torch"
    assert measured.best("gemv", BF16, 4, 4096, 4096, H100) == "torch"
    assert measured.config("gemv", BF16, 1, 4200, 4000, H100) == CONFIG


def test_a_second_measurement_replaces_the_first():
    measured.add(H100, own())
    path = measured.add(H100, own(backend="torch"))
    assert measured.best("gemv", BF16, 1, 4096, 4096, H100) == "torch"
    assert len(json.loads(path.read_text())) == 1


def test_measurements_of_other_versions_do_not_count():
    measured.add(H100, own(versions="package 0.0.1"))
    assert measured.best("gemv", BF16, 1, 4096, 4096, H100) == "triton"


def test_devices_do_not_share():
    measured.add(H100, own())
    assert measured.best("gemv", BF16, 1, 4096, 4096, KNOWN_DEVICES["NVIDIA_H200"]) == "triton"


def test_shipped_configurations_serve_the_same_number_of_rows():
    ship(Entry("gemv", BF16, 1, 4096, 4096, "tilelang", CONFIG), Entry("gemv", BF16, 4, 4096, 4096, "torch"))
    assert measured.config("gemv", BF16, 1, 9000, 9000, H100) == CONFIG
    assert measured.config("gemv", BF16, 4, 4096, 4096, H100) is None


@pytest.mark.parametrize("text", ["{", '{"op": 1}', '[{"op": "gemv"}]', "[1]"])
def test_a_broken_file_is_named(text):
    path = measured.TABLES / f"{H100.name}.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path.name} is no table of measured ops .* remove it"):
        measured.best("gemv", BF16, 1, 4096, 4096, H100)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_broken_file_of_this_machine_costs_no_call(tables, caplog, text):
    """It only says what is faster."""
    path = measured.add(H100, own())
    path.write_text(text)
    measured.forget()
    assert measured.best("gemv", BF16, 1, 4096, 4096, H100) == measured.DEFAULT
    assert measured.config("gemv", BF16, 1, 4096, 4096, H100) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{path} is no table of measured ops" in caplog.text and "remove it" in caplog.text


def test_a_file_of_this_machine_that_cannot_be_read_costs_no_call(tables, caplog, monkeypatch):
    path = measured.add(H100, own())
    path.unlink()
    path.mkdir()
    assert measured.best("gemv", BF16, 1, 4096, 4096, H100) == measured.DEFAULT
    assert str(path) in caplog.text


@pytest.mark.parametrize("cache", ["/dev/null/cache", "/proc/cache"])
def test_a_cache_that_is_no_directory_costs_no_call_and_is_not_made(caplog, monkeypatch, cache):
    monkeypatch.setenv("TILELANG_GEMM_CACHE_DIR", cache)
    assert measured.best("gemv", BF16, 1, 4096, 4096, H100) == measured.DEFAULT
    assert caplog.records == []


def test_auto_takes_the_next_where_the_best_cannot_run(monkeypatch):
    ship(Entry("gemv", BF16, 1, 4096, 4096, "tilelang"))
    monkeypatch.setattr(backends, "device_of", lambda index: H100)
    reasons = {"tilelang": "not installed", "triton": None}
    monkeypatch.setattr(backends, "_why_unavailable", lambda name, index, fp8: reasons.get(name))
    find = backends._measured_best
    assert find("gemv", BF16, 1, 4096, 4096, 0, False) == "triton"
    find.cache_clear()
    reasons["triton"] = "not installed"
    assert find("gemv", BF16, 1, 4096, 4096, 0, False) == "torch"
    find.cache_clear()


@pytest.mark.parametrize(
    ("arch", "fp8", "runs"), [("sm_80", False, True), ("sm_80", True, False), ("sm_89", True, True)]
)
def test_what_a_chip_can_run(monkeypatch, arch, fp8, runs):
    monkeypatch.setattr(backends, "device_of", lambda index: replace(H100, arch=arch))
    reason = backends._why_unavailable.__wrapped__("triton", 0, fp8)
    assert (reason is None) == runs
    assert runs or "needs sm_89 or newer" in reason


@pytest.mark.parametrize(
    "wrong",
    [
        {"M": "1"},
        {"M": 0},
        {"M": 1.5},
        {"N": -4},
        {"K": 0},
        {"K": None},
        {"backend": "cublas"},
        {"backend": ["triton"]},
        {"config": "lanes"},
        {"config": {"lanes": "x"}},
    ],
)
def test_a_value_that_cannot_be_meant_costs_no_call(tables, caplog, wrong):
    entry = {"op": "gemv", "dtype": BF16, "M": 1, "N": 4096, "K": 4096, "backend": "tilelang"}
    path = measured.add(H100, own())
    path.write_text(json.dumps([{**entry, "versions": measured.versions(), **wrong}]))
    measured.forget()
    assert measured.best("gemv", BF16, 1, 4096, 4096, H100) == measured.DEFAULT
    assert measured.config("gemv", BF16, 1, 4096, 4096, H100) is None
    assert f"{path} is no table of measured ops" in caplog.text


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b'[{"op": "ge'])
def test_a_broken_file_of_this_machine_is_replaced_by_the_next_measurement(tables, caplog, content):
    path = measured.add(H100, own())
    path.write_bytes(content)
    measured.forget()
    assert measured.best("gemv", BF16, 1, 4096, 4096, H100) == measured.DEFAULT
    assert str(path) in caplog.text
    measured.add(H100, own())
    assert measured.best("gemv", BF16, own().M, own().N, own().K, H100) == own().backend


def test_of_several_that_measure_at_once_none_loses_its_entry(tables):
    entries = [replace(own(), N=1 << power) for power in range(4, 20)]
    threads = [threading.Thread(target=measured.add, args=(H100, entry)) for entry in entries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    kept = measured._read(measured.cache_directory() / measured._own_file(H100))
    assert sorted(entry.N for entry in kept) == [entry.N for entry in entries]
