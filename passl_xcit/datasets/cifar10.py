"""CIFAR-10: 50,000 training and 10,000 test images of 32 x 32 pixels in ten classes, of which nothing is run.

Krizhevsky 2009, "Learning multiple layers of features from tiny images". Its page has one archive of pickles and one
of plain records; the pickles are read by the restricted machine that reads weight files. Nothing is unpacked to disk.

Shapes: N images.
"""

import gzip
import stat
import tarfile
import zlib
from pathlib import Path
from typing import Optional, Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from passl_xcit.datasets.dataset import ImageDataset
from passl_xcit.datasets.imagenet import open_image, scan_folders
from passl_xcit.utils import numpy_pickle
from passl_xcit.utils.errors import CheckpointError, DataError
from passl_xcit.utils.logger import get_logger
from passl_xcit.utils.pickle_machine import Function, Machine
from passl_xcit.utils.registry import BATCH_TRANSFORMS, DATASETS, TRANSFORMS

CLASS_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
IMAGES = {"train": 50_000, "test": 10_000}
BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
SIDE = 32
CHANNEL_MAJOR = (3, SIDE, SIDE)
PIXELS = 3 * SIDE * SIDE
MAX_BYTES = 2**28  # the official archives unpack to about 186 million

logger = get_logger(__name__)


class CIFAR10(ImageDataset):
    """Colour images of 32 x 32 pixels, ten classes, all in memory.

    Args:
        dataroot: `cifar-10-python.tar.gz` or `cifar-10-binary.tar.gz`; the folder that one of them unpacks to, or the
            one around it; or a folder of images, `train/<class>/*` and `test/<class>/*`.
        split: `train` or `test`.
        transforms, batch_transforms, return_label: see ImageDataset; images are PIL images of mode RGB.

    Raises:
        DataError: if `dataroot` is none of these, or damaged, or asks for more than plain data.
    """

    def __init__(
        self,
        dataroot: str,
        split: str,
        transforms: Optional[Sequence[dict]] = None,
        batch_transforms: Optional[Sequence[dict]] = None,
        return_label: bool = True,
        seed: int = 0,
    ):
        if split not in BATCHES:
            raise ValueError(f"split must be 'train' or 'test', not '{split}'")
        self.where = f"{dataroot} ({split})"
        self.images, labels, names = read_split(Path(dataroot), split)
        if len(labels) != IMAGES[split]:
            logger.warning(f"{self.where}: {len(labels):,} images, where CIFAR-10 has {IMAGES[split]:,}")
        super().__init__(labels, names, transforms, batch_transforms, return_label, seed)

    def sample_names(self):
        return self.images

    def load(self, index):
        return Image.fromarray(self.images[index])


def read_split(root, split):
    """(images uint8 [N, 32, 32, 3], labels int64 [N], class names) of `split` in any of the forms of `dataroot`."""
    if not root.exists():
        raise DataError(f"{root}: no such file or folder (dataroot); give CIFAR-10's archive or folder, or --data_dir")
    if (root / split).is_dir():
        return _read_images(root / split)
    readers = {f"{folder}/{name}{ending}": read for folder, ending, read in FORMS for name in BATCHES[split]}
    batches = _from_archive(root, readers) if root.is_file() else _from_folder(root, readers)
    if not batches:
        raise DataError(
            f"{root}: no CIFAR-10 there: expected cifar-10-python.tar.gz, cifar-10-binary.tar.gz, the folder that one "
            f"of them unpacks to, or a folder with images in {split}/<class>/"
        )
    form = next(iter(batches)).split("/")[0]
    wanted = [path for path in readers if path.startswith(f"{form}/")]
    missing = [path for path in wanted if path not in batches]
    if missing:
        raise DataError(f"{root}: {missing[0]} is missing; download or unpack it again")
    images, labels = zip(*[batches[path] for path in wanted])
    images = np.concatenate(images).reshape(-1, *CHANNEL_MAJOR).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.concatenate(labels), CLASS_NAMES


def holds_batches(root):
    """Whether `root` is a file, as an archive is, or a folder with a batch of an unpacked one."""
    names = [f"{folder}/{name}{ending}" for folder, ending, _ in FORMS for names in BATCHES.values() for name in names]
    return root.is_file() or any(place.exists() for name in names for place in _places(root, name))


def _places(root, path):
    """Where the batch `path` of an archive may lie in the folder `root`."""
    return root / path, root / path.split("/")[1]


def _read_images(folder):
    paths, labels, names = scan_folders(folder)
    images = np.empty([len(paths), SIDE, SIDE, 3], "uint8")
    for index, path in enumerate(tqdm(paths, desc="reading", unit="image", leave=False, disable=None)):
        image = open_image(folder / path)
        if image.size != (SIDE, SIDE):
            raise DataError(f"{folder / path}: {image.width} x {image.height} pixels; CIFAR-10 has {SIDE} x {SIDE}")
        images[index] = image
    return images, np.array(labels, "int64"), names


