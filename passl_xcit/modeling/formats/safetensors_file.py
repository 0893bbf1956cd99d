"""The safetensors format, by its own library, which checks offsets, sizes and the whole header."""

import json

import numpy as np
import safetensors
import safetensors.numpy

from passl_xcit.utils.arrays import BFLOAT16, array_of_bytes, code_of
from passl_xcit.utils.refusals import damaged, short, unwanted

# The library allows headers of 100 MB, which make objects of a gigabyte; 1 MB describes 10,000 tensors.
MAX_HEADER = 2**20
# Without U16: it would be taken for Paddle's bfloat16.
_TYPES = {
    "BOOL": "b1",
    "U8": "u1",
    "I8": "i1",
    "I16": "i2",
    "I32": "i4",
    "U32": "u4",
    "I64": "i8",
    "U64": "u8",
    "F16": "f2",
    "BF16": BFLOAT16,
    "F32": "f4",
    "F64": "f8",
}


def read(data, name):
    """{name: array} in the order of the header; bfloat16 becomes float32; the metadata are not read.

    Args:
        data: the bytes of the whole file.
        name: what error messages call it.

    Raises:
        CheckpointError: the file is damaged, or has a type or a number of axes that no weight has.
    """
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER:
        raise unwanted(name, f"has a header of {size:,} bytes, more than {MAX_HEADER:,}")
    try:
        entries = dict(safetensors.deserialize(data))
        header = json.loads(data[8 : 8 + size], object_pairs_hook=list)
    except (safetensors.SafetensorError, ValueError) as error:
        raise damaged(name, f"is not a sound safetensors file: {short(str(error))}") from None
    names = [key for key, _ in header if key != "__metadata__"]
    if len(set(names)) != len(names) or "" in names:
        raise damaged(name, "has a tensor without a name, or two of one name")
    return {key: _array(entries[key], name) for key in names}


def _array(entry, name):
    if entry["dtype"] not in _TYPES:
        raise unwanted(name, f"holds a tensor of type {short(entry['dtype'])}")
    return array_of_bytes(entry["data"], _TYPES[entry["dtype"]], tuple(entry["shape"]), name)


def write(arrays, file, metadata):
    """Write {name: array} to a binary file; the bytes depend on the values only.

    Raises:
        TypeError: an array of a type that the format, or this reader, has not.
    """
    for key, array in arrays.items():
        if type(key) is not str or type(array) is not np.ndarray or code_of(array.dtype) not in _TYPES.values():
            raise TypeError(f"{key}: only arrays of numbers under names can be stored in a safetensors file")
    contiguous = {key: np.asarray(array, order="C") for key, array in arrays.items()}
    file.write(safetensors.numpy.save(contiguous, metadata))
