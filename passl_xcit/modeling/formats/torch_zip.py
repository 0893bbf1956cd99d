"""torch's weight files since torch 1.6: a zip archive of uncompressed members, `data.pkl` and `data/<key>`.

Source: torch/serialization.py (`_save`) and caffe2/serialize/inline_container.cc, torch 2.13.
"""

import io
import struct
import zipfile
import zlib

from passl_xcit.modeling.formats.torch_pickle import TorchMachine
from passl_xcit.utils.errors import CheckpointError
from passl_xcit.utils.refusals import damaged, short, unwanted

MAX_MEMBERS = 100_000
_SCRIPT = "is a TorchScript program; if you trust it: torch.save(torch.jit.load(path).state_dict(), new_path)"


def read(data, name):
    """The plain object in a torch file; tensors are numpy arrays, bfloat16 ones float32; see `formats` for the rest.

    Args:
        data: the bytes of the whole file.
        name: what error messages call it.

    Raises:
        CheckpointError: it is another kind of zip archive, damaged, or holds anything but tensors and plain data.
    """
    members = _members(data, name)
    pickles = [path for path in members if path.endswith("/data.pkl")]
    if not pickles:
        raise CheckpointError(f"{name}: is a zip archive; unpack it and give the weight file in it")
    folder = pickles[0][: -len("data.pkl")]
    if len(pickles) > 1 or not all(path.startswith(folder) and ".." not in path.split("/") for path in members):
        raise damaged(name, "has two data.pkl, or members outside the folder of its data.pkl")
    if f"{folder}constants.pkl" in members:
        raise CheckpointError(f"{name}: {_SCRIPT}")
    records = {path[len(folder) :]: _bytes_of(data, info, name) for path, info in members.items()}
    if records.get("byteorder", b"little") != b"little":
        raise unwanted(name, "holds big-endian tensors")
    return TorchMachine(records["data.pkl"], name, _storages(records, name)).load()


def _members(data, name):
    """{path: ZipInfo} of the archive's directory."""
    if data.count(b"PK\1\2") > MAX_MEMBERS:
        raise unwanted(name, f"is an archive of more than {MAX_MEMBERS:,} members")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        raise damaged(name, f"has no sound zip directory: {short(str(error))}") from None
    members = {info.filename: info for info in found}
    if len(members) != len(found):
        raise damaged(name, "has two members of one name")
    if sum(info.file_size for info in found) > len(data):
        raise damaged(name, "has members larger than the whole file")
    return members


def _bytes_of(data, info, name):
    """The content of an uncompressed member, not copied, compared with its checksum."""
    start = info.header_offset
    header = data[start : start + 30]
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise damaged(name, f"has no member {short(info.filename)} where its directory says")
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise unwanted(name, f"has a compressed or encrypted member {short(info.filename)}")
    path, extra = struct.unpack("<HH", header[26:])
    content = memoryview(data)[start + 30 + path + extra :][: info.file_size]
    if zlib.crc32(content) != info.CRC:
        raise damaged(name, f"has a member {short(info.filename)} that differs from its checksum")
    return content


def _storages(records, name):
    storages = {path[len("data/") :]: content for path, content in records.items() if path.startswith("data/")}
    odd = [key for key in storages if not (key.isascii() and key.isdigit())]
    if odd:
        raise damaged(name, f"has a storage named {short(odd[0])}, which is not a number")
    return storages
