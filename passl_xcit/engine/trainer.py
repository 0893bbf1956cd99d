"""The training loop."""

import contextlib
import math
import signal
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import paddle
from paddle import nn

from passl_xcit.engine import checkpoint
from passl_xcit.engine.stop_request import StopRequest
from passl_xcit.hooks.hook import Hook, stages_of
from passl_xcit.utils.device import has_sync_batch_norm
from passl_xcit.utils.dist import copy_from_first, is_main, rank, world_size
from passl_xcit.utils.errors import DataError, TrainingError, TrainingStopped
from passl_xcit.utils.logger import TRAINER, JsonLog, get_logger
from passl_xcit.utils.seed import step_seed

logger = get_logger(TRAINER)

# Every BatchNorm says so in every training step; it is what training is.
warnings.filterwarnings("ignore", message="When training, we now always track global mean and variance")


@dataclass
class TrainState:
    """Where a run is. `epoch`, `iter` and `samples` count finished ones, over all processes."""

    epoch: int = 0
    iter: int = 0
    samples: int = 0
    lr: float = 0.0  # of the last step
    best: dict = field(default_factory=dict)  # {"acc1", "acc5", "epoch", "iter"} of the best evaluation
    metrics: dict = field(default_factory=dict)  # {"acc1", "acc5"} of the last evaluation
    outputs: dict = field(default_factory=dict)  # {"loss", "acc1", "acc5"} of the last step, as tensors
    stopping: bool = False  # whether this step is the last one, because of a signal


