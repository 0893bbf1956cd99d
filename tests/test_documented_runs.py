"""The commands of the pages and notebooks are run as they stand there, where the names in them can be made real.

A name such as CONFIG.yaml stands for the tiny config of the tests, WEIGHTS for the checkpoint of its training, photos
for its images. What is not run needs hours, a network, a device or the data of others; test_documented_commands.py
looks at it all the same.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documented import PAGES, ROOT, commands_of, text_of
from PIL import Image
from test_documented_commands import parsed
from tiny_run import tiny_file, tiny_run

from passl_xcit.utils.config import load_config
from passl_xcit.utils.shipped import shipped

CONFIGS = ("CONFIG", "CONFIG.yaml")
WEIGHTS = ("WEIGHTS", "WEIGHTS.pdparams", "CHECKPOINT", "outputs/best.pdparams")
DATA = ("DIR", "ILSVRC2012", "imagenet-a", "photos")
LABELS = {"real.json": str([[0]] * 15), "imagenet_a_indices.txt": "0\n1\n2\n"}
STAGED = {*CONFIGS, *WEIGHTS, *DATA, *LABELS, "photo.jpg"}
INPUTS = (
    *("images", "weights", "checkpoint", "load", "ckpt_path", "source"),
    *("config", "config_file", "c", "schedule", "data", "data_dir", "log"),
    *("real_labels", "class_list"),
)
# Two devices, trainings, minutes, a checkout to write to, minutes again (tools/benchmark.py has tests of its own).
ELSEWHERE = ("compare", "runs", "check", "write", "models", "operators", "pipeline", "startup", "write_page")
LARGE = 256  # pixels; above, the demo model takes many seconds an image


def inputs_of(args):
    """The files and folders that a command reads, as it names them."""
    values = [getattr(args, name, None) or [] for name in INPUTS]
    paths = [path for value in values for path in (value if isinstance(value, list) else [value])]
    return [path for path in paths if path != "-"]


def can_be_run(command, args):
    """Whether all that the command needs is here, and it takes no longer than an evaluation of the demo model."""
    if args is None:  # it asks for help
        return False
    if any(getattr(args, name, None) for name in ELSEWHERE) or re.search("--devices|--nnodes", command.line):
        return False
    inputs = inputs_of(args)
    ours = [path for path in inputs if path.endswith(".yaml") and path not in STAGED]
    trains = command.tool == "train" and not args.evaluate_only
    if ours and (trains or getattr(args, "knn", False)) or (getattr(args, "size", None) or 0) > LARGE:
        return False
    if not all(path in STAGED or shipped(path, ROOT).exists() for path in inputs):
        return False
    return command.tool == "draw_curves" or all("FashionMNIST" in repr(load_config(ROOT / path)) for path in ours)


def commands_to_run():
    """{its line: Command}; what stands on several pages is one."""
    found = [command for page in PAGES for command in commands_of(text_of(page))]
    return {command.line: command for command in found if can_be_run(command, parsed(command))}


COMMANDS = commands_to_run()


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A folder with what the names in the commands stand for."""
    run, folder = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("stage")
    tiny_run(run, "epochs=1")
    for number, path in enumerate(sorted((run / "val").rglob("*.png")), 1):
        path.rename(path.with_name(f"ILSVRC2012_val_{number:08d}.png"))
    (folder / "outputs").mkdir()
    for name in CONFIGS:
        (folder / name).write_text(tiny_file(run).read_text().replace(str(run / "out"), "outputs/tiny"))
    for name in WEIGHTS:
        shutil.copy(run / "out" / "latest.pdparams", folder / name)
    for name, text in LABELS.items():
        (folder / name).write_text(text)
    for name in DATA:
        (folder / name).mkdir()
        for split in ("train", "val"):
            (folder / name / split).symlink_to(run / split)
    for name in ("photo.jpg", "photos/photo.jpg"):
        Image.open(next((run / "val").rglob("*.png"))).save(folder / name)
    (folder / "tools").symlink_to(ROOT / "tools")
    shutil.copytree(ROOT / "docs" / "images" / "clothes", folder / "docs" / "images" / "clothes")
    shutil.copytree(ROOT / "weights", folder / "weights")
    return folder


def test_most_tools_are_among_them():
    tools = {command.tool for command in COMMANDS.values()}
    assert {"train", "validate", "predict", "visualize", "export", "extract_weight", "doctor", "model_zoo"} <= tools


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_succeeds_as_it_stands_on_the_page(line, stage, tmp_path):
    folder = tmp_path / "stage"
    shutil.copytree(stage, folder, symlinks=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    options = {"cwd": folder, "env": {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}, "timeout": 300}
    shell = ["bash", "-e", "-o", "pipefail", "-c", f"python {line}" if line.startswith("tools/") else line]
    done = subprocess.run(shell, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{shlex.join(shell)}\n{done.stdout}{done.stderr}"
