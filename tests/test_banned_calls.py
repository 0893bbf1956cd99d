"""Nothing in the package or the tools runs code that a file, a config or a user's text could bring in."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("passl_xcit", "tools") for path in (ROOT / folder).rglob("*.py"))

BANNED = {
    "builtins.compile",
    "builtins.eval",
    "builtins.exec",
    "mindspore.load",
    "mindspore.load_checkpoint",
    "numpy.lib.format.read_array",
    "os.popen",
    "os.system",
    "paddle.framework.io.load",
    "paddle.framework.load",
    "paddle.load",
    "paddle.static.load_program_state",
    "pandas.read_pickle",
    "shutil.unpack_archive",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "torch.hub.load",
    "torch.jit.load",
    "torch.load",
    "yaml.full_load",
    "yaml.full_load_all",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
}
# Whatever is imported of these, and by whatever name: their readers run what they read.
BANNED_MODULES = {"_pickle", "cloudpickle", "copyreg", "dill", "joblib", "marshal", "pickle", "shelve"}
IMPORTERS = {"importlib.import_module", "builtins.__import__"}
YAML_LOADS = {"yaml.load", "yaml.load_all"}
SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader"}


class Source:
    """One file: what its names stand for, in dotted form from the imports."""

    def __init__(self, text, module=""):
        self.tree, self.module = ast.parse(text), module
        self.names = {name: f"builtins.{name}" for name in ("__import__", "compile", "eval", "exec")}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    first = alias.name.split(".")[0]
                    self.names[alias.asname or first] = alias.name if alias.asname else first
            elif isinstance(node, ast.ImportFrom):
                self.names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})

    def dotted(self, node):
        """`np.load` as "numpy.load"; None for what does not start at an import, a builtin or a class of this file."""
        if isinstance(node, ast.Attribute):
            start = self.dotted(node.value)
            return start and f"{start}.{node.attr}"
        return self.names.get(node.id) if isinstance(node, ast.Name) else None

    def own_safe_loaders(self):
        """Full names of the classes here that are subclasses of PyYAML's SafeLoader."""
        found = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ClassDef) and {self.dotted(base) for base in node.bases} & SAFE_LOADERS:
                self.names[node.name] = f"{self.module}.{node.name}"
                found.add(self.names[node.name])
        return found


def banned_calls(source, safe_loaders):
    """[(line, what)] of everything in `source` that may run what it reads, whether called there or passed on."""
    called = {id(node.func): node for node in ast.walk(source.tree) if isinstance(node, ast.Call)}
    found = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            found.append((node.lineno, f"from {node.module} import *"))
        found += [(node.lineno, f"import {name}") for name in modules_of(node, source) if is_banned_module(name)]
        if isinstance(node, ast.Attribute) and node.attr == "extractall":
            found.append((node.lineno, "extractall"))
        name = source.dotted(node) if isinstance(node, (ast.Name, ast.Attribute)) else None
        if name and is_banned(name, called.get(id(node)), source, safe_loaders):
            found.append((node.lineno, name))
    return found


def modules_of(node, source):
    """The modules that a statement or a call imports, as far as they are named by a literal."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    if isinstance(node, ast.Call) and source.dotted(node.func) in IMPORTERS:
        return [item.value for item in node.args[:1] if isinstance(item, ast.Constant)]
    return []


def is_banned_module(name):
    return name.split(".")[0] in BANNED_MODULES


def is_banned(name, call, source, safe_loaders):
    module = name.rpartition(".")[0]
    if name in BANNED:
        return True
    if name == "numpy.load":
        return constant(call, "allow_pickle") is not False
    if name in YAML_LOADS:
        return call is None or source.dotted(loader_of(call)) not in safe_loaders
    if module == "subprocess" and call is not None:
        return constant(call, "shell", default=False) is not False
    return False


def constant(call, keyword, default=None):
    """The literal value of a call's keyword argument; `default` without it, None where it is not a literal."""
    values = [item.value for item in call.keywords if item.arg == keyword] if call else []
    return getattr(values[0], "value", None) if values else default


def loader_of(call):
    named = [item.value for item in call.keywords if item.arg == "Loader"]
    return (named or call.args[1:2] or [None])[0]


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_the_package_and_the_tools_are_free_of_banned_calls():
    sources = {path: Source(path.read_text(encoding="utf-8"), module_name(path)) for path in SOURCES}
    safe_loaders = set().union(*[source.own_safe_loaders() for source in sources.values()])
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path, source in sources.items()
        for line, what in banned_calls(source, safe_loaders)
    ]
    assert not found, "\n".join(found)
    assert len(sources) > 10


