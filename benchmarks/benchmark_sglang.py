"""A whole SGLang engine with each FP8 GEMM backend: steps, prefill, start-up, log-probabilities, errors.

    python benchmarks/benchmark_sglang.py                          Qwen3-4B-FP8's dimensions, 36 layers
    python benchmarks/benchmark_sglang.py --layers 4 --repeat 3    quickly
    python benchmarks/benchmark_sglang.py --work DIR               in pieces: what DIR has is not run again
    python benchmarks/benchmark_sglang.py --report FILE.csv        the report of an earlier run

Needs a GPU and SGLang with this package's plugin; no model, tokenizer or network: the configuration is
written to a folder and the weights are SGLang's dummies for speed, random ones for log-probabilities.

Every engine is a process of its own (sglang_job.py) with the same settings but for the backend, and each
backend starts twice: first with empty caches for GEMM kernels (cold), then with those that the first left
(cached), when its speed is measured too. What all backends share, SGLang's other kernels, is compiled by an
engine that is not measured (--skip-warm: it is compiled already). A step is the time of an answer of many
tokens less that of one of a quarter as many, over the tokens between. Where a step goes is the share of each
kernel in the time during which the GPU decodes at batch 1, a kernel that starts under the one before it
counted from that one's end.

Log-probabilities are compared as far as two engines saw the same tokens: of a prompt all, of a greedy answer
those before the first that differs. "exact" multiplies the same quantised operands in float64
(sglang_exact.py). Writes sglang_<name>.csv and .md.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from statistics import quantiles, stdev
from typing import Any

from sglang_job import EXACT, MODEL

from tilelang_gemm_wrapper.core.arguments import ending_in_one_line, whole_number, whole_numbers
from tilelang_gemm_wrapper.core.bench import require_gpu

BACKENDS = ("deep_gemm", "triton", "tilelang")
JOB = Path(__file__).with_name("sglang_job.py")
PACKAGES = ("package", "sglang", "torch", "tilelang", "deep_gemm", "triton")
CACHES = ("TILELANG_GEMM_CACHE_DIR", "SGLANG_DG_CACHE_DIR", "DG_JIT_CACHE_DIR")  # Triton's is everyone's


def model_config(layers: int) -> dict[str, Any]:
    m = MODEL
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": m["head_dim"],
        "hidden_act": "silu",
        "hidden_size": m["hidden"],
        "intermediate_size": m["intermediate"],
        "max_position_embeddings": 40960,
        "num_attention_heads": m["heads"],
        "num_hidden_layers": layers,
        "num_key_value_heads": m["kv_heads"],
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
        },
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": m["vocab"],
    }


# ---- the jobs of a run


class Run:
    """The jobs of one run in its directory: models, caches, logs, and a result for each job that is done."""

    def __init__(self, work: Path, timeout: float, own_triton_cache: bool) -> None:
        self.work = work
        self.timeout = timeout
        self.facts: dict[str, str] = {}
        self._environment = {"SGLANG_JIT_DEEPGEMM_PRECOMPILE": "0", "TOKENIZERS_PARALLELISM": "false"}
        self._environment |= os.environ
        if own_triton_cache:
            self._environment["TRITON_CACHE_DIR"] = str(work / "triton_cache")

    def model(self, name: str, layers: int) -> str:
        folder = self.work / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(model_config(layers)))
        return str(folder)

    def result(self, name: str, job: dict[str, Any], caches: str, after: str = "") -> dict[str, Any]:
        """What the job of that name gave in an earlier piece of this run, or gives now with those caches,
        which the job `after` has left."""
        out = self.work / f"{name}.json"
        job = {**job, "out": str(out)}
        done = out.exists()
        if not done:
            folder = self.work / f"caches-{caches}"
            if after and not folder.is_dir():
                raise SystemExit(
                    f"{folder} is gone: remove {self.work / after}.json, so that it is made again"
                )
            self._execute(name, job, folder)
        result = json.loads(out.read_text())
        if result["job"] != job:
            raise SystemExit(f"{out} is of another job ({result['job']}): remove it, or use another --work")
        print(f"{name}: {'was done' if done else 'done'}", flush=True)
        facts = result["facts"]
        if self.facts and {**facts, "date": ""} != {**self.facts, "date": ""}:
            raise SystemExit(f"{out} was measured on {facts}, the jobs before it on {self.facts}")
        self.facts = facts
        return result

    def _execute(self, name: str, job: dict[str, Any], caches: Path) -> None:
        """Run the job in a process whose whole group is gone when this returns."""
        log = self.work / f"{name}.log"
        caches.mkdir(exist_ok=True)
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, str(JOB), json.dumps(job)],
                env=self._environment | {variable: str(caches / variable.lower()) for variable in CACHES},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(self.timeout)
            finally:  # interrupted too: an engine left behind would slow the next one down
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if not Path(job["out"]).exists():
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
            raise SystemExit(f"{name} gave no result; the end of {log}:\n{tail}")


def measure(options: argparse.Namespace, run: Run) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    engine = {
        "task": "engine",
        "folder": run.model("model", options.layers),
        "load_format": "dummy",
        "batches": options.batches,
        "tokens": options.tokens,
        "prefill": options.prefill,
        "engine_args": options.engine_args,
        "repeat": 0,
        "answers": 0,
    }
    if options.repeat:
        if not options.skip_warm:  # by a backend whose own kernels are in other caches than Triton's
            first = next((name for name in options.backends if name != "triton"), "triton")
            run.result("warm", {**engine, "backend": first, "repeat": 1}, "warm")
        for backend in options.backends:
            again = {**engine, "backend": backend, "repeat": options.repeat}
            cold = run.result(f"cold-{backend}", {**engine, "backend": backend}, backend)
            cached = run.result(f"cached-{backend}", again, backend, after=f"cold-{backend}")
            rows.append({"what": "start, cold", "backend": backend, "value": cold["start_s"], "count": 1})
            rows.append({"what": "start, cached", "backend": backend, "value": cached["start_s"], "count": 1})
            rows += speed_rows(cached, backend)
    if options.answers:
        small = run.model("small_model", options.small_layers)
        weights = {"task": "weights", "folder": small, "layers": options.small_layers}
        run.result("weights", weights, "none")
        accuracy = {**engine, "folder": small, "load_format": "auto", "answers": options.answers}
        engines = {
            name: run.result(f"log-probabilities-{name}", {**accuracy, "backend": name}, name)
            for name in (*options.backends, EXACT)
        }
        rows += log_probability_rows(engines)
        layers = {"task": "errors", "batches": [*options.batches, options.prefill]}
        for row in run.result("errors", layers, "tilelang")["errors"]:
            place = {"backend": row["backend"], "M": row["M"], "N": row["N"], "K": row["K"], "count": 1}
            rows.append({"what": "error of the GEMM", **place, "value": row["of_gemm"]})
            rows.append({"what": "error of the layer", **place, "value": row["of_layer"]})
    return rows


def speed_rows(result: dict[str, Any], backend: str) -> list[dict[str, Any]]:
    """Milliseconds of each phase, and where the step of batch 1 goes in microseconds."""
    rows: list[dict[str, Any]] = []
    step_us = math.nan
    for row in result["speed"]:
        deciles = quantiles([1e3 * value for value in row["seconds"]], n=10, method="inclusive")
        times = {"low": deciles[1], "value": deciles[4], "high": deciles[7], "count": len(row["seconds"])}
        rows.append({"what": row["phase"], "backend": backend, "M": row["M"], **times})
        if row["phase"] == "decode" and row["M"] == 1:
            step_us = 1e3 * deciles[4]
    for kernel, share in sorted(result["profile"].items(), key=lambda item: -item[1]):
        rows.append({"what": f"kernel {kernel}", "backend": backend, "M": 1, "value": share * step_us})
    return rows


def log_probability_rows(engines: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """How far each engine's log-probabilities are from each other's, at decode and at prefill."""
    rows = []
    for phase in ("decode", "prefill"):
        for reference, theirs in engines.items():
            for backend, ours in engines.items():
                for M in ours[phase] if backend != reference else ():
                    place = {"what": f"{phase}, from {reference}", "backend": backend, "M": int(M)}
                    rows.append({**place, **distance(ours[phase][M], theirs[phase][M])})
    return rows


def distance(ours: list[list[list[float]]], theirs: list[list[list[float]]]) -> dict[str, Any]:
    """Mean |difference| where the tokens are the same, one standard error below and above, and of how many.

    Both are sequences of [log-probability, token]. Tokens of one sequence are not independent: the error is
    that of a mean over sequences, each weighted by its tokens.
    """
    pairs = [
        list(takewhile(lambda pair: pair[0][1] == pair[1][1], zip(*sequences, strict=True)))
        for sequences in zip(ours, theirs, strict=True)
    ]
    sums = [sum(abs(a[0] - b[0]) for a, b in sequence) for sequence in pairs]
    count = sum(map(len, pairs))
    if not count:
        return {"count": 0}
    mean = sum(sums) / count
    residuals = [total - mean * len(sequence) for total, sequence in zip(sums, pairs, strict=True)]
    error = stdev(residuals) * math.sqrt(len(pairs)) / count if len(pairs) > 1 else 0.0
    return {"low": mean - error, "value": mean, "high": mean + error, "count": count}


# ---- CSV and report

COLUMNS = ("what", "backend", "M", "N", "K", "low", "value", "high", "count")


def write_csv(path: Path, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *facts], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            rounded = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow({**rounded, **facts})


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of `write_csv`. ValueError, with file and line, where they are none."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, names = list(reader), reader.fieldnames or ()
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV file ({error}); give one that this benchmark wrote") from error
    missing = {*COLUMNS, "device", "layers", "gpus"} - set(names)
    if missing or not rows:
        why = f"lacks the columns {', '.join(sorted(missing))}" if missing else "holds no rows"
        raise ValueError(f"{path} {why}: give one that this benchmark wrote")
    for line, row in enumerate(rows, start=2):
        figures = [row[name] for name in ("low", "value", "high")]
        is_time = row["what"] in ("decode", "prefill")
        if None in row.values() or not all(_is_figure(text, is_time) for text in figures if text):
            raise ValueError(
                f"{path}, line {line}: it is cut short, or {', '.join(map(str, figures))} are no figures; "
                f"correct or delete that line"
            )
    return rows


def _is_figure(text: str, is_time: bool) -> bool:
    """Whether it is a finite number, and above 0 where it is a time."""
    try:
        return (0 if is_time else -math.inf) < float(text) < math.inf
    except ValueError:
        return False


def report(path: Path) -> str:
    rows = read_csv(path)
    facts = {name: rows[0][name] for name in rows[0] if name not in COLUMNS}
    backends = [name for name in BACKENDS if any(row["backend"] == name for row in rows)]
    lines = [
        f"# SGLang with each FP8 GEMM backend on {facts['device'].replace('_', ' ')}",
        "",
        f"Qwen3-4B-FP8's dimensions, {facts['layers']} layers, GPUs: {facts['gpus']}, CUDA graphs on, "
        + ", ".join(f"{name} {facts[name]}" for name in PACKAGES)
        + f", driver {facts['driver'] or 'not recorded'}, {facts['date']}. "
        "By `benchmarks/benchmark_sglang.py`.",
        "",
    ]

    def table(title: str, what: str, columns: tuple[str, ...], text: Any) -> None:
        chosen = [row for row in rows if row["what"] == what]
        if not chosen:
            return
        lines.extend([f"## {title}", "", f"| {' | '.join((*columns, *backends))} |"])
        lines.append(f"|{'---|' * (len(columns) + len(backends))}")
        for key in dict.fromkeys(tuple(row[column] for column in columns) for row in chosen):
            cells = {row["backend"]: row for row in chosen if tuple(row[c] for c in columns) == key}
            lines.append(
                f"| {' | '.join((*key, *(text(cells[b], cells) if b in cells else '–' for b in backends)))} |"
            )
        lines.append("")

    def milliseconds(row: dict[str, str], cells: dict[str, dict[str, str]]) -> str:
        median = float(row["value"])
        peer = cells.get("deep_gemm")
        change = f", {100 * (median / float(peer['value']) - 1):+.1f} %" if peer and row is not peer else ""
        return f"{median:.3f} ({float(row['low']):.3f}–{float(row['high']):.3f}{change})"

    def tokens_per_s(row: dict[str, str], _: Any) -> str:
        return f"{1e3 * int(row['M']) / float(row['value']):.0f}"

    def mean_distance(row: dict[str, str], _: Any) -> str:
        if not row["value"]:
            return "no token in common"
        mean = float(row["value"])
        return f"{mean:.4f} ± {float(row['high']) - mean:.4f} (of {row['count']})"

    title = "Decode: ms a step (20th to 80th percentile, against deep_gemm)"
    table(title, "decode", ("M",), milliseconds)
    table("Decode: tokens/s", "decode", ("M",), tokens_per_s)
    table("Prefill with its first token: ms", "prefill", ("M",), milliseconds)
    for start in ("cold", "cached"):
        table(
            f"Start-up of the engine, {start}: s",
            f"start, {start}",
            (),
            lambda row, _: f"{float(row['value']):.1f}",
        )
    for backend in backends:
        kernels = [row for row in rows if row["what"].startswith("kernel ") and row["backend"] == backend]
        if kernels:
            lines.extend([f"## Where a decode step of batch 1 goes with {backend}: µs", ""])
            lines.extend(
                f"- {float(row['value']):.0f} {row['what'].removeprefix('kernel ')}" for row in kernels[:12]
            )
            lines.append("")
    for reference in (EXACT, "deep_gemm", "triton"):
        for phase, of_batch in (("decode", "answers, by batch"), ("prefill", "a prompt, by its tokens")):
            table(
                f"Log-probabilities of {of_batch}: mean distance from {reference}'s ± its standard error",
                f"{phase}, from {reference}",
                ("M",),
                mean_distance,
            )
    for title, what in (
        ("Error of a layer's GEMM: against float64 with the quantised operands", "error of the GEMM"),
        ("Error of a layer: against float64 with the activations before quantisation", "error of the layer"),
    ):
        table(title, what, ("M", "N", "K"), lambda row, _: f"{float(row['value']):.3e}")
    return "\n".join(lines)


def numbers(text: str) -> list[int]:
    return sorted(set(whole_numbers(text)))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backends", default=",".join(BACKENDS), help="comma-separated (%(default)s)")
    parser.add_argument(
        "--layers", type=whole_number, default=36, help="of the model that is timed (%(default)s)"
    )
    parser.add_argument(
        "--small-layers", type=whole_number, default=1, help="of the model with random weights"
    )
    parser.add_argument("--batches", type=numbers, default=[1, 8, 16, 64])
    parser.add_argument(
        "--prefill", type=whole_number, default=2048, help="tokens of the prompt (%(default)s)"
    )
    parser.add_argument(
        "--tokens", type=whole_number, default=256, help="tokens of a decode measurement (%(default)s)"
    )
    parser.add_argument("--repeat", type=int, default=7, help="measurements each (%(default)s); 0: no timing")
    parser.add_argument(
        "--skip-warm", action="store_true", help="SGLang's other kernels are compiled already"
    )
    parser.add_argument(
        "--answers", type=int, default=192, help="for log-probabilities; 0: none (%(default)s)"
    )
    parser.add_argument(
        "--engine-args", type=json.loads, default={}, help="JSON of further sgl.Engine keywords"
    )
    parser.add_argument("--timeout", type=float, default=420, help="seconds for one engine (%(default)s)")
    parser.add_argument("--out", type=Path, help="directory; default: benchmarks/results/<device>")
    parser.add_argument("--name", default="qwen3-4b", help="of the files: sglang_<name> (%(default)s)")
    parser.add_argument("--work", type=Path, help="directory of its own files; default: a temporary one")
    parser.add_argument("--report", type=Path, metavar="CSV", help="only write the report of this file")
    options = parser.parse_args()
    if options.report:
        text = report(options.report)
        options.report.with_suffix(".md").write_text(text, encoding="utf-8")
        return 0
    options.backends = options.backends.split(",")
    unknown = [name or repr(name) for name in options.backends if name not in BACKENDS]
    if unknown:
        parser.error(f"--backends {','.join(unknown)}: choose from {', '.join(BACKENDS)}")
    for name in ("repeat", "answers"):
        if getattr(options, name) < 0:
            parser.error(f"--{name} {getattr(options, name)}: must be 0 or more")
    if not 0 < options.timeout < math.inf:
        parser.error(f"--timeout {options.timeout}: must be above 0, and finite")
    if not isinstance(options.engine_args, dict):
        parser.error(f"--engine-args {options.engine_args!r}: must be a JSON object")
    if Path(options.name).name != options.name:
        parser.error(f"--name {options.name!r}: must be a name, and --out is the directory")
    require_gpu()
    if importlib.util.find_spec("sglang") is None:
        raise RuntimeError("SGLang is not installed in this environment: pip install sglang")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    work = options.work or Path(tempfile.mkdtemp(prefix="benchmark_sglang-"))
    work.mkdir(parents=True, exist_ok=True)
    run = Run(work.resolve(), options.timeout, own_triton_cache=not options.skip_warm)
    rows = measure(options, run)
    facts = {"layers": options.layers, "gpus": options.engine_args.get("tp_size", 1), **run.facts}
    out = options.out or Path(__file__).parent / "results" / run.facts["device"]
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"sglang_{options.name}.csv"
    write_csv(path, rows, facts)
    path.with_suffix(".md").write_text(report(path), encoding="utf-8")
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(ending_in_one_line(Path(__file__).name, main))
