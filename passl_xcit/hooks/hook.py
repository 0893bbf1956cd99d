"""The base class of hooks: what watches, saves and evaluates while the trainer trains."""

from typing import Optional


class Hook:
    """Overrides some of the stages below; the trainer calls them with itself as the argument.

    The loop, with every stage in its place:

        run_begin
        for each epoch:
            train_epoch_begin
            for each batch:
                train_iter_begin        after the batch was read
                (forward, backward, step)
                train_iter_end          state.iter counts this iteration
            train_epoch_end             state.epoch counts this epoch
        run_end
        run_stopped                     after a step, instead of all that would follow, where a signal ends the run

    Hooks of one stage run in ascending `priority`, equal ones in the order of the config. A hook never touches
    another hook; what they share is `trainer.state`. What `run_begin` opens is closed also by an error, if it does
    `trainer.at_end.callback(file.close)`.

    Args:
        priority: replaces the class's own place in the order.
    """

    STAGES = (
        "run_begin",
        "train_epoch_begin",
        "train_iter_begin",
        "train_iter_end",
        "train_epoch_end",
        "run_end",
        "run_stopped",
    )
    priority = 50

    def __init__(self, priority: Optional[int] = None):
        if priority is not None:
            self.priority = priority

    def run_begin(self, trainer):
        """Before the first epoch, also of a resumed run."""

    def train_epoch_begin(self, trainer):
        """Before an epoch's first batch."""

    def train_iter_begin(self, trainer):
        """When a batch has been read."""

    def train_iter_end(self, trainer):
        """After the optimizer's step; losses and metrics are in `trainer.state.outputs`."""

    def train_epoch_end(self, trainer):
        """After an epoch's last step."""

    def run_end(self, trainer):
        """After the last epoch."""

    def run_stopped(self, trainer):
        """When a signal ends the run, instead of `run_end`: the time to save what `trainer.state` is now."""


def stages_of(hook):
    """Names of the stages that `hook` overrides."""
    return [stage for stage in Hook.STAGES if getattr(type(hook), stage) is not getattr(Hook, stage)]
