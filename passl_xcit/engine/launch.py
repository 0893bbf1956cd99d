"""What `tools/train.py` does, from the config file to the last line of the log."""

import contextlib
import datetime
import os

import paddle

from passl_xcit.engine import builder
from passl_xcit.engine.checkpoint import resume, resume_newest
from passl_xcit.engine.evaluation import EvaluationOptions, check_options, evaluate_model
from passl_xcit.engine.gradients import set_aside_diagnoses
from passl_xcit.engine.knn import evaluate_knn
from passl_xcit.engine.run_lock import run_lock
from passl_xcit.engine.run_record import write_run_record
from passl_xcit.engine.run_summary import log_summary
from passl_xcit.engine.weight_entries import warn_of_other_preprocess
from passl_xcit.hooks.checkpoint_hook import CheckpointHook
from passl_xcit.modeling.factory import is_address, local_file
from passl_xcit.modeling.weights import load_weights
from passl_xcit.utils import dist
from passl_xcit.utils.config import Override, load_config
from passl_xcit.utils.device import (
    current_place,
    default_device,
    devices_of,
    is_custom,
    lack_of_memory_told,
    select_device,
)
from passl_xcit.utils.errors import CheckpointError, ConfigError
from passl_xcit.utils.logger import TRAINER, get_logger, log_to_folder, setup_logger
from passl_xcit.utils.shipped import shipped

logger = get_logger(TRAINER)


def train(config, load=None, resume=None, overrides=None):
    """Train what a config describes, as `tools/train.py` does; from a notebook, say.

    Args:
        config: path of a YAML file.
        load: weights that the model starts with, as for `run`.
        resume: checkpoint to go on from, or `auto` for the newest of the output folder.
        overrides: {dotted path: value} for the config, such as {"optimizer.weight_decay": 0.1}.

    Returns:
        {"acc1", "acc5", "epoch", "iter"} of the best epoch; {} where nothing was evaluated.

    Raises:
        UserError: for anything the user can mend, with nothing written to the disk.
    """
    return run(config, _as_overrides(overrides), load, resume)


def evaluate(config, weights, overrides=None, report=None):
    """Evaluate weights as a config describes it, as `tools/validate.py` does: {"acc1", "acc5"}, in percent.

    Args:
        config, overrides: see `train`.
        weights: file of any format that `load_weights` reads, or its address; it must fit exactly.
        report: folder that gets report.html, report.json and predictions.csv.

    Raises:
        UserError: for anything the user can mend.
    """
    return run(config, _as_overrides(overrides), weights, evaluate_only=True, evaluation=EvaluationOptions(report))


def _as_overrides(values):
    return [Override(path, value, f"overrides['{path}']") for path, value in (values or {}).items()]


@lack_of_memory_told()
def run(
    config_file,
    overrides=(),
    load=None,
    resume_from=None,
    evaluate_only=False,
    distribute=None,
    knn=None,
    size=None,
    evaluation=None,
):
    """Train, or with `evaluate_only` evaluate, what `config_file` describes.

    Args:
        config_file: path of a YAML file.
        overrides: a list of `utils.config.Override`, such as `parse_override('optimizer.weight_decay=0.1')`.
        load: weights that the model starts with: a file of any format that `load_weights` reads, or its address.
            A training may have another number of classes than the file; an evaluation must fit exactly.
        resume_from: checkpoint to go on from, or `auto` for the newest of the output folder.
        evaluate_only: evaluate and stop; needs no training data and builds no optimizer.
        distribute: True or False insist on several processes or on one; None takes what was launched.
        knn: a stage of the model whose features are evaluated by their nearest neighbours in the training images,
            instead of the classifier; goes with `evaluate_only`. The weights need not have a classifier.
        size: pixels of the images that are evaluated, instead of the config's; see `preprocess.at_size`.
        evaluation: EvaluationOptions, for `evaluate_only`; None wants nothing but the accuracy.

    Raises:
        UserError: for anything the user can mend, with nothing written to the disk.
    """
    evaluation = evaluation or EvaluationOptions()
    cfg = _read_config(config_file, overrides, evaluate_only)
    if size is not None:
        cfg = builder.with_image_size(cfg, size)
    _check_options(load, resume_from, evaluate_only, distribute)
    check_options(evaluation)
    setup_logger(dist.rank())
    get_logger().info(f"Configs: {cfg}")
    with cfg.errors_name_files():
        _select_device(cfg.get("device") or default_device())
    dist.init_parallel()
    logger.info(f"train with paddle {paddle.__version__} on {current_place()} device")
    model = builder.build_model(cfg, training=not evaluate_only)
    if load:
        load_weights(model, local_file(load), adapt=not evaluate_only or knn is not None)
    elif evaluate_only:
        logger.warning("no --load: the weights are untrained, and the accuracy will be that of guessing")
    elif not resume_from and getattr(getattr(model, "student", model), "freeze", ()):
        logger.warning("freeze without --load: what is frozen stays untrained")
    if evaluate_only:
        with builder.evaluation_precision(cfg):
            if knn is not None:
                return _evaluate_knn(cfg, model, load, knn)
            return evaluate_model(cfg, model, load, evaluation, config_file)
    return _train(cfg, model, resume_from)


