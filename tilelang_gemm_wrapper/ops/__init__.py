"""What stands around the GEMM in an engine, as operators of their own."""
