"""The command line: arguments reach the functions they are for, and what cannot run says why."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fresh_python import printed_by

import tilelang_gemm_wrapper
from tilelang_gemm_wrapper import cli, demo
from tilelang_gemm_wrapper.core import bench
from tilelang_gemm_wrapper.core.config_file import config_file_name

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
        (["explain", "0", "128", "128"], "'0' is no positive whole number"),
        (["explain", "1", "-128", "128"], "128"),
        (["warmup", "--shapes", "4096x8192"], "expected N,K as in 4096,8192"),
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


def test_warmup_gets_shapes_and_largest_m(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[object] = []
    monkeypatch.setattr(
        tilelang_gemm_wrapper, "warmup", lambda shapes, m_max: received.append((shapes, m_max)), raising=False
    )
    assert cli.main(["warmup", "--shapes", "4096,8192", "512,1024", "--m-max", "64"]) == cli.DONE
    assert received == [([(4096, 8192), (512, 1024)], 64)]


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


def test_shipped_configs_are_all_usable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SGLANG_TILELANG_GEMM_CONFIG_DIR", raising=False)
    status = cli.main(["configs", "check"])
    assert status == cli.DONE, capsys.readouterr().out
