"""MindSpore's checkpoints: Checkpoint{1: Value{1: tag, 2: TensorProto{1: dims, 2: type, 3: content}}} in protobuf.

Sources: mindspore/ccsrc/utils/checkpoint.proto; mindspore/train/serialization.py (`_exec_save`,
`_load_ckpt_into_param_dict`), MindSpore 2.10; the wire format: https://protobuf.dev/programming-guides/encoding/
"""

import itertools
import zlib

from passl_xcit.utils.arrays import BFLOAT16, MAX_DIMS, array_of_bytes
from passl_xcit.utils.refusals import damaged, short, unwanted

MAX_VALUES = 20_000
_CRC = b"crc_num"  # followed by the checksum of all before it in ten bytes; written with crc_check=True only
_TAG, _TENSOR, _MAP = 1, 2, 3
_DIMS, _TYPE, _CONTENT = 1, 2, 3
_VARINT, _BYTES = 0, 2
# Without UInt16: it would be taken for Paddle's bfloat16.
_TYPES = {
    "Bool": "b1",
    "Int8": "i1",
    "UInt8": "u1",
    "Int16": "i2",
    "Int32": "i4",
    "UInt32": "u4",
    "Int64": "i8",
    "UInt64": "u8",
    "Float16": "f2",
    "BFloat16": BFLOAT16,
    "Float32": "f4",
    "Float64": "f8",
}


def read(data, name):
    """{parameter name: array, or text}; bfloat16 becomes float32; numbers beside the weights are 0-d arrays.

    A file that was cut exactly between two of its tensors, and has no checksum, is a shorter sound file.

    Args:
        data: the bytes of the whole file.
        name: what error messages call it.

    Raises:
        CheckpointError: the file is damaged, or has a type that no weight has.
    """
    values, tree = _values(_checked(data, name), name), {}
    for tag, parts in itertools.groupby(values, key=lambda value: value[0]):
        if tag in tree:
            raise damaged(name, f"has {short(tag)} twice")
        tree[tag] = _joined(list(parts), name)
    return tree


def _checked(data, name):
    """The messages, without the checksum behind them."""
    start = len(data) - len(_CRC) - 10
    if data[max(start, 0) :][: len(_CRC)] != _CRC:
        return memoryview(data)
    messages = memoryview(data)[:start]
    if zlib.crc32(messages) != int.from_bytes(data[-10:], "big"):
        raise damaged(name, "differs from its checksum")
    return messages


def _joined(parts, name):
    """The value of a tag: a large tensor is split over several entries, each with the shape of the whole."""
    _, dims, kind, _ = parts[0]
    if any(part[1:3] != (dims, kind) for part in parts):
        raise damaged(name, f"has parts of different shapes or types for {short(parts[0][0])}")
    content = bytearray().join(part[3] for part in parts)
    if kind == "str":
        return _text(content, "utf-32-le", name).rstrip("\0")
    if kind not in _TYPES:
        raise unwanted(name, f"holds a tensor of type {short(kind)}")
    # Older versions write the shape (0,) for a number.
    return array_of_bytes(content, _TYPES[kind], () if dims == (0,) and content else dims, name)


def _values(messages, name):
    """(tag, dims, type, content) of each entry."""
    for count, (field, value) in enumerate(_fields(messages, name)):
        if field != 1 or type(value) is int:
            raise damaged(name, "has something that is not an entry of a checkpoint")
        if count == MAX_VALUES:
            raise unwanted(name, f"has more than {MAX_VALUES:,} entries")
        entry = _message(value, name)
        if _MAP in entry:
            raise unwanted(name, "holds a MapParameter")
        tag, tensor = _text(_only(entry, _TAG, name), "utf-8", name), _message(_only(entry, _TENSOR, name), name)
        dims = [
            size for part in tensor.pop(_DIMS, []) for size in ([part] if type(part) is int else _packed(part, name))
        ]
        kind, content = _text(_only(tensor, _TYPE, name), "utf-8", name), _only(tensor, _CONTENT, name)
        if entry or tensor:
            raise damaged(name, f"has a field that no checkpoint has in {short(tag)}")
        yield tag, tuple(dims), kind, content


def _message(raw, name):
    """{field number: [values]} of one message."""
    found = {}
    for field, value in _fields(raw, name):
        values = found.setdefault(field, [])
        values.append(value)
        if len(values) > MAX_DIMS:
            raise unwanted(name, f"has a field more than {MAX_DIMS} times in one entry, as a shape of so many axes has")
    return found


def _only(message, field, name):
    """Take the one value, bytes, of a field out of `message`."""
    values = message.pop(field, [])
    if len(values) != 1 or type(values[0]) is int:
        raise damaged(name, "has an entry without tag, type or content, or with two of them")
    return values[0]


def _fields(raw, name):
    """(field number, value) in a message; the value is an int or bytes."""
    position = 0
    while position < len(raw):
        key, position = _varint(raw, position, name)
        value, position = _varint(raw, position, name)
        if key & 7 == _BYTES:
            start, position = position, position + value
            if position > len(raw):
                raise damaged(name, f"is cut short: {value} bytes wanted, {len(raw) - start} left")
            value = raw[start:position]
        elif key & 7 != _VARINT:
            raise damaged(name, f"has a field of wire type {key & 7}")
        yield key >> 3, value


def _packed(raw, name):
    """The numbers of a repeated field in one piece; of more than a shape may have only the first."""
    numbers, position = [], 0
    while position < len(raw) and len(numbers) <= MAX_DIMS:
        number, position = _varint(raw, position, name)
        numbers.append(number)
    return numbers


def _varint(raw, position, name):
    """(number, position behind it): seven bits in a byte, the lowest first."""
    number = 0
    for shift, byte in enumerate(raw[position : position + 10]):
        number |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return number, position + shift + 1
    raise damaged(name, "has a number that does not end")


def _text(raw, codec, name):
    try:
        return str(raw, codec)
    except UnicodeDecodeError:
        raise damaged(name, "has a text that is not Unicode") from None
