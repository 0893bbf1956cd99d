"""Learning-rate schedules with PASSL's names and PASSL's unit: numbers in the config count epochs.

Each becomes one of Paddle's schedulers that steps once an iteration, so epoch counts are multiplied by
`iters_per_epoch` (PASSL, solver/builder.py; without its change of the config in place).

All take `base_batch_size`: the learning rates `learning_rate` and `end_lr` are then those for so many images a step,
and are multiplied by `global_batch_size`, the images that all processes together take in a step, divided by it (Goyal
et al. 2017, arXiv 1706.02677, section 2.1). What warm-up starts from and the minimum stay, as in facebookresearch/xcit.
"""

import math
from typing import Optional, Sequence, Union

from paddle.optimizer import lr

from passl_xcit.utils.registry import LR_SCHEDULERS


def CosineAnnealingDecay(
    learning_rate: float,
    T_max: int,
    eta_min: float = 0.0,
    base_batch_size: Optional[int] = None,
    iters_per_epoch: int = 1,
    global_batch_size: int = 1,
):
    """From `learning_rate` down to `eta_min` along half a cosine of `T_max` epochs."""
    _at_least(1, T_max=T_max)
    _at_least(0, learning_rate=learning_rate, eta_min=eta_min)
    rate = scaled(learning_rate, base_batch_size, global_batch_size)
    _not_above(rate, learning_rate, eta_min=eta_min)
    return lr.CosineAnnealingDecay(rate, T_max * iters_per_epoch, eta_min=eta_min)


def MultiStepDecay(
    learning_rate: float,
    milestones: Sequence[int],
    gamma: float = 0.1,
    base_batch_size: Optional[int] = None,
    iters_per_epoch: int = 1,
    global_batch_size: int = 1,
):
    """`learning_rate`, multiplied by `gamma` at each of the `milestones` (epochs)."""
    _at_least(0, learning_rate=learning_rate)
    if not 0 < gamma < 1:
        raise ValueError(f"gamma must lie between 0 and 1, not {gamma}")
    if any(later <= earlier for earlier, later in zip([0, *milestones], milestones)):
        raise ValueError(f"milestones must be epochs from 1 on, each later than the one before, not {milestones}")
    rate = scaled(learning_rate, base_batch_size, global_batch_size)
    return lr.MultiStepDecay(rate, [epoch * iters_per_epoch for epoch in milestones], gamma=gamma)


def LinearWarmup(
    learning_rate: Union[float, lr.LRScheduler],
    warmup_steps: int,
    start_lr: float,
    end_lr: float,
    base_batch_size: Optional[int] = None,
    iters_per_epoch: int = 1,
    global_batch_size: int = 1,
):
    """From `start_lr` to `end_lr` in `warmup_steps` epochs, then `learning_rate`: a number or another schedule.

    The inner schedule starts after the warm-up, so with PASSL's `T_max: 400` of 400 epochs the run ends at 395/400
    of the cosine. In a config the `base_batch_size` of this one is that of the inner one too.
    """
    _at_least(1, warmup_steps=warmup_steps)
    _at_least(0, start_lr=start_lr, end_lr=end_lr)
    end = scaled(end_lr, base_batch_size, global_batch_size)
    if start_lr >= end:
        raise ValueError(
            f"start_lr {start_lr} must be below end_lr {_text(end, end_lr)}: "
            "use a larger batch, more processes, or another start_lr"
        )
    if not isinstance(learning_rate, lr.LRScheduler):
        _at_least(0, learning_rate=learning_rate)
        learning_rate = scaled(learning_rate, base_batch_size, global_batch_size)
    return lr.LinearWarmup(learning_rate, warmup_steps * iters_per_epoch, start_lr, end)


