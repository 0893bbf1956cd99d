"""torch's weight files, written without torch: `torch.load(path, weights_only=True)` reads them."""

import io
import struct
import zipfile
from math import prod

import numpy as np

from passl_xcit.modeling.formats.pickle_writer import PickleWriter
from passl_xcit.modeling.formats.torch_pickle import STORAGES
from passl_xcit.utils.arrays import code_of

_FOLDER = "archive"
_ALIGNMENT = 64
_STORAGE_OF = {code: f"{kind}Storage" for kind, code in STORAGES.items()}


def write(tree, file):
    """Write `tree` as `torch.save` does: a zip archive of uncompressed members, each at a multiple of 64 bytes.

    The bytes depend on the values only. An array that two names share is stored twice.

    Args:
        tree: dict (keys str or int), list, tuple, str, int, float, bool, None and numpy arrays of these.
        file: a binary file at its beginning.

    Raises: as `PickleWriter.whole`.
    """
    pickled = io.BytesIO()
    writer = _TorchPickleWriter(pickled.write)
    writer.whole(tree)
    with zipfile.ZipFile(file, "w") as archive:
        _add(archive, file, "data.pkl", pickled.getbuffer())
        _add(archive, file, "byteorder", b"little")
        for key, array in enumerate(writer.arrays):
            _add(archive, file, f"data/{key}", np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        _add(archive, file, "version", b"3\n")


def _add(archive, file, path, content):
    """Add a member whose content begins at a multiple of 64 bytes, by an extra field `FB` of the right length."""
    member = zipfile.ZipInfo(f"{_FOLDER}/{path}")
    member.create_system = 0
    padding = -(file.tell() + 30 + len(member.filename) + 4) % _ALIGNMENT
    member.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    archive.writestr(member, content)


class _TorchPickleWriter(PickleWriter):
    """A pickle of protocol 2 that refers to the arrays, and the list `arrays` of them."""

    protocol = b"\x02"

    def __init__(self, write):
        super().__init__(write)
        self.arrays = []

    def utf8(self, raw):
        self.put(b"X", struct.pack("<I", len(raw)) + raw)

    def array(self, value, path):
        """`_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`"""
        kind = _STORAGE_OF.get(code_of(value.dtype))
        if kind is None:
            raise TypeError(f"{path}: an array of type {value.dtype} cannot be stored; torch has no such tensor")
        self.global_("torch._utils", "_rebuild_tensor_v2")
        self.put(b"(")
        self.storage(kind, value.size)
        self.integer(0, path)
        self.tuple_of(value.shape)
        self.tuple_of(_strides(value.shape))
        self.put(b"\x89")
        self.global_("collections", "OrderedDict")
        self.put(b")")
        self.put(b"R")
        self.put(b"t")
        self.put(b"R")
        self.arrays.append(value)

    def storage(self, kind, numel):
        """The persistent id `("storage", type, key, "cpu", number of elements)`"""
        self.put(b"(")
        self.scalar("storage", "")
        self.global_("torch", kind)
        self.scalar(str(len(self.arrays)), "")
        self.scalar("cpu", "")
        self.integer(numel, "")
        self.put(b"t")
        self.put(b"Q")


def _strides(shape):
    """The steps, in elements, of a contiguous tensor."""
    return tuple(prod(size or 1 for size in shape[axis + 1 :]) for axis in range(len(shape)))
