"""What a user did wrong ends in one line and an exit code."""

import os
import subprocess
import sys

import pytest

from passl_xcit.utils.errors import CheckpointError, ConfigError, DataError, UserError, exit_with_one_line


def raising(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("must be at least 1", "epochs"), 2, "error: epochs: must be at least 1\n"),
        (ConfigError("no such file"), 2, "error: no such file\n"),
        (DataError("a.jpg: damaged"), 1, "error: a.jpg: damaged\n"),
        (CheckpointError("w.pdparams: damaged"), 1, "error: w.pdparams: damaged\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_a_users_error_becomes_one_line(error, code, line, capsys, monkeypatch):
    monkeypatch.delenv("PASSL_XCIT_DEBUG", raising=False)
    with pytest.raises(SystemExit) as stopped:
        exit_with_one_line(raising(error))
    assert stopped.value.code == code
    assert capsys.readouterr() == ("", line)


def test_debugging_keeps_the_traceback(monkeypatch):
    monkeypatch.setenv("PASSL_XCIT_DEBUG", "1")
    with pytest.raises(DataError, match="a.jpg"):
        exit_with_one_line(raising(DataError("a.jpg")))


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_with_one_line(raising(ZeroDivisionError()))


def test_success_exits_with_0():
    seen = []
    with pytest.raises(SystemExit) as stopped:
        exit_with_one_line(seen.append, ["-c", "x.yaml"])
    assert not stopped.value.code and seen == [["-c", "x.yaml"]]


def test_a_config_error_tells_message_and_path_apart():
    error = ConfigError("must be at least 1", "epochs")
    assert (error.message, error.path, str(error)) == ("must be at least 1", "epochs", "epochs: must be at least 1")
    assert isinstance(error, UserError) and not error.located


def test_a_program_may_have_no_standard_output():
    program = "from passl_xcit.utils.errors import exit_with_one_line\nexit_with_one_line(lambda argv: None)"
    closed = {"preexec_fn": lambda: os.close(1), "stderr": subprocess.PIPE, "text": True}
    process = subprocess.run([sys.executable, "-c", program], **closed)
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize(
    ("result", "code", "line"),
    [
        ("print('a table')", 1, "error: <stdout>: No space left on device\n"),
        ("raise UserError('a mistake')", 1, "error: a mistake\n"),
        ("print('a table'); raise UserError('a mistake')", 1, "error: a mistake\n"),
    ],
)
def test_an_output_that_cannot_be_written_is_told_once(result, code, line):
    imported = "from passl_xcit.utils.errors import UserError, exit_with_one_line"
    program = f"{imported}\ndef main(argv):\n    {result}\nexit_with_one_line(main)"
    with open("/dev/full", "w") as full:
        process = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (process.returncode, process.stderr) == (code, line)
