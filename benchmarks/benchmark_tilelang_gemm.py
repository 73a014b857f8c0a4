"""Time the FP8 GEMM beside DeepGEMM, cuBLAS and Triton: see --help."""

from tilelang_gemm_wrapper.core.bench import main

if __name__ == "__main__":
    raise SystemExit(main())
