"""Serving engines that can run our GEMM: one module each, which alone knows that engine."""
