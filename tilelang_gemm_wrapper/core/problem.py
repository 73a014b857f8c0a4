"""The checks of a call: which tensors a GEMM takes, and what is said of those it does not."""

from __future__ import annotations

import torch

FP8 = torch.float8_e4m3fn
_F32 = torch.float32
_BF16 = torch.bfloat16

_ALIGNMENT = 16  # bytes: what TMA, and 16-byte vector loads, ask of a tensor's first element


def checked_problem(
    A: torch.Tensor, A_scale: torch.Tensor, B: torch.Tensor, B_scale: torch.Tensor, C: torch.Tensor
) -> tuple[int, int, int, int]:
    """(M, N, K, device index) of a call; -1 is the CPU. Raises TypeError or ValueError before any launch.

    One expression on the path that every call takes; what exactly is wrong is found out afterwards.
    """
    try:
        M, K = A.shape
        N, columns = B.shape
        groups = (K + 127) // 128
        a_start, b_start, c_start = A.data_ptr(), B.data_ptr(), C.data_ptr()
        c_end = c_start + 2 * M * N
        index = A.get_device()
        if (
            A.dtype is FP8
            and B.dtype is FP8
            and A_scale.dtype is _F32
            and B_scale.dtype is _F32
            and C.dtype is _BF16
            and K == columns
            and K > 0
            and N > 0
            and A_scale.shape == (M, groups)
            and B_scale.shape == ((N + 127) // 128, groups)
            and C.shape == (M, N)
            and A.is_contiguous()
            and B.is_contiguous()
            and C.is_contiguous()
            and B_scale.is_contiguous()
            and (A_scale.is_contiguous() or _is_column_major(A_scale, M, groups))
            and index == B.get_device() == C.get_device() == A_scale.get_device() == B_scale.get_device()
            and not (a_start | b_start | c_start) % _ALIGNMENT
            and (c_end <= a_start or a_start + M * K <= c_start)
            and (c_end <= b_start or b_start + N * K <= c_start)
            and not (
                torch.is_grad_enabled()
                and (C.requires_grad or A.requires_grad or A_scale.requires_grad or B_scale.requires_grad)
            )
        ):
            return M, N, K, index
    except (AttributeError, TypeError, ValueError):
        pass
    raise _problem_of(A, A_scale, B, B_scale, C)


def _is_column_major(A_scale: torch.Tensor, M: int, groups: int) -> bool:
    token_stride, group_stride = A_scale.stride()
    return (token_stride == 1 or M == 1) and (group_stride >= M or groups == 1)


def _problem_of(A, A_scale, B, B_scale, C) -> Exception:
    """The first thing wrong with a refused call, as the exception to raise: value, expectation, remedy."""
    tensors = {"A": A, "A_scale": A_scale, "B": B, "B_scale": B_scale, "C": C}
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            return TypeError(
                f"{name} is {type(tensor).__name__}, expected a torch.Tensor; "
                "call gemm_nt_f8f8bf16((A, A_scale), (B, B_scale), C)"
            )
    dtypes = {"A": FP8, "A_scale": _F32, "B": FP8, "B_scale": _F32, "C": _BF16}
    for name, tensor in tensors.items():
        if tensor.dtype is not dtypes[name]:
            return TypeError(f"{name} has dtype {tensor.dtype}, expected {dtypes[name]}{_dtype_remedy(name)}")
    for name, tensor in tensors.items():
        if tensor.dim() != 2:
            return ValueError(f"{name} has shape {tuple(tensor.shape)}, expected 2 dimensions")
    (M, K), N = A.shape, B.shape[0]
    if K == 0 or N == 0:
        return ValueError(f"A is {tuple(A.shape)} and B {tuple(B.shape)}; N and K must be at least 1")
    groups = (K + 127) // 128
    shapes = {
        "B": (N, K),
        "A_scale": (M, groups),
        "B_scale": ((N + 127) // 128, groups),
        "C": (M, N),
    }
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            return ValueError(
                f"{name} has shape {tuple(tensors[name].shape)}, expected {shape} for A {tuple(A.shape)} and "
                f"B {tuple(B.shape)}{_shape_remedy(name)}"
            )
    devices = {name: tensor.device for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        return ValueError(f"tensors are on different devices ({listed}); move them to one")
    for name in ("A", "B", "C", "B_scale"):
        if not tensors[name].is_contiguous():
            return ValueError(
                f"{name} has stride {tensors[name].stride()} for shape {tuple(tensors[name].shape)}, expected "
                f"row-major contiguous; pass {name}.contiguous()"
            )
    if not A_scale.is_contiguous() and not _is_column_major(A_scale, M, groups):
        return ValueError(
            f"A_scale has stride {A_scale.stride()}, expected row-major ({groups}, 1) or column-major "
            f"(1, at least {M}); pass A_scale.contiguous()"
        )
    for name in ("A", "B", "C"):
        if tensors[name].data_ptr() % _ALIGNMENT:
            return ValueError(
                f"{name} starts at byte {tensors[name].data_ptr() % _ALIGNMENT} of {_ALIGNMENT}, expected a "
                f"{_ALIGNMENT}-byte aligned start; pass {name}.clone()"
            )
    for name in ("A", "B"):
        start, end = tensors[name].data_ptr(), tensors[name].data_ptr() + tensors[name].numel()
        if C.data_ptr() < end and start < C.data_ptr() + 2 * C.numel():
            return ValueError(f"C overlaps {name} in memory, expected a buffer of its own; allocate C apart")
    for name, tensor in tensors.items():
        if tensor.requires_grad and torch.is_grad_enabled():
            return ValueError(
                f"{name} requires grad, but the FP8 GEMM has no backward; pass {name}.detach() or run under "
                "torch.no_grad()"
            )
    return ValueError(
        f"unsupported tensors: {', '.join(f'{n} {tuple(t.shape)}' for n, t in tensors.items())}"
    )


def _dtype_remedy(name: str) -> str:
    if name == "A":
        return "; quantise activations with per_token_group_quant_fp8"
    if name == "B":
        return "; quantise weights with per_block_quant_fp8"
    return ""


def _shape_remedy(name: str) -> str:
    if name == "A_scale":
        return ": one scale a token and 128 columns, as per_token_group_quant_fp8 gives"
    if name == "B_scale":
        return ": one scale a 128 x 128 block, as per_block_quant_fp8 gives"
    return ""
