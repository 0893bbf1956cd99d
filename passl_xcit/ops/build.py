"""Compiles the native operators: `python -m passl_xcit.ops.build`, and what `pip install` does where it can.

Needs a C++17 compiler (that of CXX, or g++, or c++) and nothing of Paddle: the library has a plain C interface, so that
one build serves every version of Paddle and of Python. Only Python's own modules are imported, because setup.py runs
this file where nothing is installed yet.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "native"
LIBRARY = SOURCES / "libpassl_xcit.so"
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]
# Each file is compiled for its own instruction set; which is used is decided when the library is loaded.
FILES = {
    "library.cc": [],
    "avx2.cc": AVX2,
    "avx512.cc": AVX512,
    "avx512_bf16.cc": [*AVX512, "-mavx512bf16"],
}
SEAL_BYTES = hashlib.sha256().digest_size
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-fvisibility=hidden", "-w"]


class BuildError(Exception):
    """One line on why nothing was built."""


def supported():
    """Whether there are native operators for this kind of machine."""
    return sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64")


def digest():
    """Of the sources and of how they are compiled."""
    text = hashlib.sha256(repr((FILES, FLAGS)).encode())
    for path in sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cc")]):
        text.update(path.name.encode() + b"\0" + path.read_bytes())
    return text.hexdigest()


def build(target=LIBRARY):
    """Compile the sources into the file `target`, which appears whole or not at all.

    Raises:
        BuildError: there is no compiler, it does not compile, or `target` cannot be written.
    """
    if not supported():
        raise BuildError(f"there are no native operators for {sys.platform} on {platform.machine()}")
    compiler = _compiler()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build") as folder:
            result = Path(folder) / target.name
            _compile(compiler, Path(folder), result)
            os.replace(result, target)
    except OSError as error:
        raise BuildError(str(error)) from error


def _compiler():
    """CXX, or one that is found."""
    try:
        asked = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise BuildError(f"CXX={os.environ['CXX']}: {error}") from error
    if asked and not shutil.which(asked[0]):
        raise BuildError(f"CXX={os.environ['CXX']}: there is no such compiler")
    return asked or _found("g++", "c++")


def _found(*names):
    found = next(filter(None, map(shutil.which, names)), None)
    if not found:
        raise BuildError("no C++ compiler is installed (Debian, Ubuntu: apt install g++)")
    return [found]


def _compile(compiler, folder, result):
    """All files at the same time, then the library."""
    define = f'-DPASSL_XCIT_DIGEST="{digest()}"'
    objects = {name: folder / f"{name}.o" for name in FILES}
    commands = [
        [*compiler, *FLAGS, *flags, define, "-c", str(SOURCES / name), "-o", str(objects[name])]
        for name, flags in FILES.items()
    ]
    _run(commands)
    _run([[*compiler, "-shared", "-o", str(result), *map(str, objects.values())]])
    if not result.exists():
        raise BuildError(f"{compiler[0]} made no library; CXX must be a C++ compiler")
    with open(result, "r+b") as file:
        file.write(_seal(file.read()))


def is_whole(path):
    """Whether a library is as it was built. Loading one whose end is missing would end the process."""
    content = path.read_bytes()
    return content[-SEAL_BYTES:] == _seal(content[:-SEAL_BYTES])


def _seal(content):
    """What stands behind a library: its digest."""
    return hashlib.sha256(content).digest()


def _run(commands):
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **quiet) for command in commands]
    for process, (_, errors) in [(process, process.communicate()) for process in processes]:
        if process.returncode:
            line = next((line for line in errors.splitlines() if "error" in line), errors.strip() or "no message")
            raise BuildError(f"{process.args[0]} failed: {line}")


if __name__ == "__main__":
    try:
        build()
    except BuildError as failure:
        sys.exit(f"error: {failure}")
    print(f"built {LIBRARY}")
