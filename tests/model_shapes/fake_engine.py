"""Stands for an engine's process: does what the name of the directory says that it is asked for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tilelang_gemm_wrapper.core import child_process

SHAPES = {
    "engine_version": "1.2",
    "layers": [[3072, 2560, 36], [100, 2560, 2]],
    "experts": [[8, 512, 256, 4]],
    "not_covered": ["something else"],
}


def main() -> None:
    answers = child_process.begin()
    for line in sys.stdin:
        question = json.loads(line)
        directory = Path(question["directory"])
        print("a library's print")
        if directory.name == "hangs":
            helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            (directory / "pids").write_text(f"{os.getpid()} {helper.pid}")
            time.sleep(600)
        elif directory.name == "is_killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif directory.name == "exits":
            print("something\n\nno memory left for this\n", file=sys.stderr)
            sys.exit(3)
        elif directory.name == "refuses":
            why = f"ValueError: 300 is no multiple of 128 over {question['tp']} ranks."
            answers.write(json.dumps({"step": "built the model", "why": why}) + "\n")
        elif directory.name == "is_cut_off":
            answers.write(
                json.dumps({"step": "built the model", "why": "ValueError: update it with ..."}) + "\n"
            )
        else:
            environment = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE")}
            (directory / "seen.json").write_text(json.dumps({"pid": os.getpid(), **environment}))
            answers.write(json.dumps(SHAPES) + "\n")


if __name__ == "__main__":
    main()
