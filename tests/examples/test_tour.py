"""The tour without GPU and interpreter: what its kernels compile to, its benchmark, its page."""

from __future__ import annotations

import importlib
import os
import re
import runpy
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from published_results import needs_results

from tilelang_gemm_wrapper import configurer
from tilelang_gemm_wrapper.core.conditions import Conditions
from tilelang_gemm_wrapper.core.device import (
    ADA_SHARED_MEMORY,
    HOPPER_SHARED_MEMORY,
    KNOWN_DEVICES,
    cpu_device,
)
from tilelang_gemm_wrapper.core.environment import Environment
from tilelang_gemm_wrapper.core.results import read_rows, write_rows

triton = pytest.importorskip("triton", reason="Triton is not installed on this platform")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton compiles nothing in a process that interprets", allow_module_level=True)

REPOSITORY = Path(__file__).parents[2]
TOUR = REPOSITORY / "examples" / "tour"
PAGE = REPOSITORY / "docs" / "kernel-tour.md"
PUBLISHED = sorted(REPOSITORY.glob("benchmarks/results/*/tour.csv"))
H100 = KNOWN_DEVICES["NVIDIA_H100_80GB_HBM3"]
SMALL = replace(H100, l2_bytes=1 << 14)  # a few copies are cold


@pytest.fixture(scope="module")
def bench():
    """The benchmark's module, which also loads the examples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "benchmarks"))
        patch.syspath_prepend(str(TOUR))
        yield importlib.import_module("benchmark_tour")
        for name in (
            "benchmark_tour",
            "tour_report",
            "tour_checks",
            *(f"tour_step_{step}" for step in range(1, 7)),
        ):
            sys.modules.pop(name, None)


@pytest.fixture
def tour_report(bench):
    return sys.modules["tour_report"]


# Compiled ahead of time ------------------------------------------------------------------------------------


def compile_for(capability, kernel, tensors, sizes, constants, num_warps, num_stages, aligned=True):
    """A Triton kernel as a launch has it compiled; `aligned`: pointers, N, K and the row stride by 16."""
    signature = {**tensors, **dict.fromkeys(sizes, "i32"), **dict.fromkeys(constants, "constexpr")}
    signature = {name: signature[name] for name in kernel.arg_names}
    divisible = [name for name in (*tensors, "N", "K", "stride_cm", "numel") if name in signature and aligned]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in divisible}
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    return triton.compile(source, target=target, options=options)


FP16 = {"A": "*fp16", "B": "*fp16", "C": "*fp16"}
FP8 = {"A": "*fp8e4nv", "A_scale": "*fp32", "B": "*fp8e4nv", "B_scale": "*fp32", "C": "*bf16"}
MATMUL_SIZES = ("M", "N", "K", "stride_cm")
MOST = {90: HOPPER_SHARED_MEMORY, 89: ADA_SHARED_MEMORY}


def assert_64_bit_offsets(kernel):
    """A row times a stride may pass 2**31: no product of tensors in 32 bits."""
    products = re.findall(r"arith\.muli .* : (tensor<\S+>)", kernel.asm["ttir"])
    assert products
    assert all("xi64>" in product for product in products), products


def assert_multiplies(kernel, capability, dtype):
    ptx = kernel.asm["ptx"]
    if capability == 90:
        assert re.search(rf"wgmma\.mma_async\S*\.{dtype}\.{dtype}", ptx)
    else:
        assert re.search(rf"mma\.sync\S*\.{dtype}\.{dtype}", ptx)
    assert re.search(r"cp\.async\.cg\.shared\.global \[.*\], \[.*\], (0x10|16)", ptx), "narrow loads"


@pytest.mark.parametrize("capability", [90, 89])
def test_copy_compiles(bench, capability):
    step = bench.load(1)
    tensors = {"source": "*fp32", "target": "*fp32"}
    kernel = compile_for(capability, step.copy_kernel, tensors, ("numel",), {"BLOCK": step.BLOCK}, 4, 3)
    assert re.search(r"ld\.global\.v4\.b32", kernel.asm["ptx"])
    assert re.search(r"arith\.muli .* : i64", kernel.asm["ttir"]), "offsets in 32 bits"


@pytest.mark.parametrize("capability", [90, 89])
@pytest.mark.parametrize("step", [2, 3])
def test_fp16_steps_compile(bench, step, capability):
    module = bench.load(step)
    tile = {f"BLOCK_{axis}": getattr(module, f"BLOCK_{axis}") for axis in "MNK"}
    constants = tile | ({"GROUP_M": 8} if step == 3 else {})
    kernel = compile_for(capability, module.matmul_kernel, FP16, MATMUL_SIZES, constants, 8, 3)
    assert kernel.metadata.shared <= MOST[capability]
    assert_multiplies(kernel, capability, "f16")
    assert_64_bit_offsets(kernel)


def shared_memory_of(module, config, capability):
    """Of the autotuned kernel in one of its configurations, whose instructions are checked as well."""
    kernel = compile_for(
        capability,
        module.matmul_kernel.fn,
        FP16,
        MATMUL_SIZES,
        config.kwargs,
        config.num_warps,
        config.num_stages,
    )
    assert_multiplies(kernel, capability, "f16")
    return kernel.metadata.shared


def test_configurations_of_the_autotuner_compile(bench):
    """All fit Hopper. On Ada the last is too large, which the autotuner passes over, and the others fit."""
    module = bench.load(4)
    assert all(shared_memory_of(module, config, 90) <= HOPPER_SHARED_MEMORY for config in module.CONFIGS)
    *_, largest_that_fits, too_large = module.CONFIGS
    assert shared_memory_of(module, largest_that_fits, 89) <= ADA_SHARED_MEMORY
    assert shared_memory_of(module, too_large, 89) > ADA_SHARED_MEMORY


@pytest.mark.parametrize("capability", [90, 89])
@pytest.mark.parametrize("block_m", [16, 64])
def test_fp8_step_compiles(bench, block_m, capability):
    module = bench.load(5)
    constants = {"BLOCK_M": block_m, "BLOCK_N": module.BLOCK_N}
    kernel = compile_for(capability, module.matmul_kernel, FP8, MATMUL_SIZES, constants, 4, 4)
    assert kernel.metadata.shared <= MOST[capability]
    if block_m == 64:  # below it Hopper has no WGMMA
        assert_multiplies(kernel, capability, "e4m3")
    assert_64_bit_offsets(kernel)


def test_sizes_of_one_compile(bench):
    """Triton takes an argument that is 1 for a constant."""
    module = bench.load(5)
    constants = {"M": 1, "N": 1, "K": 1, "stride_cm": 1, "BLOCK_M": 16, "BLOCK_N": module.BLOCK_N}
    assert compile_for(90, module.matmul_kernel, FP8, (), constants, 4, 4, aligned=False)
    module = bench.load(3)
    constants = {"M": 1, "N": 1, "K": 1, "stride_cm": 1, "GROUP_M": 8}
    constants |= {f"BLOCK_{axis}": getattr(module, f"BLOCK_{axis}") for axis in "MNK"}
    assert compile_for(90, module.matmul_kernel, FP16, (), constants, 8, 3, aligned=False)


@pytest.mark.skipif(configurer.find_nvcc() is None, reason="nvcc was not found")
@pytest.mark.parametrize("arch", ["sm_90a", "sm_89"])
def test_tilelang_step_compiles(bench, arch):
    pytest.importorskip("tilelang")
    from tilelang_gemm_wrapper.core.compile_report import cross_compile_primfunc

    report = cross_compile_primfunc(bench.load(6).build(136, 384), arch, {})  # ragged N
    assert report.spill_bytes == report.stack_bytes == 0
    hopper = arch == "sm_90a"
    assert report.shared_memory_bytes <= (HOPPER_SHARED_MEMORY if hopper else ADA_SHARED_MEMORY)
    used = {name for name, count in report.instructions.items() if count}
    assert used == ({"wgmma e4m3", "TMA load"} if hopper else {"mma e4m3", "cp.async", "ldmatrix"})


def test_tilelang_step_refuses_what_it_cannot_do(bench):
    pytest.importorskip("tilelang")
    step = bench.load(6)

    def call(M=4, N=16, K=256, scale=None, out=None):
        A, B = (torch.zeros(rows, K).to(torch.float8_e4m3fn) for rows in (M, N))
        blocks = -(-K // 128)
        A_scale = torch.ones(M, blocks) if scale is None else scale
        step.matmul(
            A, A_scale, B, torch.ones(1, blocks), torch.empty(M, N).bfloat16() if out is None else out
        )

    with pytest.raises(ValueError, match="K is 200 and N is 16, expected multiples of 128 and 8; step 5"):
        call(K=200)
    with pytest.raises(ValueError, match="N is 12"):
        call(N=12)
    with pytest.raises(ValueError, match="A_scale has strides"):
        call(scale=torch.ones(2, 4).T)
    with pytest.raises(ValueError, match=r"out is torch\.float32, expected torch\.bfloat16; convert"):
        call(out=torch.empty(4, 16))
    with pytest.raises(ValueError, match=r"the tensors are on cpu, .* expected one GPU; move them there"):
        call()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("step", range(1, 7))
def test_without_a_gpu_main_says_what_to_do(bench, step, monkeypatch):
    if step == 6:
        pytest.importorskip("tilelang")
    monkeypatch.setattr(sys, "argv", ["example"])
    with pytest.raises(SystemExit, match="TRITON_INTERPRET=1"):
        bench.load(step).main()


@pytest.mark.parametrize("sizes", [("0", "-1", "300"), ("1", "0", "1"), ("1", "x", "1")])
def test_sizes_that_are_none_are_told(bench, sizes, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["example", "--shape", *sizes])
    with pytest.raises(SystemExit) as end:
        bench.load(2).main()
    assert end.value.code == 2
    assert "argument --shape: '" in capsys.readouterr().err


def test_without_the_package_a_step_says_what_to_install(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "tilelang_gemm_wrapper.lab.debug", None)
    with pytest.raises(SystemExit, match=r"run pip install \. in the checkout first"):
        runpy.run_path(str(TOUR / "tour_checks.py"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_tensor_on_the_cpu_is_refused(bench):
    with pytest.raises(ValueError, match=r"source is on cpu, expected a GPU; move it .*INTERPRET=1"):
        bench.load(1).copy(torch.ones(4))


# The benchmark ---------------------------------------------------------------------------------------------


class SimulatedDevice:
    """A recorder: the k-th captured call takes us[k] a launch."""

    def __init__(self, *us):
        self.us, self.now_us, self.captured = us, 0.0, 0

    def __enter__(self):
        self.captured = 0
        return self

    def __exit__(self, *exc):
        pass

    def capture(self, call, copies):
        us = self.us[self.captured]
        self.captured += 1

        def replay():
            self.now_us += us * copies

        for i in range(copies):
            call(i)
        replay.launches, replay.release = copies, lambda: None
        return replay

    def event(self):
        event = SimpleNamespace(at=None)
        event.record = lambda: setattr(event, "at", self.now_us)
        event.elapsed_time = lambda end: (end.at - event.at) / 1e3
        return event

    def synchronize(self):
        pass


ENVIRONMENT = Environment("2026-01-01", H100.name, "1.2.3", "0.1.0", "2.0", "0.1", "3.0", "")
CONDITIONS = Conditions(sm_clock_mhz=1980.0, temperature_c=40.0, power_w=300.0)


@pytest.fixture
def plain_steps(bench, monkeypatch):
    """The examples by their formulas, which run on the CPU; `wrong` names a step that is off by 1 %."""
    state = SimpleNamespace(wrong=None)

    def matmul_of(step):
        def matmul(A, B, out):
            return out.copy_((A.double() @ B.double().T) * (1.01 if state.wrong == step else 1))

        return matmul

    def copy(source, out):
        return out.copy_(source + (state.wrong == 1))

    real = bench.load

    def load(step):
        if step == 1:
            return SimpleNamespace(copy=copy, reference=torch.clone)
        if step in (2, 3, 4):
            return SimpleNamespace(matmul=matmul_of(step), reference=real(2).reference, MAX_ERROR=1e-7)
        return real(step)

    monkeypatch.setattr(bench, "load", load)
    return state


def measured(bench, case, *us):
    return bench.measure(case, ENVIRONMENT, CONDITIONS, H100, budget_ms=1.0, recorder=SimulatedDevice(*us))


def test_a_copy_counts_what_it_reads_and_what_it_writes(bench, plain_steps):
    case = bench.copy_case(1 << 16, ["copy", "torch_copy"], SMALL, "cpu")
    assert case.copies == 2 and case.bytes == case.cold_bytes == 2 << 16
    ours, torchs = measured(bench, case, 1.0, 2.0)
    assert (ours.provider, torchs.provider) == ("copy", "torch_copy")
    assert ours.gb_per_s == pytest.approx(131.072) and torchs.gb_per_s == pytest.approx(65.536)
    assert ours.error == 0 and ours.tflops is None and ours.date == "2026-01-01" and ours.power_w == 300


def test_small_copies_rotate_until_l2_holds_none(bench, plain_steps):
    case = bench.copy_case(1 << 10, ["copy"], SMALL, "cpu")
    assert case.copies == 32  # of 2 KiB each, four times 16 KiB


def test_a_product_counts_its_operations(bench, plain_steps):
    case = bench.fp16_case((8, 16, 32), ["naive", "grouped", "torch_mm"], SMALL, "cpu")
    assert case.bytes == 2 * (8 * 32 + 16 * 32 + 8 * 16)
    assert case.copies == 64  # B has 1 KiB
    row = measured(bench, case, 4.0, 5.0, 6.0)[0]
    assert row.tflops == pytest.approx(2 * 8 * 16 * 32 / 4e-6 / 1e12)
    assert row.shape == "8 x 16 x 32" and row.provider == "naive" and row.error < 1e-7


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_wrong_step_fails_the_run(bench, plain_steps, step):
    plain_steps.wrong = step
    if step == 1:
        case = bench.copy_case(1 << 10, ["copy", "torch_copy"], SMALL, "cpu")
    else:
        case = bench.fp16_case((8, 16, 32), ["naive", "grouped"], SMALL, "cpu")
    name = {1: "copy", 2: "naive", 3: "grouped"}[step]
    with pytest.raises(bench.RunFailed, match=f"{name} is wrong"):
        measured(bench, case, 1.0, 1.0)


def test_a_step_that_writes_nothing_fails_the_run(bench, plain_steps):
    case = bench.fp16_case((8, 16, 32), ["naive"], SMALL, "cpu")
    lazy = case.calls["naive"](0)
    with pytest.raises(bench.RunFailed, match="naive is wrong: error inf"):
        measured(bench, replace(case, calls={"naive": lambda i: lazy}), 1.0)


def test_a_copy_above_the_memory_fails_the_run(bench, plain_steps):
    case = bench.copy_case(1 << 20, ["copy", "torch_copy"], SMALL, "cpu")
    assert measured(bench, case, 1.0, 1.0)  # 2.10 TB/s of the data sheet's 3.35
    with pytest.raises(bench.RunFailed, match=r"torch_copy: .* 4.19 TB/s, above the 3.35"):
        measured(bench, case, 1.0, 0.5)


def test_fp16_reaches_half_of_the_peak_of_fp8(bench):
    row = bench.with_rates(
        bench.TourRow(
            **asdict(ENVIRONMENT), part="fp16", shape="", M=4096, N=4096, K=4096, provider="naive", bytes=1,
            p50_us=150.0,
        )
    )  # fmt: skip
    assert row.tflops == pytest.approx(916, abs=1)  # below 1979 / 2
    assert bench.why_too_fast(row, 1, H100) is None
    too_fast = bench.with_rates(replace(row, p50_us=130.0))  # 1057
    assert "FP16 counts 2 times" in bench.why_too_fast(too_fast, 1, H100)
    assert bench.why_too_fast(replace(too_fast, part="fp8"), 1, H100) is None


def test_the_fp8_case_has_cold_weights_and_the_peers(bench, monkeypatch):
    monkeypatch.setattr(bench, "FP8_N", 256)
    monkeypatch.setattr(bench, "FP8_K", 128)
    wanted = bench.selected("fp8", [5, 6])
    assert wanted == ["triton_fp8", "tilelang_fp8", "package_triton", "package"]
    case = bench.fp8_case(4, wanted, replace(SMALL, l2_bytes=1 << 16), "cpu")
    assert case.copies == 8 and case.cold_bytes == 256 * 128 and list(case.calls) == wanted
    assert case.error(case.calls["package"](7), 7) <= case.limit  # on the CPU the package has its reference


def test_what_cannot_run_on_a_device_says_why(bench, monkeypatch):
    monkeypatch.setattr(bench, "FP8_N", 128)
    monkeypatch.setattr(bench, "FP8_K", 128)
    blackwell = replace(SMALL, arch="sm_100")
    case = bench.fp8_case(4, ["tilelang_fp8", "package"], blackwell, "cpu")
    rows = measured(bench, case, 5.0)
    assert [(row.provider, row.p50_us is None, row.reason) for row in rows] == [
        ("package", False, ""),
        ("tilelang_fp8", True, "needs Hopper or Ada; this is sm_100"),
    ]
    assert "sm_89" in bench.why_not("triton_fp8", cpu_device())


def test_steps_are_measured_with_their_peers(bench):
    assert bench.selected("fp16", [3]) == ["grouped", "torch_mm"]
    assert bench.selected("copy", [3]) == []
    assert len(list(bench.cases(range(1, 7), H100))) == 13 + 5 + 5
    assert len(list(bench.cases([1], H100))) == 13
    assert (bench.COPY_BYTES[0], bench.COPY_BYTES[-1]) == (2**16, 2**28)


@pytest.fixture
def rows(bench):
    """Made-up rows, one for each provider at two shapes."""
    found = []
    for number, (name, provider) in enumerate(bench.PROVIDERS.items()):
        for size in (256, 4096):
            row = bench.TourRow(
                **asdict(ENVIRONMENT), part=provider.part, shape=f"{size}", M=size, N=size, K=size,
                provider=name, bytes=size * size, p50_us=10.0 + number,
                config="64x64" if name == "autotuned" else "",
            )  # fmt: skip
            missing = name == "tilelang_fp8" and size == 4096
            found.append(replace(row, p50_us=None, reason="no") if missing else bench.with_rates(row))
    return found


def test_the_report_has_every_figure(bench, tour_report, rows):
    text = tour_report.markdown(rows)
    assert text.startswith(f"# The kernels of the tour on {H100.name}\n")
    titles = [about.title for about in bench.PARTS.values()]
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [*titles, "Not timed"]
    assert "- step 6, TileLang: no\n" in text and "torch 2.0, tilelang 0.1, triton 3.0" in text
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in tour_report.table("fp8", rows).splitlines()
    ]
    assert cells[0][1:3] == ["step 5, Triton, µs", "step 6, TileLang, µs"]
    assert cells[2] == ["256", "16.00", "17.00", "18.00", "19.00"]
    assert cells[3] == ["4096", "16.00", "–", "18.00", "19.00"]
    header, *lines = tour_report.table("fp16", rows).splitlines()
    assert header.rstrip("| ").endswith("chosen") and lines[1].rstrip("| ").endswith("64x64")
    assert f"{2 * 4096**3 / 12e-6 / 1e12:.1f}" in lines[2]


def test_report_and_plot_of_a_csv(bench, tour_report, rows, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "tour.csv"
    write_rows(path, rows, bench.TourRow)
    rounded = read_rows(path, bench.TourRow)
    assert [replace(row, gb_per_s=None, tflops=None) for row in rounded] == [
        replace(row, gb_per_s=None, tflops=None) for row in rows
    ]
    assert bench.main(["--from-csv", str(path)]) == 0
    assert path.with_suffix(".md").read_text(encoding="utf-8") == tour_report.markdown(rounded)
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert str(path.with_suffix(".png")) in capsys.readouterr().out


def test_one_part_alone_makes_a_plot(tour_report, rows, tmp_path):
    pytest.importorskip("matplotlib")
    tour_report.write_plot(tmp_path / "one.png", [row for row in rows if row.part == "copy"])
    assert (tmp_path / "one.png").stat().st_size > 1000


def test_wrong_arguments(bench, tmp_path, capsys):
    for arguments in (["--only", "7"], ["--budget-ms", "0"], ["--from-csv", str(tmp_path / "none.csv")]):
        with pytest.raises(SystemExit) as stopped:
            bench.main(arguments)
        assert stopped.value.code == 2
    with pytest.raises(ValueError, match="holds no rows"):
        bench.write_report(tmp_path / "tour.csv", [])
    capsys.readouterr()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_says_so(bench, capsys):
    assert bench.main([]) == 2
    assert "need an NVIDIA GPU" in capsys.readouterr().err


class OneDevice(SimulatedDevice):
    def __init__(self):
        super().__init__(*[10.0] * 4)


@pytest.fixture
def simulated_gpu(bench, plain_steps, monkeypatch):
    """`main` as on an H100, with one small copy to measure."""
    from tilelang_gemm_wrapper.core import conditions, device, timing

    monkeypatch.setattr(bench, "why_cannot_run", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(device, "device_of", lambda index: H100)
    monkeypatch.setattr(conditions, "record_conditions", lambda: CONDITIONS)
    monkeypatch.setattr(timing, "CudaGraphs", OneDevice)
    build = lambda: bench.copy_case(1 << 16, ["copy", "torch_copy"], SMALL, "cpu")  # noqa: E731
    monkeypatch.setattr(bench, "cases", lambda only, device: [build])
    monkeypatch.setattr(bench, "selected", lambda part, only: [])
    return plain_steps


def test_a_run_writes_csv_report_and_plot(bench, simulated_gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    assert bench.main([]) == 0
    folder = tmp_path / H100.name
    assert {path.name for path in folder.iterdir()} >= {"tour.csv", "tour.md"}
    written = read_rows(folder / "tour.csv", bench.TourRow)
    assert [row.p50_us for row in written] == [pytest.approx(10.0)] * 2
    assert bench.main(["--only", "1", "--output", str(tmp_path / "else")]) == 0
    assert (tmp_path / "else" / "tour.csv").exists()
    assert "## Copy" in capsys.readouterr().out


def test_a_part_of_the_run_replaces_no_results(bench, simulated_gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    assert bench.main(["--only", "1"]) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("why", ["wrong", "impossible"])
def test_a_failed_run_writes_nothing(bench, simulated_gpu, monkeypatch, tmp_path, capsys, why):
    if why == "wrong":
        simulated_gpu.wrong = 1
    else:
        monkeypatch.setattr(OneDevice, "__init__", lambda self: SimulatedDevice.__init__(self, 1e-3, 1e-3))
    assert bench.main(["--output", str(tmp_path)]) == 1
    assert not list(tmp_path.iterdir())
    assert "FAILED, nothing is written" in capsys.readouterr().err


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.name)
def test_published_reports_are_those_of_their_figures(bench, tour_report, path):
    rows = read_rows(path, bench.TourRow)
    assert path.with_suffix(".md").read_text(encoding="utf-8") == tour_report.markdown(rows)
    assert path.with_suffix(".png").exists()
    device = KNOWN_DEVICES[rows[0].device]
    for row in rows:
        cold = row.bytes if row.part == "copy" else row.N * row.K * (2 if row.part == "fp16" else 1)
        assert bench.why_too_fast(row, cold, device) is None


# The page --------------------------------------------------------------------------------------------------

TEXT = PAGE.read_text(encoding="utf-8")


@needs_results
def test_links_of_the_page_lead_somewhere():
    links = set(re.findall(r"\]\(([^)#]+)\)", TEXT))
    missing = {link for link in links if "://" not in link and not (PAGE.parent / link).exists()}
    folder = "../benchmarks/results/NVIDIA_H100_80GB_HBM3"
    results = {f"{folder}/tour.md", f"{folder}/tour.png"}
    assert results <= links
    if "<!-- figures -->" in TEXT and missing == results:
        missing = set()  # they are still to be measured, and the page shows no figure of theirs
    assert not missing


def test_code_on_the_page_is_that_of_the_examples():
    sections = re.split(r"^## (?=\d\. )", TEXT, flags=re.MULTILINE)[1:]
    assert [int(section[0]) for section in sections] == list(range(1, 7))
    for section in sections:
        (path,) = TOUR.glob(f"{section[0]}_*.py")
        (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
        assert code in path.read_text(encoding="utf-8"), f"{path.name} has no such lines:\n{code}"


def test_files_and_names_on_the_page_exist():
    spans = re.findall(r"`([^`\n]+)`", TEXT)
    paths = {
        span for span in spans if re.fullmatch(r"(tilelang_gemm_wrapper|examples|configs)/[\w/.]*", span)
    }
    paths |= set(re.findall(r"(?:examples|benchmarks)/[\w/]+\.py", TEXT))
    assert len(paths) >= 10
    assert not {path for path in paths if not (REPOSITORY / path).exists()}
    modules = {span for span in spans if re.fullmatch(r"(tilelang_gemm_wrapper|core)(\.\w+)+", span)}
    assert len(modules) >= 3
    names: set[str] = set()
    for module in modules:
        path = module.removeprefix("tilelang_gemm_wrapper.")
        names |= vars(importlib.import_module(f"tilelang_gemm_wrapper.{path}")).keys()
    for name in (
        "print_if",
        "breakpoint_if",
        "check_tensors_gpu_ready",
        "random_workload",
        "integer_workload",
    ):
        assert name in TEXT and name in names
    assert "reference" in names and "error" in names


def test_every_package_kernel_of_the_last_section_is_in_the_order_promised():
    last = TEXT.split("## From here")[1]
    named = re.findall(
        r"^\d\. `tilelang_gemm_wrapper/(?:core/kernels|backends)/(\w+)\.py`", last, re.MULTILINE
    )
    assert named == ["_triton_kernel", "ada", "swap_ab", "swapped", "roles", "promotion", "ahead"]


def test_commands_on_the_page_are_understood():
    from tilelang_gemm_wrapper.lab.command import _parser

    (dump,) = re.findall(r"^tilelang-gemm lab (dump .*)$", TEXT, re.MULTILINE)
    arguments = _parser().parse_args(shlex.split(dump))
    assert arguments.kernel == "swapAB"
    for command in re.findall(r"^TRITON_INTERPRET=1 python (\S+)", TEXT, re.MULTILINE):
        assert (REPOSITORY / command).exists()


def test_names_of_the_examples_shadow_no_module():
    for path in TOUR.glob("*.py"):
        assert path.stem[0].isdigit() or path.stem not in sys.stdlib_module_names
    assert len(list(TOUR.glob("[1-6]_*.py"))) == 6
