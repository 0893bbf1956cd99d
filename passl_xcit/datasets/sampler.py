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
        order = np.arange(self.length)
        if self.shuffle:
            order = generator(self.seed, SHUFFLE, self.epoch).permutation(self.length)
        return np.resize(order, self._total())[self.rank :: self.world_size]

    def __iter__(self):
        indices = self.indices().tolist()
        for batch in range(self.first_batch, len(self)):
            chosen = indices[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(self.epoch, index) for index in chosen]

    def __len__(self):
        """Batches of a whole epoch."""
        batches = len(range(self.rank, self._total(), self.world_size)) / self.batch_size
        return math.floor(batches) if self.drop_last else math.ceil(batches)

    def _total(self):
        """Samples of all processes together in one epoch."""
        if not self.pad:
            return self.length
        per_process = self.length / self.world_size
        return (math.floor(per_process) if self.drop_last else math.ceil(per_process)) * self.world_size


SAMPLERS.register(DistributedBatchSampler, runtime=("length", "seed", "rank", "world_size", "pad"))
