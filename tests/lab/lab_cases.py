"""A Triton kernel of a user's, as a file that the lab runs by name."""

from __future__ import annotations

from pathlib import Path

ADD = """
import torch, triton
import triton.language as tl
from tilelang_gemm_wrapper.lab import Launch, TritonCase

STEP = 1.0

@triton.jit
def add(x, out, n, BLOCK: tl.constexpr, STEP: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, mask=at < n) + STEP, mask=at < n)

def case(arch):
    def launch(device):
        x = torch.arange(1000.0, device=device)
        out = torch.full_like(x, torch.nan)
        arguments = {"x": x, "out": out, "n": 1000, "BLOCK": 256, "STEP": STEP}
        return Launch(arguments, ("out",), lambda: {"out": x + 1}, max_error=0.0)
    return TritonCase(add, (4,), launch, {"num_warps": 2})

def not_a_case(arch):
    return None
"""


def write_add(directory: Path) -> str:
    """The kernel's name for the lab."""
    file = directory / "adding.py"
    file.write_text(ADD)
    return f"{file}:case"
