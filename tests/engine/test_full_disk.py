"""A disk that is full where the logs lie: one warning for each log, and the training goes on to its end.

The disk is full for a file of `LIMIT` bytes (RLIMIT_FSIZE): the logs are that long already, checkpoints are shorter.
"""

import pytest
from tiny_run import start, tiny_file, tiny_run

from passl_xcit.modeling.checkpoint_formats import read_file

resource = pytest.importorskip("resource")
LIMIT = 1_000_000
HOOKS = "custom_config=[{name: EvaluateHook}, {name: VisualHook, interval: 1, histograms: false}]"


def fill(path):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x" * (LIMIT - 1) + b"\n")


def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


def warning(path):
    return f"warning: {path}: File too large: lines of this log are lost, the run goes on"


@pytest.mark.slow
def test_the_logs_lose_lines_and_the_training_loses_nothing(tmp_path):
    for name in ("log.txt", "log.jsonl"):
        fill(tmp_path / "out" / name)
    process = start("-c", tiny_file(tmp_path), "-o", HOOKS, cwd=tmp_path, preexec_fn=limit_files)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 0
    assert errors.splitlines() == [warning(tmp_path / "out" / name) for name in ("log.txt", "log.jsonl")]
    assert output.count("images/s: ") == 12 and "best acc1" in output
    tiny_run(tmp_path, f"output_dir={tmp_path}/whole")
    full, whole = (read_file(tmp_path / name / "latest.pdparams") for name in ("out", "whole"))
    assert all((full["state_dict"][name] == array).all() for name, array in whole["state_dict"].items())


@pytest.mark.slow
def test_so_does_an_output_that_goes_to_a_file(tmp_path):
    fill(tmp_path / "screen.txt")
    with open(tmp_path / "screen.txt", "a") as screen:
        process = start("-c", tiny_file(tmp_path), cwd=tmp_path, preexec_fn=limit_files, stdout=screen)
        errors = process.communicate(timeout=100)[1]
    assert (process.returncode, errors.splitlines()) == (0, [warning("<stdout>")])
    assert (tmp_path / "out" / "epoch_2.pdparams").is_file()
    assert (tmp_path / "out" / "log.txt").read_text().count("images/s: ") == 12
