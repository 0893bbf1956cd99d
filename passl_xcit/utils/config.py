"""YAML -> config: `_base_` inheritance, `-o` overrides, strict reading; nothing of a file is ever evaluated."""

import contextlib
import copy
import difflib
import json
import math
import os
import re
import reprlib
import stat
from typing import Any, NamedTuple

import yaml

from passl_xcit.utils.errors import ConfigError
from passl_xcit.utils.registry import join
from passl_xcit.utils.shipped import ROOT, shipped

MAX_BYTES = 1_000_000
MAX_ITEMS = 100_000  # a few aliases can stand for billions of items
MAX_DEPTH = 50


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, and reads 5e-4 as a number and None as null.

    YAML 1.1 calls both text, but PASSL does not, and both stand in the config that a log prints.
    """

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            self._check_key(key, seen)
            seen.add(key.value)
        return node

    def _check_key(self, key, seen):
        if key.tag == "tag:yaml.org,2002:merge":  # a chain of merges can stand for billions of keys
            problem = "'<<' is not read: use _base_"
        elif not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            problem = "a key is not text: quote it"
        elif key.value in seen:
            problem = f"'{key.value}' is given twice"
        else:
            return
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes shared values out, and quotes text that `_Loader` would take for a number or null."""

    def ignore_aliases(self, data):
        return True

    def represent_str(self, text):
        folded = set(text) & set("\x85\u2028\u2029")  # line ends of YAML 1.1, which PyYAML loses outside of "..."
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if folded else None)


_Dumper.add_representer(str, _Dumper.represent_str)
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )
    _class.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("None$"), ["N"])


class Override(NamedTuple):
    """A value from the command line for the dotted `path`; `option` is what messages call it."""

    path: str
    value: Any
    option: str


class Config:
    """A resolved config, read only: what one reads out of it is a copy.

    Args:
        data: nested plain dicts, lists and scalars.
        origins: {dotted path: file or option it came from}.
    """

    def __init__(self, data, origins):
        self._data, self._origins = data, origins

    def __getitem__(self, key):
        return copy.deepcopy(self._data[key])

    def __contains__(self, key):
        return key in self._data

    def get(self, key, default=None):
        return copy.deepcopy(self._data.get(key, default))

    def to_dict(self):
        return copy.deepcopy(self._data)

    def with_values(self, **values):
        """The same config with these top-level values at its end."""
        kept = {key: value for key, value in self.to_dict().items() if key not in values}
        return Config({**kept, **values}, self._origins)

    def overridden(self, overrides):
        """The same config with `overrides`, a list of Override, applied."""
        data, origins = self.to_dict(), dict(self._origins)
        for override in overrides:
            _apply(override, data, origins)
        return Config(data, origins)

    def where(self, path):
        """The file or option that the value at the dotted `path` came from."""
        keys = path.split(".")
        for length in range(len(keys), -1, -1):
            origin = self._origins.get(".".join(keys[:length]))
            if origin:
                return origin
        return ""

    @contextlib.contextmanager
    def errors_name_files(self):
        """Inside, a ConfigError that knows its dotted path also says which file the path stands in."""
        try:
            yield
        except ConfigError as error:
            origin = self.where(error.path)
            if not origin or error.located:
                raise
            located = ConfigError(f"{origin}: {error}")
            located.located = True
            raise located from error

    def __repr__(self):
        return repr(self._data)


def load_config(path, overrides=()):
    """Read the YAML file `path` with its `_base_` files, then apply `overrides`, a list of Override.

    A path that begins with `configs/` and is not there is that of a config of this project (`utils/shipped.py`).

    Raises:
        ConfigError: with file, and line or dotted path, for anything that is not a mapping of plain finite values.
    """
    return Config(*_read_with_bases(shipped(path), ())).overridden(overrides)


