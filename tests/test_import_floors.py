"""Imports only go down: the floors of the package, read from the source text."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "passl_xcit"
FLOOR = {
    "utils": 0,
    "ops": 1,
    "losses": 1,
    "metrics": 1,
    "modeling": 2,
    "datasets": 2,
    "solver": 2,
    "hooks": 2,
    "engine": 3,
    "__init__": 4,
}
REGISTERING = ("passl_xcit.engine.builder", "passl_xcit.modeling.factory")  # may import a whole folder


def modules():
    """{dotted name: source text} of the package's files; `passl_xcit.__init__` for the file of that name."""
    paths = sorted((ROOT / PACKAGE).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text("utf-8") for path in paths}


def imports_of(text):
    """(line, module, name or None) of every import, wherever it stands in the file."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, module, alias.name) for alias in node.names)


def target_of(module, name):
    """The dotted file or folder that an import means: `from package import file` means the file."""
    path = ROOT.joinpath(*module.split("."), str(name))
    return f"{module}.{name}" if path.is_dir() or path.with_suffix(".py").is_file() else module


def room_of(module):
    return (module.split(".") + ["__init__"])[1]


def why_forbidden(importer, module, name):
    """What is wrong with an import in the file `importer`; None if nothing is."""
    first = module.split(".")[0]
    if first in ("", "tools", "tests"):
        return f"imports '{module}'"
    if first != PACKAGE:
        return None
    target = target_of(module, name)
    if ROOT.joinpath(*target.split(".")).is_dir() and importer not in REGISTERING:
        return f"imports the folder {target}, not a file"
    here, there = room_of(importer), room_of(target)
    if here != there and FLOOR[there] >= FLOOR[here]:
        return f"{here} imports {there}"
    return None


def violations(importer, text):
    found = [(line, why_forbidden(importer, module, name)) for line, module, name in imports_of(text)]
    return [f"{importer}:{line} {why}" for line, why in found if why]


def test_imports_only_go_down():
    found = [violation for name, text in modules().items() for violation in violations(name, text)]
    assert not found, "\n".join(found)
    assert len(modules()) > 30


def test_every_room_has_a_floor():
    assert {room_of(name) for name in modules()} <= FLOOR.keys()


def test_no_two_files_import_each_other_even_by_way_of_others():
    graph = {
        importer: {target_of(module, name) for _, module, name in imports_of(text) if module.startswith(PACKAGE)}
        for importer, text in modules().items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError
    assert "passl_xcit.engine.trainer" in graph["passl_xcit.engine.builder"]


@pytest.mark.parametrize(
    ("importer", "line", "why"),
    [
        ("utils.config", "import passl_xcit.engine.builder", "utils imports engine"),
        ("losses", "from passl_xcit.metrics import accuracy", "losses imports metrics"),
        ("modeling.heads", "from passl_xcit.datasets.dataset import ImageDataset", "modeling imports datasets"),
        ("datasets.dataset", "from passl_xcit.modeling import heads", "datasets imports modeling"),
        ("hooks.hook", "def f():\n    from passl_xcit.engine.trainer import Trainer", "hooks imports engine"),
        ("hooks.hook", "from passl_xcit.solver import optimizer as o", "hooks imports solver"),
        ("engine.trainer", "from passl_xcit import Trainer", "imports the folder passl_xcit, not a file"),
        ("modeling.heads", "from passl_xcit.utils import get", "imports the folder passl_xcit.utils, not a file"),
        ("modeling.heads", "import passl_xcit.utils", "imports the folder passl_xcit.utils, not a file"),
        (
            "engine.export",
            "from passl_xcit.modeling import backbones",
            "imports the folder passl_xcit.modeling.backbones, not a file",
        ),
        ("engine.trainer", "from tools.train import main", "imports 'tools.train'"),
        ("engine.trainer", "import tests.reference_xcit", "imports 'tests.reference_xcit'"),
        ("engine.trainer", "from . import builder", "imports '.'"),
    ],
)
def test_the_walker_finds(importer, line, why):
    importer = f"passl_xcit.{importer}"
    assert violations(importer, line) == [f"{importer}:{line.count(chr(10)) + 1} {why}"]


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("modeling.heads", "from passl_xcit.losses import cross_entropy"),
        ("modeling.heads", "from passl_xcit.modeling.layers import Mlp"),
        ("engine.launch", "from passl_xcit.utils import dist"),
        ("engine.launch", "from passl_xcit.engine import builder"),
        ("engine.builder", "from passl_xcit.modeling import backbones"),
        ("modeling.factory", "from passl_xcit.modeling import backbones"),
        ("__init__", "from passl_xcit.engine.trainer import Trainer"),
        ("utils.config", "import yaml, testsuite\nfrom toolsmith import x"),
    ],
)
def test_the_walker_leaves_alone(importer, line):
    assert violations(f"passl_xcit.{importer}", line) == []
