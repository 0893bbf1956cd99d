"""docs/deploy.md, run from top to bottom: its commands, its Python, and its snippets without this package."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from documented import ROOT, commands_of
from photographs import photo

from passl_xcit.datasets.imagenet import open_image
from passl_xcit.engine.predictor import Predictor
from passl_xcit.engine.runtimes import EAGER, ENGINES, PRECISIONS

pytestmark = pytest.mark.slow
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
WEIGHTS = ROOT / "weights" / "xcit_demo_p4_fashion_mnist.pdparams"
PICTURE = "docs/images/clothes/bag.png"
TELL = "\nprint(json.dumps([images.tolist(), logits[0].tolist()]))"


def run(folder, *arguments):
    options = {"cwd": folder, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "timeout": 300}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the page's commands have been run."""
    folder = tmp_path_factory.mktemp("page")
    for name in ("docs", "weights", "tools"):
        (folder / name).symlink_to(ROOT / name)
    photo(size=(91, 60)).save(folder / "wide.png")
    commands = [command for command in commands_of(PAGE) if "CONFIG.yaml" not in command.arguments]
    assert [command.tool for command in commands][:3] == ["export", "predict", "predict"]
    outputs = [run(folder, f"tools/{command.tool}.py", *command.arguments) for command in commands[:3]]
    assert "onnxruntime: differs from the model by" in outputs[0]
    assert "Ankle boot" in outputs[1] and len(json.loads(outputs[2])) == 4
    return folder


@pytest.mark.parametrize("picture", [PICTURE, "wide.png"])
@pytest.mark.parametrize("engine", SNIPPETS[1:3], ids=["paddle_inference", "onnxruntime"])
def test_the_snippets_predict_what_the_predictor_predicts(engine, picture, folder):
    """In a process that cannot import this package."""
    guard = "import sys\nsys.modules['passl_xcit'] = None\n"
    (folder / "snippet.py").write_text(guard + SNIPPETS[0].replace(PICTURE, picture) + engine + TELL, encoding="utf-8")
    *_, name, told = run(folder, "snippet.py").splitlines()
    images, logits = json.loads(told)
    predictor = Predictor(WEIGHTS)
    expected = predictor.preprocess(open_image(str(folder / picture)))[None]
    assert np.array_equal(np.float32(images), expected)
    np.testing.assert_allclose(logits, predictor.logits(expected)[0], atol=1e-4)
    assert name == predictor(str(folder / picture))[0].top[0].name


def test_the_command_that_measured_names_all_engines():
    named = re.search(r"--engines (\S+) .*--output docs/benchmarks/engines.json", PAGE)[1].split(",")
    assert named == ["portable", "eager", *ENGINES]


def test_the_pages_table_has_the_engines_there_are():
    rows = re.findall(r"^\| `(\w+)`[^|]*\|[^|]*\| (float32[\w, ]*) \|", PAGE, re.MULTILINE)
    found = {name: tuple(precisions.strip().split(", ")) for name, precisions in rows}
    assert found == {EAGER: PRECISIONS, **{name: kind.PRECISIONS for name, kind in ENGINES.items()}}
