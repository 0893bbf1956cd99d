"""MindSpore's checkpoints: the wire format of protobuf, its lies, and what MindSpore puts beside tensors."""

import struct
import zlib

import numpy as np
import pytest
from formula_arrays import formula
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from weight_file_checks import refusal_of, same

from passl_xcit.modeling.formats.mindspore_file import MAX_VALUES, read

NAME = "evil.ckpt"
MATRIX = formula([2, 3])
BYTES = MATRIX.tobytes()


def varint(number):
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def field(number, value):
    """A field of protobuf: an int as varint, bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(dims=(2, 3), kind=b"Float32", content=BYTES, packed=False):
    sizes = field(1, b"".join(map(varint, dims))) if packed else b"".join(field(1, size) for size in dims)
    return sizes + field(2, kind) + field(3, content)


def value(tag=b"w", message=None):
    return field(1, field(1, tag) + field(2, tensor() if message is None else message))


def with_checksum(messages):
    return messages + b"crc_num" + zlib.crc32(messages).to_bytes(10, "big")


SOUND = value()
SPLIT = [value(message=tensor(content=BYTES[start : start + 8])) for start in (0, 8, 16)]


def test_the_sound_file_that_the_others_differ_from_is_read():
    assert same(read(SOUND, NAME), {"w": MATRIX})
    assert same(read(with_checksum(SOUND), NAME), {"w": MATRIX})
    assert same(read(value(message=tensor(packed=True)), NAME), {"w": MATRIX})
    assert same(read(b"".join(SPLIT), NAME), {"w": MATRIX})


CUT, ENTRY = "is cut short", "has an entry without tag, type or content, or with two of them"
UNKNOWN, NO_ENTRY = "has a field that no checkpoint has in 'w'", "has something that is not an entry of a checkpoint"
SHAPE = "in 24 bytes"
FLOAT = tensor()
HOSTILE = {
    "a number of 2**70": (varint(2**70), "has a number that does not end"),
    "a length of 2**70": (b"\n" + varint(2**70), "has a number that does not end"),
    "a length of 2**63": (b"\n" + varint(2**63), CUT),
    "a tag of 4 GB": (field(1, b"\n" + varint(2**32)), CUT),
    "content of 2**40": (value(message=FLOAT[: -len(BYTES) - 1] + varint(2**40)), CUT),
    "a group": (b"\x0b", "has a number that does not end"),
    "wire type 3": (b"\x0b\0", "has a field of wire type 3"),
    "wire type 5": (value(message=b"\x0d" + bytes(4)), "has a field of wire type 5"),
    "wire type 1": (b"\x09" + bytes(8), "has a field of wire type 1"),
    "an entry that is a number": (field(1, 7), NO_ENTRY),
    "another field outside": (SOUND + field(4, b"x"), NO_ENTRY),
    "a tag that is a number": (field(1, field(1, 7) + field(2, FLOAT)), ENTRY),
    "a tensor that is a number": (field(1, field(1, b"w") + field(2, 7)), ENTRY),
    "no tag": (field(1, field(2, FLOAT)), ENTRY),
    "two tags": (field(1, field(1, b"w") * 2 + field(2, FLOAT)), ENTRY),
    "two tensors": (field(1, field(1, b"w") + field(2, FLOAT) * 2), ENTRY),
    "no tensor": (field(1, field(1, b"w")), ENTRY),
    "no type": (value(message=field(1, 6) + field(3, BYTES)), ENTRY),
    "no content": (value(message=field(1, 6) + field(2, b"Float32")), ENTRY),
    "content twice": (value(message=FLOAT + field(3, b"")), ENTRY),
    "content that is a number": (value(message=field(2, b"Float32") + field(3, 7)), ENTRY),
    "another field in an entry": (field(1, field(1, b"w") + field(2, FLOAT) + field(4, 1)), UNKNOWN),
    "another field in a tensor": (value(message=FLOAT + field(9, b"x")), UNKNOWN),
    "MapParameter": (field(1, field(1, b"w") + field(3, field(1, FLOAT) * 3)), "holds a MapParameter"),
    "more numbers than bytes": (value(message=tensor((3, 3))), SHAPE),
    "fewer numbers than bytes": (value(message=tensor((2, 2))), SHAPE),
    "a number of many bytes": (value(message=tensor(())), SHAPE),
    "size -1": (value(message=tensor((2**64 - 1, 3))), "2**40 numbers"),
    "2**62 x 2**62": (value(message=tensor((2**62, 2**62))), "2**40 numbers"),
    "huge beside zero": (value(message=tensor((0, 2**62), content=b"")), "2**40 numbers"),
    "nine axes": (value(message=tensor([1] * 9)), "as a shape of so many axes has"),
    "nine axes, packed": (value(message=tensor([1] * 9, packed=True)), "more than 8 axes"),
    "a million axes, packed": (value(message=tensor([1] * 1_000_000, packed=True)), "more than 8 axes"),
    "a million axes": (value(message=tensor([1] * 1_000_000)), "as a shape of so many axes has"),
    "a packed size cut": (value(message=field(1, b"\x80") + FLOAT[4:]), "has a number that does not end"),
    "unknown type": (value(message=tensor(kind=b"Float99")), "holds a tensor of type 'Float99'"),
    "four bits": (value(message=tensor(kind=b"Int4")), "holds a tensor of type 'Int4'"),
    "uint16": (value(message=tensor(kind=b"UInt16")), "holds a tensor of type 'UInt16'"),
    "a type in another language": (value(message=tensor(kind="\u00e9\n".encode())), "of type '\\xe9\\n'"),
    "a tag that is not UTF-8": (value(b"\xff"), "has a text that is not Unicode"),
    "a type that is not UTF-8": (value(message=tensor(kind=b"\xff")), "has a text that is not Unicode"),
    "text that is not Unicode": (value(message=tensor((0,), b"str", b"\xff" * 8)), "has a text that is not Unicode"),
    "text cut": (value(message=tensor((0,), b"str", b"abc")), "has a text that is not Unicode"),
    "one tag twice": (value() + value(b"v") + value(), "has 'w' twice"),
    "parts of two shapes": (SPLIT[0] + value(message=tensor((6,), content=bytes(16))), "has parts of different shapes"),
    "parts of two types": (SPLIT[0] + value(message=tensor(kind=b"Int32", content=bytes(16))), "shapes or types"),
    "a part missing": (SPLIT[0] + SPLIT[2], "in 16 bytes"),
    "a part too many": (b"".join(SPLIT) + SPLIT[0], "in 32 bytes"),
    "bool that is 2": (value(message=tensor((3,), b"Bool", b"\0\1\2")), "neither 0 nor 1"),
    "checksum": (with_checksum(SOUND)[:-1] + b"\0", "differs from its checksum"),
    "value under a checksum": (with_checksum(SOUND).replace(BYTES, bytes(24)), "differs from its checksum"),
    "checksum cut": (with_checksum(SOUND)[:-1], "has"),
    "20,001 entries": (value(message=tensor((0,), content=b"")) * (MAX_VALUES + 1), "has more than 20,000 entries"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused(case):
    data, reason = HOSTILE[case]
    assert reason in refusal_of(lambda: read(data, NAME), NAME)


@pytest.mark.parametrize("size", range(1, len(SOUND)))
def test_a_file_cut_inside_an_entry_is_refused(size):
    refusal_of(lambda: read(SOUND[:size], NAME), NAME)


def test_a_file_cut_between_two_entries_is_refused_if_it_has_a_checksum():
    two = value(b"a") + value(b"b")
    assert list(read(two[: len(two) // 2], NAME)) == ["a"]
    checked = with_checksum(two)
    refusal_of(lambda: read(checked[: len(two) // 2] + checked[len(two) :], NAME), NAME)


@pytest.mark.parametrize(
    ("dims", "kind", "content", "expected"),
    [
        ((0,), b"Int64", struct.pack("<q", 7), np.array(7)),
        ((), b"Float32", struct.pack("<f", 0.5), np.array(0.5, "f4")),
        ((1,), b"Float32", struct.pack("<f", 0.5), np.array([0.5], "f4")),
        ((0,), b"Float32", b"", np.zeros(0, "f4")),
        ((3,), b"BFloat16", np.array([0x3F80, 0x7FC1, 1], "u2").tobytes(), np.array([0x3F80, 0x7FC1, 1], "u4") << 16),
        ((0,), b"str", "h\u00e9llo \U0001f600".encode("utf-32-le"), "h\u00e9llo \U0001f600"),
        ((0,), b"str", bytes(4), ""),
    ],
    ids=["an old number", "a number", "one number", "no number", "bfloat16", "text", "no text"],
)
def test_numbers_and_text_beside_the_weights_are_read(dims, kind, content, expected):
    read_back = read(value(b"x", tensor(dims, kind, content)), NAME)["x"]
    assert same(read_back.view("u4") if kind == b"BFloat16" else read_back, expected)


KINDS = {"f4": "Float32", "f8": "Float64", "f2": "Float16", "i1": "Int8", "i2": "Int16", "i4": "Int32", "i8": "Int64"}
KINDS.update(u1="UInt8", u4="UInt32", u8="UInt64", b1="Bool")
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4) | st.just((300, 1))
ARRAYS = st.sampled_from(sorted(KINDS)).flatmap(lambda code: hnp.arrays(code, SHAPES))
TAGS = st.text(max_size=300)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(TAGS, ARRAYS, max_size=3), st.booleans(), st.booleans())
def test_every_shape_type_and_tag_is_read_back(tree, packed, checked):
    kinds = {tag: KINDS[array.dtype.str[1:]].encode() for tag, array in tree.items()}
    entries = [
        value(tag.encode(), tensor(array.shape, kinds[tag], array.tobytes(), packed)) for tag, array in tree.items()
    ]
    data = b"".join(entries)
    assert same(read(with_checksum(data) if checked else data, NAME), tree)