class Trainer:
    """Trains a model; everything that is not the arithmetic of training is a hook's.

    Args:
        model: has `train_iter(images, targets)`, which returns a dict with "loss".
        train_loader: an ImageLoader.
        optimizer, lr_scheduler: Paddle's; the schedule steps once an iteration.
        epochs: how many epochs the whole run has.
        hooks: see `hooks/hook.py`.
        evaluator: what `evaluate` runs, or None.
        output_dir: where checkpoints and logs go.
        seed: with the step and the rank it determines every draw of the framework.
        settings: {name: text}, what else has to be the same for a checkpoint to be resumed.
    """

    def __init__(
        self,
        model,
        train_loader,
        optimizer,
        lr_scheduler,
        epochs,
        hooks=(),
        evaluator=None,
        output_dir=".",
        seed=0,
        settings=None,
    ):
        self.model, self.train_loader = model, train_loader
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.epochs, self.seed, self.output_dir = epochs, seed, Path(output_dir)
        self.settings = dict(settings or {})
        self.hooks = sorted(hooks, key=lambda hook: hook.priority)
        self.evaluator = evaluator
        self.state = TrainState()
        self.log = JsonLog(self.output_dir / "log.jsonl")
        self.begun, self.seconds_aside = time.perf_counter(), 0.0
        self.iters_per_epoch = len(train_loader)
        if not self.iters_per_epoch:
            raise DataError(
                f"{train_loader.dataset.where}: {len(train_loader.dataset)} images do not fill one batch of "
                f"{self.global_batch_size}: use a smaller batch_size, or drop_last: false"
            )
        self._forward = _TrainIter(model)
        if world_size() > 1:
            self._forward = paddle.DataParallel(self._forward)

    @property
    def total_iters(self):
        return self.epochs * self.iters_per_epoch

    @property
    def inner_iter(self):
        """Number, from 0, of the last finished iteration in its epoch."""
        return (self.state.iter - 1) % self.iters_per_epoch

    @property
    def global_batch_size(self):
        return self.train_loader.batch_sampler.batch_size * world_size()

    def identity(self):
        """What has to be the same for a checkpoint to be resumed."""
        return {
            "seed": self.seed,
            "iters_per_epoch": self.iters_per_epoch,
            "global_batch_size": self.global_batch_size,
            **self.settings,
        }

    def train(self):
        """Train from `state` to the last epoch.

        Raises:
            TrainingStopped: on Ctrl-C or SIGTERM, when the step is finished and the hooks have saved what they save.
        """
        self.begun = time.perf_counter()
        self.record("begin")
        try:
            with StopRequest() as stop:
                self._train(stop)
        finally:
            self.record("end")

    def _train(self, stop):
        self.model.train()
        self._log_hooks()
        self.call_hooks("run_begin")
        while self.state.epoch < self.epochs:
            self.call_hooks("train_epoch_begin")
            self.train_loader.set_position(self.state.epoch, self.state.iter - self.state.epoch * self.iters_per_epoch)
            for images, targets in self.train_loader:
                self.call_hooks("train_iter_begin")
                self.state.outputs = self.train_step(images, targets)
                self.state.iter += 1
                self.state.samples += len(images) * world_size()  # the sampler gives each process equally many
                self.state.stopping = stop.agreed(self.state.iter)
                self.call_hooks("train_iter_end")
                if self.state.stopping:
                    raise self._stopped(stop.number or signal.SIGTERM)
            self.state.epoch += 1
            self.call_hooks("train_epoch_end")
        self.call_hooks("run_end")

    def _stopped(self, number):
        name, iterations = signal.Signals(number).name, self.state.iter
        return TrainingStopped(f"stopped by {name} after {iterations} iterations; go on with --resume auto", number)

    def train_step(self, images, targets):
        """One update of the weights -> {"loss", ...}, detached."""
        paddle.seed(step_seed(self.seed, self.state.iter, rank()))
        outputs = self._forward(images, targets)
        outputs["loss"].backward()
        self.state.lr = self.optimizer.get_lr()
        self.optimizer.step()
        self.optimizer.clear_grad()
        self.lr_scheduler.step()
        return {name: value.detach() for name, value in outputs.items()}

    def call_hooks(self, stage):
        for hook in self.hooks:
            getattr(hook, stage)(self)

    def evaluate(self):
        """Evaluate after the finished epochs, and note whether this is the best so far.

        All processes evaluate the first one's model, which is the one that is saved: where BatchNorm is not
        synchronised, each has its own running statistics (parameters without gradient, in Paddle).
        """
        with self.aside():
            copy_from_first([tensor for tensor in self.model.state_dict().values() if tensor.stop_gradient])
            metrics = self.state.metrics = self.evaluator.evaluate(max(1, self.state.epoch))
        self.record("val", **metrics)
        if metrics["acc1"] > self.state.best.get("acc1", -1.0):
            self.state.best = {**metrics, "epoch": self.state.epoch, "iter": self.state.iter}

    def save_checkpoint(self, path, save_optimizer=True):
        if "loss" in self.state.outputs:  # not where a resumed run has only an epoch's end left to do
            self.require_finite(self.state.outputs["loss"].item())
        checkpoint.save_checkpoint(path, self, save_optimizer)

    def link_checkpoint(self, path, name):
        checkpoint.link_checkpoint(path, name)

    def require_finite(self, loss):
        """Raise TrainingError if the float `loss` is no number; the checkpoints there are stay as they are."""
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} after {self.state.iter} iterations, with a learning rate of {self.state.lr:.3e}: "
                "nothing more is saved; try a smaller learning rate, a longer warm-up or grad_clip"
            )

    @contextlib.contextmanager
    def aside(self):
        """Around what is not training, such as an evaluation: the log's times and speeds leave it out."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds_aside += time.perf_counter() - begin

    def record(self, mode, **values):
        """Append one line to `log.jsonl`: mode, what is finished, seconds since `train` was called, and `values`."""
        if is_main():
            state, elapsed = self.state, time.perf_counter() - self.begun
            finished = {"epoch": state.epoch, "iter": state.iter, "samples": state.samples}
            self.log.append({"mode": mode, **finished, "elapsed": elapsed, **values})

    def _log_hooks(self):
        for stage in Hook.STAGES:
            names = [type(hook).__name__ for hook in self.hooks if stage in stages_of(hook)]
            logger.info(f"hooks at {stage}: {', '.join(names) or '-'}")


class _TrainIter(nn.Layer):
    """`model.train_iter` as a forward, which is what DataParallel can wrap."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, targets):
        return self.model.train_iter(images, targets)


def with_sync_batch_norm(model):
    """`model` with SyncBatchNorm where several processes train on devices that have it; names stay the same."""
    if world_size() > 1 and has_sync_batch_norm():
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model
