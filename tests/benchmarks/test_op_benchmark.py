"""The benchmarks of memory-bound ops without a GPU: a simulated device runs the real loop on CPU tensors.

The ops are stand-ins: the plain formulas, whatever backend is asked for.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import tilelang_gemm_wrapper
from tilelang_gemm_wrapper.core.bench_measure import DeviceLostError
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES
from tilelang_gemm_wrapper.core.environment import Environment
from tilelang_gemm_wrapper.core.results import read_rows, write_rows
from tilelang_gemm_wrapper.quantize import per_token_group_quant_fp8_reference

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SUITES = ("gemv", "rmsnorm", "quant")
PUBLISHED = sorted(path for name in SUITES for path in BENCHMARKS.glob(f"results/*/{name}.csv"))
DEVICE = replace(KNOWN_DEVICES["NVIDIA_H200"], l2_bytes=1 << 14)  # small: a few copies are cold
NO_OPTIONS = argparse.Namespace(tune=False)
PEER_MODULES = ("flashinfer", "liger_kernel", "sgl_kernel", "sglang")


@pytest.fixture(scope="module")
def scripts():
    """The modules of the benchmarks, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        names = ("op_rows", "op_report", "op_benchmark", "op_command", *(f"benchmark_{n}" for n in SUITES))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def norm(x, weight, eps):
    x = x.float()
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.float()


def stub_ops():
    """The package's ops by their formulas."""
    ops, gemv_package, autotune = (ModuleType(name) for name in ("ops", "gemv", "autotune"))

    def gemv(x, W, out=None, backend="auto"):
        if isinstance(W, tuple):
            W, scale = W
            W = W.float() * scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[: W.shape[0]]
        return out.copy_(x.float() @ W.float().t())

    def rmsnorm(x, weight, eps=1e-6, out=None, offset=0.0, backend="auto"):
        return out.copy_(norm(x, weight, eps))

    def fused_add_rmsnorm(x, residual, weight, eps=1e-6, offset=0.0, backend="auto"):
        x.copy_(norm(residual.add_(x), weight, eps))

    def rmsnorm_quant_fp8(x, weight, eps=1e-6, scale_layout="row", offset=0.0, backend="auto"):
        return per_token_group_quant_fp8_reference(norm(x, weight, eps), scale_layout=scale_layout)

    def fused_add_rmsnorm_quant_fp8(
        x, residual, weight, eps=1e-6, scale_layout="row", offset=0.0, backend="auto"
    ):
        return rmsnorm_quant_fp8(residual.add_(x), weight, eps, scale_layout)

    def silu_mul_quant_fp8(x, scale_layout="row", backend="auto"):
        gate, up = x.float().chunk(2, 1)
        product = torch.nn.functional.silu(gate) * up
        return per_token_group_quant_fp8_reference(product, scale_layout=scale_layout)

    def quant(x, scale_layout="row", rounding="ieee", backend="auto"):
        return per_token_group_quant_fp8_reference(x, scale_layout=scale_layout, rounding=rounding)

    ops.gemv, ops.rmsnorm, ops.fused_add_rmsnorm = gemv, rmsnorm, fused_add_rmsnorm
    ops.rmsnorm_quant_fp8, ops.fused_add_rmsnorm_quant_fp8 = rmsnorm_quant_fp8, fused_add_rmsnorm_quant_fp8
    ops.silu_mul_quant_fp8, ops.per_token_group_quant_fp8 = silu_mul_quant_fp8, quant
    gemv_package.tilelang = SimpleNamespace(naive=gemv, split_k=gemv)
    autotune.tune = lambda x, W: SimpleNamespace(config={"rows": 2})
    return ops, {"gemv": gemv_package, "autotune": autotune}


@pytest.fixture(autouse=True)
def stubbed(monkeypatch):
    """The ops of the package stubbed, no peer installed, no CUDA asked for. Gives the stub of ops."""
    torch.manual_seed(0)  # errors are of few values, and bounds of them are asserted
    ops, parts = stub_ops()
    monkeypatch.setattr(tilelang_gemm_wrapper, "ops", ops, raising=False)
    monkeypatch.setitem(sys.modules, "tilelang_gemm_wrapper.ops", ops)
    for name, part in parts.items():
        monkeypatch.setitem(sys.modules, f"tilelang_gemm_wrapper.ops.{name}", part)
    for name in PEER_MODULES:
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises ImportError
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return ops