def dump_config(data):
    """The tree `data` of a Config as YAML, which `load_config` reads back as the same tree."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def parse_override(text):
    """`a.b.0.c=value` -> Override; the value is YAML: `1e-3`, `[1, 2]`, `{name: x}`."""
    option = f"-o {text}"
    path, equals, value_text = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"{option}: expected KEY=VALUE, such as -o epochs=10")
    try:
        value = _parse(value_text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{option}: the value cannot be read: {_problem(error)}") from error
    return Override(path, value, option)


def _read_with_bases(path, chain):
    place = os.path.abspath(path)  # Path.resolve() raises on a link that leads to itself
    if place in chain:
        raise ConfigError(f"{path}: _base_ leads back to this file")
    data = _read_yaml(path)
    bases = data.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: _base_ is a path or a list of paths, not {bases!r}")
    merged, origins = {}, {"": str(path)}
    for base in bases:
        base_data, base_origins = _read_with_bases(shipped(base, path.parent), (*chain, place))
        merged = _merge(merged, base_data, origins, base_origins, "")
    own_origins = {dotted: str(path) for dotted in _paths(data, "")}
    return _merge(merged, data, origins, own_origins, ""), origins


def _read_yaml(path):
    try:
        info = path.stat()
        if stat.S_ISFIFO(info.st_mode) or stat.S_ISCHR(info.st_mode):  # reading it might never end
            raise ConfigError(f"{path}: the config cannot be read: it is a pipe or a device, not a file")
        if info.st_size > MAX_BYTES:
            raise ConfigError(f"{path}: a config has at most {MAX_BYTES:,} bytes; is this a YAML file?")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: bytes that are not UTF-8, or a NUL in the path
        reason = getattr(error, "strerror", None) or "not a text file"
        hint = _nearest_config(path) if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"{path}: the config cannot be read: {reason}{hint}") from error
    try:
        data = _parse(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}{_line_of(error)}: {_problem(error)}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys to values, not {type(data).__name__}")
    return data


def _nearest_config(path):
    """The end of an error message: the config that is called most like `path`, in its folder or in those of that.

    A folder that is not there counts as the one of that name in this project.
    """
    folder = path.parent if path.parent.is_dir() else ROOT / path.parent
    found = (other for pattern in ("*/*.yaml", "*.yaml") for other in folder.glob(pattern))
    others = {other.stem: other for other in found if other.is_file()}
    close = difflib.get_close_matches(path.stem, others, n=1)
    return f"; did you mean {others[close[0]]}?" if close else ""


def _parse(text):
    """What the YAML `text` stands for; raises YAMLError or ValueError unless it is plain (see `_check_plain`).

    An alias becomes a copy, so that an override changes one place only.
    """
    try:
        value = yaml.load(text, _Loader)  # noqa: S506 (it is a SafeLoader)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except (AttributeError, LookupError) as error:  # PyYAML's own, for a tag such as !!bool before a wrong value
        raise ValueError("a value does not fit the tag before it") from error
    _check_plain(value)
    return json.loads(json.dumps(value))


def _line_of(error):
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}" if mark else ""


def _problem(error):
    return getattr(error, "problem", None) or str(error).splitlines()[0]


def _check_plain(value):
    """Raise ValueError unless `value` is a tree of bounded size whose leaves are text, finite numbers or null."""
    stack, items = [(value, 0)], 0
    while stack:
        item, depth = stack.pop()
        items += 1
        if items > MAX_ITEMS or depth > MAX_DEPTH:
            raise ValueError("too large: aliases that repeat themselves, or too deep")
        if isinstance(item, dict):
            stack += [(child, depth + 1) for child in item.values()]
        elif isinstance(item, list):
            stack += [(child, depth + 1) for child in item]
        elif not isinstance(item, (str, int, float, type(None))):
            raise ValueError(f"{reprlib.repr(item)} is neither text nor a number (quote it to make it text)")
        elif isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"{item} is not a finite number")


def _paths(value, path):
    """Dotted paths of everything in `value`."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield join(path, key)
        yield from _paths(child, join(path, key))


def _merge(base, child, origins, child_origins, path):
    """`child` over `base`: mappings merge key by key, unless their `name` differs; all else is replaced whole."""
    same_kind = isinstance(base, dict) and isinstance(child, dict)
    if not same_kind or child.get("name", base.get("name")) != base.get("name"):
        origins.update({key: origin for key, origin in child_origins.items() if f"{key}.".startswith(f"{path}.")})
        return child
    merged = dict(base)
    for key, value in child.items():
        merged[key] = _merge(base.get(key), value, origins, child_origins, join(path, key))
    return merged


def _apply(override, data, origins):
    *parents, last = override.path.split(".")
    node = data
    for depth, key in enumerate(parents):
        path = ".".join(parents[:depth])
        node = _step_into(node, key, override.option, path)
        origins.setdefault(join(path, key), override.option)
    if isinstance(node, list):
        last = _index(node, last, override.option)
    node[last] = copy.deepcopy(override.value)
    for replaced in [path for path in origins if path.startswith(f"{override.path}.")]:
        del origins[replaced]
    origins[override.path] = override.option


def _step_into(node, key, option, path):
    if isinstance(node, list):
        return node[_index(node, key, option)]
    child = node.setdefault(key, {})
    if not isinstance(child, (dict, list)):
        raise ConfigError(f"{option}: {join(path, key)} is {child!r}, which has nothing below it")
    return child


def _index(node, key, option):
    if not key.isdecimal() or int(key) >= len(node):
        raise ConfigError(f"{option}: '{key}' is no place in a list of {len(node)} (counted from 0)")
    return int(key)
