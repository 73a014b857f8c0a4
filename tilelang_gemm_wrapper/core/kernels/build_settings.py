"""What else is built into Hopper's kernels. It imports nothing: a kernel is named without TileLang."""

# Lanes of a warp that arrive at a barrier. One does for its warp, whose lanes `T.sync_warp` has put in step.
# Where nvcc knows that they are, it drops the instruction, and compute-sanitizer's racecheck takes the other
# lanes for unsynchronised: benchmarks/sanitize_tilelang_gemm.py has all 32 arrive.
lanes_that_arrive = 1