def _evaluate_knn(cfg, model, load, stage):
    train_loader = builder.build_train_loader_to_evaluate(cfg, model.num_classes)
    val_loader = builder.build_loader(cfg, "val", model.num_classes)
    builder.check_same_classes(train_loader.dataset, val_loader.dataset)
    warn_of_other_preprocess(cfg, model, load)
    return evaluate_knn(model, train_loader, val_loader, stage)


def _select_device(name):
    processes = dist.launched_processes()
    if processes > 1:
        _check_device_of_launcher(name, processes)
    select_device(name)
    if processes > 1:
        current = paddle.get_device()
        there = ", ".join(devices_of(current.partition(":")[0]))
        logger.info(f"{processes} processes; process {dist.rank()} on {current}, of {there}")


def _check_device_of_launcher(name, processes):
    """Raise ConfigError where several processes would train on the same device."""
    kind, colon, _ = name.partition(":")
    if colon:
        text = f"'{name}' for {processes} processes: say {kind}, and let --devices of the launcher choose the cards"
        raise ConfigError(text, "device")
    if is_custom(kind) and f"FLAGS_selected_{kind}s" not in os.environ:  # Paddle 3.0
        text = f"the launcher gave this process no {kind}: set PADDLE_XCCL_BACKEND={kind} and say --devices 0,1,..."
        raise ConfigError(text, "device")


def _train(cfg, model, resume_from):
    trainer = builder.build_trainer(cfg, model)
    if resume_from == "auto":
        resume_from = resume_newest(trainer.checkpoint_dir, trainer)
    elif resume_from:
        resume(resume_from, trainer)
    else:
        with cfg.errors_name_files():
            _check_folder_is_new(trainer)
    if trainer.state.epoch >= trainer.epochs:
        logger.info(f"{trainer.state.epoch} of {trainer.epochs} epochs are done: nothing to train; raise `epochs`")
    else:
        _train_in_folder(cfg, trainer, resume_from)
    if dist.is_main():
        log_summary(trainer)
    return trainer.state.best


def _check_folder_is_new(trainer):
    """Raise ConfigError where a run that is not resumed would overwrite another one's checkpoints."""
    folder = trainer.checkpoint_dir
    hooks = [hook for hook in trainer.hooks if isinstance(hook, CheckpointHook)]
    earlier = [name for hook in hooks for name in hook.names_in(folder)]
    if not earlier:
        return
    with run_lock(folder) if dist.is_main() else contextlib.nullcontext():  # of a run that goes on nothing is deleted
        raise ConfigError(
            f"{folder} holds checkpoints of another run, such as {earlier[0]}: go on with it (--resume auto), choose "
            "another output_dir, or delete them",
            "output_dir" if folder == trainer.output_dir else "checkpoint.out_dir",
        )


def _train_in_folder(cfg, trainer, resumed_from):
    with cfg.errors_name_files():
        _make_folder(trainer.output_dir, "output_dir")
        _make_folder(trainer.checkpoint_dir, "checkpoint.out_dir")
        with contextlib.ExitStack() as locks:
            for folder in {trainer.output_dir.resolve(), trainer.checkpoint_dir.resolve()} if dist.is_main() else ():
                locks.enter_context(run_lock(folder))
            log_to_folder(trainer.output_dir, dist.rank())
            if dist.is_main():
                set_aside_diagnoses(trainer.output_dir)
                write_run_record(cfg, trainer, resumed_from)
            trainer.train()


def _read_config(config_file, overrides, evaluate_only):
    cfg = load_config(config_file, overrides)
    builder.check_config(cfg, training=not evaluate_only)
    cfg = builder.with_classes_of_data(cfg, "val" if evaluate_only else "train")
    timestamp = datetime.datetime.now().strftime("-%Y-%m-%d-%H-%M")
    return cfg.with_values(is_train=not evaluate_only, timestamp=timestamp)


def _check_options(load, resume_from, evaluate_only, distribute):
    if resume_from and (load or evaluate_only):
        other = "--load" if load else "--evaluate-only"
        raise ConfigError(f"--resume and {other} cannot go together: --resume takes weights and training state")
    for option, path in (("--load", load), ("--resume", None if resume_from == "auto" else resume_from)):
        if path and not is_address(path) and not shipped(path).exists():
            raise CheckpointError(f"{option} {path}: there is no such file")
    processes = dist.launched_processes()
    if distribute is True and processes == 1:
        raise ConfigError("--distribute True: start with `python -m paddle.distributed.launch tools/train.py ...`")
    if distribute is False and processes > 1:
        raise ConfigError(f"--distribute False, but paddle.distributed.launch started {processes} processes")


def _make_folder(folder, key):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made: {error.strerror}", key) from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{folder}: this folder cannot be written to", key)
