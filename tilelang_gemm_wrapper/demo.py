"""`make demo`: the package at its main job, on a real model, with every claim checked.

A trained sentence encoder runs with its 36 linear layers in FP8 and must give the embeddings and the nearest
neighbours that it gives in float32. With a GPU the kernels are then timed on Qwen3-4B's shapes; without one
the demo shows what a GPU of each architecture would run, and cross-compiles a kernel of each kind.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from tqdm import tqdm

from tilelang_gemm_wrapper import demo_model, explain, models, warmup
from tilelang_gemm_wrapper.config_reports import columns, describe
from tilelang_gemm_wrapper.configurer import find_nvcc
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES, Device
from tilelang_gemm_wrapper.doctor import this_device

MIN_COSINE = 0.99
EXPLAINED_M = (1, 16, 128, 4096)
TIMED_M = (1, 8, 16, 64, 256, 1024, 4096)

# What the demo shows and compiles without a GPU: a chip of each architecture, a typical kernel of each kind.
SHOWN_DEVICES = (KNOWN_DEVICES["NVIDIA_H200"], KNOWN_DEVICES["NVIDIA_L40S"])
CROSS_COMPILED_SHAPE = (2560, 4096)
_HOPPER = (
    KernelConfig("base", 128, 128, 128, 4, 256),
    KernelConfig("swapAB", 64, 16, 128, 6, 128),
    KernelConfig("splitK", 64, 64, 128, 4, 128, split_k=4),
    KernelConfig("splitK_swapAB", 64, 16, 128, 6, 128, split_k=4),
)
_ADA = (
    KernelConfig("base", 64, 64, 128, 3, 128),
    KernelConfig("swapAB", 64, 16, 128, 4, 128),
    KernelConfig("splitK", 64, 64, 128, 3, 256, split_k=4),
    KernelConfig("splitK_swapAB", 64, 16, 128, 4, 128, split_k=4),
)

# Pairs that mean the same: each sentence's nearest neighbour is its partner.
SENTENCES = (
    "A cat is sleeping on the warm windowsill.",
    "The kitten naps in the sunlight by the window.",
    "The central bank raised interest rates by half a percent.",
    "Borrowing became more expensive after the monetary policy decision.",
    "Whisk the eggs with sugar until the mixture turns pale.",
    "Beat sugar and eggs together until light and creamy.",
    "The telescope captured the light of a distant galaxy.",
    "Astronomers photographed stars billions of light years away.",
    "My laptop will not start after the software update.",
    "Since installing the new version, my computer fails to boot.",
    "The striker scored twice in the final ten minutes.",
    "Two late goals decided the football match.",
    "Doctors recommend regular exercise to lower blood pressure.",
    "Working out often helps against hypertension, physicians say.",
    "The train to Vienna was delayed because of heavy snow.",
    "A snowstorm held up rail travellers on their way to Austria.",
    "She practises the violin for two hours every evening.",
    "Each night the musician rehearses on her string instrument.",
    "Matrix multiplication dominates the run time of neural networks.",
    "Most of the compute in deep learning is spent on products of matrices.",
    "The contract may be terminated by either party in writing.",
    "Both sides can end the agreement with written notice.",
    "Coral reefs are dying as the oceans grow warmer.",
    "Rising sea temperatures bleach and kill coral.",
)


def run(model: str | None = None, *, with_benchmark: bool = True) -> bool:
    """Run the demo and print what it found; True where every check held.

    `model` names a folder of another BERT sentence encoder. Raises RuntimeError where the demo cannot run.
    """
    device = this_device()
    if device.is_cuda:
        print(f"With a GPU: the model's linear layers run in FP8 on {device.name} ({device.arch}).\n")
    else:
        print(
            "Without a GPU: the model's linear layers run in FP8 on the CPU, through the PyTorch reference.\n"
            "The GPU kernels are compiled below, but not run, and nothing is timed.\n"
        )
    with nullcontext() if device.is_cuda else _only_errors_logged():
        failures = _check_model(demo_model.find_model(model), device)
    print()
    if not device.is_cuda:
        _show_dispatch()
        print()
        failures += _cross_compile()
        print()
    elif with_benchmark:
        failures += _time_kernels(device)
        print()
    for failure in failures:
        print(f"FAILED: {failure}")
    verdict = "Not every check held" if failures else "Every check held"
    if device.is_cuda:
        print(f"{verdict}. This was the GPU demo, on {device.name}: kernels ran there.")
    else:
        print(f"{verdict}. This was the demo without a GPU: no kernel ran and no speed was measured.")
    return not failures


@contextmanager
def _only_errors_logged() -> Iterator[None]:
    """One warning a shape that it falls back would repeat what the demo's first line says."""
    logger = logging.getLogger("tilelang_gemm_wrapper")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_model(directory: Path, device: Device) -> list[str]:
    """The FP8 model against its float32 original; returns a sentence for each check that failed."""
    torch_device = torch.device("cuda" if device.is_cuda else "cpu")
    exact = demo_model.SentenceEncoder(directory, torch_device)
    fp8 = demo_model.SentenceEncoder(directory, torch_device)
    layers = demo_model.replace_linear_layers(fp8.model.encoder)
    tokens = exact.count_tokens(SENTENCES)
    print(
        f"Model: {len(layers)} linear layers of {directory.parent.name}, weights in FP8 per 128x128 block,\n"
        f"activations per token and 128 channels; {len(SENTENCES)} sentences, {tokens} tokens with padding."
    )
    if device.is_cuda:
        warmup([(layer.weight.shape[0], layer.weight.shape[1]) for layer in layers.values()], m_max=tokens)

    expected = exact.encode(SENTENCES)
    embeddings: list[torch.Tensor] = []
    errors = demo_model.layer_errors(
        lambda: embeddings.append(fp8.encode(SENTENCES)),
        layers,
        demo_model.linear_layers(exact.model.encoder),
    )
    alone = torch.cat([fp8.encode([sentence]) for sentence in SENTENCES])
    return _judge_layers(errors) + _judge_embeddings(expected, embeddings[0], alone)


