"""Images of noise, for what needs no real ones: speed, and which operators a training runs."""

from typing import Optional, Sequence

import numpy as np
from PIL import Image

from passl_xcit.datasets.dataset import ImageDataset
from passl_xcit.utils.registry import BATCH_TRANSFORMS, DATASETS, TRANSFORMS
from passl_xcit.utils.seed import generator

PURPOSE = 3  # a draw that no other part of a run makes (utils/seed.py)


class RandomImages(ImageDataset):
    """Images of noise, the same ones for the same seed; image i has class i modulo the model's number of classes.

    Args:
        num_images: how many.
        image_size: pixels, height and width.
        channels: 3 for RGB, 1 for grey images.
        transforms, batch_transforms, return_label: see ImageDataset.
    """

    where = "random images"

    def __init__(
        self,
        num_images: int = 1000,
        image_size: int = 256,
        channels: int = 3,
        transforms: Optional[Sequence[dict]] = None,
        batch_transforms: Optional[Sequence[dict]] = None,
        return_label: bool = True,
        seed: int = 0,
        model_classes: int = 1000,
    ):
        if num_images < 1 or image_size < 1:
            raise ValueError(f"num_images {num_images} and image_size {image_size} must be at least 1")
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, not {channels}")
        self.shape = (image_size, image_size, channels) if channels == 3 else (image_size, image_size)
        labels = np.arange(num_images, dtype="int64") % model_classes
        super().__init__(labels, None, transforms, batch_transforms, return_label, seed)

    def load(self, index):
        return Image.fromarray(generator(self.seed, PURPOSE, index).integers(0, 256, self.shape, "uint8"))


DATASETS.register(
    RandomImages,
    nodes={"transforms": TRANSFORMS, "batch_transforms": BATCH_TRANSFORMS},
    runtime=("seed", "model_classes"),
)