class SimulatedDevice:
    """A recorder: what is captured k-th, from 0 in each `time_interleaved`, takes `us(k)` a launch.

    `outputs` has what each captured call wrote, (k, copy, addresses), in order.
    """

    def __init__(self, us=lambda k: 10.0):
        self.us, self.now_us, self.outputs, self.captured = us, 0.0, [], 0

    def __enter__(self):
        self.captured = 0
        return self

    def __exit__(self, *exc):
        pass

    def capture(self, call, copies):
        k, self.captured = self.captured, self.captured + 1
        for i in [*range(copies)] * 2:
            tensors = [t for out in call(i) for t in (out if isinstance(out, tuple) else (out,))]
            self.outputs.append((k, i, tuple(t.data_ptr() for t in tensors)))
        return Replay(self, self.us(k), 2 * copies)

    def event(self):
        return Event(self)

    def synchronize(self):
        pass


class Replay:
    def __init__(self, device, us, launches):
        self.device, self.us, self.launches = device, us, launches

    def __call__(self):
        self.device.now_us += self.us * self.launches

    def release(self):
        pass


class Event:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.at_us = self.device.now_us

    def elapsed_time(self, end):
        return (end.at_us - self.at_us) / 1e3


@pytest.fixture
def session(scripts, monkeypatch):
    monkeypatch.setattr(scripts.op_benchmark, "streaming_floor_us", lambda weights, **_: 4.0)
    Session = scripts.op_benchmark.Session

    def make(us=lambda k: 10.0, copy=3000.0, read=4000.0, device=DEVICE):
        return Session(
            environment=Environment.here("NVIDIA_H200", "580"),
            device=device,
            ceilings=scripts.op_benchmark.Ceilings(copy, read),
            torch_device="cpu",
            budget_ms=1.0,
            recorder=SimulatedDevice(us),
        )

    return make


def cell_of(scripts, op, M, N, K, dtype="bfloat16"):
    return scripts.op_rows.Cell(op, f"{N or M}x{K}", M, N, K, dtype)


@pytest.fixture
def norm_case(scripts):
    def make(session, op="rmsnorm", M=4, K=256):
        return scripts.benchmark_rmsnorm.build(cell_of(scripts, op, M, 0, K), session, NO_OPTIONS)

    return make


# ---- what must move


def test_bytes_are_each_input_read_once_and_each_output_written_once(scripts):
    gemv_bytes, quant_bytes = scripts.benchmark_gemv.gemv_bytes, scripts.benchmark_quant.quant_bytes
    norm_bytes = scripts.benchmark_rmsnorm.norm_bytes
    assert gemv_bytes(2, 256, 512, "bfloat16") == 2 * (256 * 512 + 2 * 512 + 2 * 256)
    assert gemv_bytes(1, 256, 512, scripts.benchmark_gemv.FP8) == 256 * 512 + 4 * 2 * 4 + 2 * (512 + 256)
    assert norm_bytes("rmsnorm", 3, 256) == 2 * (3 * 256 + 256 + 3 * 256)
    assert norm_bytes("fused_add_rmsnorm", 3, 256) == 2 * (4 * 3 * 256 + 256)
    written = 3 * 256 + 4 * 3 * 2
    assert quant_bytes("per_token_group_quant_fp8", 3, 256) == 2 * 3 * 256 + written
    assert quant_bytes("silu_mul_quant_fp8", 3, 256) == 2 * 3 * 512 + written
    assert quant_bytes("rmsnorm_quant_fp8", 3, 256) == 2 * (3 * 256 + 256) + written
    assert quant_bytes("fused_add_rmsnorm_quant_fp8", 3, 256) == 2 * (3 * 3 * 256 + 256) + written


def test_ratios_are_of_the_same_run(norm_case, session):
    device = session(lambda k: [20.0, 10.0, 5.0][k])

    torch_row, triton, tilelang = device.measure(norm_case(device), ("torch", "triton", "tilelang"))

    assert triton.gb_per_s == pytest.approx(triton.bytes / 10e-6 / 1e9)
    assert triton.pct_of_copy == pytest.approx(100 * triton.gb_per_s / 3000)
    assert [row.speedup for row in (torch_row, triton, tilelang)] == pytest.approx([1, 2, 4])
    assert (triton.reference, triton.floor_us, triton.reason) == ("torch", None, "")
    assert 0 < triton.error < 4e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "bfloat16 x float8_e4m3fn"])
