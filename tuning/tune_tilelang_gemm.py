"""Tune the FP8 GEMM for a model or a weight shape; `--help` lists the options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout, installed or not

from tilelang_gemm_wrapper.core.tuner.command import main

if __name__ == "__main__":
    sys.exit(main())
