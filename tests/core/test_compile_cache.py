"""core/compile_cache.py: jobs in parallel processes; what one costs the others, and what is remembered."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from tilelang_gemm_wrapper import configurer
from tilelang_gemm_wrapper.core import child_process, compile_cache, kernel_cache, kernel_registry
from tilelang_gemm_wrapper.core.compile_cache import CompileJob, compile_many
from tilelang_gemm_wrapper.core.config import KernelConfig

pytest.importorskip("tilelang")  # its version is part of what a marker stands for

SWAP = KernelConfig("swapAB", 64, 16, 128, 2, 128)

# A worker whose compiler does what N asks for.
WORKER = """
import os, time
from tilelang_gemm_wrapper.core import compile_cache

def compile_kernel(job):
    print("a compiler talks", flush=True)
    time.sleep(0.01)
    if job.N == 12:
        time.sleep(3600)
    if job.N == 13:
        os._exit(7)
    if job.N == 14:
        raise RuntimeError("no such instruction: " + "x" * 200_000)
    if job.N == 15:
        raise SystemExit("gives up")
    if job.N > 1000:  # one of two that meet
        directory = compile_cache.cache_directory()
        (directory / f"at-work-{job.N}").touch()
        until = time.monotonic() + 20
        while len(list(directory.glob("at-work-*"))) < 2:
            assert time.monotonic() < until, "nobody came"
            time.sleep(0.01)
    with open(compile_cache.cache_directory() / "log", "a") as log:
        log.write(f"{job.N} {os.getpid()}\\n")
    compile_cache._marker(job).touch()

compile_cache.compile_kernel = compile_kernel
compile_cache._serve_jobs()
"""


def job(n, k=128):
    return CompileJob(n, k, SWAP, "sm_90a")


@pytest.fixture(autouse=True)
def cache(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
    monkeypatch.setenv(configurer.CACHE_DIR, str(tmp_path))
    monkeypatch.setenv(configurer.COMPILE_WORKERS, "2")
    monkeypatch.setattr(kernel_cache, "_in_use", {})
    monkeypatch.setattr(compile_cache, "_timed_out", {})
    compile_cache.compiler_version()  # asked of nvcc once, before a test replaces processes
    return tmp_path


@pytest.fixture
def worker(monkeypatch):
    """Have `compile_many` start this program instead of the real worker."""

    def use(program, ended=False):
        def run(command, **options):
            assert command == [sys.executable, "-m", compile_cache.__name__]
            process = popen([sys.executable, "-c", program], **options)
            if ended:
                process.wait()
            return process

        monkeypatch.setattr(child_process.subprocess, "Popen", run)

    popen = subprocess.Popen
    use(WORKER)
    return use


def compiled(cache):
    """N of each job that a fake worker compiled -> the process it ran in."""
    log = cache / "log"
    return dict(map(int, line.split()) for line in log.read_text().splitlines()) if log.exists() else {}


def within(seconds, function, *arguments):
    """The result of a call that must not hang."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*arguments)), daemon=True)
    thread.start()
    thread.join(seconds)
    assert results, f"no result after {seconds} s"
    return results[0]


@pytest.mark.parametrize("config", [SWAP, KernelConfig("splitK", 64, 64, 128, 0, 256, 4)])
@pytest.mark.parametrize("arch", ["sm_90a", "sm_89"])
def test_a_job_survives_the_pipe(config, arch):
    sent = CompileJob(2112, 7168, config, arch)
    assert "\n" not in sent.to_json()
    assert CompileJob.from_json(sent.to_json()) == sent


def test_every_job_is_compiled_once(worker, cache):
    shown = []
    jobs = [job(n) for n in (16, 32, 48, 64, 80)]
    assert compile_many([*jobs, jobs[0]], lambda done, total: shown.append((done, total))) == []
    assert sorted(compiled(cache)) == [16, 32, 48, 64, 80]
    assert len((cache / "log").read_text().splitlines()) == 5
    assert shown == [(done, 5) for done in range(1, 6)]
    assert 1 <= len(set(compiled(cache).values())) <= 2


def test_workers_work_side_by_side(worker, cache):
    assert within(60, compile_many, [job(1008), job(1024)]) == []
    assert len(set(compiled(cache).values())) == 2


def test_what_is_compiled_is_skipped(worker, cache):
    assert compile_many([job(16)]) == []
    worker("raise SystemExit('nothing should start')")
    shown = []
    assert compile_many([job(16)], lambda *progress: shown.append(progress)) == []
    assert shown == []
    assert compile_many([]) == []


