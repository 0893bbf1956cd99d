"""ImageNet-style data: a folder a class, or a list file with a label a line."""

import contextlib
import errno
import os
import stat
import warnings
from pathlib import Path
from typing import Optional, Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from passl_xcit.datasets.dataset import BadImage, ImageDataset, first_of, shown
from passl_xcit.utils.errors import DataError
from passl_xcit.utils.logger import get_logger
from passl_xcit.utils.registry import BATCH_TRANSFORMS, DATASETS, TRANSFORMS

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # others never open: Pillow would start Ghostscript for EPS
MAX_PIXELS = 64_000_000
# What Pillow and the system raise for a file that is no image: 480,000 damaged files of 22 kinds gave nothing else.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
# Other errors of the system, such as too many open files, are not the image's: no policy may pass over them.
ABOUT_THE_FILE = (None, errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR)

logger = get_logger(__name__)


class ImageNet(ImageDataset):
    """Labelled images below `dataroot`.

    Without `list_file` every folder of `dataroot` is a class, numbered in the order of the names, and every image
    below it (at any depth) is a sample. With `list_file` (absolute, or relative to `dataroot`) each line holds a
    path relative to `dataroot` and, after the last blank, a class number.

    At the start every file is looked up, not opened: what is missing, empty, no file or not readable is listed. What
    is found when an image is decoded is told then. Both follow `on_bad_image`.

    Args:
        dataroot: the folder of one split, such as `data/ILSVRC2012/val`.
        transforms, batch_transforms, return_label: see ImageDataset.
        list_file: see above.
        on_bad_image, max_bad_share: see ImageDataset.

    Raises:
        DataError: for a missing or empty folder or list, a line that is not `path label`, and, unless `on_bad_image`
            bears them, for files that cannot be images.
    """

    def __init__(
        self,
        dataroot: str,
        transforms: Optional[Sequence[dict]] = None,
        batch_transforms: Optional[Sequence[dict]] = None,
        return_label: bool = True,
        list_file: Optional[str] = None,
        on_bad_image: str = "raise",
        max_bad_share: Optional[float] = None,
        seed: int = 0,
    ):
        self.dataroot = Path(dataroot)
        if not self.dataroot.is_dir():
            raise DataError(f"{dataroot}: no such folder (dataroot); give the folder of the split, or --data_dir")
        self.list_file = self.dataroot / list_file if list_file else None
        paths, labels, names = read_list(self.list_file) if list_file else scan_folders(self.dataroot)
        # One block of bytes instead of a million Python strings: small, and shared by forked workers.
        self._paths = np.array([os.fsencode(path) for path in paths])
        policy = {"on_bad_image": on_bad_image, "max_bad_share": max_bad_share}
        super().__init__(np.array(labels), names, transforms, batch_transforms, return_label, seed, **policy)
        self._check_files(paths)

    def _check_files(self, paths):
        bad = bad_files(self.dataroot, paths)
        self.refuse_too_many(bad)
        if bad:
            message = f"{self.where}: {len(bad)} of {len(paths)} images cannot be used: {first_of(bad)}"
            if self.on_bad_image == "raise":
                raise DataError(message)
            logger.warning(message)

    @property
    def where(self):
        return str(self.list_file or self.dataroot)

    def path(self, index):
        """Path of the image number `index`."""
        return self.dataroot / os.fsdecode(self._paths[index])

    def name(self, index):
        return str(self.path(index))

    def describe(self, index):
        return shown(self.path(index))

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
    found, visited, top = [], set(), str(root / name)
    # Without `onerror` a folder that may not be read would look empty, and the set would be smaller in silence.
    for folder, subfolders, files in os.walk(top, onerror=_refuse_folder, followlinks=True):
        info = os.stat(folder)
        if (info.st_dev, info.st_ino) in visited:  # a link that leads back up
            subfolders.clear()
            continue
        visited.add((info.st_dev, info.st_ino))
        subfolders.sort()
        here = os.path.join(name + folder[len(top) :], "")
        found += [here + file for file in sorted(files) if file.lower().endswith(EXTENSIONS)]
    return found


def _refuse_folder(error):
    raise DataError(f"{error.filename}: the folder cannot be read: {error.strerror}") from error


