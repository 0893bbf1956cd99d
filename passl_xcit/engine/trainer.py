"""The training loop."""

import contextlib
import copy
import math
import signal
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import paddle
from paddle import nn

from passl_xcit.engine import checkpoint, mixed_precision
from passl_xcit.engine.evaluator import EvaluationStopped
from passl_xcit.engine.gradients import STATISTICS, NonFiniteGuard, global_norm, parts
from passl_xcit.engine.run_record import restore
from passl_xcit.engine.stop_request import StopRequest
from passl_xcit.hooks.checkpoint_hook import CheckpointHook
from passl_xcit.hooks.hook import Hook, stages_of
from passl_xcit.utils.device import has_sync_batch_norm
from passl_xcit.utils.dist import copy_from_first, is_main, rank, world_size
from passl_xcit.utils.errors import DataError, DeviceError, TrainingStopped
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
    outputs: dict = field(default_factory=dict)  # {"loss", "acc1", "acc5", "grad_norm"} of the last step, as tensors
    ema: Optional[dict] = None  # {name: tensor}, the moving average of the weights where EMAHook keeps one
    best_ema: dict = field(default_factory=dict)  # as `best`, of the average
    ema_metrics: dict = field(default_factory=dict)  # as `metrics`, of the average
    evaluated: int = 0  # the epoch after which the last evaluation was
    skipped: int = 0  # updates that were left out, because the gradient was not finite
    skipped_in_row: int = 0  # of them the last ones without an update between
    returns: int = 0  # how often weights were taken back from a checkpoint
    finished: bool = False  # whether the run ends before its last epoch, since a hook decided so