def _judge_layers(errors: Sequence[demo_model.LayerError]) -> list[str]:
    by_block = itertools.groupby(errors, key=lambda error: error.name.split(".")[1])
    rows: list[Sequence[object]] = []
    for block, group in by_block:
        members = list(group)
        if not rows:
            rows.append(("layer", *(".".join(error.name.split(".")[2:]) for error in members)))
        rows.append((block, *(f"{error.total:.1e}" for error in members)))
    print("\nError of each layer against float32, 1 - 2<x,y>/(<x,x>+<y,y>): what quantising costs")
    print(columns(rows))
    worst = max(errors, key=lambda error: error.kernel.error)
    print(
        f"Against the exact product of the same FP8 operands, what the kernel adds:\n"
        f"{worst.kernel.error:.1e} at most, in {worst.name} (M={worst.M}, N={worst.N}, K={worst.K})"
    )
    return [
        f"{error.name}: the kernel's result is wrong: {why_wrong}"
        for error in errors
        if (why_wrong := error.kernel.why_wrong())
    ]


def _judge_embeddings(expected: torch.Tensor, together: torch.Tensor, alone: torch.Tensor) -> list[str]:
    """Every tensor is (sentences, hidden), rows of length 1."""
    cosine, cosine_alone = ((expected * other).sum(1).tolist() for other in (together, alone))
    nearest, nearest_fp8 = (_nearest(embeddings) for embeddings in (expected, together))
    rows: list[Sequence[object]] = [("", "cosine", "alone", "nearest", "in FP8", "sentence")]
    for i, sentence in enumerate(SENTENCES):
        rows.append((i, f"{cosine[i]:.5f}", f"{cosine_alone[i]:.5f}", nearest[i], nearest_fp8[i], sentence))
    print("\nEmbeddings in FP8 against float32: in one batch, each sentence alone, nearest neighbours")
    print(columns(rows))
    lowest = min(*cosine, *cosine_alone)
    same = sum(map(int.__eq__, nearest, nearest_fp8))
    print(f"Lowest cosine {lowest:.5f}; nearest neighbour unchanged for {same} of {len(SENTENCES)}.")
    failures = [
        f"sentence {i}: cosine {value:.5f} to float32 {how}, expected at least {MIN_COSINE}"
        for how, values in (("in the batch", cosine), ("alone", cosine_alone))
        for i, value in enumerate(values)
        if not value >= MIN_COSINE
    ]
    failures += [
        f"sentence {i}: its nearest neighbour is {fp8} in FP8 and {exact} in float32"
        for i, (exact, fp8) in enumerate(zip(nearest, nearest_fp8, strict=True))
        if exact != fp8
    ]
    return failures


