"""CIFAR-10 with four images a batch, in its official forms: written here, so that no test needs the data set.

The pickles are put together opcode by opcode, as Python 2 wrote the official ones, and by Python's pickle.
"""

import io
import pickle
import struct
import tarfile

import numpy as np
from PIL import Image

from passl_xcit.datasets.cifar10 import BATCHES, CLASS_NAMES

PY, BIN = "cifar-10-batches-py", "cifar-10-batches-bin"
NAMES = [*BATCHES["train"], *BATCHES["test"]]
PER_BATCH = 4


def pixels_of(name):
    """uint8 [PER_BATCH, 3072], different in every batch."""
    return np.random.default_rng(NAMES.index(name)).integers(0, 256, (PER_BATCH, 3072), dtype="uint8")


def labels_of(name):
    return [(3 * NAMES.index(name) + place) % 10 for place in range(PER_BATCH)]


def short(value):
    """SHORT_BINSTRING, memoised as Python 2 does."""
    return b"U" + bytes([len(value)]) + value.encode() + b"q\x05"


def python2_batch(data, labels):
    """The layout of the official files: what `pickletools.dis` shows of `data_batch_1`."""
    dtype = (
        b"cnumpy\ndtype\n"
        + short("u1")
        + b"K\x00K\x01\x87R(K\x03"
        + short("|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x06cnumpy\nndarray\nK\x00\x85" + short("b") + b"\x87R"
    shape = b"".join(b"M" + struct.pack("<H", size) for size in data.shape) + b"\x86"
    raw = b"T" + struct.pack("<i", data.size) + data.tobytes()
    items = [
        short("batch_label") + short("training batch 1 of 5"),
        short("labels") + b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e",
        short("data") + array + b"(K\x01" + shape + dtype + b"\x89" + raw + b"tb",
        short("filenames") + b"](" + short("leptodactylus_pentadactylus_s_000004.png") * len(labels) + b"e",
    ]
    return b"\x80\x02}q\x01(" + b"".join(items) + b"u."


def python3_batch(data, labels):
    """The same dict, keys as bytes, pickled again by Python 3."""
    batch = {b"batch_label": b"x", b"labels": labels, b"data": data, b"filenames": [b"a.png"] * len(labels)}
    return pickle.dumps(batch, protocol=2)


def records(data, labels):
    return b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, data))


def members(form=PY, write=python2_batch):
    """{path in the archive: bytes} of the six batches."""
    ending = "" if form == PY else ".bin"
    return {f"{form}/{name}{ending}": write(pixels_of(name), labels_of(name)) for name in NAMES}


def write_archive(path, files):
    """`files`: {path: bytes, or a TarInfo}."""
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if content is not info:
                info.size = len(content)
            archive.addfile(info, None if content is info else io.BytesIO(content))
    return path


def write_folder(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_images(root):
    """PNG files, so that the pixels come back as they were; named so that their order is that of the batches."""
    for split, batches in BATCHES.items():
        for label, name in enumerate(CLASS_NAMES):
            (root / split / name).mkdir(parents=True)
            for batch in batches:
                for place in [place for place in range(PER_BATCH) if labels_of(batch)[place] == label]:
                    image = pixels_of(batch)[place].reshape(3, 32, 32).transpose(1, 2, 0)
                    Image.fromarray(image).save(root / split / name / f"{batch}_{place}.png")
    return root