def test_a_gemv_is_measured_against_the_read_of_its_weights(scripts, session, dtype):
    device = session()
    case = scripts.benchmark_gemv.build(
        cell_of(scripts, "gemv", 1, 256, 256, dtype), device, argparse.Namespace(tune=True)
    )
    rows = {row.provider: row for row in device.measure(case)}

    fp8 = dtype != "bfloat16"
    wanted = {"torch", "triton", "tilelang_split_k", "tilelang", "auto"}
    assert rows.keys() == wanted | ({"gemm"} if fp8 else {"tilelang_naive"})
    assert {row.reason for row in rows.values()} == {""}
    assert {row.reference for row in rows.values()} == {"gemm" if fp8 else "torch"}
    assert rows["triton"].pct_of_floor == pytest.approx(40)
    assert rows["tilelang"].config == "tuned: rows=2"


# ---- the ceiling


@pytest.mark.parametrize(
    ("measured", "of_data_sheet", "ceiling"), [(3000, 4800e9, 3060), (4790, 4800e9, 4800), (300, 0.0, 306)]
)
def test_the_ceiling_is_what_was_measured_and_never_above_the_data_sheet(
    scripts, measured, of_data_sheet, ceiling
):
    assert scripts.op_rows.ceiling_of(measured, of_data_sheet) == pytest.approx(ceiling)


def test_a_row_above_its_ceiling_loses_its_time_and_is_a_bug_of_the_run(norm_case, session):
    device = session(lambda k: [10.0, 1e-3, 10.0][k])

    rows = device.measure(norm_case(device), ("torch", "triton", "tilelang"))

    assert [row.p50_us is None for row in rows] == [False, True, False]
    assert [row.gb_per_s is None for row in rows] == [False, True, False]
    assert rows[1].speedup is None
    assert rows[1].reason.startswith("measurement bug: 0.00 us for 0.00 MB is ")
    assert len(device.bugs) == 1 and device.bugs[0].startswith("rmsnorm 4x256 bfloat16, triton: measurement")


@pytest.mark.parametrize(
    ("suite", "op", "ceiling"),
    [
        ("rmsnorm", "rmsnorm", "copy"),
        ("rmsnorm", "fused_add_rmsnorm", "copy"),
        ("quant", "rmsnorm_quant_fp8", "read"),
        ("quant", "fused_add_rmsnorm_quant_fp8", "read"),
        ("quant", "silu_mul_quant_fp8", "read"),
        ("quant", "per_token_group_quant_fp8", "read"),
        ("gemv", "gemv", "read"),
    ],
)
def test_ops_that_read_more_than_they_write_may_be_as_fast_as_reads(scripts, session, suite, op, ceiling):
    build = getattr(scripts, f"benchmark_{suite}").build
    cell = cell_of(scripts, op, 4, 256 if op == "gemv" else 0, 256)
    assert build(cell, session(), NO_OPTIONS).ceiling == ceiling


# ---- providers that fail


def test_a_wrong_provider_is_not_timed(norm_case, session, stubbed, monkeypatch):
    def wrong(x, weight, eps, out, backend):
        out.copy_(norm(x, weight, eps))
        if backend == "triton":
            out[-1, -1] = torch.nan  # as where it is not written
        if backend == "tilelang":
            out *= 1.05

    monkeypatch.setattr(stubbed, "rmsnorm", wrong)
    device = session()

    rows = device.measure(norm_case(device), ("torch", "triton", "tilelang"))

    assert [row.p50_us for row in rows] == [pytest.approx(10), None, None]
    assert rows[1].reason == "wrong: error inf is above 0.004; not timed"
    assert rows[2].reason.startswith("wrong: error 0.0")
    assert {k for k, _, _ in device.recorder.outputs} == {0}


def test_an_output_that_is_left_as_it_was_is_wrong(norm_case, session, stubbed, monkeypatch):
    """The provider before it has left the right values there."""
    real = stubbed.rmsnorm
    monkeypatch.setattr(stubbed, "rmsnorm", lambda *a, backend, **k: backend == "tilelang" or real(*a, **k))
    device = session()
    rows = device.measure(norm_case(device), ("triton", "tilelang"))
    assert [row.reason for row in rows] == ["", "wrong: error inf is above 0.004; not timed"]


