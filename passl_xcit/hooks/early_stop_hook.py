"""Ends a training that no longer gets better."""

from typing import Optional

from passl_xcit.hooks.hook import Hook
from passl_xcit.utils.logger import TRAINER, get_logger
from passl_xcit.utils.registry import HOOKS

logger = get_logger(TRAINER)


class EarlyStopHook(Hook):
    """Ends the training when acc1, and with EMAHook that of the average, was not raised for `patience` epochs.

    It looks after evaluations only, so it needs EvaluateHook.

    Args:
        patience: epochs after the best one.
    """

    priority = 75

    def __init__(self, patience: int = 10, priority: Optional[int] = None):
        super().__init__(priority)
        if patience < 1:
            raise ValueError(f"patience must be at least 1, not {patience}")
        self.patience = patience

    def run_begin(self, trainer):
        self._look(trainer)  # a run that was ended so stays ended when it is resumed

    def train_epoch_end(self, trainer):
        self._look(trainer)

    def _look(self, trainer):
        state = trainer.state
        best = max(state.best.get("epoch", 0), state.best_ema.get("epoch", 0))
        if best and state.evaluated == state.epoch and state.epoch - best >= self.patience:
            logger.info(f"no better acc1 since epoch {best}, {state.epoch - best} epochs ago: the training ends here")
            state.finished = True


HOOKS.register(EarlyStopHook)
