"""Which samples a process sees, and in which order: a function of (seed, epoch) that can start in mid-epoch."""

import math

import numpy as np
from paddle.io import BatchSampler

from passl_xcit.utils.registry import SAMPLERS
from passl_xcit.utils.seed import SHUFFLE, generator


class DistributedBatchSampler(BatchSampler):
    """Batches of (epoch, sample index) for one process of `world_size`.

    In training (`pad`) every process gets equally many samples: with `drop_last` the rest is left out, otherwise
    some samples are seen twice. In evaluation every sample is seen exactly once, however many processes there are.

    Args:
        batch_size: samples of one process in one step.
        shuffle: a new order in every epoch, drawn from (seed, epoch).
        drop_last: leave out the last, smaller batch.
        length, seed, rank, world_size, pad: given by the program.
    """

    def __init__(
        self,
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        length: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pad: bool = True,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.batch_size, self.shuffle, self.drop_last = batch_size, shuffle, drop_last
        self.length, self.seed, self.rank, self.world_size, self.pad = length, seed, rank, world_size, pad
        self.set_position(0, 0)

    def set_position(self, epoch, batch):
        """Make the next iteration that of `epoch`, from batch number `batch` on."""
        self.epoch, self.first_batch = epoch, batch

    def indices(self):
        """Sample indices of this process in this epoch, in order: int array."""
        return np.resize(self._order(), self._total())[self.rank :: self.world_size]

    def __iter__(self):
        keys = self._keys()
        for batch in range(self.first_batch, len(self)):
            chosen = keys[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()
            yield [(self.epoch, *key) for key in chosen]

    def __len__(self):
        """Batches of a whole epoch."""
        return self._batches_of(self.rank)

    def common_batches(self):
        """Batches of a whole epoch that every process has: in an evaluation the last one may have one less."""
        return self._batches_of(self.world_size - 1)

    def _batches_of(self, rank):
        batches = len(range(rank, self._total(), self.world_size)) / self.batch_size
        return math.floor(batches) if self.drop_last else math.ceil(batches)

    def _order(self):
        """All sample indices in the order of this epoch, which all processes share: int array."""
        if self.shuffle:
            return generator(self.seed, SHUFFLE, self.epoch).permutation(self.length)
        return np.arange(self.length)

    def _keys(self):
        """What follows the epoch in the keys of this process, in order: int array [samples, 1]."""
        return self.indices()[:, None]

    def _total(self):
        """Samples of all processes together in one epoch."""
        if not self.pad:
            return self.length
        per_process = self.length / self.world_size
        return (math.floor(per_process) if self.drop_last else math.ceil(per_process)) * self.world_size


class DistributedRepeatedAugSampler(DistributedBatchSampler):
    """Batches of (epoch, sample index, repeat): every image several times in a row, each time augmented anew.

    Repeated augmentation (Hoffer et al. 2020, arXiv 1901.09335; Berman et al. 2019, arXiv 1902.05509) by the rule of
    DeiT's and facebookresearch/xcit's samplers.py: the shuffled images, each `num_repeats` times, are dealt to the
    processes in turn, so that the repeats of an image stand side by side in a batch or over the processes; and an epoch
    ends after as many samples as there are images, rounded down to a multiple of 256, so that it holds about
    1 / num_repeats of the images. With fewer than 256 images nothing is rounded: the sources' epoch would be empty.

    Args:
        num_repeats: how often each image is there.
        others: see DistributedBatchSampler.

    Raises:
        ValueError: for an evaluation (`pad` is False), which sees every image once.
    """

    ROUNDED_TO = 256

    def __init__(
        self,
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        num_repeats: int = 3,
        length: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pad: bool = True,
    ):
        if not pad:
            raise ValueError("an evaluation repeats no images: DistributedRepeatedAugSampler is for training")
        if num_repeats < 1:
            raise ValueError(f"num_repeats must be at least 1, not {num_repeats}")
        super().__init__(batch_size, shuffle, drop_last, length, seed, rank, world_size)
        self.num_repeats = num_repeats

    def indices(self):
        return self._keys()[:, 0]

    def _keys(self):
        """int array [samples, 2]: index, and number of the repeat."""
        places = np.arange(self.rank, self._total(), self.world_size)  # in the order with its repeats
        return np.stack([self._order()[places // self.num_repeats], places % self.num_repeats], axis=1)

    def _total(self):
        rounded = self.length // self.ROUNDED_TO * self.ROUNDED_TO or self.length
        return rounded // self.world_size * self.world_size


_RUNTIME = ("length", "seed", "rank", "world_size", "pad")
SAMPLERS.register(DistributedBatchSampler, runtime=_RUNTIME)
SAMPLERS.register(DistributedRepeatedAugSampler, runtime=_RUNTIME)
