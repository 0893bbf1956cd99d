"""The real files, cut or changed at random: each is read or refused with one error, soon and without much memory.

A random change of an archive is told by its checksums, so that the parts of a file are changed as well, and put
together again with right lengths and checksums.
"""

import io
import json
import random
import time
import warnings
import zipfile
import zlib
from pathlib import Path

import pytest
from weight_file_checks import bounds, refusal_of

from passl_xcit.modeling.checkpoint_formats import read_file
from passl_xcit.utils.errors import CheckpointError

FOLDER = Path(__file__).parents[2] / "golden/formats"
FILES = sorted(FOLDER.iterdir())
SEED = 20240611
PIECES = [
    b"\0",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\x80" * 10,
    (2**62).to_bytes(8, "little"),
    *[code.encode("latin1") for code in "()]}NQRbeqstu.0h\x85\x86\x87\x81\x88\x94\x93"],
    b"K\x00",
    b"J\xff\xff\xff\xff",
    b"\x8a\x08\0\0\0\0\0\0\0\x40",
    b"X\x01\0\0\0w",
    b"carray\narray\n",
    b"cbuiltins\neval\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"cargparse\nNamespace\n",
    b"cbuiltins\ngetattr\n",
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_cut_at_every_64th_byte_is_refused(path, tmp_path):
    """MindSpore's files without a checksum are sound where they end between two entries: their names then differ."""
    data, cut = path.read_bytes(), tmp_path / path.name
    between = {end for _, end in entry_bounds(data)} if path.suffix == ".ckpt" and data[-17:-10] != b"crc_num" else ()
    for size in set(range(0, len(data), 64)) - set(between):
        cut.write_bytes(data[:size])
        refusal_of(lambda: read_file(cut), cut)


def mutate(data, rng):
    """`data` with one to three changes: bits, bytes, pieces lost, doubled, moved or put in."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice([1, 1, 2, 4, 8, 40, 400]))
        piece, other = data[start:end], rng.randrange(len(data) + 1)
        new = rng.choice(
            [
                bytes([(piece or b"\0")[0] ^ 1 << rng.randrange(8)]) + piece[1:],
                bytes([((piece or b"\0")[0] + rng.choice([1, -1])) % 256]) + piece[1:],
                rng.randbytes(len(piece)),
                rng.choice(PIECES),
                rng.choice(PIECES) + piece,
                b"",
                piece + piece,
                data[other : other + len(piece)],
            ]
        )
        data = data[:start] + new + data[end:]
    return data


def mutate_member(data, rng):
    """A torch archive with one member changed, more often the pickle than a storage, under a right checksum."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [[name, archive.read(name)] for name in archive.namelist()]
    chosen = rng.choice(members) if rng.random() < 0.3 else members[0]
    part = int(rng.random() < 0.95)
    chosen[part] = mutate(chosen[part], rng) if part else mutate(chosen[0].encode(), rng).decode("latin1")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def mutate_header(data, rng):
    """A safetensors file with its header changed, under the right length; every other time it is still JSON."""
    size = int.from_bytes(data[:8], "little")
    header, tail = data[8 : 8 + size], data[8 + size :]
    if rng.random() < 0.5:
        entries = json.loads(header)
        entry = entries[rng.choice([name for name in entries if name != "__metadata__"])]
        field = rng.choice(["shape", "data_offsets"])
        numbers = [*entry[field], 1]
        numbers[rng.randrange(len(numbers))] = rng.choice([0, 1, 2, 3, 4, 6, 8, 12, 2**31, 2**62, 2**64 - 1, -1])
        entry[field] = numbers if rng.random() < 0.2 else numbers[:-1]
        header = json.dumps(entries).encode()
    else:
        header = mutate(header, rng)
    return len(header).to_bytes(8, "little") + header + tail


def mutate_entry(data, rng):
    """A MindSpore file with one entry changed, under its right length and the right checksum of the file."""
    messages = data[:-17] if data[-17:-10] == b"crc_num" else data
    entries = []
    for start, end in entry_bounds(messages):
        entries.append(messages[start:end])
    chosen = rng.randrange(len(entries))
    entries[chosen] = mutate(entries[chosen], rng)
    changed = b"".join(b"\n" + varint(len(entry)) + entry for entry in entries)
    return changed + b"crc_num" + zlib.crc32(changed).to_bytes(10, "big") if messages != data else changed


def entry_bounds(messages):
    position = 0
    while position < len(messages):
        size, shift = 0, 0
        while True:
            position += 1
            size |= (messages[position] & 0x7F) << shift
            shift += 7
            if messages[position] < 0x80:
                break
        yield position + 1, position + 1 + size
        position += 1 + size


def varint(number):
    return bytes([number & 0x7F | 0x80]) + varint(number >> 7) if number > 0x7F else bytes([number])


def mutate_knowingly(path, data, rng):
    """A change that gets past the checksums and lengths of the format, or for a pickle any change."""
    if data.startswith(b"PK"):
        return mutate_member(data, rng)
    if path.suffix == ".safetensors":
        return mutate_header(data, rng)
    return mutate_entry(data, rng) if path.suffix == ".ckpt" else mutate(data, rng)


def fuzz(count, mutated):
    """How many of `count` changed files are still read; anything but that and CheckpointError is an error."""
    rng, contents, read = random.Random(SEED), {path: path.read_bytes() for path in FILES}, 0
    for _ in range(count):
        path = rng.choice(FILES)
        known = rng.random() < 0.7
        mutated.unlink(missing_ok=True)  # some file systems wait for the disk when an old file is cut
        mutated.write_bytes(mutate_knowingly(path, contents[path], rng) if known else mutate(contents[path], rng))
        start = time.process_time()
        try:
            read_file(mutated)
            read += 1
        except CheckpointError as error:
            assert str(error).startswith(f"{mutated}: ") and "\n" not in str(error)
        assert time.process_time() - start < 1
    return read


def checked_fuzz(count, folder):
    with bounds(seconds=60), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Duplicate name")
        return fuzz(count, folder / "mutated")


def test_1000_changed_files_are_read_or_refused(tmp_path):
    assert 20 < checked_fuzz(1000, tmp_path) < 900


@pytest.mark.slow
def test_20000_changed_files_are_read_or_refused(tmp_path):
    assert 400 < checked_fuzz(20_000, tmp_path) < 18_000
    assert [path.name for path in tmp_path.iterdir()] == ["mutated"]
