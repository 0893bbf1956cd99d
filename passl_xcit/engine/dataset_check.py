"""What is in a data set: how many images of which classes, which cannot be used, and which are odd.

Every image is read, in parallel. A data set is what `--data_dir` takes: a folder with train/ and val/, or CIFAR-10's
archive or folder; or one folder with a folder a class.
"""

import json
import os
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from passl_xcit.datasets.cifar10 import BATCHES, IMAGES, SIDE, holds_batches, read_split
from passl_xcit.datasets.dataset import shown
from passl_xcit.datasets.imagenet import FORMATS, file_verdict, image_verdict, scan_folders
from passl_xcit.datasets.worker_pool import NO_SAMPLE, can_fork, in_workers
from passl_xcit.engine.report import Finding, Section, Table
from passl_xcit.utils.errors import ConfigError, DataError
from passl_xcit.utils.startup import usable_cores

SPLITS = ("train", "val", "test")
IMAGES_A_TASK = 64
TIMEOUT = 300  # seconds that a worker may need for a task
MOST_LISTED = 20
NAMED = 5
UNREAD = "the image cannot be read: "  # how many reasons begin
ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
# What a run makes of images that can be read and are not what they look like elsewhere.
ODD = {
    "turned": "turned by their EXIF orientation, which is not applied: save them as they are to be seen",
    "frames": "of several frames or pages, of which the first one counts",
    "transparent": "with transparency, which is dropped: the colours behind it come out",
}


@dataclass
class Split:
    """What was found in one split.

    Args:
        name: such as "train".
        where: what messages call it.
        classes: {class name: number of images}.
        bad: [(path, reason)] of the images that cannot be used.
        read: how many images were read.
        formats, modes: Counters of Pillow's names, such as JPEG and RGB.
        widths, heights: in pixels, of the images that can be used.
        odd: {key of ODD: paths}.
        note: what else is to be told of it.
        problem: why the split cannot be looked into.
    """

    name: str
    where: str
    classes: dict = field(default_factory=dict)
    bad: list = field(default_factory=list)
    read: int = 0
    formats: Counter = field(default_factory=Counter)
    modes: Counter = field(default_factory=Counter)
    widths: list = field(default_factory=list)
    heights: list = field(default_factory=list)
    odd: dict = field(default_factory=lambda: {key: [] for key in ODD})
    note: str = ""
    problem: str = ""

    @property
    def images(self):
        return sum(self.classes.values())

    def as_json(self):
        return {
            "images": self.images,
            "read": self.read,
            "classes": self.classes,
            "formats": dict(self.formats),
            "modes": dict(self.modes),
            "width": _spread(self.widths),
            "height": _spread(self.heights),
            "odd": self.odd,
            "bad": [{"image": path, "reason": reason} for path, reason in self.bad],
        }


def check_data(folder, limit=None, num_classes=None):
    """Section of the data set in `folder`.

    Args:
        folder: what `--data_dir` takes, or a folder with a folder a class.
        limit: how many images of a split are read at most, spread evenly; the others are looked up without being read.
        num_classes: of the model that is to have these classes, or None.

    Raises:
        ConfigError: there is no such folder or archive.
    """
    root = Path(folder)
    if not root.exists():
        raise ConfigError(f"--data {folder}: there is no such folder or archive")
    names = [name for name in SPLITS if (root / name).is_dir()]
    if names:
        kind, splits = f"{', '.join(names)}, each with a folder a class", [_folder(root / n, n, limit) for n in names]
    elif holds_batches(root):
        kind, splits = "CIFAR-10", [_cifar10(root, name) for name in BATCHES]
    else:
        kind, splits = "one folder with a folder a class", [_folder(root, "images", limit)]
    findings = [Finding("data set", f"{shown(root)}: {kind}")]
    findings += [finding for split in splits for finding in _findings_of(split)]
    findings += _missing_splits(names) + _differences(splits) + _other_classes(splits, num_classes)
    data = {"folder": str(folder), "kind": kind, "splits": {split.name: split.as_json() for split in splits}}
    return Section("data", findings, _bad_table(shown(root), splits), data)


# Looking.


