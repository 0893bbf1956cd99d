"""What every image data set shares: labels, class names, transforms, and draws that depend on the position only."""

import hashlib
import json

import numpy as np
from paddle.io import Dataset

from passl_xcit.utils.errors import DataError
from passl_xcit.utils.seed import SAMPLE, generator

ON_BAD_IMAGE = ("raise", "skip", "count_as_wrong")
MAX_BAD_SHARE = 0.001
NAMED = 5  # so many bad images are named, the others are counted


class BadImage(DataError):
    """An image that is missing, damaged or refused, which `on_bad_image` may bear; never a fault of the machine."""


class ImageDataset(Dataset):
    """Images with class labels; subclasses say how one image is loaded.

    Args:
        labels: int array [len].
        class_names: list of K names, or None where the data set does not know its classes.
        transforms: callables `transform(image, rng) -> image`, applied in order to one PIL image.
        batch_transforms: callables on a batch; the data loader applies them.
        return_label: PASSL's key; False is for self-supervised training, which does not exist here.
        seed: with a sample's key, from the sampler, it determines every draw of the transforms.
        on_bad_image: what becomes of a BadImage. `raise`: the run ends. `skip`, in training: the next image that can
            be read takes its place. `count_as_wrong`, in evaluation: it counts as a wrong prediction.
        max_bad_share: with `skip`, the share of the images (0.001 by default, at least one image) that may be bad.
    """

    def __init__(
        self,
        labels,
        class_names,
        transforms,
        batch_transforms,
        return_label,
        seed,
        on_bad_image="raise",
        max_bad_share=None,
    ):
        super().__init__()
        if not return_label:
            raise ValueError("return_label must be true: training and evaluation need the labels")
        self.labels, self.class_names = labels, class_names
        self.transforms, self.batch_transforms = list(transforms or ()), list(batch_transforms or ())
        self.seed = seed
        self.on_bad_image, self.max_bad = on_bad_image, _most_bad(len(labels), on_bad_image, max_bad_share)

    def load(self, index):
        """The PIL image number `index`; raises BadImage with its name when it cannot be used."""
        raise TypeError(f"{type(self).__name__} does not say how to load an image")

    def name(self, index):
        """What the image number `index` is called: its path, if it has one."""
        return f"image {index}"

    def describe(self, index):
        """What messages call the image number `index`."""
        return f"{self.where}: {self.name(index)}"

    def refuse_too_many(self, bad):
        """Raise DataError if `bad`, one text an image, are more than `on_bad_image: skip` allows."""
        if self.on_bad_image == "skip" and len(bad) > self.max_bad:
            raise DataError(
                f"{self.where}: {len(bad)} of {len(self)} images cannot be used, and max_bad_share allows "
                f"{self.max_bad}: {first_of(bad)}"
            )

    def sample_names(self):
        """An array that tells the samples apart from those of another data set, in their order."""
        return np.arange(len(self))

    def fingerprint(self):
        """{"samples": N, "classes": K, "sha256": hex}, for checkpoints and for the record of a run.

        The digest covers the samples' names and labels in their order (every draw depends on a sample's number) and
        the class names. Neither the folder that the data lie in, nor the order in which a file system lists it, nor
        the images' content counts.
        """
        names, labels = self.sample_names(), self.labels.astype("int64")
        layout = {"classes": self.class_names, "names": [names.dtype.str, *names.shape]}
        digest = hashlib.sha256(json.dumps(layout).encode())
        for array in (labels, names):
            digest.update(np.ascontiguousarray(array))
        classes = len(np.unique(labels) if self.class_names is None else self.class_names)
        return {"samples": len(self), "classes": classes, "sha256": digest.hexdigest()}

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, key):
        """key (epoch, index, ...) -> (image float32 [C, H, W] after the usual transforms, label).

        The draws depend on the whole key, so that with a further number the same image is augmented anew.
        """
        index = key[1]
        image = self.load(index)
        rng = generator(self.seed, SAMPLE, *key)
        try:
            for transform in self.transforms:
                image = transform(image, rng)
        except DataError as error:
            raise DataError(f"{self.describe(index)}: {error}") from error
        return image, int(self.labels[index])


def _most_bad(count, on_bad_image, max_bad_share):
    """How many of `count` images may be bad; raises ValueError for settings that are none."""
    if on_bad_image not in ON_BAD_IMAGE:
        raise ValueError(f"on_bad_image must be one of {', '.join(ON_BAD_IMAGE)}, not '{on_bad_image}'")
    if on_bad_image != "skip":
        if max_bad_share is not None:
            raise ValueError("max_bad_share goes with on_bad_image: skip")
        return 0
    share = MAX_BAD_SHARE if max_bad_share is None else max_bad_share
    if not 0 < share < 1:
        raise ValueError(f"max_bad_share must lie between 0 and 1, not {share}")
    return min(max(1, int(share * count)), count - 1)


def first_of(texts):
    """The first of some texts in one line, and how many more there are."""
    texts = list(texts)
    more = [f"and {len(texts) - NAMED} more"] if len(texts) > NAMED else []
    return "; ".join(texts[:NAMED] + more)


def shown(path):
    """`path` as messages show it: in one line, and as text that any log can take."""
    return repr(str(path))[1:-1]


def check_labels(labels, class_names, num_classes, where):
    """Raise DataError unless `labels` (int array) and `class_names` fit a model of `num_classes` classes."""
    if class_names is not None and len(class_names) != num_classes:
        raise DataError(
            f"{where}: {len(class_names)} classes, but the model has {num_classes}: set model.head.num_classes to "
            f"{len(class_names)}, or keep one folder a class, even an empty one"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise DataError(f"{where}: label {wrong} is out of range: the model has classes 0 to {num_classes - 1}")