def test_an_absent_peer_and_one_that_fails_become_reasons(norm_case, session, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no kernel for this K\nmuch more")

    monkeypatch.setitem(sys.modules, "sgl_kernel", SimpleNamespace(rmsnorm=fail))
    device = session()
    rows = {row.provider: row for row in device.measure(norm_case(device))}

    for peer, module in (("flashinfer", "flashinfer"), ("liger", "liger_kernel")):
        assert rows[peer].reason.startswith("ModuleNotFoundError: ") and module in rows[peer].reason
        assert rows[peer].p50_us is None
    assert rows["sgl_kernel"].reason == "RuntimeError: no kernel for this K"
    assert rows["auto"].p50_us == pytest.approx(10)


def test_a_provider_that_cannot_be_captured_leaves_the_others_timed(norm_case, session, stubbed, monkeypatch):
    calls = Counter()

    def fails_later(x, weight, eps, out, backend):
        calls[backend] += 1
        if backend == "triton" and calls[backend] > 4:  # the check calls twice, for two copies
            raise RuntimeError("not under capture")
        out.copy_(norm(x, weight, eps))

    monkeypatch.setattr(stubbed, "rmsnorm", fails_later)
    device = session()
    rows = device.measure(norm_case(device), ("torch", "triton", "tilelang"))
    assert [row.p50_us is None for row in rows] == [False, True, False]
    assert "not under capture" in rows[1].reason


def test_a_lost_context_stops_the_run(norm_case, session, monkeypatch):
    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    device = session()
    with pytest.raises(DeviceLostError, match="flashinfer has left the CUDA context unusable"):
        device.measure(norm_case(device), ("torch", "flashinfer"))


# ---- cold


@pytest.mark.parametrize("provider", ["torch", "triton"])
def test_call_i_writes_where_no_other_call_of_the_rotation_does(norm_case, session, provider):
    """torch allocates its output at each call, triton is given one."""
    device = session()
    case = norm_case(device)
    device.measure(case, (provider,))

    assert case.copies == 4 * DEVICE.l2_bytes // (2 * 2 * 4 * 256)
    rotation = device.recorder.outputs[-case.copies :]
    assert [i for _, i, _ in rotation] == [*range(case.copies)]
    assert len({addresses for _, _, addresses in rotation}) == case.copies


@pytest.mark.parametrize("op", ["rmsnorm_quant_fp8", "fused_add_rmsnorm_quant_fp8", "silu_mul_quant_fp8"])
def test_quantised_outputs_rotate_as_well(scripts, session, op):
    device = session()
    case = scripts.benchmark_quant.build(cell_of(scripts, op, 4, 0, 256), device, NO_OPTIONS)
    (row,) = device.measure(case, ("triton",))

    assert row.config == "column_tma"
    rotation = device.recorder.outputs[-case.copies :]
    for addresses in zip(*(addresses for _, _, addresses in rotation), strict=True):
        assert len(set(addresses)) == case.copies


def test_inputs_are_those_of_the_copy(norm_case, session, stubbed, monkeypatch):
    seen = []
    real = stubbed.fused_add_rmsnorm

    def spy(x, residual, *rest, backend):
        seen.append((x.data_ptr(), residual.data_ptr()))
        real(x, residual, *rest)

    monkeypatch.setattr(stubbed, "fused_add_rmsnorm", spy)
    device = session()
    case = norm_case(device, "fused_add_rmsnorm")
    (row,) = device.measure(case, ("triton",))
    assert row.reason == ""
    for addresses in zip(*seen[-case.copies :], strict=True):
        assert len(set(addresses)) == case.copies


def test_a_residual_that_is_added_to_thousands_of_times_stays_finite(scripts):
    inputs = scripts.benchmark_rmsnorm.NormInputs.random(2, 512, added=True, copies=1, device="cpu")
    x, residual = inputs.x[0], inputs.residual[0]
    for _ in range(4000):
        residual.add_(x)
        x.copy_(norm(residual, inputs.weight, 1e-6))
    assert residual.isfinite().all() and residual.abs().max() < 1e5
    assert 0.5 < x.float().std() < 3 and (x == 0).float().mean() < 0.01


# ---- the separate kernels


def test_the_reference_of_a_fused_op_is_the_fastest_pair(scripts, session, monkeypatch):
    """Of the norms triton (second) is made the fastest, of the quantisers group_quant (fourth)."""
    device = session()
    measure = device.measure
    fastest = {"rmsnorm": 1, "per_token_group_quant_fp8": 3}

    def with_times(case, wanted=None):
        device.recorder.us = lambda k: 5.0 if k == fastest.get(case.cell.op) else 10.0
        return measure(case, wanted)

    monkeypatch.setattr(device, "measure", with_times)
    case = scripts.benchmark_quant.build(cell_of(scripts, "rmsnorm_quant_fp8", 4, 0, 256), device, NO_OPTIONS)
    rows = {row.provider: row for row in device.measure(case)}

    separate = rows["separate"]
    assert separate.reason == ""
    assert separate.config.startswith(
        "triton + group_quant (not available: flashinfer, flashinfer_pdl, liger"
    )
    assert separate.config.endswith("sglang)")
    assert {row.reference for row in rows.values()} == {"separate"}
    assert rows["tilelang"].reason == "" and rows["torch"].reason == ""


@pytest.mark.parametrize("op", ["silu_mul_quant_fp8", "fused_add_rmsnorm_quant_fp8"])
def test_separate_kernels_give_the_results_of_the_fused_op(scripts, session, op):
    device = session()
    case = scripts.benchmark_quant.build(cell_of(scripts, op, 4, 0, 256), device, NO_OPTIONS)
    (row,) = device.measure(case, ("separate",))
    assert row.reason == ""
    assert row.config.startswith("torch + torch")
    assert 0.02 < row.error < 0.04


# ---- CSV, report and command


@pytest.fixture
def rows(norm_case, session):
    device = session(lambda k: [20.0, 10.0][k])
    return device.measure(norm_case(device), ("torch", "triton", "liger"))


def test_rows_survive_the_csv(scripts, rows, tmp_path):
    write_rows(tmp_path / "rows.csv", rows, scripts.op_rows.OpRow)
    again = read_rows(tmp_path / "rows.csv", scripts.op_rows.OpRow)
    assert [(row.cell, row.provider, row.reason) for row in again] == [
        (row.cell, row.provider, row.reason) for row in rows
    ]
    assert again[1].p50_us == pytest.approx(rows[1].p50_us)
    write_rows(tmp_path / "again.csv", again, scripts.op_rows.OpRow)
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "rows.csv").read_bytes()


