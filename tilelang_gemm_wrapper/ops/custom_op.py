"""Ops that write into their arguments, known to PyTorch: for torch.compile, and for tensors that trace."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.compiler import is_compiling

_library = torch.library.Library("tilelang_gemm", "FRAGMENT")


def define(schema: str, launch: Callable[..., None]) -> None:
    """Make `launch` the op torch.ops.tilelang_gemm.<name>, on every device.

    schema: "name(arguments) -> ()", what is written marked as in "Tensor(a!) out".
    """
    name = schema.split("(", maxsplit=1)[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, launch, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tilelang_gemm::{name}", _nothing_to_make, lib=_library)


def is_tracing(x: torch.Tensor) -> bool:
    """Whether the call must go through PyTorch's dispatcher: it is compiled, or the tensor has no memory."""
    return is_compiling() or type(x) not in (torch.Tensor, torch.nn.Parameter)


def _nothing_to_make(*arguments: object) -> None:
    """The results are written to arguments."""
