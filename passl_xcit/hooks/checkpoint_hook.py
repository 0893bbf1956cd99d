"""Writes checkpoints, prunes old ones, keeps `latest` and `best`."""

import re
from typing import Optional

from passl_xcit.hooks.hook import Hook
from passl_xcit.utils.dist import is_main, wait_for_all
from passl_xcit.utils.errors import CheckpointError, TrainingError
from passl_xcit.utils.logger import TRAINER, get_logger
from passl_xcit.utils.new_file import remove_unfinished
from passl_xcit.utils.registry import HOOKS

logger = get_logger(TRAINER)
INTERRUPTED = "interrupted.pdparams"
LATEST, BEST = "latest.pdparams", "best.pdparams"
BEST_EMA = "best_ema.pdparams"  # a weight file, not a checkpoint
OTHER_NAMES = (LATEST, BEST, BEST_EMA, INTERRUPTED)  # than numbers


class CheckpointHook(Hook):
    """Writes `epoch_N.pdparams` every `interval` epochs (with `by_epoch: False` iterations) and after the last one.

    `latest.pdparams` is the newest of them. `best.pdparams` is the one with the highest acc1 and outlives pruning;
    an epoch that is the best so far is saved even between two intervals. Where EMAHook keeps a moving average,
    `best_ema.pdparams` holds the weights of the best one. `interrupted.pdparams` is where a signal stopped the run;
    the next numbered checkpoint removes it.

    Args:
        interval: epochs (iterations with `by_epoch: False`) between two checkpoints.
        by_epoch: False counts iterations and names the files `iter_N.pdparams`.
        save_optimizer: False leaves out the optimizer's state; such a file evaluates, but cannot be resumed.
        out_dir: another folder than the run's.
        max_keep_ckpts: numbered files that are kept, the newest; 0 keeps all.
        filename_tmpl: another name than `epoch_{}.pdparams`.
        create_symlink: whether to keep `latest.pdparams` (a hard link, where PASSL makes a symbolic one).
    """

    priority = 80

    def __init__(
        self,
        interval: int = 1,
        by_epoch: bool = True,
        save_optimizer: bool = True,
        out_dir: Optional[str] = None,
        max_keep_ckpts: int = 5,
        filename_tmpl: Optional[str] = None,
        create_symlink: bool = True,
        priority: Optional[int] = None,
    ):
        super().__init__(priority)
        if interval < 1 or max_keep_ckpts < 0:
            raise ValueError(f"interval {interval}, max_keep_ckpts {max_keep_ckpts}: expected at least 1 and 0")
        self.template = filename_tmpl or ("epoch_{}.pdparams" if by_epoch else "iter_{}.pdparams")
        if not re.fullmatch(r"[^{}/]*\{\}[^{}/]*\.pdparams", self.template):
            raise ValueError(f"filename_tmpl is a name like 'epoch_{{}}.pdparams', not '{self.template}'")
        self.interval, self.by_epoch, self.save_optimizer = interval, by_epoch, save_optimizer
        self.out_dir, self.max_keep_ckpts, self.create_symlink = out_dir, max_keep_ckpts, create_symlink
        self.was_refused = False  # whether the last checkpoint was not written, since its weights were not finite

    def run_begin(self, trainer):
        """Remove what a killed run was writing."""
        for folder in {trainer.checkpoint_dir, trainer.output_dir} if is_main() else ():
            remove_unfinished(folder)

    def train_iter_end(self, trainer):
        if not self.by_epoch and trainer.state.iter % self.interval == 0:
            self._save(trainer, trainer.state.iter, "iterations")

    def train_epoch_end(self, trainer):
        state = trainer.state
        is_due = self.by_epoch and state.epoch % self.interval == 0
        is_best = state.iter in (state.best.get("iter"), state.best_ema.get("iter"))
        if is_due or is_best or trainer.is_last_epoch:
            number, unit = (state.epoch, "epochs") if self.by_epoch else (state.iter, "iterations")
            self._save(trainer, number, unit, may_fail=not trainer.is_last_epoch)

    def run_stopped(self, trainer):
        self._save(trainer, trainer.state.iter, "iterations", INTERRUPTED, may_fail=False)

    def _save(self, trainer, number, unit, name=None, may_fail=True):
        """A training outlives a full disk, which somebody may mend, but for the last checkpoint."""
        if may_fail and trainer.state.skipped_in_row:
            logger.warning(
                f"no checkpoint at {number} {unit}: the last update was left out, the weights may be to blame"
            )
            return
        with trainer.aside():
            if is_main():
                self._try_to_write(trainer, number, unit, name, may_fail)
            wait_for_all()

    def _try_to_write(self, trainer, number, unit, name, may_fail):
        logger.info(f"Saving checkpoint at {number} {unit}")
        try:
            self._write(trainer, number, name)
        except (CheckpointError, OSError) as error:
            if not may_fail:
                raise
            logger.error(f"{error}; the training goes on, and the checkpoints before stay as they are")
        except TrainingError as error:
            # Weights that are not finite soon have such gradients, and the guard goes back; but not if only BatchNorm's
            # statistics overflowed.
            if not may_fail or self.was_refused or trainer.guard.then != "go_back":
                raise
            self.was_refused = True
            logger.error(str(error))
        else:
            self.was_refused = False

    def _write(self, trainer, number, name):
        folder = trainer.checkpoint_dir
        path = folder / (name or self.template.format(number))
        # Its own name comes last: a run that is killed before goes on at the checkpoint before, and gives all names
        # anew. One that is killed behind it never comes here again.
        trainer.save_checkpoint(path, self.save_optimizer, lambda file: self._give_names(trainer, folder, file))
        if not name:
            (folder / INTERRUPTED).unlink(missing_ok=True)
            self._prune(folder, number)

    def _give_names(self, trainer, folder, file):
        """Let `best_ema`, `best` and `latest` in `folder` be what the new checkpoint `file` says."""
        state = trainer.state
        if state.best_ema.get("iter") == state.iter:
            trainer.save_ema(folder / BEST_EMA)
        if state.best.get("iter") == state.iter:
            trainer.link_checkpoint(file, folder / BEST)
        if self.create_symlink:
            trainer.link_checkpoint(file, folder / LATEST)

    def names_in(self, folder):
        """The names, of those that this hook gives, that files in `folder` have already."""
        numbered = [self.template.format(number) for number in sorted(self._numbers(folder))]
        return [*numbered, *(name for name in OTHER_NAMES if (folder / name).exists())]

    def _numbers(self, folder):
        pattern = re.compile(re.escape(self.template).replace(r"\{\}", r"(\d+)") + "$")
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return [int(match[1]) for match in map(pattern.match, names) if match]

    def _prune(self, folder, newest):
        """Remove all but the newest `max_keep_ckpts` numbered files; higher numbers belong to another run."""
        mine = sorted(number for number in self._numbers(folder) if number <= newest)
        for number in mine[: -self.max_keep_ckpts] if self.max_keep_ckpts else ():
            (folder / self.template.format(number)).unlink()


HOOKS.register(CheckpointHook)
