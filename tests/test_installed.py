"""The package that `pip install .` installs works without the checkout: its commands, configs and demo weights."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import ROOT

CONFIG = "configs/demo/xcit_demo_p4_fashion_mnist.yaml"
WEIGHTS = "weights/xcit_demo_p4_fashion_mnist.pdparams"
INSTALLED = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "passl_xcit", "tools", "configs", "weights")
# {command: (arguments, a text of its output, a file that it leaves)}; the folder has one image of each of two classes.
WORK = {
    "train": (
        ["-c", "mine.yaml", "--data_dir", "data", "--output_dir", "out"],
        "log: out/log.txt, log.jsonl",
        "out/best.pdparams",
    ),
    "validate": ([CONFIG, WEIGHTS, "--report", "report"], "acc1 (90.350)", "report/report.html"),
    "predict": (["data", "--weights", WEIGHTS, "--topk", "1"], "data/train/bag/0.png", None),
    "visualize": (["data/val/bag/0.png", "--weights", WEIGHTS, "--output_dir", "pages"], "", "pages/0_features.png"),
    "export": ([WEIGHTS, "--output_dir", "program"], "written to program", "program/model.json"),
    "convert-weights": ([WEIGHTS, "demo.pth", "--to", "official"], "paddle -> official", "demo.pth"),
    "extract-weight": ([WEIGHTS, "--output", "w.pdparams"], "arrays written to w.pdparams", "w.pdparams"),
    "draw-curves": (["--schedule", CONFIG, "--output", "curves.png"], "", "curves.png"),
    "model-zoo": (["xcit_nano_12_p8*"], "xcit_nano_12_p8_384_dist", None),
    "doctor": (["-c", CONFIG], "no errors", None),
    "benchmark": (["--startup", "--repeats", "1", "--output", "startup.json"], "", "startup.json"),
}
MINE = f"""
_base_: {CONFIG}
epochs: 1
model: {{architecture: {{in_chans: 3, depth: 1}}, head: {{num_classes: 2}}}}
dataloader:
  train:
    sampler: {{batch_size: 2}}
    dataset: &of_three_channels
      name: ImageNet
      transforms: [{{name: Transpose}}, {{name: Normalize, mean: [73, 73, 73], std: [90, 90, 90]}}]
  val: {{dataset: *of_three_channels}}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """(folder of the installed package, environment in which Python finds it first)"""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in INSTALLED:  # building leaves files in the folder that is built
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, timeout=200)
    shutil.rmtree(source)
    return target, {**os.environ, "PYTHONPATH": str(target)}


@pytest.fixture
def run(installed, tmp_path):
    """Run an installed command in a folder with `mine.yaml` and two images: what it prints, where it must succeed."""
    target, environment = installed
    (tmp_path / "mine.yaml").write_text(MINE)
    for name in ("bag", "dress"):
        for split in ("train", "val"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            shutil.copy(
                ROOT / "docs" / "images" / "clothes" / f"{name}.png", tmp_path / "data" / split / name / "0.png"
            )

    def call(*arguments):
        options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300}
        done = subprocess.run([sys.executable, *map(str, arguments)], **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


@pytest.mark.slow
def test_the_test_runs_what_was_installed(run, installed):
    found = run(
        "-c", "import passl_xcit, passl_xcit_tools.train as t; print(passl_xcit.__file__, t.__file__, sep='\\n')"
    )
    assert all(Path(line).is_relative_to(installed[0]) for line in found.splitlines())
    commands = {path.name for path in (installed[0] / "bin").iterdir()}
    assert commands == {f"passl-xcit-{command}" for command in WORK}


@pytest.mark.slow
@pytest.mark.parametrize("command", WORK)
def test_a_command_does_its_work_outside_the_checkout(command, run, installed, tmp_path):
    arguments, said, left = WORK[command]
    assert said in run(installed[0] / "bin" / f"passl-xcit-{command}", *arguments)
    assert left is None or (tmp_path / left).stat().st_size > 0