def test_the_table_has_the_columns_and_labels_of_the_readme(scripts, rows):
    title, _, header, _, *lines = scripts.op_report.tables(rows).splitlines()
    assert title == "## rmsnorm"
    names = [name.strip() for name in header.strip("|").split("|")]
    assert names[:5] == ["Shape", "Ref Time (ms)", "Custom Time (ms)", "Speedup", "Accuracy"]
    assert {"GB/s", "% of copy"} <= set(names)
    cells = [[text.strip() for text in line.strip("|").split("|")] for line in lines]
    assert [line[:5] for line in cells] == [
        ["PyTorch 4x256", "0.0200", "0.0200", "1.00", "True"],
        ["Triton 4x256", "0.0200", "0.0100", "2.00", "True"],
    ]


def test_a_wrong_provider_is_in_the_table_and_an_absent_one_in_the_list(scripts, rows):
    wrong = replace(rows[1], p50_us=None, speedup=None, gb_per_s=None, reason="wrong: error 1; not timed")
    text = scripts.op_report.markdown(scripts.benchmark_rmsnorm.SUITE, [rows[0], wrong, rows[2]])
    line = next(line for line in text.splitlines() if line.startswith("| Triton 4x256"))
    assert [part.strip() for part in line.split("|")][3:6] == ["–", "–", "False"]
    table, left_out = text.split("## Not timed")
    assert "Liger 4x256" not in table
    assert "Liger" in left_out and "ModuleNotFoundError" in left_out and "wrong: error 1" in left_out


@pytest.fixture
def command(scripts, session, monkeypatch, tmp_path):
    """Runs the RMSNorm benchmark, one small shape of each op, on the simulated device; gives its status."""

    def run(*arguments, us=lambda k: 10.0, device=DEVICE):
        prepared = session(us, device=device)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr("tilelang_gemm_wrapper.core.device.device_of", lambda i: device)
        monkeypatch.setattr(scripts.op_benchmark, "Session", lambda **_: prepared)
        monkeypatch.setattr(scripts.op_benchmark, "measure_ceilings", lambda: prepared.ceilings)
        cells = tuple(cell_of(scripts, op, 4, 0, 256) for op in ("rmsnorm", "fused_add_rmsnorm"))
        suite = replace(scripts.benchmark_rmsnorm.SUITE, cells=cells)
        return scripts.op_command.main(suite, ["--output", str(tmp_path / "out.csv"), *arguments])

    run.path = tmp_path / "out.csv"
    return run