class Trainer:
    """Trains a model; everything that is not the arithmetic of training is a hook's.

    Args:
        model: has `train_iter(images, targets)`, which returns a dict with "loss".
        train_loader: an ImageLoader.
        optimizer, lr_scheduler: Paddle's; the schedule steps once an iteration.
        epochs: how many epochs the whole run has.
        hooks: see `hooks/hook.py`.
        evaluator: what `evaluate` runs, or None.
        output_dir: where logs go, and checkpoints, unless the CheckpointHook has an `out_dir`.
        seed: with the step and the rank it determines every draw of the framework.
        accum_steps: parts that a batch is split into, to compute one after the other for one update.
        precision: a MixedPrecision; float32 by default.
        guard: a NonFiniteGuard.
        settings: JSON text, what else has to be the same for a checkpoint to be resumed.
        description: entries with which a weight file says what it is, see `weight_entries.describe`.
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
        accum_steps=1,
        precision=None,
        guard=None,
        settings="{}",
        description=None,
    ):
        self.model, self.train_loader = model, train_loader
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.epochs, self.seed, self.accum_steps = epochs, seed, accum_steps
        self.output_dir = Path(output_dir)
        out_dirs = [hook.out_dir for hook in hooks if isinstance(hook, CheckpointHook) and hook.out_dir]
        self.checkpoint_dir = Path(out_dirs[0]) if out_dirs else self.output_dir
        self.precision, self.guard = precision or mixed_precision.float32(), guard or NonFiniteGuard()
        self.settings, self.description = settings, description or {}
        self.hooks = sorted(hooks, key=lambda hook: hook.priority)
        self.evaluator = evaluator
        self.state = TrainState()
        self.records = {}  # {path: text} that is to stand in `output_dir` besides
        self.log = JsonLog(self.output_dir / "log.jsonl")
        self.begun, self.seconds_aside = time.perf_counter(), 0.0
        self.stop = StopRequest()
        self.at_end = contextlib.ExitStack()  # takes what is to be closed however the training ends
        self.iters_per_epoch = len(train_loader)
        if not self.iters_per_epoch:
            raise DataError(
                f"{train_loader.dataset.where}: {len(train_loader.dataset)} images do not fill one batch of "
                f"{self.global_batch_size}: use a smaller batch_size, or drop_last: false"
            )
        if accum_steps > train_loader.batch_sampler.batch_size:
            batch = train_loader.batch_sampler.batch_size
            raise DataError(f"accum_steps {accum_steps}: a batch of {batch} images has not as many parts")
        self.precision.prepare(model, optimizer)
        self._statistics = [value for name, value in model.state_dict().items() if name.endswith(STATISTICS)]
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
    def is_last_epoch(self):
        """Whether the finished epoch was the last one."""
        return self.state.finished or self.state.epoch == self.epochs

    @property
    def global_batch_size(self):
        return self.train_loader.batch_sampler.batch_size * world_size()

    def identity(self):
        """What has to be the same for a checkpoint to be resumed."""
        return {
            "seed": self.seed,
            "iters_per_epoch": self.iters_per_epoch,
            "global_batch_size": self.global_batch_size,
            "settings": self.settings,
        }

    def train(self):
        """Train from `state` to the last epoch.

        Raises:
            TrainingStopped: on Ctrl-C or SIGTERM, when the step is finished and the hooks have saved what they save.
            TrainingError: when gradients stay without finite values.
        """
        self.begun = time.perf_counter()
        self.record("begin")
        with self.at_end:
            self.at_end.callback(self.record, "end")
            self.at_end.enter_context(self.stop)
            try:
                self._train()
            except EvaluationStopped:
                self.stop_run()

    def _train(self):
        self.model.train()
        self._log_hooks()
        self.call_hooks("run_begin")
        while self.state.epoch < self.epochs and not self.state.finished:
            self.call_hooks("train_epoch_begin")
            self.train_loader.set_position(self.state.epoch, self.inner_position)
            for images, targets in self.train_loader:
                self.call_hooks("train_iter_begin")
                self.state.outputs = self.train_step(images, targets)
                self.state.iter += 1
                self.state.samples += len(images) * world_size()  # the sampler gives each process equally many
                self.call_hooks("train_iter_end")
                if self.stop.agreed():
                    self.stop_run()
            self._finish_epoch()
        if self.state.skipped_in_row:
            logger.warning(
                f"the run ends with {self.state.skipped_in_row} updates left out: look at the last lines above"
            )
        self.call_hooks("run_end")

    def _finish_epoch(self):
        self.state.epoch += 1
        try:
            self.call_hooks("train_epoch_end")
        except (EvaluationStopped, DataError, DeviceError) as error:
            self.state.epoch -= 1  # its end is still to come when the run is resumed
            if (
                not isinstance(error, EvaluationStopped) and world_size() == 1
            ):  # others would wait for the one that has it
                self.call_hooks("run_stopped")
            raise

    def stop_run(self):
        """Let the hooks save what there is, and end the run as the signal that asked for it wants."""
        self.call_hooks("run_stopped")
        number, iterations = self.stop.number or signal.SIGTERM, self.state.iter
        text = f"stopped by {signal.Signals(number).name} after {iterations} iterations; go on with --resume auto"
        raise TrainingStopped(text, number)

    @property
    def inner_position(self):
        """Iterations of the current epoch that are finished."""
        return self.state.iter - self.state.epoch * self.iters_per_epoch

    def train_step(self, images, targets):
        """One update of the weights -> {"loss", ..., "grad_norm"}, detached."""
        paddle.seed(step_seed(self.seed, self.state.iter, rank()))
        self.guard.keep(self._statistics)
        outputs = self._forward_and_backward(images, targets)
        parameters = self.model.parameters()
        self.precision.unscale(parameters)
        outputs["grad_norm"] = global_norm(parameters)
        self.state.lr = self.optimizer.get_lr()
        loss, norm = outputs["loss"].item(), outputs["grad_norm"].item()
        if self.guard.accepts(self, images, loss, norm):
            self.optimizer.step()
        self.precision.loss_scale.update(overflow=not math.isfinite(norm))
        self.optimizer.clear_grad()
        self.lr_scheduler.step()
        return outputs

    def _forward_and_backward(self, images, targets):
        """Add up the gradients of the batch's parts -> the mean of their outputs."""
        means = {}
        for part, part_targets, share, is_last in parts(images, targets, self.accum_steps):
            with contextlib.nullcontext() if is_last else self._unsynchronised():
                with self.precision.auto_cast():
                    outputs = self._forward(part, part_targets)
                self.precision.backward(outputs["loss"] * share)
            for name, value in outputs.items():
                means[name] = means.get(name, 0.0) + value.detach() * share
        return means

    def _unsynchronised(self):
        """A context in which gradients are not yet averaged over the processes."""
        return self._forward.no_sync() if world_size() > 1 else contextlib.nullcontext()

    def weights(self):
        """{structured name: float32 tensor} of all parameters and statistics; with O2 the copies of the optimizer.

        Those that it does not train have no copy there and are widened.
        """
        weights = self.model.state_dict()
        copies = self.optimizer.state_dict().get("master_weights", {}) if self.precision.level == "O2" else {}
        names = {parameter.name: name for name, parameter in self.model.named_parameters()}
        copied = {names[key]: copy for key, copy in copies.items()}
        return {name: copied[name] if name in copied else _float32(tensor) for name, tensor in weights.items()}

    def coming_batches(self):
        """Iterates over lists of sample indices: this process's batches from the current one to the epoch's end."""
        sampler = copy.copy(self.train_loader.batch_sampler)
        sampler.set_position(self.state.epoch, self.inner_position)
        return ([key[1] for key in batch] for batch in sampler)

    def batch_names(self):
        """What messages call the images of this process's current batch."""
        return [self.train_loader.dataset.describe(index) for index in next(self.coming_batches())]

    def go_back(self):
        """Take weights, moments and averages from the newest checkpoint of this run; False where it has none."""
        return checkpoint.go_back(self.checkpoint_dir, self)

    def call_hooks(self, stage):
        for hook in self.hooks:
            getattr(hook, stage)(self)

    def evaluate(self):
        """Evaluate after the finished epochs, also the moving average, and note which is the best so far.

        All processes evaluate the first one's model, which is the one that is saved: where BatchNorm is not
        synchronised, each has its own running statistics (parameters without gradient, in Paddle).
        """
        tensors = self.model.state_dict()
        statistics = [name for name, tensor in tensors.items() if tensor.stop_gradient]
        copy_from_first([tensors[name] for name in statistics])
        self.state.metrics, self.state.best = self._evaluate("val", self.state.best)
        self.state.evaluated = self.state.epoch
        if self.state.ema is not None:
            copy_from_first([self.state.ema[name] for name in statistics])
            with replaced(tensors, self.state.ema):
                self.state.ema_metrics, self.state.best_ema = self._evaluate("val_ema", self.state.best_ema, "EMA ")

    def _evaluate(self, mode, best, label=""):
        """(metrics, the best ones so far with their epoch and iter)"""
        with self.aside(), self.precision.evaluation():
            metrics = self.evaluator.evaluate(max(1, self.state.epoch), label, self.stop.agreed)
        self.record(mode, **metrics)
        if metrics["acc1"] > best.get("acc1", -1.0) and not self.state.skipped_in_row:  # or no checkpoint is written
            best = {**metrics, "epoch": self.state.epoch, "iter": self.state.iter}
        return metrics, best

    def save_checkpoint(self, path, save_optimizer=True, before_rename=None):
        checkpoint.save_checkpoint(path, self, save_optimizer, before_rename)
        restore(self.records)

    def save_ema(self, path):
        """Write the moving average as a weight file."""
        checkpoint.save_ema(path, self)

    def link_checkpoint(self, path, name):
        checkpoint.link_checkpoint(path, name)

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


def _float32(tensor):
    return tensor if tensor.dtype == paddle.float32 else tensor.astype("float32")


@contextlib.contextmanager
def replaced(tensors, values):
    """Give `tensors` the values of the dict `values` inside the context."""
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    try:
        _copy(values, tensors)
        yield
    finally:
        _copy(before, tensors)


@paddle.no_grad()
def _copy(values, tensors):
    """Copy one dict of tensors into another; on their device, where `set_value` would take the way over the host."""
    for name, tensor in tensors.items():
        paddle.assign(values[name].astype(tensor.dtype), tensor)


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
