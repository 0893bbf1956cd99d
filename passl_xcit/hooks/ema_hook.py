"""A moving average of the weights, which is evaluated and saved beside them."""

import math
from typing import Optional

import paddle

from passl_xcit.hooks.hook import Hook
from passl_xcit.ops.update import applies_to, move_averages
from passl_xcit.utils.registry import HOOKS


class EMAHook(Hook):
    """After every update: average = d * average + (1 - d) * weights, BatchNorm's statistics included.

    As timm's ModelEma, with which XCiT was trained. Each evaluation also evaluates the average; checkpoints hold it
    as `state_dict_ema`, and `best_ema.pdparams` is the best of them, as a weight file.

    Args:
        decay: d.
        warmup_updates: where above 0, d = decay * (1 - exp(-updates / warmup_updates)), so that the average forgets
            the untrained weights sooner; MindCV's is 2000.
    """

    priority = 55

    def __init__(self, decay: float = 0.99996, warmup_updates: int = 0, priority: Optional[int] = None):
        super().__init__(priority)
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), not {decay}")
        if warmup_updates < 0:
            raise ValueError(f"warmup_updates must be 0 or more, not {warmup_updates}")
        self.decay, self.warmup_updates = decay, warmup_updates

    def run_begin(self, trainer):
        if trainer.state.ema is None:
            weights = trainer.weights().items()
            trainer.state.ema = {name: value.detach().clone().astype("float32") for name, value in weights}

    @paddle.no_grad()
    def train_iter_end(self, trainer):
        decay = self._decay_after(trainer.state.iter)
        pairs = [(trainer.state.ema[name], value) for name, value in trainer.weights().items()]
        if applies_to([tensor for pair in pairs for tensor in pair]):
            return move_averages(pairs, decay)
        for average, value in pairs:
            average.scale_(decay).add_(value * (1 - decay))

    def _decay_after(self, updates):
        return self.decay * (1 - math.exp(-updates / self.warmup_updates)) if self.warmup_updates else self.decay


HOOKS.register(EMAHook)
