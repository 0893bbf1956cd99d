"""safetensors files: what the library checks, and what is checked besides, is refused with one error."""

import json

import numpy as np
import pytest
from formula_arrays import formula
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save
from weight_file_checks import refusal_of, same

from passl_xcit.modeling.formats.safetensors_file import MAX_HEADER, read
from passl_xcit.modeling.state_dict import state_dict_of
from passl_xcit.utils.arrays import DTYPES
from passl_xcit.utils.errors import CheckpointError

NAME = "evil.safetensors"


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def file_of(header, data=bytes(8)):
    """A file of a header, given as text, bytes or what JSON makes of it."""
    text = header if isinstance(header, (str, bytes)) else json.dumps(header)
    raw = text.encode() if isinstance(text, str) else text
    return len(raw).to_bytes(8, "little") + raw + data


def twice(first, second):
    return f'{{"w":{json.dumps(first)},"w":{json.dumps(second)}}}'


def nothing(count):
    return "{" + ",".join(f'"{i:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(count)) + "}"


UNSOUND = "is not a sound safetensors file"
TWO = "has a tensor without a name, or two of one name"
HALVES = {"a": entry(shape=[1], offsets=[0, 4]), "b": entry(shape=[1], offsets=[4, 8])}
HOSTILE = {
    "tensors overlap": (file_of({**HALVES, "b": entry(offsets=[0, 8])}), UNSOUND),
    "same bytes twice": (file_of({"a": entry(), "b": entry()}), UNSOUND),
    "a hole": (file_of({"a": entry(shape=[1], offsets=[4, 8])}), UNSOUND),
    "offsets reversed": (file_of({"w": entry(offsets=[8, 0])}), UNSOUND),
    "beyond the end": (file_of({"w": entry()}, bytes(7)), UNSOUND),
    "bytes after the end": (file_of({"w": entry()}, bytes(9)), UNSOUND),
    "another shape": (file_of({"w": entry(shape=[3])}), UNSOUND),
    "2**40 x 2**40": (file_of({"w": entry(shape=[2**40, 2**40])}), UNSOUND),
    "negative size": (file_of({"w": entry(shape=[-2])}), UNSOUND),
    "size is a float": (file_of({"w": entry(shape=[2.0])}), UNSOUND),
    "header of 2**62": (b"\0" * 7 + b"\x40{}", "has a header of 4,611,686,018,427,387,904 bytes, more than 1,048,576"),
    "header of 100 MB": (file_of(b"{}" + b" " * (MAX_HEADER - 1)), "has a header of 1,048,577 bytes"),
    "header longer than the file": (b"\xff\0\0\0\0\0\0\0{}", UNSOUND),
    "not JSON": (file_of('{"w":'), UNSOUND),
    "not UTF-8": (file_of(b'{"\xff":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'), UNSOUND),
    "a lone surrogate": (file_of(b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'), UNSOUND),
    "a list": (file_of("[]"), UNSOUND),
    "a hundred thousand brackets": (file_of("[" * 100_000), UNSOUND),
    "an entry without shape": (file_of({"w": {"dtype": "F32", "data_offsets": [0, 8]}}), UNSOUND),
    "metadata not of text": (file_of({"__metadata__": {"a": 1}}, b""), UNSOUND),
    "a size of 5,000 digits": (file_of(json.dumps({"w": entry()}).replace("[2]", f'[{"9" * 5000}]')), UNSOUND),
    "unknown type": (file_of({"w": entry("F99")}), UNSOUND),
    "float8": (file_of({"w": entry("F8_E4M3", shape=[8])}), "F8_E4M3"),
    "float4": (file_of({"w": entry("F4", shape=[16])}), "F4"),
    "complex": (file_of({"w": entry("C64", shape=[1])}), "C64"),
    "uint16": (file_of({"w": entry("U16", shape=[4])}), "holds a tensor of type 'U16'"),
    "one name twice": (file_of(twice(entry(), entry(shape=[1, 2]))), TWO),
    "empty name": (file_of({"": entry()}), TWO),
    "nine axes": (file_of({"w": entry(shape=[2, *[1] * 8])}), "more than 8 axes"),
    "300,000 axes": (file_of({"w": entry(shape=[2, *[1] * 300_000])}), "more than 8 axes"),
    "huge beside zero": (file_of({"w": entry(shape=[0, 2**62], offsets=[0, 0])}, b""), "2**40 numbers"),
    "bool that is 2": (file_of({"w": entry("BOOL", shape=[8])}, bytes([0, 1, 2, 3, 4, 5, 6, 7])), "neither 0 nor 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused(case):
    data, reason = HOSTILE[case]
    message = refusal_of(lambda: read(data, NAME), NAME)
    # Older versions of the library do not know the newer types, and call them unsound.
    assert reason in message or (reason in ("F8_E4M3", "F4", "C64") and UNSOUND in message)


def test_the_longest_header_that_is_read_costs_little():
    assert len(read_within_bounds(file_of(nothing(17_000), b""))) == 17_000


def read_within_bounds(data):
    trees = []

    def read_and_refuse():
        trees.append(read(data, NAME))
        raise CheckpointError(f"{NAME}: read")

    refusal_of(read_and_refuse, NAME)
    return trees[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_numbers_are_refused_with_the_name_of_the_weight(value):
    data = save({"a": formula([3]), "w": np.array([1, value], "f4")})
    with pytest.raises(CheckpointError, match=f"^{NAME}: holds non-finite values in 'w'$"):
        state_dict_of(read(data, NAME), NAME)


def test_a_bfloat16_is_widened_exactly():
    bits = np.array([0x3F80, 0xC000, 0x7F80, 0x7FC1, 0x0001], "u2")
    tree = read(
        file_of({"w": entry("BF16", [5], [0, 10]), "n": entry("BF16", [], [10, 12])}, bits.tobytes() + b"\x80\x3f"),
        NAME,
    )
    assert same(tree["w"].view("u4"), bits.astype("u4") << 16) and same(tree["n"], np.array(1, "f4"))


def test_names_come_in_the_order_of_the_header_and_metadata_are_dropped():
    names = ["z", "a", "m", "__x__"]
    entries = {name: entry("U8", [1], [index, index + 1]) for index, name in enumerate(names)}
    tree = read(file_of({"__metadata__": {"format": "pt"}, **entries}, b"\0\1\2\3"), NAME)
    assert list(tree) == names and [int(value[0]) for value in tree.values()] == [0, 1, 2, 3]


def test_a_file_without_tensors_is_read():
    assert read(file_of("{}", b""), NAME) == {}


CODES = sorted(set(DTYPES) - {"u2"})
ARRAYS = st.sampled_from(CODES).flatmap(
    lambda code: hnp.arrays(code, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=8), ARRAYS, max_size=4))
def test_whatever_the_library_writes_is_read_the_same(tree):
    tree.pop("__metadata__", None)
    tree = {name: np.asarray(value, order="C") for name, value in tree.items()}
    loaded = read(save(tree), NAME)
    assert same({name: loaded[name] for name in tree}, tree) and len(loaded) == len(tree)
