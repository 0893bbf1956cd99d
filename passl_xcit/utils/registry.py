"""Registry, and every registry of the project on one page.

A registered constructor's signature *is* the schema of its config node: `check` compares a node with it
(names and types, nested nodes too) before anything is built, `build` makes the object.
"""

import difflib
import inspect
import re
from typing import get_type_hints

from passl_xcit.utils.errors import ConfigError
from passl_xcit.utils.typing_check import describe, fits


def nearest(word, known):
    """The end of an error message: the nearest known word, or all of them."""
    known = sorted(str(name) for name in known)
    close = difflib.get_close_matches(str(word), known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"


def join(path, key):
    """Dotted path of `key` below `path`."""
    return f"{path}.{key}" if path else str(key)


class Schema:
    """The arguments that a config node may give to a callable.

    Args:
        make: the class or function whose signature counts; it takes no **kwargs.
        nodes: {argument: Registry} for arguments that are config nodes (or lists of them) themselves.
        runtime: names of arguments that the builder gives and a config file may not.
        defaults: a preset's values, which a config node may replace.
    """

    def __init__(self, make, nodes=None, runtime=(), defaults=None):
        self.make, self.nodes, self.runtime = make, nodes or {}, tuple(runtime)
        self.defaults = defaults or {}
        self.parameters = inspect.signature(make).parameters
        self.hints = get_type_hints(make.__init__ if inspect.isclass(make) else make)
        self.known = [name for name in self.parameters if name not in self.runtime]

    def check(self, node, path, label):
        """Raise ConfigError if `node` (without its `name`) could not be passed to `make`."""
        for key, value in node.items():
            here = join(path, key)
            if key not in self.known:
                raise ConfigError(f"{label} takes no '{key}'{nearest(key, self.known)}", here)
            if self._is_node(key, value):
                self._check_child(key, value, here)
            elif key in self.hints and not fits(value, self.hints[key]):
                raise ConfigError(f"{label} expects {describe(self.hints[key])}, not {value!r}", here)
        self._check_complete(node, path, label)

    def _is_node(self, key, value):
        """Whether `value` is a node, or a list where the argument takes a list of nodes."""
        return key in self.nodes and isinstance(value, list if fits([], self.hints[key]) else dict)

    def _check_child(self, key, value, path):
        if isinstance(value, dict):
            self.nodes[key].check(value, path)
            return
        for index, item in enumerate(value):
            self.nodes[key].check(item, join(path, index))

    def _check_complete(self, node, path, label):
        for name, parameter in self.parameters.items():
            given = name in node or name in self.defaults or name in self.runtime
            if parameter.default is inspect.Parameter.empty and not given:
                raise ConfigError(f"{label} needs '{name}', which is not given", path)

    def build(self, node, path, runtime):
        """Call `make` with the node's values, nested nodes built first."""
        arguments = dict(self.defaults)
        for key, value in node.items():
            if self._is_node(key, value):
                value = self._build_child(key, value, join(path, key), runtime)
            arguments[key] = value
        arguments.update({key: runtime[key] for key in self.runtime if key in runtime})
        try:
            return self.make(**arguments)
        except ValueError as error:
            raise ConfigError(str(error), self._path_named_in(str(error), node, path)) from error

    def filled(self, node):
        """`node` with the defaults of what it leaves out, nested nodes too."""
        defaults = {name: self.parameters[name].default for name in self.known}
        given = {name: value for name, value in defaults.items() if value is not inspect.Parameter.empty}
        return {key: self._filled_value(key, value) for key, value in {**given, **self.defaults, **node}.items()}

    def _filled_value(self, key, value):
        if not self._is_node(key, value):
            return value
        kind = self.nodes[key]
        return kind.filled(value) if isinstance(value, dict) else [kind.filled(item) for item in value]

    def _path_named_in(self, message, node, path):
        """The path of the key of `node` that `message` names first, so that the right file is blamed; else `path`."""
        places = {key: re.search(rf"\b{re.escape(key)}\b", message) for key in node}
        named = [(match.start(), key) for key, match in places.items() if match]
        return join(path, min(named)[1]) if named else path

    def _build_child(self, key, value, path, runtime):
        if isinstance(value, dict):
            return self.nodes[key].build(value, path, **runtime)
        return [self.nodes[key].build(item, join(path, index), **runtime) for index, item in enumerate(value)]


class Section:
    """A config node without a `name`: its keys are the arguments of one callable."""

    def __init__(self, label, make, nodes=None, runtime=()):
        self.label, self.schema = label, Schema(make, nodes, runtime)

    def check(self, node, path):
        self.schema.check(node, path, self.label)

    def build(self, node, path, **runtime):
        return self.schema.build(node, path, runtime)

    def filled(self, node):
        return self.schema.filled(node) if isinstance(node, dict) else node


class Registry:
    """Name -> constructor, for one kind of config node; `kind` appears in messages only."""

    def __init__(self, kind, default=None):
        self.kind, self.default = kind, default
        self._schemas = {}

    def __contains__(self, name):
        return name in self._schemas

    def __iter__(self):
        return iter(self._schemas)

    def __getitem__(self, name):
        """The Schema registered under `name`; ConfigError with the nearest name when there is none."""
        if name not in self._schemas:
            raise ConfigError(f"no {self.kind} '{name}'{nearest(name, self)}")
        return self._schemas[name]

    def register(self, make, name=None, nodes=None, runtime=(), defaults=None):
        """Register `make` under `name` (its own name by default) and return it."""
        name = name or make.__name__
        if name in self._schemas:
            raise KeyError(f"{self.kind} '{name}' is registered twice")
        self._schemas[name] = Schema(make, nodes, runtime, defaults)
        return make

    def check(self, node, path):
        """Raise ConfigError, before anything is built, if `node` could not be built."""
        name, arguments = self._split(node, path)
        if name not in self:
            raise ConfigError(f"no {self.kind} '{name}'{nearest(name, self)}", join(path, "name"))
        self._schemas[name].check(arguments, path, name)

    def build(self, node, path="", **runtime):
        """Make the object that `node` describes; `runtime` reaches nested nodes too."""
        name, arguments = self._split(node, path)
        return self[name].build(arguments, path, runtime)

    def filled(self, node):
        """`node` with every default written out, its name first; what is no node of this registry comes back as is."""
        name = node.get("name", self.default) if isinstance(node, dict) else None
        if not isinstance(name, str) or name not in self:
            return node
        return {"name": name, **self._schemas[name].filled(node)}

    def _split(self, node, path):
        if not isinstance(node, dict):
            raise ConfigError(f"a {self.kind} is a mapping with a 'name', not {node!r}", path)
        name = node.get("name", self.default)
        if name is None:
            raise ConfigError(f"this {self.kind} has no 'name'{nearest('', self)}", path)
        if not isinstance(name, str):
            raise ConfigError(f"expected the name of a {self.kind}, not {name!r}", join(path, "name"))
        return name, {key: value for key, value in node.items() if key != "name"}


BACKBONES = Registry("backbone")
HEADS = Registry("head")
MODELS = Registry("model")
DATASETS = Registry("dataset")
SAMPLERS = Registry("sampler", default="DistributedBatchSampler")
TRANSFORMS = Registry("transform")
BATCH_TRANSFORMS = Registry("batch transform")
LR_SCHEDULERS = Registry("lr_scheduler")
OPTIMIZERS = Registry("optimizer")
HOOKS = Registry("hook")
