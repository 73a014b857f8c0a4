"""The checks of a call: which tensors a GEMM takes, and what is said of those it does not."""

from __future__ import annotations

from typing import Any

import torch
from torch import is_grad_enabled

from tilelang_gemm_wrapper.quantize import why_not_dense

FP8 = torch.float8_e4m3fn
_F32 = torch.float32
_BF16 = torch.bfloat16

ALIGNMENT = 16  # bytes: what TMA, and 16-byte vector loads, ask of a tensor's first element

_NEW_C = "allocate another, or leave C out"
_DTYPE_REMEDIES = {
    "A": "quantise activations with per_token_group_quant_fp8",
    "A_scale": "take the scales that per_token_group_quant_fp8 gives, or convert yours",
    "B": "quantise weights with per_block_quant_fp8",
    "B_scale": "take the scales that per_block_quant_fp8 gives, or convert yours",
    "C": _NEW_C,
}
_SHAPE_REMEDIES = {
    "A_scale": "one scale a token and 128 columns, as per_token_group_quant_fp8 gives",
    "B": "the GEMM is A @ B.T, so that both have K columns; transpose B if it is (K, N)",
    "B_scale": "one scale a 128 x 128 block, as per_block_quant_fp8 gives",
    "C": _NEW_C,
}


def checked_problem(
    A: torch.Tensor, A_scale: torch.Tensor, B: torch.Tensor, B_scale: torch.Tensor, C: torch.Tensor
) -> tuple[int, int, int, int]:
    """(M, N, K, device index) of a call; -1 is the CPU. Raises TypeError or ValueError before any launch.

    One expression; what exactly is wrong is found out afterwards.
    """
    try:
        M, K = A.shape
        N, columns = B.shape
        groups = (K + 127) // 128
        index = A.get_device()
        if (
            A.dtype is FP8
            and B.dtype is FP8
            and A_scale.dtype is _F32
            and B_scale.dtype is _F32
            and C.dtype is _BF16
            and columns == K
            and K > 0
            and N > 0
            and A_scale.shape == (M, groups)
            and B_scale.shape == ((N + 127) // 128, groups)
            and C.shape == (M, N)
            and A.is_contiguous()
            and B.is_contiguous()
            and C.is_contiguous()
            and B_scale.is_contiguous()
            and index == B.get_device() == C.get_device() == A_scale.get_device() == B_scale.get_device()
            and (index >= 0 or _all_on_cpu(A, A_scale, B, B_scale, C))
            and lies_right(A, A_scale, B, B_scale, C, M, N, K)
        ):
            return M, N, K, index
    except (AttributeError, RuntimeError, TypeError, ValueError):
        pass
    raise _problem_of(A, A_scale, B, B_scale, C)


def lies_right(
    A: torch.Tensor,
    A_scale: torch.Tensor,
    B: torch.Tensor,
    B_scale: torch.Tensor,
    C: torch.Tensor,
    M: int,
    N: int,
    K: int,
) -> bool:
    """Of the checks those that no compiled kernel makes itself, on tensors of the right dtypes and shapes.

    A_scale in one of its two layouts; A, B and C aligned; C apart from A and B; no gradient asked for.
    """
    a_start, b_start, c_start = A.data_ptr(), B.data_ptr(), C.data_ptr()
    c_end = c_start + 2 * M * N
    return (
        (A_scale.is_contiguous() or _is_column_major(A_scale, M))
        and not (a_start | b_start | c_start) % ALIGNMENT
        and (c_end <= a_start or a_start + M * K <= c_start)
        and (c_end <= b_start or b_start + N * K <= c_start)
        and not (
            is_grad_enabled()
            and (
                C.requires_grad
                or A.requires_grad
                or B.requires_grad
                or A_scale.requires_grad
                or B_scale.requires_grad
            )
        )
    )


def operand_problem(A, B) -> Exception:
    """What is wrong with (values, scales) arguments from which not even the shape of C can be read."""
    for name, operand in (("A", A), ("B", B)):
        if not isinstance(operand, tuple | list) or len(operand) != 2:
            length = f" of {len(operand)}" if isinstance(operand, tuple | list) else ""
            return TypeError(
                f"{name} is a {type(operand).__name__}{length}, expected a pair (values, scales); "
                "call gemm_nt_f8f8bf16((A, A_scale), (B, B_scale), C)"
            )
    tensors = {"A": A[0], "A_scale": A[1], "B": B[0], "B_scale": B[1]}
    return _why_no_tensors(tensors) or _why_not_2d(tensors) or ValueError("C cannot be allocated; pass it")


def is_nested(operand: Any) -> bool:
    """Whether the values of (values, scales) are a nested tensor, which has no shape to be read."""
    return isinstance(operand[0], torch.Tensor) and operand[0].is_nested


def check_tensors(A, A_scale, B, B_scale, C) -> None:
    """Raise TypeError for the first argument that is no tensor: PyTorch's dispatcher says it less clearly."""
    problem = _why_no_tensors({"A": A, "A_scale": A_scale, "B": B, "B_scale": B_scale, "C": C})
    if problem is not None:
        raise problem


def _all_on_cpu(*tensors: torch.Tensor) -> bool:
    """Among tensors whose device index is -1: meta tensors have that index too."""
    return all(tensor.is_cpu for tensor in tensors)


def _is_column_major(A_scale: torch.Tensor, M: int) -> bool:
    token_stride, group_stride = A_scale.stride()
    return (token_stride == 1 or M == 1) and group_stride >= M


def _problem_of(A, A_scale, B, B_scale, C) -> Exception:
    """The first thing wrong with a refused call, as the exception to raise: value, expectation, remedy."""
    tensors = {"A": A, "A_scale": A_scale, "B": B, "B_scale": B_scale, "C": C}
    problem: Exception | None = _why_no_tensors(tensors)
    if problem is not None:
        return problem
    dtypes = {"A": FP8, "A_scale": _F32, "B": FP8, "B_scale": _F32, "C": _BF16}
    for name, tensor in tensors.items():
        if tensor.dtype is not dtypes[name]:
            return TypeError(
                f"{name} has dtype {tensor.dtype}, expected {dtypes[name]}; {_DTYPE_REMEDIES[name]}"
            )
    problem = _why_not_2d(tensors)
    if problem is not None:
        return problem
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
                f"B {tuple(B.shape)}; {_SHAPE_REMEDIES[name]}"
            )
    devices = {name: tensor.device for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        return ValueError(f"tensors are on different devices ({listed}); move them to one")
    if A.is_meta:
        return ValueError(
            "the tensors are on meta, expected a CUDA device or the CPU; move them there, or to trace "
            "shapes call torch.ops.tilelang_gemm.gemm_nt_f8f8bf16(A, A_scale, B, B_scale, C)"
        )
    if A.device.type not in ("cuda", "cpu"):
        return ValueError(
            f"the tensors are on {A.device}, expected a CUDA device or the CPU; move them there"
        )
    for name, tensor in tensors.items():
        if not _has_memory(tensor):
            return ValueError(
                f"{name} has no memory of its own, as in torch.func's vmap, grad and functionalize; call "
                f"the GEMM outside of them, a batch with its rows as rows of one A"
            )
    for name in ("A", "B", "C", "B_scale"):
        if not tensors[name].is_contiguous():
            return ValueError(
                f"{name} has stride {tensors[name].stride()} for shape {tuple(tensors[name].shape)}, "
                f"expected row-major contiguous; {_copy_remedy(name, 'contiguous()')}"
            )
    if not A_scale.is_contiguous() and not _is_column_major(A_scale, M):
        return ValueError(
            f"A_scale has stride {A_scale.stride()}, expected row-major ({groups}, 1) or column-major "
            f"(1, at least {M}); pass A_scale.contiguous()"
        )
    for name in ("A", "B", "C"):
        if tensors[name].data_ptr() % ALIGNMENT:
            return misaligned(name, tensors[name])
    for name in ("A", "B"):
        start, end = tensors[name].data_ptr(), tensors[name].data_ptr() + tensors[name].numel()
        if C.data_ptr() < end and start < C.data_ptr() + 2 * C.numel():
            return ValueError(f"C overlaps {name} in memory, expected a buffer of its own; allocate C apart")
    for name, tensor in tensors.items():
        if tensor.requires_grad and is_grad_enabled():
            return ValueError(
                f"{name} requires grad, but the FP8 GEMM has no backward; pass {name}.detach() or run under "
                "torch.no_grad()"
            )
    return ValueError(
        f"unsupported tensors: {', '.join(f'{n} {tuple(t.shape)}' for n, t in tensors.items())}"
    )


def _has_memory(tensor: torch.Tensor) -> bool:
    try:
        return tensor.data_ptr() != 0 or not tensor.numel()
    except RuntimeError:  # a wrapper without storage
        return False


def misaligned(name: str, tensor: torch.Tensor) -> ValueError:
    """What is said of a tensor whose start vector loads cannot take."""
    return ValueError(
        f"{name} starts at byte {tensor.data_ptr() % ALIGNMENT} of {ALIGNMENT}, expected a "
        f"{ALIGNMENT}-byte aligned start; {_copy_remedy(name, 'clone()')}"
    )


def _copy_remedy(name: str, method: str) -> str:
    # The result in a copy of C would not be where the caller looks for it.
    return _NEW_C if name == "C" else f"pass {name}.{method}"


def _why_no_tensors(values: dict[str, Any]) -> TypeError | None:
    for name, value in values.items():
        if not isinstance(value, torch.Tensor):
            return TypeError(
                f"{name} is {type(value).__name__}, expected a torch.Tensor; "
                "call gemm_nt_f8f8bf16((A, A_scale), (B, B_scale), C)"
            )
    return None


def _why_not_2d(tensors: dict[str, torch.Tensor]) -> ValueError | None:
    for name, tensor in tensors.items():
        if problem := why_not_dense(name, tensor):
            return problem
        if tensor.dim() != 2:
            return ValueError(f"{name} has shape {tuple(tensor.shape)}, expected 2 dimensions; reshape it")
    return None