def test_a_failure_costs_that_job_alone(worker, cache):
    """Also where its message is longer than a pipe holds."""
    failures = within(60, compile_many, [job(n) for n in (16, 14, 32, 48)])
    assert sorted(compiled(cache)) == [16, 32, 48]
    (failure,) = failures
    assert failure.startswith(f"{job(14)}: RuntimeError: no such instruction")
    assert len(failure) < 600, "not the pages that a compiler adds"
    assert not compile_cache._marker(job(14)).exists()


@pytest.mark.parametrize(("n", "status"), [(13, 7), (15, 1)])
def test_a_dead_worker_costs_that_job_alone(worker, cache, monkeypatch, n, status):
    monkeypatch.setenv(configurer.COMPILE_WORKERS, "1")
    failures = within(60, compile_many, [job(each) for each in (16, n, 32, 48)])
    assert failures == [f"{job(n)}: the compiler process ended with status {status}"]
    processes = compiled(cache)
    assert sorted(processes) == [16, 32, 48]
    assert processes[16] != processes[32] == processes[48]


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize(
    "program", ["raise SystemExit(3)", "import os; os.write(1, b'half an answer'); os._exit(3)"]
)
def test_workers_that_never_work(worker, program, ended):
    """No caller waits for ever: every job gets its failure, also where nobody is left to read it."""
    worker(program, ended)
    failures = within(60, compile_many, [job(n) for n in (16, 32, 48)])
    assert sorted(failures) == [f"{job(n)}: the compiler process ended with status 3" for n in (16, 32, 48)]


def test_workers_that_cannot_be_started(monkeypatch):
    def no_process(*_, **__):
        raise OSError("cannot fork")

    monkeypatch.setattr(child_process.subprocess, "Popen", no_process)
    failures = within(60, compile_many, [job(16), job(32)])
    assert sorted(failures) == [f"{job(n)}: OSError: cannot fork" for n in (16, 32)]


def test_an_interrupt_starts_no_further_job(worker, cache, monkeypatch):
    monkeypatch.setenv(configurer.COMPILE_WORKERS, "1")

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_many([job(16 * n) for n in range(1, 40)], interrupt)
    assert 1 <= len(compiled(cache)) < 39


