"""Whether a value read from YAML fits a constructor's type hint."""

import collections.abc
from typing import Any, Union, get_args, get_origin

_SEQUENCES = (list, tuple, collections.abc.Sequence)


def fits(value, hint):
    """True if `value` could be passed to an argument annotated `hint`.

    A float argument takes an int; nothing but a bool takes a bool; a Sequence takes a list or a tuple.
    """
    if hint is Any:
        return True
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Union:
        return any(fits(value, choice) for choice in arguments)
    if origin in _SEQUENCES:
        return isinstance(value, (list, tuple)) and all(fits(item, arguments[0]) for item in value)
    if origin is dict or hint is dict:
        return isinstance(value, dict)
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, (int, float))
    return isinstance(value, hint)


def describe(hint):
    """`hint` in words for an error message: 'number or a list of number'.

    A class of objects is described as what stands for them in a file: the mapping of a config node.
    """
    if get_origin(hint) is Union:
        return " or ".join(describe(choice) for choice in get_args(hint))
    if get_origin(hint) in _SEQUENCES:
        return f"a list of {describe(get_args(hint)[0])}"
    names = {int: "int", float: "number", str: "text", bool: "true/false", dict: "mapping", type(None): "null"}
    return names.get(hint, "mapping")
