"""Batches for training and evaluation, the same ones for any number of worker processes."""

import traceback

import numpy as np
import paddle

from passl_xcit.datasets.worker_pool import NO_SAMPLE, can_fork, in_workers
from passl_xcit.utils.cpu import usable_cores
from passl_xcit.utils.errors import DataError, UserError
from passl_xcit.utils.logger import get_logger
from passl_xcit.utils.seed import BATCH, generator

logger = get_logger(__name__)


class ImageLoader:
    """Iterates over (images float32 [B, C, H, W], targets int64 [B] or float32 [B, K]) on the current device.

    Args:
        dataset: an ImageDataset.
        batch_sampler: gives lists of keys (epoch, index, ...) and has `set_position`.
        num_workers: processes that read and transform; no more are started than the machine has cores, and none where
            the system cannot fork. The batches do not depend on it.
        use_shared_memory: hand batches over in shared memory (Linux) instead of through a pipe, which is slower and
            lets each worker prepare a single batch ahead.
        prefetch_factor: batches that each worker prepares ahead.
        timeout: seconds to wait for a batch of a worker before the training ends with an error; 0 waits for ever.

    Raises:
        DataError: while iterating, with the file's name, for a sample that cannot be read, and for one at which a
            worker died or hangs.
        RuntimeError: while iterating, with the traceback of a bug in a transform.
    """

    def __init__(
        self,
        dataset,
        batch_sampler,
        num_workers: int = 0,
        use_shared_memory: bool = True,
        prefetch_factor: int = 2,
        timeout: float = 300,
    ):
        if num_workers < 0 or prefetch_factor < 1:
            raise ValueError(f"num_workers {num_workers} and prefetch_factor {prefetch_factor}: expected >= 0 and >= 1")
        if not timeout >= 0:
            raise ValueError(f"timeout must be 0 or more seconds, not {timeout}")
        if num_workers and not can_fork():
            logger.warning("this system cannot fork worker processes: the main one reads the images (num_workers: 0)")
            num_workers = 0
        self.dataset, self.batch_sampler = dataset, batch_sampler
        self.num_workers, self.prefetch_factor = min(num_workers, usable_cores()), prefetch_factor
        self.use_shared_memory, self.timeout = use_shared_memory, timeout
        self._collate = Collate(dataset.batch_transforms, dataset.seed)

    def __len__(self):
        """Batches of a whole epoch."""
        return len(self.batch_sampler)

    def set_position(self, epoch, batch):
        """Make the next iteration that of `epoch`, from batch number `batch` on."""
        self.batch_sampler.set_position(epoch, batch)

    def __iter__(self):
        for images, targets in self._batches():
            yield paddle.to_tensor(images), paddle.to_tensor(targets)

    def _batches(self):
        if not self.num_workers:
            return map(self._load, self.batch_sampler)
        return in_workers(
            self._load,
            self.batch_sampler,
            self.num_workers,
            self.prefetch_factor,
            self.timeout,
            self.use_shared_memory,
            self.dataset.describe,
        )

    def _load(self, keys, progress=lambda index: None):
        """The arrays of one batch. A user's error stays as it is; a bug's traceback would be lost between processes."""
        try:
            samples = []
            for key in keys:
                progress(key[1])
                samples.append((key, *self.dataset[key]))
            progress(NO_SAMPLE)
            return self._collate(samples)
        except UserError:
            raise
        except Exception as error:
            raise RuntimeError(traceback.format_exc()) from error


class Collate:
    """Stacks samples, then applies the batch transforms with draws that depend on the first sample's position."""

    def __init__(self, batch_transforms, seed):
        self.batch_transforms, self.seed = batch_transforms, seed

    def __call__(self, samples):
        """[(key, image, label), ...] -> (images, targets)"""
        _check_images([image for _, image, _ in samples])
        keys, images, labels = zip(*samples)
        images, targets = np.stack(images).astype("float32", copy=False), np.array(labels, "int64")
        rng = generator(self.seed, BATCH, *keys[0])
        for transform in self.batch_transforms:
            images, targets = transform(images, targets, rng)
        return images, targets


def _check_images(images):
    """Raise DataError unless the images of a batch are arrays of one shape."""
    if not all(isinstance(image, np.ndarray) for image in images):
        raise DataError("the transforms leave no [C, H, W] array: add Transpose and Normalize")
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
        raise DataError(
            f"images of different sizes in one batch ({shapes[0]} and {shapes[1]}): add a CenterCrop to transforms"
        )
