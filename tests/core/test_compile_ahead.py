"""What is compiled before the timing, and by whom."""

from __future__ import annotations

from dataclasses import astuple

import tilelang_gemm_wrapper
from tilelang_gemm_wrapper import backends
from tilelang_gemm_wrapper.core import compile_ahead, compile_cache, device
from tilelang_gemm_wrapper.core.compile_cache import WarmupJob
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES

CELLS = {(512, 1024): [1, 64], (1024, 2048): [8]}


def test_peers_compile_a_shape_a_task_and_ours_follows(monkeypatch):
    log = []
    monkeypatch.setattr(
        compile_ahead,
        "_in_processes",
        lambda jobs, workers: log.append((sorted(map(astuple, jobs)), workers)),
    )
    monkeypatch.setattr(
        tilelang_gemm_wrapper,
        "warmup",
        lambda shapes, m_max: log.append((list(shapes), m_max)),
        raising=False,
    )

    compile_ahead.compile_ahead(CELLS, ("tilelang_gemm", "deep_gemm", "cublas", "triton"), 16)

    assert log == [
        (
            [
                ("deep_gemm", 512, 1024, (1, 64)),
                ("deep_gemm", 1024, 2048, (8,)),
                ("triton", 512, 1024, (1, 64)),
                ("triton", 1024, 2048, (8,)),
            ],
            4,
        ),
        ([(512, 1024), (1024, 2048)], 64),
    ]


def test_nothing_to_do_starts_nothing(monkeypatch):
    monkeypatch.setattr(compile_ahead, "_in_processes", None)
    compile_ahead.compile_ahead(CELLS, ("cublas",), 16)
    compile_ahead.compile_ahead({}, ("tilelang_gemm", "triton"), 16)


def test_a_backend_that_cannot_run_here_is_not_warmed(monkeypatch):
    warmed = []

    class Backend:
        def why_unavailable(self, device):
            return "not installed" if device.is_ada else None

        def why_unsupported(self, N, K):
            return "N" if N % 8 else None

        def warmup(self, N, K, ms):
            warmed.append((N, K, ms))

    monkeypatch.setattr(backends, "backend", lambda name: Backend())
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    for name, N in (("NVIDIA_L40S", 512), ("NVIDIA_H200", 513), ("NVIDIA_H200", 512)):
        monkeypatch.setattr(device, "device_of", lambda index, name=name: KNOWN_DEVICES[name])
        compile_cache._warm_backend(WarmupJob("deep_gemm", N, 1024, (1,)))

    assert warmed == [(512, 1024, (1,))]


def test_a_failing_job_does_not_stop_the_others(caplog, capfd):
    """Real compiler processes: each finds no GPU or no such backend, and the bar still comes to its end."""
    jobs = [WarmupJob("no such backend", 512, 1024, (M,)) for M in (1, 2, 3)]
    with caplog.at_level("DEBUG"):
        compile_ahead._in_processes(jobs, 2)
    assert {record.levelname for record in caplog.records} == {"DEBUG"}
    assert len([line for line in caplog.messages if "no such backend" in line]) == 3
    assert "3/3" in capfd.readouterr().err
