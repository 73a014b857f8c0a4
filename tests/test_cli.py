"""The command line: arguments reach the functions they are for, and what cannot run says why."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fresh_python import printed_by

import tilelang_gemm_wrapper
from tilelang_gemm_wrapper import cli, demo, doctor, entrypoint
from tilelang_gemm_wrapper.core import bench
from tilelang_gemm_wrapper.core.arguments import whole_numbers
from tilelang_gemm_wrapper.core.config_file import config_file_name
from tilelang_gemm_wrapper.entrypoint import Warmup

H200 = "NVIDIA_H200"
ENTRY = {
    "kernel_type": "swapAB",
    "block_M": 64,
    "block_N": 16,
    "block_K": 128,
    "num_stages": 4,
    "threads": 128,
}


def write_table(directory: Path, table: object, N: int = 4096, K: int = 8192, device: str = H200) -> Path:
    path = directory / config_file_name(N, K, device)
    path.write_text(table if isinstance(table, str) else json.dumps(table))
    return path


def test_help_names_every_command_without_loading_torch() -> None:
    code = (
        "import sys\n"
        "from tilelang_gemm_wrapper.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'numpy', 'tilelang'} & set(sys.modules)\n"
    )
    printed = printed_by(code)
    for command in ("demo", "doctor", "bench", "warmup", "explain", "configs"):
        assert f"\n    {command} " in printed


def test_module_runs_as_the_command() -> None:
    command = [sys.executable, "-m", "tilelang_gemm_wrapper", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"tilelang-gemm {tilelang_gemm_wrapper.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "required: COMMAND"),
        (["tunes"], "invalid choice: 'tunes'"),
        (["doctor", "--fast"], "unrecognised arguments: --fast"),
        (["explain", "0", "128", "128"], "'0' holds a number below 1"),
        (["explain", "1", "99999999999999999999", "128"], "holds a number above 2147483647"),
        (["explain", "1", "x", "128"], "'x' is no whole number"),
        (
            ["explain", "1", "9" * 5000, "128"],
            "N: '999999999999...9999999999999' is no list of whole numbers",
        ),
        (["explain", "1", "-128", "128"], "128"),
        (["explain", "5,5", "128", "128"], "'5,5' is 2 numbers where one is meant"),
        (["warmup", "--shapes", "4096x8192"], "expected N,K as in 4096,8192"),
        (["warmup", "--shapes", "4096,"], "'' is no whole number"),
        (["warmup", "--shapes", "4096,0"], "'0' holds a number below 1"),
        (["warmup", "--shapes", "4096,8192", "--m-max", "0"], "'0' holds a number below 1"),
        (["warmup"], "--shapes"),
        (["configs"], "required: ACTION"),
    ],
)
def test_wrong_usage_ends_with_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == cli.CANNOT_RUN
    assert complaint in capsys.readouterr().err


def test_bench_gets_its_own_options_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[list[str]] = []
    monkeypatch.setattr(bench, "main", lambda argv, *_, **__: received.append(list(argv)) or 2)
    assert cli.main(["bench", "--N", "4096", "--K", "8192", "--help"]) == 2
    assert received == [["--N", "4096", "--K", "8192", "--help"]]


@pytest.mark.parametrize(
    ("done", "status", "said"),
    [
        (
            Warmup(missing=2, compiled=2, cached=5),
            cli.DONE,
            "TileLang kernels: 2 compiled, 5 already in the cache\n",
        ),
        (
            Warmup(missing=2, compiled=1, failed=1),
            cli.FAILED,
            "1 compiled, 0 already in the cache, 1 did not compile: other kernels",
        ),
        (Warmup(unserved={(100, 128): "N = 100 is odd"}), cli.DONE, "for N=100, K=128: N = 100 is odd\n"),
    ],
)
def test_warmup_gets_shapes_and_largest_m_and_says_what_it_did(
    done: Warmup,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    received: list[object] = []
    monkeypatch.setattr(entrypoint, "warm_up", lambda shapes, m_max: received.append((shapes, m_max)) or done)
    assert cli.main(["warmup", "--shapes", "4096,8192", "512,1024", "--m-max", "64"]) == status
    assert received == [([(4096, 8192), (512, 1024)], 64)]
    assert said in capsys.readouterr().out


def test_warmup_without_a_gpu_says_that_nothing_was_compiled_and_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["warmup", "--shapes", "6144,2560", "100,100", "104,100"]) == cli.CANNOT_RUN
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith(f"tilelang-gemm warmup: nothing was compiled: torch {torch.__version__} ")
    assert [line.split(":")[0] for line in rest] == [
        "no TileLang kernel for N=100, K=100",
        "no TileLang kernel for N=104, K=100",
    ]


@pytest.mark.parametrize(
    ("failure", "status", "said"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "/proc/x"),
            2,
            "/proc/x: No such file or directory",
        ),
        (PermissionError("not yours"), 2, "not yours"),
        (ValueError("N is 3"), 2, "N is 3"),
        (
            ModuleNotFoundError("No module named 'ray'", name="ray"),
            2,
            "pip install 'tilelang-gemm-wrapper[tune]'",
        ),
        (ModuleNotFoundError("No module named 'tokenizers.x'", name="tokenizers.x"), 2, "wrapper[demo]'"),
        (ModuleNotFoundError("No module named 'triton'", name="triton"), 2, "pip install triton"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_what_stops_a_command_is_one_line(
    failure: BaseException,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def report() -> str:
        raise failure

    monkeypatch.setattr(doctor, "report", report)
    assert cli.main(["doctor"]) == status
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("tilelang-gemm doctor: ") and line.endswith(said)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "report", lambda: {}["no such key"])
    with pytest.raises(KeyError):
        cli.main(["doctor"])


@pytest.mark.parametrize("arguments", ["configs list", "--help", "tune --help"])
def test_a_reader_that_has_read_enough_is_no_error(arguments: str) -> None:
    command = f"{sys.executable} -m tilelang_gemm_wrapper {arguments} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_output_that_cannot_be_written_is_one_line() -> None:
    command = [sys.executable, "-m", "tilelang_gemm_wrapper", "configs", "list"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == cli.CANNOT_RUN and "No space left on device" in line


def test_an_output_that_is_closed_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a service that is started without one: Python has None for it."""
    monkeypatch.setattr(doctor, "report", lambda: "all well")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert cli.main(["doctor"]) == cli.DONE