def _folder(root, name, limit):
    """Split of the images in `root`/<class>/."""
    try:
        paths, labels, classes = scan_folders(root)
        counts = np.bincount(labels, minlength=len(classes)).tolist()
        split = Split(name, shown(root), dict(zip(map(shown, classes), counts)))
        _read(split, root, paths, limit)
    except DataError as error:
        return Split(name, shown(root), problem=str(error))
    return split


def _read(split, root, paths, limit):
    """Add what the files of `paths` below `root` are to `split`."""
    count = len(paths) if limit is None else min(limit, len(paths))
    chosen = np.zeros(len(paths), bool)
    chosen[np.linspace(0, len(paths) - 1, count).round().astype(int)] = True
    split.read = count
    with tqdm(total=len(paths), desc=f"reading {split.name}", unit="image", leave=False, disable=None) as progress:
        for facts in _in_parallel(root, paths, chosen):
            for index, verdict, *image in facts:
                _note(split, os.path.join(root, paths[index]), verdict, image)
            progress.update(min(IMAGES_A_TASK, progress.total - progress.n))


def _note(split, path, verdict, image):
    if verdict != "ok":
        split.bad.append((shown(path), verdict))
    elif image:
        form, mode, width, height, odd = image
        split.formats[form] += 1
        split.modes[mode] += 1
        split.widths.append(width)
        split.heights.append(height)
        for key in odd:
            split.odd[key].append(shown(path))


def _in_parallel(root, paths, chosen):
    """Yields lists of [index, verdict, ...] (see `_facts`), which cover all of `paths` in their order."""

    def load(task, progress):
        facts = []
        for index in range(task, min(task + IMAGES_A_TASK, len(paths))):
            progress(index)
            path = os.path.join(root, paths[index])
            facts.append([index, *(_facts(path) if chosen[index] else [file_verdict(path)])])
        progress(NO_SAMPLE)
        return [np.frombuffer(json.dumps(facts).encode(), "uint8")]

    tasks = range(0, len(paths), IMAGES_A_TASK)
    if can_fork():
        workers = min(usable_cores(), len(tasks))
        answers = in_workers(load, tasks, workers, timeout=TIMEOUT, describe=lambda index: shown(root / paths[index]))
    else:
        answers = (load(task, lambda index: None) for task in tasks)
    return (json.loads(answer.tobytes()) for (answer,) in answers)


def _facts(path):
    """[verdict] of an image, followed by format, mode, width, height and its keys in ODD if it can be used."""
    verdict = image_verdict(path)
    if verdict != "ok":
        return [verdict]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path, formats=FORMATS) as image:
            return [verdict, image.format, image.mode, *image.size, _oddities(image)]


def _oddities(image):
    marks = {
        "turned": image.format in ("JPEG", "MPO") and _orientation(image) in range(2, 9),
        "frames": getattr(image, "is_animated", False),
        "transparent": _shows_through(image),
    }
    return [key for key in ODD if marks[key]]


def _orientation(image):
    try:
        return image.getexif().get(ORIENTATION)
    except Exception:  # a damaged EXIF can make Pillow raise anything, and nobody else reads it
        return None


def _shows_through(image):
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return False
    return image.convert("RGBA").getextrema()[3][0] < 255


def _cifar10(root, name):
    try:
        images, labels, classes = read_split(root, name)
    except DataError as error:
        return Split(name, shown(root), problem=str(error))
    counts, sides = np.bincount(labels, minlength=len(classes)).tolist(), [SIDE] * len(images)
    split = Split(
        name, f"{shown(root)} ({name})", dict(zip(classes, counts)), read=len(images), widths=sides, heights=sides
    )
    split.modes["RGB"] = len(images)
    if len(images) != IMAGES[name]:
        split.note = f"{len(images):,} images in {name}, where CIFAR-10 has {IMAGES[name]:,}"
    return split


# Telling.


