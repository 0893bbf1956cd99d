"""Threads and code paths of the CPU libraries are settled before Paddle is imported."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from passl_xcit.utils import startup
from passl_xcit.utils.startup import prepare_paddle, usable_cores

VARIABLES = ("OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE", "FLAGS_npu_jit_compile", "PADDLE_LOCAL_SIZE")


@pytest.fixture
def machine(monkeypatch):
    """Pretend a machine and an environment, prepare the CPU, and return the variables it has set."""

    def prepare(cores, cpuinfo="GenuineIntel", **environment):
        for name in VARIABLES:
            monkeypatch.setenv(name, "")  # so that monkeypatch restores what prepare_paddle sets
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(startup, "usable_cores", lambda: cores)
        monkeypatch.setattr(startup.Path, "read_text", lambda path, **options: cpuinfo)
        prepare_paddle()
        return {name: os.environ[name] for name in VARIABLES[:3] if name in os.environ}

    return prepare


@pytest.mark.parametrize(
    ("cores", "environment", "threads"),
    [
        (8, {}, "8"),
        (8, {"OMP_NUM_THREADS": "3"}, "3"),
        (8, {"OMP_NUM_THREADS": "1"}, "1"),
        (8, {"PADDLE_LOCAL_SIZE": "2"}, "4"),
        (8, {"PADDLE_LOCAL_SIZE": "2", "OMP_NUM_THREADS": "1"}, "4"),  # 1 is the launcher's
        (8, {"PADDLE_LOCAL_SIZE": "2", "OMP_NUM_THREADS": "3"}, "3"),
        (2, {"PADDLE_LOCAL_SIZE": "3"}, "1"),
    ],
)
def test_every_core_has_one_thread_of_one_process(machine, cores, environment, threads):
    assert machine(cores, **environment)["OMP_NUM_THREADS"] == threads


AMD = "vendor_id : AuthenticAMD\nflags : fpu avx avx2 sse\n"


@pytest.mark.parametrize(
    ("cpuinfo", "environment", "expected"),
    [
        (AMD, {}, "5"),
        (AMD, {"MKL_DEBUG_CPU_TYPE": "4"}, "4"),
        (AMD.replace("avx2", "avx512f"), {}, None),
        (AMD.replace("AuthenticAMD", "GenuineIntel"), {}, None),
    ],
)
def test_amd_processors_get_mkls_fast_path(machine, cpuinfo, environment, expected):
    assert machine(4, cpuinfo, **environment).get("MKL_DEBUG_CPU_TYPE") == expected


@pytest.mark.parametrize(("environment", "expected"), [({}, "0"), ({"FLAGS_npu_jit_compile": "1"}, "1")])
def test_ascends_plugin_is_to_take_compiled_kernels(machine, environment, expected):
    assert machine(4, **environment)["FLAGS_npu_jit_compile"] == expected


def test_a_machine_without_cpuinfo_is_no_amd(tmp_path):
    assert not startup._is_amd_with_avx2(tmp_path / "cpuinfo")


def test_usable_cores_counts_those_of_this_process():
    assert 1 <= usable_cores() <= os.cpu_count()


def test_cores_are_counted_where_affinity_is_unknown(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cores() == os.cpu_count()


@pytest.mark.slow
def test_paddle_starts_with_these_threads_and_without_its_advice():
    code = (
        "import os; from passl_xcit.utils.startup import prepare_paddle as f; f(); print(os.environ['OMP_NUM_THREADS'])"
    )
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{usable_cores()}\n", "")


@pytest.mark.slow
def test_a_plugin_that_cannot_be_loaded_is_one_line(tmp_path):
    (tmp_path / "libbroken.so").write_text("no library")
    doctor = Path(__file__).parents[2] / "tools" / "doctor.py"
    environment = {**os.environ, "CUSTOM_DEVICE_ROOT": str(tmp_path)}
    done = subprocess.run([sys.executable, doctor], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: Paddle cannot be imported: ") and str(tmp_path) in line


ARRAYS = """
import os, sys
from passl_xcit.utils.startup import prepare_paddle
prepare_paddle(own_process=sys.argv[1] == "own")
import psutil

def kept(mebibytes):
    before = psutil.Process().memory_info().rss
    bytearray(b"1") * (mebibytes * 2**20)
    return (psutil.Process().memory_info().rss - before) // 2**20

print(kept(50), kept(100))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc")
@pytest.mark.parametrize(
    ("whose", "environment", "kept"),
    [
        ("own", {}, True),
        ("another's", {}, False),
        ("own", {"MALLOC_MMAP_THRESHOLD_": "131072"}, False),
        ("own", {"MALLOC_TRIM_THRESHOLD_": "131072"}, False),
        ("own", {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}, False),
    ],
)
def test_memory_of_arrays_up_to_64_mib_is_kept_for_the_next_ones_in_ones_own_process(whose, environment, kept):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    command = [sys.executable, "-c", ARRAYS, whose]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    below, above = map(int, done.stdout.split())  # MiB that stayed
    assert below > 20 if kept else below < 5  # a part of it was free before
    assert above < 5


def test_without_glibc_the_allocator_stays_as_it_is(machine, monkeypatch):
    monkeypatch.setattr(startup.ctypes, "CDLL", lambda name: object())
    assert machine(4)["OMP_NUM_THREADS"] == "4"
