"""The native operators, built once where there is a compiler; their tests are skipped elsewhere."""

import fcntl

import pytest

from passl_xcit.ops import build, library


@pytest.fixture(scope="session")
def built():
    """Path of the library of these sources; several processes that test at once build it once."""
    with open(build.SOURCES / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Not by loading it: a process never sees another library of the same name, and would skip what it just built.
        if not build.LIBRARY.exists() or build.digest().encode() not in build.LIBRARY.read_bytes():
            try:
                build.build()
            except build.BuildError as error:
                pytest.skip(str(error))
    return build.LIBRARY


@pytest.fixture(params=library.INSTRUCTION_SETS)
def native(built, monkeypatch, request):
    """Switch the operators on, with each instruction set of this processor: the Library in use."""
    try:
        library.Library(isa=request.param)
    except library.Unusable as error:
        pytest.skip(str(error))
    monkeypatch.setenv(library.MODE, "on")
    monkeypatch.setenv(library.ISA, request.param)
    monkeypatch.delenv(library.PRECISION, raising=False)
    library._loaded.cache_clear()
    yield library.library()
    library._loaded.cache_clear()


@pytest.fixture
def bfloat16(built, monkeypatch):
    """Switch the operators on in bfloat16: the Library in use."""
    found = library.Library()
    if not found.bfloat16:
        pytest.skip("this processor has no AVX512-BF16")
    monkeypatch.setenv(library.MODE, "on")
    monkeypatch.setenv(library.PRECISION, "bfloat16")
    library._loaded.cache_clear()
    yield found
    library._loaded.cache_clear()
