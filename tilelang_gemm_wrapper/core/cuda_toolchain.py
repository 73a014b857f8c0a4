"""The CUDA toolkit's programs: nvcc and ptxas compile, cuobjdump and nvdisasm read cubins."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tilelang_gemm_wrapper import configurer


def ptx_of(source: str, arch: str, options: Sequence[str] = ()) -> str:
    """PTX of CUDA source for `arch` ("sm_90a"), by nvcc. Raises RuntimeError where it refuses."""
    with tempfile.TemporaryDirectory() as directory:
        cu, ptx = Path(directory, "kernel.cu"), Path(directory, "kernel.ptx")
        cu.write_text(source)
        _run(_nvcc(), ["-ptx", f"-arch={arch}", *options, str(cu), "-o", str(ptx)])
        return ptx.read_text()


def cubin_of(ptx: str, arch: str, options: Sequence[str] = ()) -> tuple[bytes, str]:
    """The cubin of PTX for `arch`, by ptxas, and what ptxas says of registers, barriers and spills."""
    with tempfile.TemporaryDirectory() as directory:
        source, cubin = Path(directory, "kernel.ptx"), Path(directory, "kernel.cubin")
        source.write_text(ptx)
        ptxas = _nvcc().with_name("ptxas")
        log = _run(ptxas, ["-v", f"-arch={arch}", *options, str(source), "-o", str(cubin)])
        return cubin.read_bytes(), log


def nvcc_version() -> str:
    """As in "13.0.88". Raises RuntimeError where nvcc is missing or does not answer."""
    return _version_of(_nvcc())


@lru_cache(maxsize=8)
def _version_of(nvcc: Path) -> str:
    text = _run(nvcc, ["--version"])
    return text.rsplit(", V", 1)[-1].split()[0]


@lru_cache(maxsize=8)
def find_reader(name: str) -> Path | None:
    """cuobjdump or nvdisasm: beside nvcc, on PATH, or of Triton, which brings both."""
    nvcc = configurer.find_nvcc()
    beside = [nvcc.with_name(name), nvcc.resolve().with_name(name)] if nvcc else []
    on_path = shutil.which(name)
    triton = importlib.util.find_spec("triton")
    roots = triton.submodule_search_locations if triton is not None else None
    bundled = [Path(root, "backends/nvidia/bin", name) for root in roots or ()]
    for path in (*beside, *([Path(on_path)] if on_path else []), *bundled):
        if path.is_file():
            return path
    return None


def read_cubin(name: str, cubin: bytes, *options: str) -> str | None:
    """What cuobjdump or nvdisasm prints of a cubin; None where the tool is not installed."""
    tool = find_reader(name)
    if tool is None:
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return _run(tool, [*options, file.name])


def _nvcc() -> Path:
    nvcc = configurer.find_nvcc()
    if nvcc is None:
        raise RuntimeError("nvcc was not found; install CUDA, or pip install 'tilelang[nvcc]'")
    return nvcc


def _run(tool: Path, arguments: Sequence[str]) -> str:
    finished = subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)
    if finished.returncode:
        said = (finished.stderr.strip() or finished.stdout.strip())[-2000:]
        raise RuntimeError(f"{tool} ended with status {finished.returncode}: {said}")
    return finished.stderr + finished.stdout
