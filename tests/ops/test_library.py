"""Building the native library, and what is said where it cannot be used."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from passl_xcit.engine.system_check import machine
from passl_xcit.ops import build, library
from passl_xcit.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def forgotten():
    library._loaded.cache_clear()
    yield
    library._loaded.cache_clear()


@pytest.fixture
def unusable(monkeypatch, tmp_path):
    """Let the library be missing."""

    def missing(isa=""):
        return LIBRARY(tmp_path / "none.so", isa)

    monkeypatch.setattr(library, "Library", missing)


LIBRARY = library.Library
ON_THIS = pytest.mark.skipif(not build.supported(), reason="there are no native operators for this machine")


@ON_THIS
def test_auto_goes_on_without_it(unusable, monkeypatch):
    monkeypatch.delenv("PASSL_XCIT_NATIVE", raising=False)
    assert library.library() is None
    assert library.why().startswith("not in use: not built: `python -m passl_xcit.ops.build`")


@ON_THIS
def test_on_ends_with_a_line_without_it(unusable, monkeypatch):
    monkeypatch.setenv("PASSL_XCIT_NATIVE", "on")
    with pytest.raises(ConfigError, match="PASSL_XCIT_NATIVE=on, but the native operators cannot be used: not built"):
        library.library()


def test_off_does_not_look_for_it(monkeypatch):
    monkeypatch.setattr(library, "Library", None)
    monkeypatch.setenv("PASSL_XCIT_NATIVE", "off")
    assert library.library() is None
    assert library.why() == "not in use: PASSL_XCIT_NATIVE=off"


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("PASSL_XCIT_NATIVE", "yes", "PASSL_XCIT_NATIVE must be auto, on or off, not 'yes'"),
        ("PASSL_XCIT_NATIVE_PRECISION", "half", "PASSL_XCIT_NATIVE_PRECISION must be float32 or bfloat16, not 'half'"),
        ("PASSL_XCIT_NATIVE_ISA", "sse9", "PASSL_XCIT_NATIVE_ISA must be avx512 or avx2, not 'sse9'"),
    ],
)
def test_values_that_mean_nothing_are_refused(built, monkeypatch, variable, value, line):
    monkeypatch.delenv("PASSL_XCIT_NATIVE", raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=line):
        library.why()


def test_a_library_of_other_sources_is_not_used(built, monkeypatch):
    monkeypatch.setattr(build, "digest", lambda: "another")
    with pytest.raises(library.Unusable, match="was built from other sources: `python -m passl_xcit.ops.build`"):
        library.Library()


@ON_THIS
@pytest.mark.parametrize("content", [b"", b"no library"])
def test_what_is_no_library_is_not_used(tmp_path, content):
    path = tmp_path / "libpassl_xcit.so"
    path.write_bytes(content)
    with pytest.raises(library.Unusable, match="cannot be loaded"):
        library.Library(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_library_whose_end_is_missing_is_not_used(built, tmp_path, share):
    path = tmp_path / "libpassl_xcit.so"
    content = built.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(library.Unusable, match="cannot be loaded: it is damaged .*`python -m passl_xcit.ops.build`"):
        library.Library(path)


def test_a_library_of_somebody_else_is_not_used(built):
    with pytest.raises(library.Unusable, match="cannot be loaded"):
        library.Library(Path(library.paddle.sysconfig.get_lib()) / "libiomp5.so")


@pytest.mark.parametrize(("system", "machine"), [("darwin", "x86_64"), ("linux", "aarch64")])
def test_other_machines_have_none(monkeypatch, system, machine):
    monkeypatch.setattr(build.sys, "platform", system)
    monkeypatch.setattr(build.platform, "machine", lambda: machine)
    with pytest.raises(library.Unusable, match="there are native operators for Linux on x86-64 only"):
        library.Library()
    with pytest.raises(build.BuildError, match=f"there are no native operators for {system} on {machine}"):
        build.build()


def test_the_doctor_says_what_is_in_use(native, tmp_path):
    (found,) = [finding for finding in machine(tmp_path, "cpu").findings if finding.name == "native operators"]
    assert found == ("native operators", f"in use, {native.isa}", "ok", "")


@pytest.mark.parametrize(
    ("isa", "end"), [("avx2", "in use, avx2, float32: there is no bfloat16"), ("", "in use, avx512, bfloat16")]
)
def test_the_doctor_says_whether_there_is_bfloat16(bfloat16, monkeypatch, isa, end):
    monkeypatch.setenv("PASSL_XCIT_NATIVE_ISA", isa)
    assert library.why() == end


@ON_THIS
def test_the_doctor_refuses_a_library_that_is_on_but_not_there(unusable, monkeypatch, tmp_path):
    monkeypatch.setenv("PASSL_XCIT_NATIVE", "on")
    (found,) = [finding for finding in machine(tmp_path, "cpu").findings if finding.name == "native operators"]
    assert found.verdict == "error" and "not built" in found.advice


@ON_THIS
@pytest.mark.parametrize(
    ("compiler", "line"),
    [
        ("/nonexistent/g++", "CXX=/nonexistent/g\\+\\+: there is no such compiler"),
        ("'g++", "CXX='g\\+\\+: No closing quotation"),
        ("true", "true made no library; CXX must be a C\\+\\+ compiler"),
        (f"{sys.executable} -c 'import sys; sys.exit(\"fatal error: no such header\")'", "fatal error: no such header"),
    ],
)
def test_a_build_that_fails_says_why_and_leaves_what_was_there(monkeypatch, tmp_path, compiler, line):
    monkeypatch.setenv("CXX", compiler)
    target = tmp_path / "lib.so"
    target.write_text("older")
    with pytest.raises(build.BuildError, match=line):
        build.build(target)
    assert [path.name for path in tmp_path.iterdir()] == ["lib.so"] and target.read_text() == "older"


@ON_THIS
def test_without_a_compiler_the_build_names_one(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match="no C\\+\\+ compiler is installed .*apt install g\\+\\+"):
        build.build(tmp_path / "lib.so")


@ON_THIS
def test_the_command_ends_with_one_line(tmp_path):
    shutil.copytree(ROOT / "passl_xcit/ops", tmp_path / "ops")
    command = [sys.executable, str(tmp_path / "ops/build.py")]
    environment = {"PATH": "/nowhere", "CXX": "/nonexistent/g++"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert process.returncode == 1 and process.stderr.count("\n") == 1 and process.stderr.startswith("error: ")


def test_no_line_of_the_sources_is_longer_than_120_columns():
    sources = [*build.SOURCES.glob("*.h"), *build.SOURCES.glob("*.cc")]
    assert len(sources) > 8
    for path in sources:
        assert max(map(len, path.read_text().splitlines())) <= 120, path.name
