"""ImageNet-style data: a folder a class, or a list file with a label a line."""

import os
import stat
import warnings
from pathlib import Path
from typing import Optional, Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from passl_xcit.datasets.dataset import ImageDataset
from passl_xcit.utils.errors import DataError
from passl_xcit.utils.logger import get_logger
from passl_xcit.utils.registry import BATCH_TRANSFORMS, DATASETS, TRANSFORMS

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # others never open: Pillow would start Ghostscript for EPS
MAX_PIXELS = 64_000_000

logger = get_logger(__name__)


class ImageNet(ImageDataset):
    """Labelled images below `dataroot`.

    Without `list_file` every folder of `dataroot` is a class, numbered in the order of the names, and every image
    below it (at any depth) is a sample. With `list_file` (absolute, or relative to `dataroot`) each line holds a
    path relative to `dataroot` and, after the last blank, a class number.

    A damaged image raises DataError with its path; it is never replaced by another one.

    Args:
        dataroot: the folder of one split, such as `data/ILSVRC2012/val`.
        transforms, batch_transforms, return_label: see ImageDataset.
        list_file: see above.

    Raises:
        DataError: for a missing or empty folder or list, and for a line that is not `path label`.
    """

    def __init__(
        self,
        dataroot: str,
        transforms: Optional[Sequence[dict]] = None,
        batch_transforms: Optional[Sequence[dict]] = None,
        return_label: bool = True,
        list_file: Optional[str] = None,
        seed: int = 0,
    ):
        self.dataroot = Path(dataroot)
        if not self.dataroot.is_dir():
            raise DataError(f"{dataroot}: no such folder (dataroot); give the folder of the split, or --data_dir")
        self.list_file = self.dataroot / list_file if list_file else None
        paths, labels, names = read_list(self.list_file) if list_file else scan_folders(self.dataroot)
        # One block of bytes instead of a million Python strings: small, and shared by forked workers.
        self._paths = np.array([os.fsencode(path) for path in paths])
        super().__init__(np.array(labels), names, transforms, batch_transforms, return_label, seed)

    @property
    def where(self):
        return str(self.list_file or self.dataroot)

    def path(self, index):
        """Path of the image number `index`."""
        return self.dataroot / os.fsdecode(self._paths[index])

    def describe(self, index):
        return str(self.path(index))

    def sample_names(self):
        return self._paths

    def load(self, index):
        return open_image(self.path(index))


def scan_folders(root):
    """(paths relative to `root`, labels, class names) of a folder with one folder a class."""
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        _refuse_folder(error)
    if not names:
        raise DataError(f"{root}: holds no class folders; with images directly in it, give a list_file")
    paths, labels, empty = [], [], []
    for label, name in enumerate(tqdm(names, desc="scanning", unit="class", leave=False, disable=None)):
        found = _images_below(root, name)
        paths += found
        labels += [label] * len(found)
        if not found:
            empty.append(name)
    if not paths:
        raise DataError(f"{root}: {len(names)} class folders, but no image in them ({', '.join(EXTENSIONS)})")
    if empty:
        logger.warning(f"{root}: {len(empty)} of {len(names)} class folders are empty, the first is {empty[0]}")
    return paths, labels, names


def _images_below(root, name):
    found, visited = [], set()
    # Without `onerror` a folder that may not be read would look empty, and the set would be smaller in silence.
    for folder, subfolders, files in os.walk(root / name, onerror=_refuse_folder, followlinks=True):
        info = os.stat(folder)
        if (info.st_dev, info.st_ino) in visited:  # a link that leads back up
            subfolders.clear()
            continue
        visited.add((info.st_dev, info.st_ino))
        subfolders.sort()
        found += [os.path.join(folder, file) for file in sorted(files) if file.lower().endswith(EXTENSIONS)]
    return [os.path.relpath(path, root) for path in found]


def _refuse_folder(error):
    raise DataError(f"{error.filename}: the folder cannot be read: {error.strerror}") from error


def read_list(path):
    """(paths, labels, None) of a list file; raises DataError with file:line for a line that is not `path label`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the list file cannot be read: {_reason(error)}") from error
    paths, labels = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            name, label = _split_line(line, f"{path}:{number}")
            paths.append(name)
            labels.append(label)
    if not paths:
        raise DataError(f"{path}: the list file is empty")
    return paths, labels, None


def _split_line(line, where):
    parts = line.strip().rsplit(None, 1)
    try:
        name, label = parts[0], int(parts[1])
    except (IndexError, ValueError):
        raise DataError(f"{where}: expected 'path label', found {line.strip()[:80]!r}") from None
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{where}: {name}: expected a path below dataroot")
    return name, label


def open_image(path):
    """The image as a PIL image of mode RGB; raises DataError with path and reason.

    EXIF orientation is not applied, as in every ImageNet evaluation.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError(f"{path}: not a file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is the stricter one
            image = Image.open(path, formats=FORMATS)
        with image:
            _check_pixels(path, image)
            return _to_rgb(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, UnidentifiedImageError) as error:
        raise DataError(f"{path}: the image cannot be read: {_reason(error)}") from error


def _check_pixels(path, image):
    if image.width * image.height > MAX_PIXELS:
        raise DataError(
            f"{path}: {image.width} x {image.height} pixels; more than {MAX_PIXELS / 1e6:.0f} million are refused"
        )


def _to_rgb(image):
    if image.mode.startswith("I;16") or image.mode == "I":  # Pillow would clip 16-bit grey at 255
        pixels = np.asarray(image, dtype="int64").clip(0, 65535) // 257
        image = Image.fromarray(pixels.astype("uint8"))
    return image.convert("RGB")


def _reason(error):
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    return getattr(error, "strerror", None) or str(error)


DATASETS.register(ImageNet, nodes={"transforms": TRANSFORMS, "batch_transforms": BATCH_TRANSFORMS}, runtime=("seed",))