def _nearest(embeddings: torch.Tensor) -> list[int]:
    return (embeddings @ embeddings.T).fill_diagonal_(-2.0).argmax(1).tolist()


def _time_kernels(device: Device) -> list[str]:
    """The benchmark's table for Qwen3-4B-FP8; a sentence where it could not run."""
    from tilelang_gemm_wrapper.core import bench

    print(
        "Timing on the weight shapes of Qwen3-4B-FP8: cold weights, CUDA graphs, all backends in one process"
    )
    output = Path("demo-output", device.name, "gemm_qwen3-4b.csv")
    status = bench.main(["--shapes", "qwen3-4b", "--m", ",".join(map(str, TIMED_M)), "--output", str(output)])
    return [f"the benchmark ended with status {status}"] if status else []


def _show_dispatch() -> None:
    """What a call would run on a chip of each architecture, and how to ask for the others."""
    print(
        "What would run on a GPU of each architecture for Qwen3-4B-FP8's weight shapes, by M, given the\n"
        "packages installed here. Kernel /split_k block_M x block_N, s: stages, t: math threads."
    )
    for device in SHOWN_DEVICES:
        print(f"\n{device.name} ({device.arch})")
        print("\n".join(_dispatch_table(device)))
    others = [name for name, device in KNOWN_DEVICES.items() if device not in SHOWN_DEVICES]
    print(f"\n`tilelang-gemm explain M N K --device NAME` answers for {', '.join(others)}.")


def _dispatch_table(device: Device) -> list[str]:
    reasons: dict[str, int] = {}
    rows: list[Sequence[object]] = [("N", "K", *(f"M={M}" for M in EXPLAINED_M))]
    for N, K in models.QWEN3_4B_FP8:
        cells = []
        for M in EXPLAINED_M:
            explanation = explain(M, N, K, device=device)
            kernel = describe(explanation.config) if explanation.config else explanation.kernel
            source = Path(explanation.source)
            tuned = source.suffix == ".json"
            why = source.name if tuned else f"{explanation.source}: {explanation.reason}"
            number = reasons.setdefault(why, len(reasons) + 1)
            cells.append(f"{kernel} [{number}]")
        rows.append((N, K, *cells))
    return [columns(rows), *(f"  [{number}] {reason}" for reason, number in reasons.items())]


def _cross_compile() -> list[str]:
    """One kernel of each kind for each architecture, without a GPU; a sentence for each that fails."""
    from tilelang_gemm_wrapper.core.compile_report import cross_compile

    N, K = CROSS_COMPILED_SHAPE
    if find_nvcc() is None:
        print(
            "Cross-compilation left out: nvcc was not found. Install CUDA, or pip install 'tilelang[nvcc]'."
        )
        return []
    print(f"One kernel of each kind, compiled here for N={N}, K={K} (M is free at run time)")
    rows: list[Sequence[object]] = [("arch", "kernel", "registers", "shared memory", "spilled", "limit")]
    failures = []
    for device, configs in zip(SHOWN_DEVICES, (_HOPPER, _ADA), strict=True):
        for config in tqdm(configs, desc=f"compiling for {device.arch}", leave=False, disable=None):
            compiled = cross_compile(N, K, config, device.arch)
            limit = device.shared_memory_per_block
            rows.append(
                (
                    device.arch,
                    describe(config),
                    compiled.registers,
                    compiled.shared_memory_bytes,
                    compiled.spill_bytes,
                    limit,
                )
            )
            if compiled.spill_bytes:
                failures.append(f"{describe(config)} for {device.arch} spills {compiled.spill_bytes} bytes")
            if compiled.shared_memory_bytes > limit:
                needed = compiled.shared_memory_bytes
                failures.append(
                    f"{describe(config)} for {device.arch} needs {needed} bytes of shared memory of {limit}"
                )
    print(columns(rows))
    return failures
