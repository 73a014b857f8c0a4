"""Inner parts of the GEMM: problem, configs, kernels, launch. Users need only the package itself."""
