"""One run a folder."""

import subprocess
import sys

import pytest
from tiny_run import ROOT, tiny_run, tiny_trainer

from passl_xcit.engine.run_lock import run_lock
from passl_xcit.utils.errors import ConfigError

HOLD = """
import sys, time
from pathlib import Path
from passl_xcit.engine.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_folder_that_another_process_writes_to_is_refused_and_names_it(holder, tmp_path):
    text = (
        rf"output_dir: another run \(process {holder.pid} on .*\) writes to {tmp_path}: wait for it, stop it, or choose"
    )
    with pytest.raises(ConfigError, match=text), run_lock(tmp_path):
        pytest.fail("two runs in one folder")


def test_a_run_that_starts_anew_is_told_of_the_one_that_writes_rather_than_of_its_checkpoints(holder, tmp_path):
    tiny_trainer(tmp_path, "epochs=1", f"output_dir={tmp_path}").train()
    with pytest.raises(ConfigError, match=rf"another run \(process {holder.pid} on"):
        tiny_run(tmp_path, f"output_dir={tmp_path}")


def test_a_killed_process_leaves_the_folder_free(holder, tmp_path):
    holder.kill()
    holder.wait()
    with run_lock(tmp_path):
        pass


def test_a_folder_is_free_again_when_a_run_ends(tmp_path):
    with pytest.raises(RuntimeError), run_lock(tmp_path):
        raise RuntimeError
    code = "import sys\nfrom pathlib import Path\nfrom passl_xcit.engine.run_lock import run_lock\n"
    code += "with run_lock(Path(sys.argv[1])): pass"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True)
