"""What stands around the GEMM in an engine: GEMV, RMSNorm and FP8 quantization, in Triton and in TileLang.

Importing this loads neither: the first call that needs one does.
"""

from .gemv import gemv
from .quant import per_token_group_quant_fp8, silu_mul_quant_fp8
from .rmsnorm import fused_add_rmsnorm, fused_add_rmsnorm_quant_fp8, rmsnorm, rmsnorm_quant_fp8

__all__ = [
    "fused_add_rmsnorm",
    "fused_add_rmsnorm_quant_fp8",
    "gemv",
    "per_token_group_quant_fp8",
    "rmsnorm",
    "rmsnorm_quant_fp8",
    "silu_mul_quant_fp8",
]
