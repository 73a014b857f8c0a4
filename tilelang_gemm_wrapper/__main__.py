"""`python -m tilelang_gemm_wrapper` is `tilelang-gemm`."""

from __future__ import annotations

import sys

from tilelang_gemm_wrapper.cli import main

if __name__ == "__main__":
    sys.exit(main())