def test_text_that_the_output_cannot_encode_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(doctor, "report", lambda: "6.2 µs on NVIDIA_\udcff")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert cli.main(["doctor"]) == cli.DONE
    assert written.getvalue() == b"6.2 \\xb5s on NVIDIA_\\udcff\n"


def test_without_torch_a_command_says_so_in_one_line() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "sys.stderr = sys.stdout\n"
        "from tilelang_gemm_wrapper.cli import main\n"
        "for arguments in ('explain 1 16 128', 'warmup --shapes 16,128', 'bench --shapes public', 'demo',\n"
        "                  'tune --shapes public', 'lab dump --kernel base --to x'):\n"
        "    assert main(arguments.split()) == 2, arguments\n"
    )
    lines = printed_by(code).splitlines()
    assert len(lines) == 6
    assert {line.partition(": ")[2] for line in lines} == {"torch is not installed: pip install torch"}


@pytest.mark.parametrize(("held", "status"), [(True, cli.DONE), (False, cli.FAILED)])
def test_demo_status_follows_its_checks(held: bool, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[object] = []
    monkeypatch.setattr(
        demo, "run", lambda model, with_benchmark: received.append((model, with_benchmark)) or held
    )
    assert cli.main(["demo", "--model", "somewhere", "--no-bench"]) == status
    assert received == [("somewhere", False)]


def test_demo_without_model_says_what_to_install(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--model", str(tmp_path)]) == cli.CANNOT_RUN
    assert "config.json, model.safetensors, tokenizer.json not found" in capsys.readouterr().err


def test_explain_answers_for_another_chip(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "16", "4096", "8192", "--device", "NVIDIA H200"]) == cli.DONE
    text = capsys.readouterr().out
    assert H200 in text and "4096" in text


def test_explain_refuses_an_unknown_chip(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "16", "4096", "8192", "--device", "NVIDIA_H300"]) == cli.CANNOT_RUN
    error = capsys.readouterr().err
    assert "'NVIDIA_H300' is not known" in error and H200 in error


@pytest.mark.parametrize("command", [["explain", "16"], ["configs", "show"]])
def test_a_chip_that_is_nearly_named_is_suggested(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*command, "4096", "8192", "--device", "H200"]) == cli.CANNOT_RUN
    assert "did you mean NVIDIA_H200 or NVIDIA_H200_NVL?" in capsys.readouterr().err


def test_explain_answers_for_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "16", "4096", "8192", "--device", "cpu"]) == cli.DONE
    assert " on cpu: torch [" in capsys.readouterr().out


def test_configs_list_counts_entries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path, {"8": ENTRY, "64": ENTRY})
    write_table(tmp_path, "{", N=512)
    assert cli.main(["configs", "list", str(tmp_path), str(tmp_path / "absent")]) == cli.DONE
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:5] for line in lines if H200 in line] == [
        [H200, "512", "8192", "0", "none"],
        [H200, "4096", "8192", "2", "8"],
    ]
    assert f"{tmp_path / 'absent'}: does not exist" in lines


def test_configs_show_gives_table_source_and_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_table(tmp_path, {"8": {**ENTRY, "latency_ms": 0.0125}, "16": {**ENTRY, "num_stages": 99}})
    monkeypatch.setenv("SGLANG_TILELANG_GEMM_CONFIG_DIR", str(tmp_path))
    assert cli.main(["configs", "show", "4096", "8192", "--device", H200]) == cli.DONE
    text = capsys.readouterr().out
    assert str(path) in text.splitlines()[0]
    assert "swapAB 64x16 s4 t128  12.50" in text
    assert text.index("Refused:") < text.index("num_stages = 99")