def test_a_run_writes_csv_report_and_plot_and_the_csv_gives_them_again(command, capsys):
    assert command("--providers", "torch,triton,liger") == 0

    out = capsys.readouterr().out
    assert "| Triton 4x256 " in out and f"written: {command.path}" in out
    page, picture = (command.path.with_suffix(suffix) for suffix in (".md", ".png"))
    text = page.read_text(encoding="utf-8")
    assert picture.stat().st_size > 10_000
    page.unlink()
    assert command("--from-csv", str(command.path)) == 0
    assert page.read_text(encoding="utf-8") == text


def test_a_run_with_a_row_above_its_ceiling_fails(command, scripts, capsys):
    assert command("--providers", "torch,triton", us=lambda k: [10.0, 1e-3][k]) == 1
    error = capsys.readouterr().err
    assert "FAILED: rmsnorm 4x256 bfloat16, triton: measurement bug: " in error
    rows = read_rows(command.path, scripts.op_rows.OpRow)
    assert [row.p50_us is None for row in rows] == [False, True, False, True]


def test_ops_and_shapes_are_filtered_and_resume_keeps_what_is_there(command, scripts):
    assert command("--providers", "torch", "--ops", "rmsnorm", "--shapes", "4x256") == 0
    assert command("--providers", "torch", "--resume", us=lambda k: 40.0) == 0
    rows = read_rows(command.path, scripts.op_rows.OpRow)
    assert [(row.op, round(row.p50_us)) for row in rows] == [("rmsnorm", 10), ("fused_add_rmsnorm", 40)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--providers", "cutlass"], "unknown provider cutlass: choose from torch, "),
        (["--shapes", "3x3"], "unknown shape 3x3: choose from 4x256"),
        (["--budget-ms", "0"], "--budget-ms 0.0: must be above 0"),
        (["--from-csv", "no such file.csv"], "no such file.csv"),
    ],
)
def test_wrong_arguments_are_told_before_anything_runs(command, arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        command(*arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", SUITES)
def test_without_a_gpu_a_script_says_why_and_exits_2(scripts, name, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert scripts.op_command.main(getattr(scripts, f"benchmark_{name}").SUITE, []) == 2
    assert capsys.readouterr().err.startswith("The benchmark cannot run here: torch ")


@pytest.mark.parametrize("name", SUITES)
def test_every_provider_of_a_cell_can_be_asked_for_and_has_a_label(scripts, session, name):
    suite = getattr(scripts, f"benchmark_{name}").SUITE
    assert len(set(suite.cells)) == len(suite.cells)
    for op in dict.fromkeys(cell.op for cell in suite.cells):
        case = suite.build(cell_of(scripts, op, 1, 256 if name == "gemv" else 0, 256), session(), NO_OPTIONS)
        assert case.providers.keys() <= set(suite.providers) <= scripts.op_report.LABELS.keys()


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_published_reports_are_those_of_their_figures(scripts, path):
    suite = getattr(scripts, f"benchmark_{path.stem}").SUITE
    rows = read_rows(path, scripts.op_rows.OpRow)
    assert path.with_suffix(".md").read_text(encoding="utf-8") == scripts.op_report.markdown(suite, rows)
    assert path.with_suffix(".png").exists()
    assert scripts.op_rows.bugs(rows) == []


def test_the_copy_of_the_ceiling_copies():
    """In Triton's interpreter, which must be chosen before Triton is imported."""
    from fresh_python import printed_by

    code = (
        "import torch\n"
        "from streaming_copy import streaming_copy_kernel\n"
        "source = torch.randint(1, 99, (5000,), dtype=torch.int32); target = torch.zeros_like(source)\n"
        "streaming_copy_kernel[(3,)](source, target, 5000, BLOCK=512)\n"
        "print(torch.equal(source, target))"
    )
    printed = printed_by(code, cwd=BENCHMARKS, environment={"TRITON_INTERPRET": "1"})
    assert printed.strip() == "True"
