"""Batches for training and evaluation, the same ones for any number of worker processes."""

import contextlib
import json
import traceback

import numpy as np
import paddle

from passl_xcit.datasets.dataset import NAMED, BadImage
from passl_xcit.datasets.worker_pool import NO_SAMPLE, can_fork, in_workers
from passl_xcit.utils.errors import DataError, UserError
from passl_xcit.utils.logger import get_logger
from passl_xcit.utils.seed import BATCH, generator
from passl_xcit.utils.startup import usable_cores

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

    `bad_images` {index: text} are the images met so far that could not be used, where the data set's `on_bad_image`
    bears them. It grows with the batches that are taken, not with those that are prepared ahead.

    Raises:
        DataError: while iterating, with the file's name, for a sample that cannot be read, and for one at which a
            worker died or hangs; and when more images are bad than `max_bad_share` allows.
        RuntimeError: while iterating, with the file's name and the traceback of a bug in a transform.
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
        self.bad_images = {}
        self._collate = Collate(dataset.batch_transforms, dataset.seed, dataset.describe)

    def __len__(self):
        """Batches of a whole epoch."""
        return len(self.batch_sampler)

    def set_position(self, epoch, batch):
        """Make the next iteration that of `epoch`, from batch number `batch` on."""
        self.batch_sampler.set_position(epoch, batch)

    def remember_bad_images(self, indices):
        """Take these as met, as the run did that now goes on here."""
        self.bad_images = {index: self.dataset.describe(index) for index in indices}

    def __iter__(self):
        known = len(self.bad_images)
        for *batch, found in self._batches():
            self._note(json.loads(found.tobytes()))
            if batch:
                images, targets = batch
                yield paddle.to_tensor(images), paddle.to_tensor(targets)
        if self.dataset.on_bad_image == "skip" and len(self.bad_images) > known:
            logger.warning(
                f"{self.dataset.where}: {len(self.bad_images)} of {len(self.dataset)} images cannot be used so far; "
                f"the next ones take their places; {self.dataset.max_bad} may be bad"
            )

    def _note(self, found):
        """Remember the bad images of a batch, name the first ones of the run, and refuse too many."""
        for index, text in found.items():
            if int(index) not in self.bad_images:
                self.bad_images[int(index)] = text
                if self.dataset.on_bad_image == "skip" and len(self.bad_images) <= NAMED:
                    logger.warning(f"{text}; the next image that can be read takes its place")
        self.dataset.refuse_too_many(self.bad_images.values())

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
        """[images, targets, bad images] of one batch as arrays; without the first two where no sample is left."""
        samples, bad = [], {}
        for key in keys:
            samples += self._sample(key, bad, progress)
        progress(NO_SAMPLE)
        with _bugs_named("batch_transforms"):
            batch = self._collate(samples) if samples else ()
        return [*batch, np.frombuffer(json.dumps(bad).encode(), "uint8")]

    def _sample(self, key, bad, progress):
        """[(key, image, label)], or [] where the image is bad and none takes its place; `bad` gets {index: text}.

        The place of a bad image goes to the next one, whoever asks and whenever: the number decides, no draw.
        """
        epoch, index, *repeat = key
        for candidate in range(index, index + 1 + self.dataset.max_bad):
            candidate %= len(self.dataset)
            key = (epoch, candidate, *repeat)
            progress(candidate)
            try:
                with _bugs_named(self.dataset.describe(candidate)):
                    return [(key, *self.dataset[key])]
            except BadImage as error:
                if self.dataset.on_bad_image == "raise":
                    raise
                bad[candidate] = str(error)
        return []


@contextlib.contextmanager
def _bugs_named(place):
    """Make an exception that is no user's one text with its traceback, which would be lost between processes."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise RuntimeError(f"{place}: {traceback.format_exc()}") from error


class Collate:
    """Stacks samples, then applies the batch transforms with draws that depend on the first sample's position."""

    def __init__(self, batch_transforms, seed, describe=str):
        self.batch_transforms, self.seed, self.describe = batch_transforms, seed, describe

    def __call__(self, samples):
        """[(key, image, label), ...] -> (images, targets)"""
        self._check_images(samples)
        keys, images, labels = zip(*samples)
        images, targets = np.stack(images).astype("float32", copy=False), np.array(labels, "int64")
        rng = generator(self.seed, BATCH, *keys[0])
        for transform in self.batch_transforms:
            images, targets = transform(images, targets, rng)
        return images, targets

    def _check_images(self, samples):
        """Raise DataError unless the images of a batch are arrays of one shape."""
        first_of_shape = {}
        for key, image, _ in samples:
            if not isinstance(image, np.ndarray):
                raise DataError("the transforms leave no [C, H, W] array: add Transpose and Normalize")
            first_of_shape.setdefault(image.shape, key[1])
        if len(first_of_shape) > 1:
            shapes = [f"{shape} from {self.describe(index)}" for shape, index in sorted(first_of_shape.items())]
            raise DataError(
                f"images of different sizes in one batch ({shapes[0]}, {shapes[1]}): add a CenterCrop to transforms"
            )
