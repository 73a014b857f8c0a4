"""A whole SGLang engine with each FP8 GEMM backend: steps, prefill, start-up, log-probabilities, errors.

    python benchmarks/benchmark_sglang.py                          Qwen3-4B-FP8's dimensions, 36 layers
    python benchmarks/benchmark_sglang.py --layers 4 --repeat 3    quickly
    python benchmarks/benchmark_sglang.py --report FILE.csv        the report of an earlier run

Needs a GPU and SGLang with this package's plugin; no model, tokenizer or network: the configuration is
written to a temporary folder and the weights are SGLang's dummies for speed, random ones for
log-probabilities.

Every engine is a process of its own with the same settings but for the backend, and each backend starts
twice: first with empty caches for GEMM kernels (cold), then with those that the first left (cached), when its
speed is measured too. What all backends share, SGLang's other kernels, is compiled by an engine that is not
measured (--skip-warm: it is compiled already). A step is the time of an answer of many tokens less that of
one of a quarter as many, over the tokens between. Where a step goes is the share of each kernel in the time
during which the GPU decodes at batch 1, a kernel that starts under the one before it counted from that one's
end. Writes sglang_<name>.csv and .md.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from statistics import quantiles
from typing import Any

BACKENDS = ("deep_gemm", "triton", "tilelang")
SEED = 20
MODEL = {"hidden": 2560, "intermediate": 9728, "heads": 32, "kv_heads": 8, "head_dim": 128, "vocab": 151936}
PROMPT = 32  # tokens of the prompts of decode measurements
SHAPES = ((6144, 2560), (2560, 4096), (19456, 2560), (2560, 9728))  # qkv, o, gate_up, down
PACKAGES = ("package", "sglang", "torch", "tilelang", "deep_gemm", "triton")
CACHES = ("TILELANG_GEMM_CACHE_DIR", "SGLANG_DG_CACHE_DIR", "DG_JIT_CACHE_DIR")


# ---- the model


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


def write_random_weights(job: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint in which every matrix matters; SGLang's dummy weights vanish in FP8 products."""
    import torch
    from safetensors.torch import save_file

    from tilelang_gemm_wrapper import per_block_quant_fp8

    folder, layers, m = Path(job["folder"]), job["layers"], MODEL
    generator = torch.Generator("cuda").manual_seed(SEED)
    tensors = {"model.norm.weight": torch.ones(m["hidden"])}

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda")

    tensors["model.embed_tokens.weight"] = normal(m["vocab"], m["hidden"]) * 0.05
    q, kv = m["heads"] * m["head_dim"], m["kv_heads"] * m["head_dim"]
    matrices = {
        "self_attn.q_proj": (q, m["hidden"]),
        "self_attn.k_proj": (kv, m["hidden"]),
        "self_attn.v_proj": (kv, m["hidden"]),
        "self_attn.o_proj": (m["hidden"], q),
        "mlp.gate_proj": (m["intermediate"], m["hidden"]),
        "mlp.up_proj": (m["intermediate"], m["hidden"]),
        "mlp.down_proj": (m["hidden"], m["intermediate"]),
    }
    norms = {"input_layernorm": m["hidden"], "post_attention_layernorm": m["hidden"]}
    norms |= {"self_attn.q_norm": m["head_dim"], "self_attn.k_norm": m["head_dim"]}
    quantised = {}
    for layer in range(layers):
        for name, (N, K) in matrices.items():
            value, scale = per_block_quant_fp8(normal(N, K) / math.sqrt(K))
            quantised[f"model.layers.{layer}.{name}.weight"] = value
            quantised[f"model.layers.{layer}.{name}.weight_scale_inv"] = scale
        tensors |= {f"model.layers.{layer}.{name}.weight": torch.ones(width) for name, width in norms.items()}
    whole = {name: tensor.bfloat16() for name, tensor in tensors.items()} | quantised
    save_file(
        {n: t.cpu().contiguous() for n, t in whole.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return {}


# ---- one engine, in a process of its own


def engine_settings(job: dict[str, Any]) -> dict[str, Any]:
    """The keywords of sgl.Engine that all backends share, less those that this SGLang does not have."""
    from sglang.srt.server_args import ServerArgs

    wanted = {
        "model_path": job["folder"],
        "load_format": job["load_format"],
        "skip_tokenizer_init": True,
        "dtype": "bfloat16",
        "context_length": 4096,
        "attention_backend": "triton",
        "sampling_backend": "pytorch",
        "grammar_backend": "none",
        "fp8_gemm_runner_backend": job["backend"],
        "mem_fraction_static": 0.5,
        "max_total_tokens": 131072,
        "max_running_requests": max(job["batches"]),
        "chunked_prefill_size": 4096,
        "disable_radix_cache": True,  # a repeated prompt would skip its prefill
        "disable_prefill_cuda_graph": True,
        "cuda_graph_bs_decode": job["batches"],
        "cuda_graph_bs": job["batches"],  # its name before 0.5.17
        "random_seed": SEED,
        "log_level": "info",
        **job["engine_args"],
    }
    known = set(getattr(ServerArgs, "__dataclass_fields__", None) or ServerArgs.__annotations__)
    return {name: value for name, value in wanted.items() if name in known}


def prompts(batch: int, length: int, turn: int = 0) -> list[list[int]]:
    draw = random.Random(1000 * SEED + 10 * batch + turn)
    return [[draw.randrange(1000, MODEL["vocab"] - 1000) for _ in range(length)] for _ in range(batch)]


def generate(engine: Any, ids: list[list[int]], tokens: int, **options: Any) -> list[dict[str, Any]]:
    sampling = {"temperature": 0.0, "max_new_tokens": tokens, "ignore_eos": True}
    return engine.generate(input_ids=ids, sampling_params=sampling, **options)


def run_engine(job: dict[str, Any]) -> dict[str, Any]:
    import sglang

    settings = engine_settings(job)
    started = time.perf_counter()
    with sglang.Engine(**settings) as engine:
        result: dict[str, Any] = {"start_s": time.perf_counter() - started}
        if job["repeat"]:
            result["speed"] = speeds(engine, job)
            result["profile"] = profile(engine, job)
        if job["prompts"]:
            result["log_probabilities"] = {
                batch: prompt_log_probabilities(engine, batch, job["prompts"]) for batch in job["batches"]
            }
        Path(job["out"]).write_text(json.dumps(result))  # before the engine ends, which may go wrong
    return result


def speeds(engine: Any, job: dict[str, Any]) -> list[dict[str, Any]]:
    """Seconds of a decode step for each batch, and of a prefill with its first token; one value a repeat."""

    def seconds(ids: list[list[int]], tokens: int) -> float:
        start = time.perf_counter()
        answers = generate(engine, ids, tokens)
        took = time.perf_counter() - start
        lengths = {len(answer["output_ids"]) for answer in answers}
        assert lengths == {tokens}, f"asked for {tokens} tokens, got {sorted(lengths)}"
        return took

    rows = []
    for batch in job["batches"]:
        ids = prompts(batch, PROMPT)
        many, few = job["tokens"], job["tokens"] // 4
        seconds(ids, few)  # whatever is left to compile for this batch
        steps = [(seconds(ids, many) - seconds(ids, few)) / (many - few) for _ in range(job["repeat"])]
        rows.append({"phase": "decode", "M": batch, "seconds": steps})
    ids = prompts(1, job["prefill"])
    seconds(ids, 1)
    rows.append(
        {
            "phase": "prefill",
            "M": job["prefill"],
            "seconds": [seconds(ids, 1) for _ in range(3 * job["repeat"])],
        }
    )
    return rows


def profile(engine: Any, job: dict[str, Any]) -> dict[str, float]:
    """The share of each kernel, and of none ("idle"), in the second half of a long answer at batch 1."""
    folder = Path(job["out"]).with_suffix(".profile")
    engine.start_profile(output_dir=str(folder), activities=["GPU"])
    generate(engine, prompts(1, PROMPT), 32)
    engine.stop_profile()
    trace = next(iter(folder.rglob("*.json.gz")))
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    kernels = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    kernels.sort(key=lambda e: e["ts"])
    begin = end = (kernels[0]["ts"] + kernels[-1]["ts"]) / 2
    took: Counter[str] = Counter()
    for kernel in kernels:
        if kernel["ts"] < begin:
            continue
        stop = kernel["ts"] + kernel["dur"]
        took["idle"] += max(0.0, kernel["ts"] - end)
        name = kernel["name"].removeprefix("void ").replace("(anonymous namespace)::", "")
        took[re.split(r"[<( ]", name)[0]] += max(0.0, stop - max(end, kernel["ts"]))
        end = max(end, stop)
    return {name: value / (end - begin) for name, value in took.items()}


def prompt_log_probabilities(engine: Any, batch: int, count: int) -> list[float]:
    """Of every token but the first of at least `count` prompts, given `batch` at a time."""
    values: list[float] = []
    for turn in range(-(-count // batch)):
        answers = generate(engine, prompts(batch, 64, turn), 1, return_logprob=True, logprob_start_len=0)
        for answer in answers:
            values += [
                entry[0] for entry in answer["meta_info"]["input_token_logprobs"] if entry[0] is not None
            ]
    return values


# ---- the linear functions by themselves


def layer_errors(job: dict[str, Any]) -> dict[str, Any]:
    """Each layer shape and backend: 1 - 2<x, y> / (<x, x> + <y, y>) of the output against float32, twice:
    with the quantised operands, where only the GEMM errs, and with the bfloat16 activations."""
    os.environ.setdefault("TILELANG_GEMM_STATIC_WEIGHTS", "1")  # as the plugin sets it
    import torch
    from sglang.srt.layers.quantization import fp8_utils

    from tilelang_gemm_wrapper import per_block_quant_fp8, warmup
    from tilelang_gemm_wrapper.core.workload import error
    from tilelang_gemm_wrapper.integrations.sglang import BlockFp8Linear

    deep_gemm = fp8_utils.deepgemm_w8a8_block_fp8_linear_with_fallback
    quantise = fp8_utils.sglang_per_token_group_quant_fp8
    linears = {
        "deep_gemm": deep_gemm,
        "triton": fp8_utils.triton_w8a8_block_fp8_linear,
        "tilelang": BlockFp8Linear(deep_gemm),
    }
    warmup(SHAPES, m_max=max(job["batches"]), progress=False)
    generator = torch.Generator("cuda").manual_seed(SEED)
    rows = []
    for N, K in SHAPES:
        weight, scale = per_block_quant_fp8(
            torch.randn(N, K, generator=generator, device="cuda") / math.sqrt(K)
        )
        whole = weight.double() * scale.double().repeat_interleave(128, 0).repeat_interleave(128, 1)
        for M in job["batches"]:
            x = torch.randn(M, K, generator=generator, device="cuda").bfloat16()
            q, s = quantise(x, 128)
            exact = (q.double() * s.double().repeat_interleave(128, 1)) @ whole.T
            unquantised = x.double() @ whole.T
            for name, linear in linears.items():
                out = linear(input=x, weight=weight, block_size=[128, 128], weight_scale=scale)
                rows.append(
                    {
                        "backend": name,
                        "N": N,
                        "K": K,
                        "M": M,
                        "of_gemm": error(out, exact),
                        "of_layer": error(out, unquantised),
                    }
                )
    return {"errors": rows}


# ---- all of them


def run_job(job: dict[str, Any], options: argparse.Namespace, caches: Path | None = None) -> dict[str, Any]:
    """The result of one process, whose whole group is gone when this returns."""
    name = f"{job['task']}-{job.get('backend', '')}-{len(list(options.logs.glob('*.log')))}"
    log = options.logs / f"{name}.log"
    job = {**job, "out": str(options.logs / f"{name}.json")}
    environment = {"SGLANG_JIT_DEEPGEMM_PRECOMPILE": "0", "TOKENIZERS_PARALLELISM": "false", **os.environ}
    if caches is not None:
        environment |= {variable: str(caches / variable.lower()) for variable in CACHES}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, __file__, "--job", json.dumps(job)],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with suppress(subprocess.TimeoutExpired):
            process.wait(options.timeout)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    out = Path(job["out"])
    if not out.exists():
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
        raise SystemExit(f"{name} gave no result; the end of {log}:\n{tail}")
    print(f"{name}: done", flush=True)
    return json.loads(out.read_text())


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        speed_model, small_model = Path(folder, "speed"), Path(folder, "small")
        for path, layers in ((speed_model, options.layers), (small_model, options.small_layers)):
            path.mkdir()
            (path / "config.json").write_text(json.dumps(model_config(layers)))
        common = {
            "task": "speed",
            "folder": str(speed_model),
            "load_format": "dummy",
            "batches": options.batches,
            "tokens": options.tokens,
            "prefill": options.prefill,
            "engine_args": options.engine_args,
            "prompts": 0,
        }
        if options.repeat:
            if not options.skip_warm:
                run_job({**common, "task": "warm", "backend": "triton", "repeat": 1}, options)
            for start, repeat in (("cold", 0), ("cached", options.repeat)):
                for backend in options.backends:
                    result = run_job(
                        {**common, "backend": backend, "repeat": repeat}, options, Path(folder, backend)
                    )
                    rows.append({"what": f"start, {start}", "backend": backend, "p50": result["start_s"]})
                    if repeat:
                        rows += speed_rows(result, backend)
        if options.prompts:
            run_job({"task": "weights", "folder": str(small_model), "layers": options.small_layers}, options)
            rows += log_probability_rows(
                {
                    backend: run_job(
                        {
                            **common,
                            "task": "log-probabilities",
                            "folder": str(small_model),
                            "load_format": "auto",
                            "backend": backend,
                            "repeat": 0,
                            "prompts": options.prompts,
                        },
                        options,
                        Path(folder, backend),
                    )["log_probabilities"]
                    for backend in options.backends
                }
            )
            job = {"task": "errors", "batches": [*options.batches, options.prefill]}
            for row in run_job(job, options, Path(folder, "tilelang"))["errors"]:
                place = {"backend": row["backend"], "M": row["M"], "N": row["N"], "K": row["K"]}
                rows.append({"what": "error of the GEMM", **place, "p50": row["of_gemm"]})
                rows.append({"what": "error of the layer", **place, "p50": row["of_layer"]})
    return rows


def speed_rows(result: dict[str, Any], backend: str) -> list[dict[str, Any]]:
    """Milliseconds of each phase, and where the step of batch 1 goes in microseconds."""
    rows: list[dict[str, Any]] = []
    step_us = math.nan
    for row in result["speed"]:
        deciles = quantiles([1e3 * value for value in row["seconds"]], n=10, method="inclusive")
        times = {"p20": deciles[1], "p50": deciles[4], "p80": deciles[7]}
        rows.append({"what": row["phase"], "backend": backend, "M": row["M"], **times})
        if row["phase"] == "decode" and row["M"] == 1:
            step_us = 1e3 * deciles[4]
    for kernel, share in sorted(result["profile"].items(), key=lambda item: -item[1]):
        rows.append({"what": f"kernel {kernel}", "backend": backend, "M": 1, "p50": share * step_us})
    return rows


def log_probability_rows(values: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """How far each backend's log-probabilities are from DeepGEMM's and from Triton's: mean and largest."""
    rows = []
    for reference in ("deep_gemm", "triton"):
        for backend, of_batch in values.items():
            for batch in of_batch if reference in values and backend != reference else ():
                pairs = zip(of_batch[batch], values[reference][batch], strict=True)
                differences = [abs(a - b) for a, b in pairs]
                rows.append(
                    {
                        "what": f"log-probabilities from {reference}'s",
                        "backend": backend,
                        "M": int(batch),
                        "p50": sum(differences) / len(differences),
                        "p80": max(differences),
                    }
                )
    return rows


# ---- CSV and report

COLUMNS = ("what", "backend", "M", "N", "K", "p20", "p50", "p80")


def write_csv(path: Path, rows: list[dict[str, Any]], facts: dict[str, str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *facts], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            rounded = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow({**rounded, **facts})


def report(path: Path) -> str:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    facts = {name: rows[0][name] for name in rows[0] if name not in COLUMNS}
    backends = [name for name in BACKENDS if any(row["backend"] == name for row in rows)]
    lines = [
        f"# SGLang with each FP8 GEMM backend on {facts['device'].replace('_', ' ')}",
        "",
        f"Qwen3-4B-FP8's dimensions, {facts['layers']} layers, one GPU, CUDA graphs on, "
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
        p50 = float(row["p50"])
        peer = cells.get("deep_gemm")
        change = f", {100 * (p50 / float(peer['p50']) - 1):+.1f} %" if peer and row is not peer else ""
        return f"{p50:.3f} ({float(row['p20']):.3f}–{float(row['p80']):.3f}{change})"

    def tokens_per_s(row: dict[str, str], _: Any) -> str:
        return f"{1e3 * int(row['M']) / float(row['p50']):.0f}"

    title = "Decode: ms a step (20th to 80th percentile, against deep_gemm)"
    table(title, "decode", ("M",), milliseconds)
    table("Decode: tokens/s", "decode", ("M",), tokens_per_s)
    table("Prefill with its first token: ms", "prefill", ("M",), milliseconds)
    for start in ("cold", "cached"):
        table(
            f"Start-up of the engine, {start}: s",
            f"start, {start}",
            (),
            lambda row, _: f"{float(row['p50']):.1f}",
        )
    for backend in backends:
        kernels = [row for row in rows if row["what"].startswith("kernel ") and row["backend"] == backend]
        if kernels:
            lines.extend([f"## Where a decode step of batch 1 goes with {backend}: µs", ""])
            lines.extend(
                f"- {float(row['p50']):.0f} {row['what'].removeprefix('kernel ')}" for row in kernels[:12]
            )
            lines.append("")
    for reference in ("deep_gemm", "triton"):
        table(
            f"Log-probabilities of prompt tokens: mean (largest) distance from {reference}'s",
            f"log-probabilities from {reference}'s",
            ("M",),
            lambda row, _: f"{float(row['p50']):.4f} ({float(row['p80']):.3f})",
        )
    for title, what in (
        ("Error of a layer's GEMM: against float64 with the quantised operands", "error of the GEMM"),
        ("Error of a layer: against float64 with the activations before quantisation", "error of the layer"),
    ):
        table(title, what, ("M", "N", "K"), lambda row, _: f"{float(row['p50']):.3e}")
    return "\n".join(lines)


def facts_of(options: argparse.Namespace) -> dict[str, str]:
    import torch

    from tilelang_gemm_wrapper.core.bench_measure import Environment
    from tilelang_gemm_wrapper.core.conditions import record_conditions
    from tilelang_gemm_wrapper.core.device import device_of

    environment = Environment.here(device_of(torch.cuda.current_device()).name, record_conditions().driver)
    return {"layers": str(options.layers), "sglang": metadata.version("sglang"), **environment.as_fields()}


def numbers(text: str) -> list[int]:
    return sorted({int(part) for part in text.split(",")})


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backends", default=",".join(BACKENDS), help="comma-separated (%(default)s)")
    parser.add_argument("--layers", type=int, default=36, help="of the model that is timed (%(default)s)")
    parser.add_argument("--small-layers", type=int, default=1, help="of the model with random weights")
    parser.add_argument("--batches", type=numbers, default=[1, 8, 16, 64])
    parser.add_argument("--prefill", type=int, default=2048, help="tokens of the prompt (%(default)s)")
    parser.add_argument(
        "--tokens", type=int, default=256, help="tokens of a decode measurement (%(default)s)"
    )
    parser.add_argument("--repeat", type=int, default=7, help="measurements each (%(default)s); 0: no timing")
    parser.add_argument(
        "--skip-warm", action="store_true", help="SGLang's other kernels are compiled already"
    )
    parser.add_argument(
        "--prompts", type=int, default=64, help="for log-probabilities; 0: none (%(default)s)"
    )
    parser.add_argument(
        "--engine-args", type=json.loads, default={}, help="JSON of further sgl.Engine keywords"
    )
    parser.add_argument("--timeout", type=float, default=420, help="seconds for one engine (%(default)s)")
    parser.add_argument("--out", type=Path, help="directory; default: benchmarks/results/<device>")
    parser.add_argument("--name", default="qwen3-4b", help="of the files: sglang_<name> (%(default)s)")
    parser.add_argument("--logs", type=Path, help="directory of the engines' logs; default: a temporary one")
    parser.add_argument("--report", type=Path, metavar="CSV", help="only write the report of this file")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        tasks = {"weights": write_random_weights, "errors": layer_errors}
        result = tasks.get(options.job["task"], run_engine)(options.job)
        Path(options.job["out"]).write_text(json.dumps(result))
        return 0
    if options.report:
        options.report.with_suffix(".md").write_text(report(options.report), encoding="utf-8")
        return 0
    options.backends = options.backends.split(",")
    options.logs = options.logs or Path(tempfile.mkdtemp(prefix="benchmark_sglang-"))
    options.logs.mkdir(parents=True, exist_ok=True)
    facts = facts_of(options)
    out = options.out or Path(__file__).parent / "results" / facts["device"]
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"sglang_{options.name}.csv"
    write_csv(path, measure(options), facts)
    path.with_suffix(".md").write_text(report(path), encoding="utf-8")
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