def test_configs_show_names_every_path_where_there_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SGLANG_TILELANG_GEMM_CONFIG_DIR", str(tmp_path))
    assert cli.main(["configs", "show", "48", "128", "--device", H200]) == cli.DONE
    assert f"  {tmp_path / config_file_name(48, 128, H200)}" in capsys.readouterr().out.splitlines()


def test_configs_check_passes_good_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_table(tmp_path, {"8": ENTRY})
    (tmp_path / f"{path.stem}.meta.json").write_text("{}")
    assert cli.main(["configs", "check", str(tmp_path)]) == cli.DONE
    assert capsys.readouterr().out.endswith("1 files, 0 refusals\n")


def test_a_table_of_other_kernels_is_said_and_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_table(tmp_path, {"8": ENTRY})
    (tmp_path / f"{path.stem}.meta.json").write_text('{"kernels": "tilelang 0.1.1 kernels 0123456789abcdef"}')
    said = "        tuned with tilelang 0.1.1 kernels 0123456789ab, running tilelang "
    assert cli.main(["configs", "check", str(tmp_path)]) == cli.DONE
    ok, why, total, summary = capsys.readouterr().out.splitlines()
    assert ok.startswith("ok ") and total == "1 files, 0 refusals"
    assert why.startswith(said)
    assert summary.startswith("1 files were tuned with other kernels than run here")
    monkeypatch.setenv("SGLANG_TILELANG_GEMM_CONFIG_DIR", str(tmp_path))
    for command in (["configs", "show", "4096", "8192"], ["explain", "8", "4096", "8192"]):
        assert cli.main([*command, "--device", H200]) == cli.DONE
        assert said.strip() in capsys.readouterr().out, command


def test_configs_show_tells_what_serves_above_the_last_tuned_m(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SGLANG_TILELANG_GEMM_CONFIG_DIR", str(tmp_path))
    for last, goes_on in ((16, True), (8192, False)):
        write_table(tmp_path, {"8": ENTRY, str(last): ENTRY})
        assert cli.main(["configs", "show", "4096", "8192", "--device", H200]) == cli.DONE
        assert (f"  M from {2 * last} on: the default choice, " in capsys.readouterr().out) == goes_on


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ("{", "no JSON"),
        ({"8": {**ENTRY, "blok": 1}}, "unknown field 'blok'"),
        ({"8": ENTRY, "16": {**ENTRY, "kernel_type": "splitK_swapAB", "split_k": 7}}, "split_k = 7"),
    ],
)
def test_configs_check_fails_on_a_refusal(
    table: object, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_table(tmp_path, table)
    assert cli.main(["configs", "check", str(tmp_path)]) == cli.FAILED
    text = capsys.readouterr().out
    assert f"REFUSED {path}" in text and complaint in text


def test_configs_check_fails_on_a_chip_nobody_knows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path, {"8": ENTRY}, device="NVIDIA_H300")
    assert cli.main(["configs", "check", str(tmp_path)]) == cli.FAILED
    assert "NVIDIA_H300" in capsys.readouterr().out


def test_configs_check_fails_on_a_missing_directory(tmp_path: Path) -> None:
    assert cli.main(["configs", "check", str(tmp_path / "absent")]) == cli.FAILED


@pytest.fixture
def unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a tuned file whose files cannot be listed, not even by root."""
    write_table(tmp_path, {"8": ENTRY})
    usual = os.listdir

    def listdir(path: Any) -> list[str]:
        if Path(path) == tmp_path:
            raise PermissionError(13, "Permission denied", str(path))
        return usual(path)

    monkeypatch.setattr(os, "listdir", listdir)
    return tmp_path


@pytest.mark.parametrize("action", ["list", "check"])
@pytest.mark.parametrize("named", [True, False])
def test_a_directory_that_cannot_be_read_is_not_an_empty_one(
    action: str,
    named: bool,
    unreadable: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SGLANG_TILELANG_GEMM_CONFIG_DIR", str(unreadable))
    status = cli.main(["configs", action, *([str(unreadable)] if named else [])])
    assert status == (cli.FAILED if action == "check" else cli.DONE)
    assert f"{unreadable}: cannot be read (Permission denied)" in capsys.readouterr().out.splitlines()


def test_a_directory_that_cannot_be_read_has_no_difference(
    unreadable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["configs", "diff", str(unreadable), "/"]) == cli.CANNOT_RUN
    assert f"{unreadable} cannot be read (Permission denied)" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["list", "check"])
def test_a_file_is_no_directory(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["configs", action, __file__])
    assert f"{__file__}: is no directory" in capsys.readouterr().out.splitlines()


def test_shipped_configs_are_all_usable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SGLANG_TILELANG_GEMM_CONFIG_DIR", raising=False)
    status = cli.main(["configs", "check"])
    assert status == cli.DONE, capsys.readouterr().out


def test_without_standard_output_a_command_ends_as_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As below a service manager, or behind >&-."""
    from tilelang_gemm_wrapper.core.arguments import ending_in_one_line

    monkeypatch.setattr(sys, "stdout", None)
    assert ending_in_one_line("tune", lambda: print("found") or 0) == 0


def test_a_number_that_is_given_twice_is_there_once() -> None:
    assert whole_numbers("8,1,8") == (8, 1)
