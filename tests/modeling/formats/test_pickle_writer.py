"""The pickle writer: what it writes, Python's own pickle and the reader read; what it cannot write is named."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from weight_file_checks import STORED, same

from passl_xcit.modeling.formats import pickle_writer
from passl_xcit.modeling.formats.paddle_pickle import dump, read
from passl_xcit.utils import pickle_machine

NAME = "weights.pdparams"


def dumped(tree):
    pieces = []
    dump(tree, lambda piece: pieces.append(bytes(piece)))
    return b"".join(pieces)


@settings(max_examples=150, deadline=None)
@given(STORED)
def test_whatever_is_written_python_and_the_reader_read_the_same(tree):
    data = dumped(tree)
    assert same(read(data, NAME), tree) and same(pickle.loads(data), tree)  # noqa: S301


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.float32(1), "a float32"),
        (b"x", "a bytes"),
        ({1}, "a set"),
        (1j, "a complex"),
        (len, "a builtin_function_or_method"),
        (np.ma.ones(2), "a MaskedArray"),
        (np.array([None]), "an array of type object"),
        (np.array(["x"]), "an array of type <U1"),
        (np.ones(2, "c8"), "an array of type complex64"),
        (np.ones(2, ">f4"), "an array of type >f4"),
        (np.ones(2, "u4"), "an array of type uint32"),
        (np.ones(2, "u8"), "an array of type uint64"),
    ],
)
def test_a_value_that_cannot_be_stored_is_named(value, kind):
    with pytest.raises(TypeError, match=f"^optimizer.groups.1.w: {kind} cannot be stored"):
        dumped({"optimizer": {"groups": [0, {"w": value}]}})


@pytest.mark.parametrize("key", [None, 1.0, True, (1,), b"x", 2**24])
def test_a_dict_key_that_could_not_be_read_is_named(key):
    with pytest.raises(TypeError, match="a dict key must be text or an integer below 16,777,216"):
        dumped({"a": {key: 1}})


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (2**3000, "a: an integer of more than 255 bytes"),
        ("\ud800", "is not text that UTF-8 can hold"),
        (np.zeros([1] * 9), "a: an array of more than 8 axes"),
        ([[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]], "nested deeper than 16"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(value, reason):
    with pytest.raises(ValueError, match=reason):
        dumped({"a": value})


def test_the_deepest_and_largest_values_that_are_written_are_read():
    tree = {"a": [[[[[[[[[[[[[[[1]]]]]]]]]]]]]]], "ints": [2 ** (8 * 254), -(2 ** (8 * 254))]}
    assert same(read(dumped(tree), NAME), tree)


@pytest.mark.parametrize(
    ("limit", "largest", "reason"),
    [
        ("MAX_OPCODES", [None] * 94 + [0.5], "more values than 100 pickle opcodes can hold"),
        ("MAX_VALUES", [None] * 99, "more values than the 100 that are read"),
    ],
)
def test_writer_and_reader_have_the_same_limits(limit, largest, reason, monkeypatch):
    for module in (pickle_machine, pickle_writer):
        monkeypatch.setattr(module, limit, 100)
    assert read(dumped(largest), NAME) == largest
    with pytest.raises(ValueError, match=reason):
        dumped([None, *largest])


def test_the_bytes_do_not_depend_on_what_is_shared():
    one = np.ones(3)
    assert dumped({"a": one, "b": one}) == dumped({"a": one, "b": one.copy()})
