"""Batches for training and evaluation.

Paddle's DataLoader makes "Blocking queue is killed" of an exception in a worker process, and waits for ever after
one in its reading thread (num_workers: 0). So exceptions travel as data and are raised where the batch is asked for.
"""

import contextlib
import gc
import traceback

import numpy as np
from paddle.io import DataLoader, Dataset

from passl_xcit.utils.cpu import usable_cores
from passl_xcit.utils.errors import DataError, UserError
from passl_xcit.utils.seed import BATCH, generator


class ImageLoader:
    """Iterates over (images float32 [B, C, H, W], targets int64 [B] or float32 [B, K]).

    Args:
        dataset: an ImageDataset.
        batch_sampler: gives lists of (epoch, index) and has `set_position`.
        num_workers: processes that read and transform; no more are started than the machine has cores. The batches
            do not depend on it.
        use_shared_memory: hand batches over in shared memory instead of through a pipe.
        prefetch_factor: batches that each worker prepares ahead.

    Raises:
        DataError: while iterating, with the file's name, for a sample that cannot be read; and when a worker died.
    """

    def __init__(
        self,
        dataset,
        batch_sampler,
        num_workers: int = 0,
        use_shared_memory: bool = True,
        prefetch_factor: int = 2,
    ):
        if num_workers < 0 or prefetch_factor < 1:
            raise ValueError(f"num_workers {num_workers} and prefetch_factor {prefetch_factor}: expected >= 0 and >= 1")
        self.dataset, self.batch_sampler = dataset, batch_sampler
        self._loader = DataLoader(
            _ErrorsAsData(dataset),
            batch_sampler=batch_sampler,
            collate_fn=Collate(dataset.batch_transforms, dataset.seed),
            num_workers=min(num_workers, usable_cores()),
            use_shared_memory=use_shared_memory,
            prefetch_factor=prefetch_factor,
        )

    def __len__(self):
        """Batches of a whole epoch."""
        return len(self.batch_sampler)

    def set_position(self, epoch, batch):
        """Make the next iteration that of `epoch`, from batch number `batch` on."""
        self.batch_sampler.set_position(epoch, batch)

    def __iter__(self):
        try:
            with _nothing_inherited_is_collected():
                batches = iter(self._loader)  # forks the workers
            for images, targets, problem in batches:
                if problem:
                    raise problem
                yield images, targets
        except SystemError as error:  # Paddle's word for it: "Blocking queue is killed"
            raise DataError(
                "a data worker ended unexpectedly; if no traceback stands above, the system may have killed it for "
                "lack of memory: try a smaller num_workers, or use_shared_memory: false"
            ) from error


@contextlib.contextmanager
def _nothing_inherited_is_collected():
    """Processes forked inside collect no garbage that they inherit.

    It is not theirs to destroy: one of Paddle's readers, collected in a worker, waits for ever for threads that exist
    in the main process only. A worker may collect before any of its own code runs, so this comes before the fork.
    """
    frozen_before = gc.get_freeze_count()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen_before:
            gc.unfreeze()


class _ErrorsAsData(Dataset):
    """The samples of `dataset` as (key, image, label), or an exception where one cannot be had."""

    def __init__(self, dataset):
        super().__init__()
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key):
        try:
            return (key, *self.dataset[key])
        except Exception as error:
            return _portable(error)


def _portable(error):
    """An exception for the main process: a user's error as it is, a bug with the traceback that is lost on the way."""
    return error if isinstance(error, UserError) else RuntimeError(traceback.format_exc())


class Collate:
    """Stacks samples, then applies the batch transforms with draws that depend on the first sample's position."""

    def __init__(self, batch_transforms, seed):
        self.batch_transforms, self.seed = batch_transforms, seed

    def __call__(self, samples):
        """[(key, image, label) or an exception, ...] -> (images, targets, None or an exception)"""
        problem = next((sample for sample in samples if isinstance(sample, Exception)), None)
        try:
            if not problem:
                return (*self._collate(samples), None)
        except Exception as error:
            problem = _portable(error)
        return np.zeros(1, "float32"), np.zeros(1, "int64"), problem  # shared memory takes no empty array

    def _collate(self, samples):
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
