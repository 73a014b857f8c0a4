"""One process of benchmark_sglang.py: an engine, timed or asked for log-probabilities, or layers alone.

    python benchmarks/sglang_job.py '{"task": "engine", "out": "result.json", ...}'

benchmark_sglang.py makes the job and says what is in it. What came out, and where, is written to its `out`.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import re
import sys
import time
from collections import Counter
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

SEED = 20
MODEL = {"hidden": 2560, "intermediate": 9728, "heads": 32, "kv_heads": 8, "head_dim": 128, "vocab": 151936}
PROMPT = 32  # tokens of the prompts of decode measurements
SHAPES = ((6144, 2560), (2560, 4096), (19456, 2560), (2560, 9728))  # qkv, o, gate_up, down
EXACT = "exact"  # not a backend of SGLang: sglang_exact.py's products behind its triton backend
ANSWER = 32  # tokens of an answer whose log-probabilities are compared


# ---- the model


def write_random_weights(job: dict[str, Any]) -> None:
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
    write(job, {})


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
        "fp8_gemm_runner_backend": "triton" if job["backend"] == EXACT else job["backend"],
        "disable_cuda_graph": job["backend"] == EXACT,
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


def run_engine(job: dict[str, Any]) -> None:
    import sglang
    import sglang_exact

    settings = engine_settings(job)
    with sglang_exact.installed() if job["backend"] == EXACT else nullcontext():
        started = time.perf_counter()
        with sglang.Engine(**settings) as engine:
            result: dict[str, Any] = {"start_s": time.perf_counter() - started}
            if job["repeat"]:
                result["speed"] = speeds(engine, job)
                result["profile"] = profile(engine, job)
            if job["answers"]:
                result["decode"] = {batch: answers(engine, batch, job["answers"]) for batch in job["batches"]}
                result["prefill"] = {job["prefill"]: prompt_log_probabilities(engine, job["prefill"])}
            write(job, result)  # before the engine ends, which may go wrong


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


def answers(engine: Any, batch: int, count: int) -> list[list[list[float]]]:
    """Greedy answers to `count` prompts or more, decoded `batch` at a time: [log-probability, token] each."""
    found = []
    for turn in range(-(-count // batch)):
        for answer in generate(engine, prompts(batch, PROMPT, turn), ANSWER, return_logprob=True):
            found.append([entry[:2] for entry in answer["meta_info"]["output_token_logprobs"]])
    return found


def prompt_log_probabilities(engine: Any, length: int) -> list[list[list[float]]]:
    """[log-probability, token] of all tokens but the first of eight prompts, a prompt at a time."""
    found = []
    for turn in range(8):
        [answer] = generate(engine, prompts(1, length, turn), 1, return_logprob=True, logprob_start_len=0)
        entries = answer["meta_info"]["input_token_logprobs"]
        found.append([entry[:2] for entry in entries if entry[0] is not None])
    return found


# ---- the linear functions by themselves


def layer_errors(job: dict[str, Any]) -> None:
    """Each layer shape and backend: 1 - 2<x, y> / (<x, x> + <y, y>) of the output against float32, twice:
    with the quantised operands, where only the GEMM errs, and with the bfloat16 activations."""
    import torch
    from sglang.srt.layers.quantization import fp8_utils

    from tilelang_gemm_wrapper import per_block_quant_fp8, warmup
    from tilelang_gemm_wrapper.core.workload import Expected, Workload, compare, error
    from tilelang_gemm_wrapper.integrations.block_fp8_linear import BlockFp8Linear

    deep_gemm = fp8_utils.deepgemm_w8a8_block_fp8_linear_with_fallback
    quantise = fp8_utils.sglang_per_token_group_quant_fp8
    linears = {
        "deep_gemm": deep_gemm,
        "triton": fp8_utils.triton_w8a8_block_fp8_linear,
        "tilelang": BlockFp8Linear(deep_gemm),
    }
    warmup(SHAPES, m_max=max(job["batches"]), progress=False, static_weights=True)  # as the plugin does
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
            exact = Expected.of(Workload(q, s, weight, scale))
            unquantised = x.double() @ whole.T
            for name, linear in linears.items():
                out = linear(input=x, weight=weight, block_size=[128, 128], weight_scale=scale)
                comparison = compare(out, exact)
                why_wrong = comparison.why_wrong()
                if why_wrong is not None:
                    raise RuntimeError(f"{name} is wrong at M={M}, N={N}, K={K}: {why_wrong}")
                rows.append(
                    {
                        "backend": name,
                        "N": N,
                        "K": K,
                        "M": M,
                        "of_gemm": comparison.error,
                        "of_layer": error(out, unquantised),
                    }
                )
    write(job, {"errors": rows})


# ---- the process


def facts() -> dict[str, str]:
    """Where this ran, for every row of the CSV."""
    import torch

    from tilelang_gemm_wrapper.core.conditions import record_conditions
    from tilelang_gemm_wrapper.core.device import device_of
    from tilelang_gemm_wrapper.core.environment import Environment

    environment = Environment.here(device_of(torch.cuda.current_device()).name, record_conditions().driver)
    return {"sglang": metadata.version("sglang"), **environment.as_fields()}


def write(job: dict[str, Any], result: dict[str, Any]) -> None:
    Path(job["out"]).write_text(json.dumps({"job": job, "facts": facts(), **result}))


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].startswith("{"):
        sys.exit("sglang_job.py is a process of benchmark_sglang.py: run that")
    this_job = json.loads(sys.argv[1])
    tasks = {"engine": run_engine, "weights": write_random_weights, "errors": layer_errors}
    tasks[this_job["task"]](this_job)