class _EpochSchedule(lr.LRScheduler):
    """A learning rate that is a function `rate(epoch)`; its whole state is `last_epoch`, which counts iterations.

    `epoch` is a whole number with `whole_epochs`, otherwise it grows by 1 / iters_per_epoch an iteration.
    """

    def __init__(self, learning_rate, whole_epochs, iters_per_epoch):
        self.whole_epochs, self.iters_per_epoch = whole_epochs, iters_per_epoch
        super().__init__(learning_rate)

    def get_lr(self):
        if self.whole_epochs:
            return self.rate(self.last_epoch // self.iters_per_epoch)
        return self.rate(self.last_epoch / self.iters_per_epoch)


class TimmCosine(_EpochSchedule):
    """timm's cosine, as facebookresearch/xcit, DeiT and PASSL use it: the warm-up does not shift the cosine.

    The learning rate of epoch t is warmup_start_lr + t (learning_rate - warmup_start_lr) / warmup_epoch below
    `warmup_epoch`, then eta_min + (learning_rate - eta_min) (1 + cos(pi t / T_max)) / 2, and `eta_min` from `T_max` on
    (timm/scheduler/cosine_lr.py; PASSL's begins anew there).

    Args:
        learning_rate, eta_min: from where to where.
        T_max: in how many epochs; by default those of the run.
        warmup_epoch, warmup_start_lr: how many epochs of warm-up, and what they start from.
        decay_unit: `epoch`: t is the number of finished epochs. `step`: t grows with every iteration.
        epoch_late: t is one epoch less, but not below 0. The training loop of facebookresearch/xcit steps its schedule
            after an epoch with that epoch's own number (main.py), so that two epochs have the first learning rate.

    Raises:
        ValueError: for counts below their least, and if a warm-up does not rise or a cosine does not fall.
    """

    UNITS = ("epoch", "step")

    def __init__(
        self,
        learning_rate: float,
        T_max: Optional[int] = None,
        eta_min: float = 0.0,
        warmup_epoch: int = 0,
        warmup_start_lr: float = 0.0,
        decay_unit: str = "epoch",
        epoch_late: bool = False,
        base_batch_size: Optional[int] = None,
        iters_per_epoch: int = 1,
        global_batch_size: int = 1,
        epochs: int = 1,
    ):
        T_max = epochs if T_max is None else T_max
        _at_least(1, T_max=T_max)
        _at_least(0, learning_rate=learning_rate, eta_min=eta_min)
        _at_least(0, warmup_epoch=warmup_epoch, warmup_start_lr=warmup_start_lr)
        if decay_unit not in self.UNITS:
            raise ValueError(f"decay_unit must be {' or '.join(self.UNITS)}, not '{decay_unit}'")
        peak = scaled(learning_rate, base_batch_size, global_batch_size)
        _not_above(peak, learning_rate, eta_min=eta_min, warmup_start_lr=warmup_start_lr)
        self.T_max, self.eta_min = T_max, eta_min
        self.warmup_epoch, self.warmup_start_lr = warmup_epoch, warmup_start_lr
        self.delay = int(epoch_late)
        super().__init__(peak, decay_unit == "epoch", iters_per_epoch)

    def rate(self, epoch):
        epoch = max(0, epoch - self.delay)
        if epoch < self.warmup_epoch:
            return self.warmup_start_lr + epoch * (self.base_lr - self.warmup_start_lr) / self.warmup_epoch
        return _half_cosine(self.base_lr, self.eta_min, min(epoch / self.T_max, 1.0))


class CosineDecay(_EpochSchedule):
    """MindCV's `cosine_decay`, which it also calls `warmup_cosine_decay`, with MindCV's names of arguments.

    A straight line from learning_rate * warmup_factor to learning_rate in `warmup_epochs`, then `num_cycles` times half
    a cosine down to `min_lr` in `decay_epochs`, each from `cycle_decay` times the height of the one before, then
    `min_lr` (MindCV 0.3.0, scheduler/scheduler_factory.py, where learning_rate is `lr`).

    Args:
        lr_epoch_stair: one learning rate an epoch. With MindCV's `warmup_factor`, 0, that of epoch 0 is then exactly 0,
            and nothing is learnt in it. Otherwise the learning rate changes with every iteration, and only that of the
            first one is 0.

    Raises:
        ValueError: for counts below their least, and if the cosine does not fall.
    """

    def __init__(
        self,
        learning_rate: float,
        decay_epochs: int,
        min_lr: float = 0.0,
        warmup_epochs: int = 0,
        warmup_factor: float = 0.0,
        num_cycles: int = 1,
        cycle_decay: float = 1.0,
        lr_epoch_stair: bool = False,
        base_batch_size: Optional[int] = None,
        iters_per_epoch: int = 1,
        global_batch_size: int = 1,
    ):
        _at_least(1, decay_epochs=decay_epochs, num_cycles=num_cycles)
        _at_least(0, learning_rate=learning_rate, min_lr=min_lr)
        _at_least(0, warmup_epochs=warmup_epochs, warmup_factor=warmup_factor, cycle_decay=cycle_decay)
        peak = scaled(learning_rate, base_batch_size, global_batch_size)
        _not_above(peak, learning_rate, min_lr=min_lr)
        self.min_lr, self.decay_epochs = min_lr, decay_epochs
        self.warmup_epochs, self.warmup_factor = warmup_epochs, warmup_factor
        self.num_cycles, self.cycle_decay = num_cycles, cycle_decay
        super().__init__(peak, lr_epoch_stair, iters_per_epoch)

    def rate(self, epoch):
        if epoch < self.warmup_epochs:
            return self.base_lr * (self.warmup_factor + (1 - self.warmup_factor) * epoch / self.warmup_epochs)
        cycle, decayed = divmod(epoch - self.warmup_epochs, self.decay_epochs)
        if cycle >= self.num_cycles:
            return self.min_lr
        return _half_cosine(self.base_lr * self.cycle_decay**cycle, self.min_lr, decayed / self.decay_epochs)


def scaled(learning_rate, base_batch_size, global_batch_size):
    """`learning_rate` for steps of `global_batch_size` images; as it is where `base_batch_size` is None."""
    if base_batch_size is None:
        return float(learning_rate)
    _at_least(1, base_batch_size=base_batch_size)
    return learning_rate * global_batch_size / base_batch_size


def _half_cosine(high, low, progress):
    return low + (high - low) * (1 + math.cos(math.pi * progress)) / 2


def _text(rate, given):
    """How messages print a learning rate that may have been scaled."""
    return f"{given:g}" if rate == given else f"{rate:g} ({given:g}, scaled to the images a step)"


def _at_least(least, **numbers):
    for name, value in numbers.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")


def _not_above(rate, given, **lower):
    for name, value in lower.items():
        if value > rate:
            raise ValueError(f"{name} {value:g} must not be above learning_rate {_text(rate, given)}")


_RUNTIME = ("iters_per_epoch", "global_batch_size")
for _schedule in (CosineAnnealingDecay, MultiStepDecay, CosineDecay):
    LR_SCHEDULERS.register(_schedule, runtime=_RUNTIME)
LR_SCHEDULERS.register(TimmCosine, runtime=(*_RUNTIME, "epochs"))
LR_SCHEDULERS.register(LinearWarmup, nodes={"learning_rate": LR_SCHEDULERS}, runtime=_RUNTIME)
