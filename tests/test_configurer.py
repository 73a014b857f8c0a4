"""configurer.py: each environment variable, and which fallback a device gets, with its reason."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from tilelang_gemm_wrapper import backends, configurer
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES, Device, cpu_device

H200 = KNOWN_DEVICES["NVIDIA_H200"]
L40S = KNOWN_DEVICES["NVIDIA_L40S"]
B200 = Device("NVIDIA_B200", "sm_100", 148, 232448, 126 << 20, 8e12)
CPU = cpu_device()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for variable in (
        configurer.CONFIG_DIR,
        configurer.ENABLE,
        configurer.CACHE_DIR,
        configurer.FALLBACK,
        configurer.COMPILE_WORKERS,
        configurer.STATIC_WEIGHTS,
        configurer.SHAPES_OUT,
    ):
        monkeypatch.delenv(variable, raising=False)


def test_names_of_the_variables_are_the_documented_ones():
    assert configurer.CONFIG_DIR == "SGLANG_TILELANG_GEMM_CONFIG_DIR"
    assert configurer.ENABLE == "SGLANG_ENABLE_TILELANG_GEMM"
    assert configurer.CACHE_DIR == "TILELANG_GEMM_CACHE_DIR"
    assert configurer.FALLBACK == "TILELANG_GEMM_FALLBACK"
    assert configurer.COMPILE_WORKERS == "TILELANG_GEMM_COMPILE_WORKERS"
    assert configurer.STATIC_WEIGHTS == "TILELANG_GEMM_STATIC_WEIGHTS"
    assert configurer.SHAPES_OUT == "TILELANG_GEMM_SHAPES_OUT"


# --- typed variables ---------------------------------------------------------------------------------------


def test_config_directories_come_in_order_once_each_and_end_with_the_shipped(monkeypatch):
    shipped = configurer.shipped_config_directory()
    assert configurer.config_directories() == (shipped,)
    monkeypatch.setenv(configurer.CONFIG_DIR, os.pathsep.join(["/b", " ", "/a", "", "~/c", "/b"]))
    assert configurer.config_directories() == (Path("/b"), Path("/a"), Path.home() / "c", shipped)


def test_shipped_directory_is_the_packages_own_where_installed_else_the_checkouts(monkeypatch, tmp_path):
    package = tmp_path / "tilelang_gemm_wrapper"
    package.mkdir()
    monkeypatch.setattr(configurer, "__file__", str(package / "configurer.py"))
    assert configurer.shipped_config_directory() == package / "configs", "named even where both are missing"
    (tmp_path / "configs").mkdir()
    assert configurer.shipped_config_directory() == tmp_path / "configs"
    (package / "configs").mkdir()
    assert configurer.shipped_config_directory() == package / "configs"


@pytest.mark.parametrize(
    ("variable", "read", "value", "expected"),
    [
        (configurer.ENABLE, configurer.tilelang_enabled, None, True),
        (configurer.ENABLE, configurer.tilelang_enabled, "", True),
        (configurer.ENABLE, configurer.tilelang_enabled, " True ", True),
        (configurer.ENABLE, configurer.tilelang_enabled, "1", True),
        (configurer.ENABLE, configurer.tilelang_enabled, "0", False),
        (configurer.ENABLE, configurer.tilelang_enabled, "OFF", False),
        (configurer.CACHE_DIR, configurer.cache_directory, None, None),
        (configurer.CACHE_DIR, configurer.cache_directory, " ", None),
        (configurer.CACHE_DIR, configurer.cache_directory, "~/k", Path.home() / "k"),
        (configurer.FALLBACK, configurer.fallback_choice, None, "auto"),
        (configurer.FALLBACK, configurer.fallback_choice, "Triton", "triton"),
        (configurer.FALLBACK, configurer.fallback_choice, "deep_gemm", "deep_gemm"),
        (configurer.FALLBACK, configurer.fallback_choice, "torch", "torch"),
        (configurer.COMPILE_WORKERS, configurer.compile_workers, "3", 3),
        (configurer.STATIC_WEIGHTS, configurer.static_weights, None, False),
        (configurer.STATIC_WEIGHTS, configurer.static_weights, "1", True),
        (configurer.STATIC_WEIGHTS, configurer.static_weights, "no", False),
        (configurer.STATIC_WEIGHTS, lambda: configurer.static_weights(default=True), None, True),
        (configurer.STATIC_WEIGHTS, lambda: configurer.static_weights(default=True), "0", False),
        (configurer.SHAPES_OUT, configurer.shapes_out, " ", None),
        (configurer.SHAPES_OUT, configurer.shapes_out, "~/shapes.json", Path.home() / "shapes.json"),
    ],
)
def test_value_is_typed(monkeypatch, variable, read, value, expected):
    if value is not None:
        monkeypatch.setenv(variable, value)
    assert read() == expected


@pytest.mark.parametrize(
    ("variable", "read", "value", "expectation"),
    [
        (configurer.ENABLE, configurer.tilelang_enabled, "maybe", "one of 1, true"),
        (configurer.ENABLE, configurer.tilelang_enabled, "2", "one of 1, true"),
        (configurer.STATIC_WEIGHTS, configurer.static_weights, "constant", "one of 1, true"),
        (
            configurer.FALLBACK,
            configurer.fallback_choice,
            "deepgemm",
            "one of auto, deep_gemm, triton, torch",
        ),
        *[
            (configurer.COMPILE_WORKERS, configurer.compile_workers, value, "a whole number from 1")
            for value in ("0", "-1", "two", "1.5", "10000", "\u0663")
        ],
        (configurer.CACHE_DIR, configurer.cache_directory, "~nobody-of-that-name/x", "a path without ~"),
        (configurer.SHAPES_OUT, configurer.shapes_out, "~nobody-of-that-name/x", "a path without ~"),
        (configurer.CONFIG_DIR, configurer.config_directories, "~nobody-of-that-name/x", "a path without ~"),
    ],
)
def test_value_that_cannot_be_meant_is_refused(monkeypatch, variable, read, value, expectation):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError) as refusal:
        read()
    assert [part for part in (variable, repr(value), expectation) if part not in str(refusal.value)] == []


@pytest.mark.parametrize(("cpus", "workers"), [(1, 1), (6, 6), (192, 16)])
def test_workers_default_to_the_cpus_this_process_may_use(monkeypatch, cpus, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cpus), raising=False)
    assert configurer.compile_workers() == workers


# --- tilelang ----------------------------------------------------------------------------------------------


@pytest.fixture
def tilelang_is(monkeypatch):
    def pretend(version):
        def lookup(name):
            assert name == "tilelang"
            if version is None:
                raise metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(metadata, "version", lookup)
        configurer.why_tilelang_unfit.cache_clear()

    yield pretend
    configurer.why_tilelang_unfit.cache_clear()


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("0.1.11", None),
        ("0.1.15", None),
        ("0.1.12.post1+cu130", None),
        ("0.1.10", "tilelang is 0.1.10"),
        ("0.1.9.post2", "tilelang is 0.1.9.post2"),
        ("0.2.0", "below 0.2"),
        ("unknown", "tilelang is unknown"),
        (None, "not installed"),
    ],
)
def test_tilelang_outside_the_tested_versions_is_not_used(tilelang_is, version, says):
    tilelang_is(version)
    why = configurer.why_tilelang_unavailable(H200)
    if says is None:
        assert why is None
    else:
        assert why is not None and says in why and "pip install 'tilelang>=0.1.11,<0.2'" in why


@pytest.mark.parametrize("device", [B200, CPU])
def test_tilelang_needs_hopper_or_ada(tilelang_is, device):
    tilelang_is("0.1.15")
    assert device.arch in (configurer.why_tilelang_unavailable(device) or "")
    assert configurer.why_tilelang_unavailable(L40S) is None


def test_tilelang_can_be_switched_off(tilelang_is, monkeypatch):
    tilelang_is("0.1.15")
    monkeypatch.setenv(configurer.ENABLE, "0")
    assert f"{configurer.ENABLE}=0" in (configurer.why_tilelang_unavailable(H200) or "")


# --- fallback ----------------------------------------------------------------------------------------------


@pytest.fixture
def backends_are(monkeypatch):
    """Replace the backends: name -> why unavailable; `unsupported`: name -> why not this shape."""

    def pretend(choice="auto", unsupported=None, **unavailable):
        monkeypatch.setenv(configurer.FALLBACK, choice)
        asked = []

        def backend(name):
            asked.append(name)
            return SimpleNamespace(
                why_unavailable=lambda device: unavailable.get(name),
                why_unsupported=lambda N, K: (unsupported or {}).get(name),
            )

        monkeypatch.setattr(backends, "backend", backend)
        return asked

    return pretend


GONE = "it is not installed"


ASKS = f"{configurer.FALLBACK}="


@pytest.mark.parametrize(
    ("device", "choice", "unavailable", "expected"),
    [
        (H200, "auto", {}, ("deep_gemm", "NVIDIA_H200", "first choice")),
        (H200, "auto", {"deep_gemm": GONE}, ("triton", f"deep_gemm cannot: {GONE}")),
        (H200, "auto", {"deep_gemm": GONE, "triton": GONE}, ("torch", "deep_gemm cannot", "triton cannot")),
        (B200, "auto", {"deep_gemm": "not Hopper"}, ("triton", "NVIDIA_B200", "not Hopper")),
        (CPU, "auto", {}, ("torch", "cpu", "first choice")),
        (H200, "triton", {}, ("triton", f"{ASKS}triton")),
        (H200, "torch", {}, ("torch", f"{ASKS}torch")),
        (CPU, "triton", {"triton": "no GPU"}, ("torch", f"{ASKS}triton", "no GPU")),
        (L40S, "deep_gemm", {"deep_gemm": "no"}, ("triton", f"{ASKS}deep_gemm", "deep_gemm cannot: no")),
        (H200, "triton", {"triton": GONE}, ("deep_gemm", f"{ASKS}triton", GONE)),
    ],
)
def test_fallback_and_its_reason(backends_are, device, choice, unavailable, expected):
    name, *says = expected
    backends_are(choice=choice, **unavailable)
    chosen, reason = configurer.fallback_backend(device)
    assert chosen == name
    assert reason.startswith(f"{name} runs on {device.name}") and reason.endswith(".")
    assert [part for part in says if part not in reason] == [], reason


def test_backend_that_does_not_take_the_shape_is_passed_over(backends_are):
    backends_are(unsupported={"deep_gemm": "N = 2564 is odd"})
    assert configurer.fallback_backend(H200)[0] == "deep_gemm"
    name, reason = configurer.fallback_backend(H200, 2564, 2560)
    assert name == "triton" and "N = 2564 is odd" in reason


def test_no_backend_is_looked_at_beyond_the_one_that_serves(backends_are):
    asked = backends_are()
    configurer.fallback_backend(H200)
    assert asked == ["deep_gemm"], "asking Triton would import it"


def test_no_backend_at_all_names_every_reason(backends_are):
    backends_are(deep_gemm="a", triton="b", torch="c")
    with pytest.raises(RuntimeError, match=r"deep_gemm cannot: a; triton cannot: b; torch cannot: c"):
        configurer.fallback_backend(H200)


def test_every_choice_names_a_backend_that_exists():
    assert set(configurer.FALLBACK_CHOICES) == {"auto", *backends.BACKENDS}


def test_cpu_falls_back_to_the_real_reference():
    assert configurer.fallback_backend(CPU, 3884, 100)[0] == "torch"


@pytest.mark.parametrize("name", ["CONFIG_DIR", "CACHE_DIR", "SHAPES_OUT"])
def test_a_home_that_is_not_known_is_told(monkeypatch, name):
    variable = getattr(configurer, name)
    monkeypatch.setenv(variable, "~no such user/x")
    with pytest.raises(ValueError, match=rf"{variable}='~no such user/x': expected a path without ~"):
        configurer.READERS[variable]()
