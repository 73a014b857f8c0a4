"""What the PrimFuncs of all variants and architectures have in common: element types and run-time sizes."""

import tilelang.language as T

FP8 = "float8_e4m3fn"
F32 = "float32"
BF16 = "bfloat16"


def run_time_sizes():
    """M and the strides of A_scale: known at the call, so that one kernel serves every M and both layouts."""
    return T.dynamic("m"), T.dynamic("a_scale_token_stride"), T.dynamic("a_scale_group_stride")
