"""ReaL labels of ImageNet's validation images: all the classes that people saw in each.

Beyer et al. 2020, "Are we done with ImageNet?", arXiv 2006.07159. `real.json` of google-research/reassessed-imagenet is
a list of 50,000 lists of class numbers, in the order of the file names ILSVRC2012_val_00000001.JPEG to 00050000. A
prediction is right if it is among an image's labels (top-5: if one of the five best is); images without labels are left
out, of the mean as well.
"""

import json
import re
from pathlib import Path

import numpy as np

from passl_xcit.utils.errors import ConfigError, DataError

OPTION = "--real_labels"
FILE_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\b")
EXPECTED = "ILSVRC2012_val_00000001.JPEG"


def read_real_labels(path, num_classes):
    """A list of lists of class numbers, one a validation image.

    Raises:
        ConfigError: the file cannot be read, or is anything else.
    """
    try:
        labels = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is not JSON"
        raise ConfigError(f"{OPTION} {path}: cannot be read: {reason}") from error
    if not isinstance(labels, list) or not labels:
        raise ConfigError(f"{OPTION} {path}: expected a list with a list of class numbers for each image")
    for number, classes in enumerate(labels):
        if not isinstance(classes, list) or not all(type(label) is int for label in classes):
            raise ConfigError(f"{OPTION} {path}: entry {number} (from 0) is no list of class numbers")
        wrong = next((label for label in classes if not 0 <= label < num_classes), None)
        if wrong is not None:
            where = f"{OPTION} {path}: entry {number} (from 0)"
            raise ConfigError(f"{where}: {wrong} is no class of the model: expected 0 to {num_classes - 1}")
    return labels


def labels_of(dataset, labels, path):
    """The entry of `labels`, read from `path`, of each image of `dataset`: a list as long as that.

    Raises:
        DataError: an image is not called as those of ImageNet's validation set, or has no entry.
    """
    return [labels[_number(dataset.name(index), len(labels), path)] for index in range(len(dataset))]


def _number(name, entries, path):
    found = FILE_NAME.match(name.replace("\\", "/").rpartition("/")[2])
    if not found:
        raise DataError(f"{OPTION} {path}: does not know the image {name}: expected a file name such as {EXPECTED}")
    if not 1 <= int(found[1]) <= entries:
        raise DataError(f"{OPTION} {path}: has {entries} entries, and none for {name}")
    return int(found[1]) - 1


def real_correct(best, labels):
    """Whether one of the classes in each row is among the image's labels: float [N], nan for an image without labels.

    Args:
        best: int [N, k].
        labels: N lists of class numbers.
    """
    right = [not set(row).isdisjoint(classes) for row, classes in zip(best.tolist(), labels)]
    return np.where([bool(classes) for classes in labels], right, np.nan)