def test_where_kernels_are_kept(monkeypatch, cache, tmp_path):
    assert compile_cache.cache_directory() == cache
    monkeypatch.delenv(configurer.CACHE_DIR)
    monkeypatch.setenv("TILELANG_CACHE_DIR", str(tmp_path / "theirs"))
    assert compile_cache.cache_directory() == tmp_path / "theirs"
    monkeypatch.delenv("TILELANG_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compile_cache.cache_directory() == tmp_path / ".tilelang" / "cache"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
def test_real_kernels(cache):
    """One kernel compiles into the cache asked for, one has no builder; then nothing is left to do."""
    good, bad = job(64), CompileJob(64, 128, SWAP, "sm_70")
    (failure,) = compile_many([good, bad])
    assert failure.startswith(f"{bad}: AttributeError: ")
    assert compile_cache._marker(good).exists()
    assert [path for path in cache.rglob("*") if path.is_file() and path.suffix in (".so", ".cu", ".cubin")]
    shown = []
    compile_many([good], lambda *progress: shown.append(progress))
    assert shown == []


def test_of_several_processes_one_compiles_and_the_others_find_it_done(worker, cache):
    """As the ranks of an engine do: the lock is held by one of them at a time."""
    jobs = [job(n) for n in (16, 32, 48)]
    results = []
    ranks = [threading.Thread(target=lambda: results.append(compile_many(jobs))) for _ in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert results == [[], [], []]
    assert len((cache / "log").read_text().splitlines()) == 3


# ---- bookkeeping costs nothing


NOT_TO_BE_WRITTEN = [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EIO]


@pytest.fixture
def tilelang(monkeypatch):
    """Stands for TileLang; gives what it was asked to compile."""
    asked = []
    monkeypatch.setattr(compile_cache, "tilelang_module", lambda: None)
    monkeypatch.setattr(kernel_registry, "build", lambda N, *_: N)
    monkeypatch.setattr(compile_cache, "compile_primfunc", lambda N, *_: asked.append(N) or f"kernel {N}")
    return asked


@pytest.mark.parametrize("error", NOT_TO_BE_WRITTEN)
def test_a_kernel_runs_whatever_its_marker_meets(tilelang, monkeypatch, error):
    assert not compile_cache.is_compiled(job(16))  # the cache itself can be written

    def refused(*_, **__):
        raise OSError(error, os.strerror(error))

    for name in ("mkdir", "write_text", "touch", "exists"):
        monkeypatch.setattr(Path, name, refused)
    assert compile_cache.compile_kernel(job(16)) == "kernel 16"
    assert not compile_cache.is_compiled(job(16))


def test_the_marker_is_there_once_the_kernel_is(tilelang):
    assert not compile_cache.is_compiled(job(16))
    compile_cache.compile_kernel(job(16))
    assert compile_cache.is_compiled(job(16)) and not compile_cache.is_compiled(job(32))


def test_where_the_cache_cannot_be_made_workers_compile_where_this_process_looks(worker, monkeypatch, caplog):
    monkeypatch.setenv(configurer.CACHE_DIR, "/dev/null/cache")
    jobs = [job(n) for n in (16, 32, 48)]
    assert compile_many(jobs) == []
    assert all(map(compile_cache.is_compiled, jobs))
    assert sorted(compiled(compile_cache.cache_directory())) == [16, 32, 48]
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1 and "/dev/null/cache cannot be written" in said[0]


def test_a_disk_that_fills_up_costs_no_kernel(monkeypatch, cache):
    """TileLang raises what it meets when it keeps a kernel, and the kernel is lost: it compiles once more."""
    places = []

    def compile_into(*_, **__):
        places.append(os.environ["TILELANG_CACHE_DIR"])
        if places[-1] == str(cache):
            raise OSError(errno.ENOSPC, "No space left on device", str(cache / "kernels"))
        return "kernel"

    class TileLang:
        compile = staticmethod(compile_into)

    monkeypatch.setenv("TILELANG_CACHE_DIR", "")
    monkeypatch.setattr(compile_cache, "tilelang_module", lambda: TileLang)
    monkeypatch.setattr(compile_cache, "entry_function", lambda kernel: kernel)
    assert compile_cache.compile_primfunc("function", "sm_90a") == "kernel"
    assert places == [str(cache), str(kernel_cache.cache_directory())] and places[1] != places[0]


def test_what_the_compiler_raises_is_raised(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(compile_cache, "_compile", refuse)
    with pytest.raises(RuntimeError, match="no such instruction"):
        compile_cache.compile_primfunc("function", "sm_90a")


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_keeps_nobody_waiting(worker, cache, monkeypatch, error):
    def no_locks(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("fcntl.flock", no_locks)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waited"))
    assert compile_many([job(16)]) == []
    assert sorted(compiled(cache)) == [16]


@pytest.mark.parametrize("lock", ["another user's", "a folder"])
def test_a_lock_that_cannot_be_opened_keeps_nobody_out(monkeypatch, cache, lock):
    path = cache / "tilelang_gemm_compile.lock"
    if lock == "a folder":
        path.mkdir()
    else:
        really_open = os.open

        def refused(name, *arguments, **options):
            if Path(name) == path:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return really_open(name, *arguments, **options)

        monkeypatch.setattr(os, "open", refused)
    with compile_cache.alone("compile"):
        pass


def test_nobody_waits_for_ever(monkeypatch, caplog):
    monkeypatch.setattr(compile_cache, "LOCK_TIMEOUT_S", 0.05)
    with compile_cache.alone("compile"):
        done = within(20, lambda: _enter_alone() or True)
    assert done
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "tilelang_gemm_compile.lock for 0.05 s: this process goes on by itself (compile)" in said
    with compile_cache.alone("compile"):  # and has left the lock as it was
        pass
    assert len(caplog.records) == 1


def _enter_alone():
    with compile_cache.alone("compile"):
        pass


def test_a_hung_compiler_costs_its_job_alone(worker, cache, tilelang, monkeypatch):
    """Nor is its kernel compiled by the process that waits, which would then hang itself."""
    with monkeypatch.context() as patch:
        patch.setattr(compile_cache, "COMPILE_TIMEOUT_S", 0.2)
        (failure,) = within(60, compile_many, [job(12)])
    assert failure == f"{job(12)}: no result after 0.2 s; the compiler was killed"
    assert compile_many([job(16)]) == []
    with pytest.raises(TimeoutError, match=r"no result after 0\.2 s"):
        compile_cache.compile_kernel(job(12))
    assert compile_cache.compile_kernel(job(16)) == "kernel 16"
    assert tilelang == [16]
    compile_cache._remember(job(12), None)  # a later warm-up has had more luck
    assert compile_cache.compile_kernel(job(12)) == "kernel 12"


REAL = """
import sys
from tilelang_gemm_wrapper.core import compile_cache
from tilelang_gemm_wrapper.core.compile_cache import CompileJob, KernelConfig

job = CompileJob(64, 128, KernelConfig("swapAB", 64, 16, 128, 2, 128), "sm_90a")
assert compile_cache.compile_many([job]) == []
compile_cache.tilelang_module()
from tilelang.contrib import nvcc
nvcc.compile_cuda = lambda *_, **__: sys.exit("compiled twice")
print(compile_cache.compile_kernel(job))
"""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
def test_a_real_kernel_without_a_home_is_compiled_once(tmp_path):
    """TileLang makes folders in its cache when it is imported, and loses a kernel that it cannot keep."""
    environment = {**os.environ, "HOME": "/dev/null/nobody", "TMPDIR": str(tmp_path)}
    for name in (configurer.CACHE_DIR, "TILELANG_CACHE_DIR"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", REAL], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Function" in done.stdout
    assert done.stderr.count("cannot be written") == 1
    assert not list(tmp_path.glob("tilelang_gemm_*")), "what stood in is still there"


def test_a_temporary_directory_without_use_costs_no_kernel(monkeypatch, tmp_path, caplog):
    """TileLang loads what it has linked from there, and nvcc takes TMPDIR as it is."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))

    def load(kernel):
        if os.environ["TMPDIR"] == str(tmp_path / "missing"):
            raise RuntimeError("nvcc fatal: Could not open output file")
        return kernel

    monkeypatch.setattr(compile_cache, "_compile", lambda *_: "kernel")
    monkeypatch.setattr(compile_cache, "entry_function", load)
    assert compile_cache.compile_primfunc("function", "sm_90a") == "kernel"
    assert "TMPDIR is" in caplog.text


@pytest.mark.parametrize("note", [b"", b"\xff\xfe"])
def test_a_broken_note_of_the_compiler_counts_as_none(cache, monkeypatch, note):
    compile_cache._note(compile_cache._nvcc_note())
    compile_cache._nvcc_note().write_bytes(note)
    monkeypatch.setattr(compile_cache, "_compiler", lambda: None)
    assert compile_cache.compiler_version.__wrapped__() == "none"


def test_a_note_is_written_whole_or_left(cache, monkeypatch):
    note = compile_cache._nvcc_note()
    compile_cache._note(note, "nvcc 13")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    compile_cache._note(note, "nvcc 13.1")
    assert note.read_text() == "nvcc 13" and os.listdir(note.parent) == ["nvcc"]


def test_workers_take_a_name_as_it_is(monkeypatch, tmp_path):
    """TileLang takes its own variable as it is, ours expands a ~."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(configurer.CACHE_DIR)
    monkeypatch.setenv("TILELANG_CACHE_DIR", "~/kernels")
    assert compile_cache.worker_environment()[configurer.CACHE_DIR] == str(tmp_path / "~" / "kernels")


@pytest.mark.parametrize("value", ["1", "ON"])
def test_where_tilelang_keeps_nothing_nothing_is_noted(worker, cache, monkeypatch, caplog, value):
    """Else the next process would take its kernels for compiled, and find none."""
    with monkeypatch.context() as patch:
        patch.setattr(compile_cache, "tilelang_module", lambda: None)
        patch.setattr(kernel_registry, "build", lambda N, *_: N)
        patch.setattr(compile_cache, "compile_primfunc", lambda N, *_: f"kernel {N}")
        patch.setenv("TILELANG_DISABLE_CACHE", value)
        assert compile_cache.compile_kernel(job(16)) == "kernel 16"
        assert compile_many([job(32)]) == [] and not compiled(cache)
        assert f"TILELANG_DISABLE_CACHE='{value}' is set: no kernel is kept" in caplog.text
    assert not compile_cache.is_compiled(job(16))
    compile_cache._note(compile_cache._marker(job(16)))
    monkeypatch.setenv("TILELANG_DISABLE_CACHE", value)
    assert not compile_cache.is_compiled(job(16)), "it is not looked for"