def _from_folder(root, readers):
    """{path in the archive: batch} of those that lie in `root`, or in the folder of that name in it."""
    batches = {}
    for path, read in readers.items():
        for file in _places(root, path):
            if file.exists():
                batches[path] = read(_read_file(file), str(file))
    return batches


def _read_file(path):
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode) or info.st_size > MAX_BYTES:
            raise DataError(f"{path}: not a file of at most {MAX_BYTES:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


class _Bounded:
    """A file from which at most MAX_BYTES are read: a few kilobytes can unpack to any size."""

    def __init__(self, file, name):
        self.file, self.name, self.left = file, name, MAX_BYTES

    def read(self, size):
        data = self.file.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise DataError(f"{self.name}: unpacks to more than {MAX_BYTES:,} bytes: this is not CIFAR-10")
        return data


def _from_archive(path, readers):
    """{path in the archive: batch} of those of `readers` that the archive holds; other members are passed over."""
    try:
        with gzip.open(path) as unpacked:
            bounded = _Bounded(unpacked, path)
            with tarfile.open(fileobj=bounded, mode="r|") as archive:
                batches = _from_members(archive, readers, path)
            while bounded.read(2**20):  # the checksum stands at the end, behind what tarfile reads
                pass
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{path}: the archive cannot be read ({error}); download it again") from error
    return batches


def _from_members(archive, readers, path):
    batches = {}
    for member in archive:
        if member.name in readers:
            where = f"{path}: {member.name}"
            if not member.isreg() or member.name in batches:
                raise DataError(f"{where}: is a link, or there twice; download the archive again")
            batches[member.name] = readers[member.name](archive.extractfile(member).read(), where)
    return batches


def _read_pickle(raw, where):
    """(uint8 [N, 3072], int64 [N]) of a batch that is a pickle: a dict with `data` and `labels`."""
    try:
        batch = _BatchMachine(raw, where).load()
    except CheckpointError as error:  # the machine's word for a file that it does not read
        raise DataError(str(error)) from error
    if type(batch) is not dict or not {"data", "labels"} <= batch.keys():
        raise DataError(f"{where}: expected a dict with 'data' and 'labels'; is this CIFAR-10?")
    data, labels = batch["data"], batch["labels"]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (PIXELS,) or not len(data):
        raise DataError(f"{where}: 'data' must be uint8 of shape [N, {PIXELS}]")
    if type(labels) is not list or len(labels) != len(data) or not all(type(label) is int for label in labels):
        raise DataError(f"{where}: 'labels' must be a list of {len(data)} whole numbers, one an image")
    return data, _checked(labels, where)


def _read_records(raw, where):
    """(uint8 [N, 3072], int64 [N]) of a batch of records: a byte for the label, then the image."""
    if not raw or len(raw) % (1 + PIXELS):
        raise DataError(f"{where}: {len(raw)} bytes are no whole number of records of {1 + PIXELS}; download it again")
    records = np.frombuffer(raw, "uint8").reshape(-1, 1 + PIXELS)
    return records[:, 1:], _checked(records[:, 0].tolist(), where)


def _checked(labels, where):
    wrong = next((label for label in labels if not 0 <= label < len(CLASS_NAMES)), None)
    if wrong is not None:
        raise DataError(f"{where}: label {wrong} is out of range: CIFAR-10 has classes 0 to {len(CLASS_NAMES) - 1}")
    return np.array(labels, "int64")


def _make_array(machine, arguments):
    """`_reconstruct(ndarray, (0,), "b")`: Python 2, which wrote the official files, has one type for bytes and text."""
    if arguments[2:] == ("b",):
        arguments = (*arguments[:2], b"b")
    return numpy_pickle.NAMES["numpy.core.multiarray", "_reconstruct"].call(machine, arguments)


class _BatchMachine(Machine):
    """Reads Python 2's strings, which weight files do not have, and keys that are bytes."""

    names = {
        **{key: numpy_pickle.NAMES[key] for key in (("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"))},
        ("numpy.core.multiarray", "_reconstruct"): Function(_make_array),
        ("numpy._core.multiarray", "_reconstruct"): Function(_make_array),
    }
    hint = "CIFAR-10's batches hold plain arrays, numbers and text: download it again from its own page"
    operations = {
        **Machine.operations,
        ord("U"): lambda m: m.text(1),  # SHORT_BINSTRING: keys and names
        ord("T"): lambda m: m.raw(4),  # BINSTRING: the pixels
    }

    def set_items(self, items):
        items[::2] = [self.decode(key) if type(key) in (bytes, memoryview) else key for key in items[::2]]
        super().set_items(items)


FORMS = (  # folder in the archive, ending of a batch's name, reader
    ("cifar-10-batches-py", "", _read_pickle),
    ("cifar-10-batches-bin", ".bin", _read_records),
)

DATASETS.register(CIFAR10, nodes={"transforms": TRANSFORMS, "batch_transforms": BATCH_TRANSFORMS}, runtime=("seed",))