def _findings_of(split):
    if split.problem:
        return [Finding(split.name, "cannot be looked into", "error", split.problem)]
    findings = [_counts(split), _unusable(split)]
    if len(split.classes) == 1:
        findings.append(
            Finding(f"{split.name} classes", "1", "warning", f"{split.where}: one class is nothing to learn")
        )
    empty = [name for name, count in split.classes.items() if not count]
    if empty:
        count = _counted(len(empty), "class", "classes")
        advice = f"{split.where}: {count} without an image: {_first_of(empty)}"
        findings.append(Finding(f"{split.name} empty", count, "warning", advice))
    if split.widths:
        findings += [Finding(f"{split.name} pixels", _sizes(split)), Finding(f"{split.name} kinds", _kinds(split))]
    for key, paths in split.odd.items():
        if paths:
            advice = f"{split.where}: {_counted(len(paths), 'image')} {ODD[key]}; the first is {paths[0]}"
            findings.append(Finding(f"{split.name} {key}", _counted(len(paths), "image"), "warning", advice))
    return findings


def _counts(split):
    smallest, largest = (pick(split.classes, key=split.classes.get) for pick in (min, max))
    value = f"{_counted(split.images, 'image')}, {_counted(len(split.classes), 'class', 'classes')}"
    if split.classes[smallest] == split.classes[largest]:
        value += f" of {split.classes[largest]:,}"
    else:
        value += f" of {split.classes[smallest]:,} ({smallest}) to {split.classes[largest]:,} ({largest})"
    return Finding(split.name, value, *(("warning", split.note) if split.note else ()))


def _unusable(split):
    name, read = f"{split.name} read", f"{split.read:,} of {_counted(split.images, 'image')} looked at"
    if not split.bad:
        return Finding(name, f"{read}, nothing wrong")
    count = f"{_counted(len(split.bad), 'image')} cannot be used"
    advice = f"{split.where}: {count}, the first is {': '.join(split.bad[0])}"
    advice += "; replace or remove them, or see on_bad_image in docs/training.md"
    return Finding(name, f"{read}, {count}", "error", advice)


def _sizes(split):
    low, middle, high = zip(_spread(split.widths), _spread(split.heights))
    if low == high:
        return f"all {low[0]} x {low[1]}"
    return f"width {low[0]} to {high[0]}, height {low[1]} to {high[1]}, medians {middle[0]} x {middle[1]}"


def _kinds(split):
    counts = [
        ", ".join(f"{count:,} {name}" for name, count in kinds.most_common()) for kinds in (split.formats, split.modes)
    ]
    return "; ".join(filter(None, counts))


def _missing_splits(names):
    missing = [name for name in SPLITS[:2] if names and name not in names]
    use = {
        "train": "there is nothing to train on",
        "val": "there is nothing to evaluate on, unless the config says test",
    }
    return [Finding(name, "not there", "warning", f"no folder {name}/: {use[name]}") for name in missing]


def _differences(splits):
    """Errors for splits that do not have the first one's classes: labels are numbers, in the order of the names."""
    findings, (first, *others) = [], splits
    for other in others:
        if first.problem or other.problem or sorted(first.classes) == sorted(other.classes):
            continue
        lacks = [
            f"only {split.name} has {_first_of(extra)}"
            for split, rest in ((first, other), (other, first))
            for extra in [[name for name in split.classes if name not in rest.classes]]
            if extra
        ]
        advice = f"{'; '.join(lacks)}: keep a folder for each class in both, even an empty one"
        findings.append(Finding(f"{first.name}, {other.name}", "other class names", "error", advice))
    return findings


def _other_classes(splits, num_classes):
    findings = []
    for split in splits if num_classes else ():
        if not split.problem and len(split.classes) != num_classes:
            text = f"{len(split.classes)} classes, the model has {num_classes}"
            findings.append(Finding(f"{split.name} model", text, "error", f"{text}: set model.head.num_classes"))
    return findings


def _bad_table(root, splits):
    bad = [image for split in splits for image in split.bad]
    rows = [[path.removeprefix(f"{root}{os.sep}"), reason.removeprefix(UNREAD)] for path, reason in bad[:MOST_LISTED]]
    if len(bad) > MOST_LISTED:
        rows.append([f"and {len(bad) - MOST_LISTED:,} more", "--json has all of them"])
    return Table(("image", "why it cannot be used"), rows)


def _counted(count, thing, things=None):
    return f"{count:,} {thing if count == 1 else things or f'{thing}s'}"


def _first_of(names):
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _spread(numbers):
    """[least, median, greatest]"""
    return [min(numbers), sorted(numbers)[len(numbers) // 2], max(numbers)] if numbers else []
