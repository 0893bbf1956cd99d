"""Learning-rate schedules with PASSL's names and PASSL's unit: numbers in the config count epochs.

Each becomes one of Paddle's schedulers that steps once an iteration, so epoch counts are multiplied by
`iters_per_epoch` (PASSL, solver/builder.py; without its change of the config in place).
"""

from typing import Sequence, Union

from paddle.optimizer import lr

from passl_xcit.utils.registry import LR_SCHEDULERS


def CosineAnnealingDecay(learning_rate: float, T_max: int, eta_min: float = 0.0, iters_per_epoch: int = 1):
    """From `learning_rate` down to `eta_min` along half a cosine of `T_max` epochs."""
    _at_least(1, T_max=T_max)
    return lr.CosineAnnealingDecay(float(learning_rate), T_max * iters_per_epoch, eta_min=eta_min)


def MultiStepDecay(learning_rate: float, milestones: Sequence[int], gamma: float = 0.1, iters_per_epoch: int = 1):
    """`learning_rate`, multiplied by `gamma` at each of the `milestones` (epochs)."""
    return lr.MultiStepDecay(float(learning_rate), [epoch * iters_per_epoch for epoch in milestones], gamma=gamma)


def LinearWarmup(
    learning_rate: Union[float, lr.LRScheduler],
    warmup_steps: int,
    start_lr: float,
    end_lr: float,
    iters_per_epoch: int = 1,
):
    """From `start_lr` to `end_lr` in `warmup_steps` epochs, then `learning_rate`: a number or another schedule.

    The inner schedule starts after the warm-up, so with PASSL's `T_max: 400` of 400 epochs the run ends at 395/400
    of the cosine.
    """
    _at_least(1, warmup_steps=warmup_steps)
    if start_lr >= end_lr:
        raise ValueError(f"start_lr {start_lr} must be below end_lr {end_lr}")
    return lr.LinearWarmup(learning_rate, warmup_steps * iters_per_epoch, start_lr, end_lr)


def _at_least(least, **counts):
    for name, value in counts.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")


LR_SCHEDULERS.register(CosineAnnealingDecay, runtime=("iters_per_epoch",))
LR_SCHEDULERS.register(MultiStepDecay, runtime=("iters_per_epoch",))
LR_SCHEDULERS.register(LinearWarmup, nodes={"learning_rate": LR_SCHEDULERS}, runtime=("iters_per_epoch",))
