"""Evaluates while training."""

from typing import Optional

from passl_xcit.hooks.hook import Hook
from passl_xcit.utils.registry import HOOKS


class EvaluateHook(Hook):
    """Evaluates after every `interval` epochs, and after the last one; runs before the checkpoint is written.

    Args:
        interval: epochs between two evaluations.
        init_eval: evaluate before training, too.
        eval_kargs: PASSL's key; its evaluation takes no arguments, so nothing may stand here.
    """

    priority = 70

    def __init__(
        self,
        interval: int = 1,
        init_eval: bool = False,
        eval_kargs: Optional[dict] = None,
        priority: Optional[int] = None,
    ):
        super().__init__(priority)
        if interval < 1:
            raise ValueError(f"interval must be at least 1, not {interval}")
        if eval_kargs:
            raise ValueError(f"eval_kargs must be empty: the evaluation takes no arguments, not {eval_kargs}")
        self.interval, self.init_eval = interval, init_eval

    def run_begin(self, trainer):
        if self.init_eval and trainer.state.iter == 0:
            trainer.evaluate()

    def train_epoch_end(self, trainer):
        if trainer.state.epoch % self.interval == 0 or trainer.is_last_epoch:
            trainer.evaluate()


HOOKS.register(EvaluateHook)