def read_list(path):
    """(paths, labels, None) of a list file; raises DataError with file:line for a line that is not `path label`."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
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
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise DataError(f"{where}: {shown(name)}: expected a path below dataroot")
    return name, label


def bad_files(root, paths):
    """One text, with path and reason, for each of `paths` below `root` that cannot be an image; opens none of them.

    1.28 million files take 5 s, measured with the file system's entries in memory.
    """
    bad, root = [], os.path.join(root, "")
    for path in tqdm(paths, desc="checking", unit="file", leave=False, disable=None):
        verdict = file_verdict(root + path)
        if verdict != "ok":
            bad.append(f"{shown(path)}: {verdict}")
    return bad


def file_verdict(path):
    """ "ok", or why the file `path` cannot be an image; it is looked up, not opened."""
    try:
        _check_file(path)
    except (BadImage, OSError) as error:
        return _without_path(path, _refusal(path, error))
    return "ok"


def image_verdict(path):
    """ "ok", or why the image `path` cannot be used: it is read and decoded."""
    try:
        open_image(path)
    except DataError as error:
        return _without_path(path, error)
    return "ok"


def _without_path(path, error):
    return str(error)[len(f"{shown(path)}: ") :]


def open_image(path):
    """The image as a PIL image of mode RGB.

    As in torchvision's and timm's ImageNet evaluations, which published accuracies come from, this is Pillow's
    `convert("RGB")` and nothing else: EXIF orientation is not applied, transparency is dropped, and of several
    frames the first counts. The exceptions: 16-bit grey is scaled where Pillow would clip it, and pixels of 32 bits,
    whose range nobody tells, are refused.

    Raises:
        BadImage: with path and reason: missing, empty, no file, damaged, of another format, or too large.
        DataError: for an error of the system that is not the image's.
    """
    try:
        _check_file(path)
        return _decode(path)
    except (BadImage, *UNREADABLE) as error:
        raise _refusal(path, error) from error


def as_rgb(image, name):
    """A PIL image of any mode as `open_image` gives that of a file; raises as it does, with `name`."""
    try:
        with _quiet():
            return _to_rgb(image)
    except (BadImage, *UNREADABLE) as error:
        raise _refusal(name, error) from error


def images_in(folder):
    """Paths of the images below `folder`, at any depth, sorted; names that begin with a dot are left out.

    Raises:
        DataError: there is no such folder, a folder in it cannot be read, or it holds no image.
    """
    below = [Path(path) for path in _images_below(Path(folder), os.curdir)]
    found = sorted(path for path in below if not any(part.startswith(".") for part in path.parts))
    if not found:
        raise DataError(f"{shown(folder)}: no image in this folder ({', '.join(EXTENSIONS)})")
    return [os.path.join(folder, path) for path in found]


def _check_file(path):
    """Raise BadImage or OSError unless `path` is a file with content; waits for no pipe."""
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        raise BadImage("not a file")
    if not info.st_size:
        raise BadImage("the file is empty")
    if info.st_mode & 0o444 != 0o444 and not os.access(path, os.R_OK):
        raise BadImage("no permission to read it")


def _decode(path):
    with _quiet(), Image.open(path, formats=FORMATS) as image:
        return _to_rgb(image)


@contextlib.contextmanager
def _quiet():
    """Pillow warns of EXIF, which nobody reads here, and of sizes above a limit that is higher than ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _refusal(path, error):
    """The DataError that names `path` for what reading it raised."""
    if isinstance(error, BadImage):
        return BadImage(f"{shown(path)}: {error}")
    kind = BadImage if getattr(error, "errno", None) in ABOUT_THE_FILE else DataError
    return kind(f"{shown(path)}: the image cannot be read: {_reason(error)}")


def _check_pixels(image):
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height} pixels"
        raise BadImage(f"{size}; more than {MAX_PIXELS / 1e6:.0f} million are refused")


def _to_rgb(image):
    _check_pixels(image)
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):  # Pillow before 11.3 has 16-bit PNG as "I"
        raise BadImage("pixels of 32 bits, whose range nobody tells: save it with 8 or 16 bits")
    if image.mode.startswith("I;16") or image.mode == "I":  # Pillow would clip 16-bit grey at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype("uint8"))
    return image.convert("RGB")


def _reason(error):
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    return getattr(error, "strerror", None) or str(error)


DATASETS.register(ImageNet, nodes={"transforms": TRANSFORMS, "batch_transforms": BATCH_TRANSFORMS}, runtime=("seed",))
