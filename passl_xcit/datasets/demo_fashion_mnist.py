"""Fashion-MNIST, the embedded part of it: 8,000 training and 2,000 test images, so that nothing has to be downloaded.

Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747; MIT licence, whose notice lies beside the arrays. The first 800
training and the first 200 test images of each class, in the order of the original files.
"""

import hashlib
from pathlib import Path
from typing import Optional, Sequence

import numpy as np
from PIL import Image

from passl_xcit.datasets.dataset import ImageDataset
from passl_xcit.utils.errors import DataError
from passl_xcit.utils.registry import BATCH_TRANSFORMS, DATASETS, TRANSFORMS

FILE = Path(__file__).parent / "fashion_mnist" / "fashion_mnist_10k.npz"
SHA256 = "f2744d27e804ea1fa7169348364eccac77412b1bd51c633c8dc93d8b470cd3d7"  # of the four arrays' bytes, in order
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
CLASS_NAMES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]


class FashionMNIST(ImageDataset):
    """Grey images of 28 x 28 pixels, ten classes.

    Args:
        split: `train` (8,000 images) or `test` (2,000 images).
        transforms, batch_transforms, return_label: see ImageDataset; images are PIL images of mode L.

    Raises:
        DataError: if the embedded file is missing or damaged.
    """

    where = "embedded Fashion-MNIST"

    def __init__(
        self,
        split: str,
        transforms: Optional[Sequence[dict]] = None,
        batch_transforms: Optional[Sequence[dict]] = None,
        return_label: bool = True,
        seed: int = 0,
    ):
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', not '{split}'")
        arrays = read_arrays()
        self.images = arrays[f"{split}_images"]
        labels = arrays[f"{split}_labels"].astype("int64")
        super().__init__(labels, CLASS_NAMES, transforms, batch_transforms, return_label, seed)

    def sample_names(self):
        return self.images

    def load(self, index):
        return Image.fromarray(self.images[index])


def read_arrays(path=FILE):
    """The four arrays of the embedded file; raises DataError unless their checksum is the one in this file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS}
    except Exception as error:  # NumPy and zipfile raise half a dozen types for a damaged file
        raise DataError(f"{path}: the embedded data set cannot be read ({error}); install the package again") from error
    digest = hashlib.sha256(b"".join(arrays[name].tobytes() for name in ARRAYS)).hexdigest()
    if digest != SHA256:
        raise DataError(f"{path}: the embedded data set is damaged (checksum differs); install the package again")
    return arrays


DATASETS.register(
    FashionMNIST, nodes={"transforms": TRANSFORMS, "batch_transforms": BATCH_TRANSFORMS}, runtime=("seed",)
)