def found_in(text):
    source = Source(text, "sample")
    return [what for _, what in banned_calls(source, source.own_safe_loaders())]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("import pickle\npickle.load(file)", "import pickle"),
        ("import pickle", "import pickle"),
        ("import pickle as p\np.loads(data)", "import pickle"),
        ("from pickle import loads as read\nread(data)", "import pickle"),
        ("from pickle import HIGHEST_PROTOCOL", "import pickle"),
        ("def f():\n    import json, pickle", "import pickle"),
        ("try:\n    import _pickle as fast\nexcept ImportError:\n    fast = None", "import _pickle"),
        ("import dill\ndill.load(file)", "import dill"),
        ("from joblib import load\nload(path)", "import joblib"),
        ("import joblib.numpy_pickle", "import joblib.numpy_pickle"),
        ("import marshal, shelve", "import marshal"),
        ("import importlib\nimportlib.import_module('pickle').load(file)", "import pickle"),
        ("from importlib import import_module\nimport_module('cloudpickle')", "import cloudpickle"),
        ("__import__('pickle').load(file)", "import pickle"),
        ("import zipfile\nzipfile.ZipFile(path).extractall(folder)", "extractall"),
        ("import shutil\nshutil.unpack_archive(path, folder)", "shutil.unpack_archive"),
        ("import torch\ntorch.jit.load(path)", "torch.jit.load"),
        ("import mindspore as ms\nms.load_checkpoint(path)", "mindspore.load_checkpoint"),
        ("exec(compile(text, path, 'exec'))", "builtins.exec"),
        ("import pandas\npandas.read_pickle(path)", "pandas.read_pickle"),
        ("import paddle\npaddle.load(path)", "paddle.load"),
        ("from paddle import load\nload(path)", "paddle.load"),
        ("def f():\n    import paddle as P\n    return P.load(path)", "paddle.load"),
        ("import torch\ntorch.load(path, weights_only=True)", "torch.load"),
        ("import numpy as np\nnp.load(path, allow_pickle=True)", "numpy.load"),
        ("import numpy as np\nnp.load(path, allow_pickle=flag)", "numpy.load"),
        ("import numpy\nnumpy.load(path)", "numpy.load"),
        ("import numpy\nread = numpy.load", "numpy.load"),
        ("eval(text)", "builtins.eval"),
        ("import builtins\nbuiltins.eval(text)", "builtins.eval"),
        ("exec(text)", "builtins.exec"),
        ("list(map(eval, texts))", "builtins.eval"),
        ("import yaml\nyaml.load(text)", "yaml.load"),
        ("import yaml\nyaml.load(text, yaml.FullLoader)", "yaml.load"),
        ("import yaml\nyaml.load(text, Loader=yaml.SafeLoader)", "yaml.load"),
        ("import yaml\nclass Bad(yaml.Loader): pass\nyaml.load(text, Bad)", "yaml.load"),
        ("from yaml import load_all\nload_all(text, Loader=L)", "yaml.load_all"),
        ("import yaml\nyaml.unsafe_load(text)", "yaml.unsafe_load"),
        ("import os\nos.system('ls')", "os.system"),
        ("from os import system\nsystem('ls')", "os.system"),
        ("import os\nos.popen('ls')", "os.popen"),
        ("import subprocess\nsubprocess.run('ls', shell=True)", "subprocess.run"),
        ("from subprocess import Popen\nPopen('ls', shell=flag)", "subprocess.Popen"),
        ("import subprocess\nsubprocess.getoutput('ls')", "subprocess.getoutput"),
        ("from paddle import *", "from paddle import *"),
    ],
)
def test_the_walker_finds(text, what):
    assert what in found_in(text)


@pytest.mark.parametrize(
    "text",
    [
        "model.eval()",
        "import paddle\npaddle.save(tree, path)",
        "import importlib\nimportlib.import_module(f'passl_xcit.{name}')",
        "import pickletools, zipfile\nzipfile.ZipFile(path).infolist()",
        "import re\nre.compile(text)",
        "backbone.extract(images, stage)",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import yaml\nyaml.safe_load(text)",
        "import yaml\nclass Ours(yaml.SafeLoader): pass\nyaml.load(text, Ours)",
        "from yaml import SafeLoader, load\nclass Ours(SafeLoader): pass\nload(text, Loader=Ours)",
        "import subprocess\nsubprocess.run(['ls'])\nsubprocess.run(['ls'], shell=False)",
        "from passl_xcit.modeling.formats.paddle_pickle import read\nread(data, name)",
        "from passl_xcit.utils import pickle_machine",
        "text = 'pickle.load(file)'  # eval(text)",
    ],
)
def test_the_walker_leaves_alone(text):
    assert found_in(text) == []
