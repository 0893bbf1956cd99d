"""Training checkpoints: one file in PASSL's shape, with what an exact resume needs besides.

`epoch`, `state_dict`, `optimizer` and `lr_scheduler` are PASSL's entries. The optimizer's state stands under the
parameters' structured names, because Paddle's own names count every layer that the process ever built.
"""

import os
import re
import reprlib
import shutil
import warnings
from pathlib import Path

import numpy as np
import paddle

from passl_xcit.engine.run_settings import first_difference
from passl_xcit.hooks.checkpoint_hook import BEST, BEST_EMA, INTERRUPTED, LATEST
from passl_xcit.modeling.checkpoint_formats import read_file, write_file
from passl_xcit.modeling.state_dict import MATHS, state_dict_of
from passl_xcit.modeling.weights import set_weights, switch_maths
from passl_xcit.utils.dist import world_size
from passl_xcit.utils.errors import CheckpointError, TrainingError
from passl_xcit.utils.logger import TRAINER, get_logger
from passl_xcit.utils.new_file import make_parent, renamed_to

logger = get_logger(TRAINER)

LINKS = (LATEST, BEST)  # further names of numbered files
STATE = ("optimizer", "lr_scheduler", "epoch", "iter", "samples", "best")
EMA = "state_dict_ema"  # timm's name
COUNTERS = ("evaluated", "skipped", "skipped_in_row", "returns")
MASTER = "master_weight"


def save_checkpoint(path, trainer, save_optimizer=True, before_rename=None):
    """Write the state of `trainer` to `path`: the old file or the new one is there, whatever happens.

    `before_rename(file)` is called when the new one is whole, but still has another name.

    Raises:
        TrainingError: a weight is not finite; nothing is written.
        CheckpointError: the file cannot be written.
    """
    state = trainer.state
    tree = {
        **_weight_file(trainer, trainer.weights()),
        "optimizer": optimizer_arrays(trainer.optimizer, trainer.model) if save_optimizer else None,
        "lr_scheduler": _plain(trainer.lr_scheduler.state_dict()) if save_optimizer else None,
        "iter": state.iter,
        "samples": state.samples,
        "best": dict(state.best),
        "best_ema": dict(state.best_ema),
        EMA: None if state.ema is None else _arrays(state.ema),
        "scaler": _plain(trainer.precision.state_dict()),
        **{name: getattr(state, name) for name in COUNTERS},
        "bad_images": list(trainer.train_loader.bad_images),
        **trainer.identity(),
        "processes": world_size(),
    }
    _write(path, tree, before_rename)


def save_ema(path, trainer):
    """Write the moving average of the weights to `path`, as a weight file."""
    _write(path, _weight_file(trainer, trainer.state.ema))


def _weight_file(trainer, weights):
    """The entries that evaluation and fine-tuning need."""
    names = trainer.train_loader.dataset.class_names
    return {
        "epoch": trainer.state.epoch,
        "state_dict": _arrays(weights),
        "class_names": None if names is None else list(names),
        "paddle": paddle.__version__,
        MATHS: dict(trainer.model.backbone.maths),
        **trainer.description,
    }


def _arrays(tensors):
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise TrainingError(
            f"{len(broken)} weights are no longer finite, the first is {broken[0]}: they are not saved; try a smaller "
            "learning rate, a longer warm-up or grad_clip"
        )
    return arrays


def _write(path, tree, before_rename=None):
    make_parent(path)
    write_file(path, tree, before_rename)


def resume(path, trainer):
    """Put the state in the file `path` into `trainer`, so that it goes on as if it had never stopped.

    Raises:
        CheckpointError: if the file cannot be read, has no optimizer state, does not fit the model, or was written by
            a run with another seed, batch size or number of iterations an epoch.
    """
    tree = read_file(path)
    missing = [key for key in STATE if tree.get(key) is None]
    if missing:
        raise CheckpointError(f"{path}: no training state to resume ({', '.join(missing)}); --load takes its weights")
    _check_identity(tree, trainer.identity(), path)
    _check_state(tree, trainer.iters_per_epoch, path)
    bad_images = _bad_images(tree, len(trainer.train_loader.dataset), path)
    _tell_processes(tree.get("processes"), path)
    _set_arrays(trainer, tree, path)
    with warnings.catch_warnings():  # Paddle's LinearWarmup warns of an entry that it takes itself
        warnings.filterwarnings("ignore", message="There are some unused values in state_dict")
        trainer.lr_scheduler.set_state_dict(tree["lr_scheduler"])
    for name in ("epoch", "iter", "samples", "best", "best_ema", *COUNTERS):
        setattr(trainer.state, name, tree[name])
    trainer.train_loader.remember_bad_images(bad_images)
    logger.info(f"Resume training from {path} success!")


def go_back(folder, trainer):
    """Give `trainer` weights, moments and averages of its newest checkpoint, but let it go on where it is.

    Returns:
        Whether there is one: an undamaged file of this run. Where a signal stopped it does not count, so that a run
        that was stopped goes back as far as one that was not.
    """
    for path in checkpoints_in(folder):
        if path.name in LINKS or path.name == INTERRUPTED:
            continue
        try:
            tree = read_file(path)
        except CheckpointError as error:
            logger.warning(f"{error}; trying the checkpoint before it")
            continue
        ours = _difference(tree, trainer.identity()) is None
        if ours and tree["optimizer"] is not None and tree["iter"] <= trainer.state.iter:
            _set_arrays(trainer, tree, path)
            logger.warning(f"going on with the weights of {path}, behind the batches since")
            return True
    return False


def _set_arrays(trainer, tree, path):
    """What was learnt: weights, moments, moving average and loss scale."""
    arrays = state_dict_of(tree, str(path))
    set_weights(trainer.model, arrays, path)
    switch_maths(trainer.model, tree.get(MATHS), path)
    set_optimizer_arrays(trainer.optimizer, trainer.model, tree["optimizer"], path)
    set_weights(trainer.model, arrays, path)  # the step that made the optimizer's tensors may have decayed weights
    if tree[EMA] is not None:
        trainer.state.ema = _average(trainer.model, state_dict_of(tree, str(path), ema=True), path)
    try:
        trainer.precision.set_state_dict(tree["scaler"])
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its loss scale is damaged: {error}") from error


def _average(model, arrays, path):
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if {name: array.shape for name, array in arrays.items()} != shapes:
        raise CheckpointError(f"{path}: its moving average is that of another model")
    return {name: paddle.to_tensor(arrays[name]) for name in shapes}


def _check_identity(tree, identity, path):
    difference = _difference(tree, identity)
    if difference:
        name, *values = difference
        old, new = (reprlib.repr(value) if isinstance(value, (dict, list)) else value for value in values)
        raise CheckpointError(
            f"{path}: was written with {name} {old}, this run has {new}: "
            "resume with the settings it was started with, or start anew with --load"
        )


def _difference(tree, identity):
    """(name, value in the checkpoint, value of this run) of the first setting in which they differ; else None."""
    for key, value in identity.items():
        if key != "settings" and tree.get(key) != value:
            return key, tree.get(key), value
    return first_difference(tree.get("settings"), identity["settings"])


def _tell_processes(before, path):
    """Say what a resumed run with as many images a step, but on more or fewer processes, does differently."""
    if before != world_size():
        logger.warning(
            f"{path}: was written by a run of {before} processes, this one has {world_size()}: each step has the same "
            "images, but other draws (dropout, Mixup) and other BatchNorm statistics: expect slightly other weights"
        )


def _check_state(tree, iters_per_epoch, path):
    """Raise CheckpointError unless the counters of a checkpoint are numbers that belong together."""
    counters = {key: tree.get(key) for key in ("epoch", "iter", "samples", *COUNTERS)}
    if not all(type(counter) is int and counter >= 0 for counter in counters.values()):
        raise CheckpointError(f"{path}: its counters are {counters}, expected whole numbers")
    if not 0 <= tree["iter"] - tree["epoch"] * iters_per_epoch <= iters_per_epoch:
        raise CheckpointError(f"{path}: {tree['iter']} iterations are not {tree['epoch']} epochs of {iters_per_epoch}")
    for key in ("best", "best_ema"):
        best = tree.get(key)
        if not isinstance(best, dict) or not all(isinstance(value, (int, float)) for value in best.values()):
            raise CheckpointError(f"{path}: its {key} evaluation is {best!r}, expected numbers")
    if not all(isinstance(tree.get(key), dict) for key in ("optimizer", "lr_scheduler", "scaler")):
        raise CheckpointError(f"{path}: the state of its optimizer, schedule or loss scale is not one of ours")
    if not isinstance(tree.get(EMA), (dict, type(None))):
        raise CheckpointError(f"{path}: its moving average is not one of ours")


def _bad_images(tree, count, path):
    """The numbers of the images, of so many, that a run has found to be bad; CheckpointError if they are none."""
    indices = tree.get("bad_images", [])
    if not isinstance(indices, list) or not all(type(index) is int and 0 <= index < count for index in indices):
        raise CheckpointError(f"{path}: its bad images are {indices!r}, expected numbers of the {count} images")
    return indices


def resume_newest(folder, trainer):
    """Resume from the newest undamaged checkpoint of `folder`; a damaged one is named and the one before it used.

    Returns:
        The path, or None where there is no checkpoint at all.

    Raises:
        CheckpointError: if there are checkpoints, but none that can be read.
    """
    paths = checkpoints_in(folder)
    for path in paths:
        try:
            state_dict_of(read_file(path), str(path))
        except CheckpointError as error:
            logger.warning(f"{error}; trying the checkpoint before it")
            continue
        resume(path, trainer)
        return path
    if paths:
        raise CheckpointError(f"{folder}: none of its {len(paths)} checkpoints can be read")
    logger.info(f"no checkpoint in {folder}: starting from the beginning")
    return None


def checkpoints_in(folder):
    """Paths of the checkpoints in `folder`, the last written first; one of several names (`latest`) of a file.

    The numbers in their names count epochs or iterations, and those of an earlier run in the folder may be higher.
    A file that is only `latest` or `best` comes after all others: a kill kept its save from its end (CheckpointHook).
    """
    files = {}
    paths = [path for path in Path(folder).glob("*.pdparams") if path.is_file() and path.name != BEST_EMA]
    for path in sorted(paths, key=lambda path: path.name in LINKS, reverse=True):
        info = path.stat()
        files[info.st_ino] = (path.name not in LINKS, info.st_mtime_ns, path)
    return [path for _, _, path in sorted(files.values(), reverse=True)]


def link_checkpoint(path, name):
    """Make `name` another name of the file `path`, without a moment in which there is none."""
    with renamed_to(Path(name)) as temporary:
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)


def optimizer_arrays(optimizer, model):
    """{"parameter/accumulator": array}, such as `head.fc_cls.weight/moment1`."""
    return {name: tensor.numpy() for name, tensor in _accumulators(optimizer, model).items()}


def set_optimizer_arrays(optimizer, model, arrays, source):
    """Copy what `optimizer_arrays` returned into `optimizer`; CheckpointError unless every entry fits."""
    if not arrays:  # saved before the first update
        return
    _make_accumulators(optimizer, model)
    accumulators = _accumulators(optimizer, model)
    if set(arrays) != set(accumulators):
        wrong = sorted(set(arrays) ^ set(accumulators))
        what = f"its optimizer state is that of another model or optimizer; differs: {wrong[:3]}"
        raise CheckpointError(f"{source}: {what}")
    for name, tensor in accumulators.items():
        if np.size(arrays[name]) != tensor.size:
            raise CheckpointError(f"{source}: {name} has {np.size(arrays[name])} values, the optimizer's {tensor.size}")
        tensor.set_value(np.asarray(arrays[name]).reshape(tensor.shape))


def _accumulators(optimizer, model):
    """{"parameter/accumulator": tensor}. Paddle's names are `<automatic name>_<accumulator>_<count>`.

    Those of a float32 copy (AMP O2) have `fp32_master_<count>_` before the accumulator.
    """
    state = optimizer.state_dict()
    structured = {parameter.name: name for name, parameter in model.named_parameters()}
    found = {}
    for key, tensor in state.items():
        if isinstance(tensor, paddle.Tensor):
            owner = max((name for name in structured if key.startswith(f"{name}_")), key=len)
            accumulator = re.sub(r"^fp32_master_\d+_|_\d+$", "", key[len(owner) + 1 :])
            found[f"{structured[owner]}/{accumulator}"] = tensor
    for owner, tensor in state.get("master_weights", {}).items():
        found[f"{structured[owner]}/{MASTER}"] = tensor
    return found


def _make_accumulators(optimizer, model):
    """Paddle makes an optimizer's tensors in its first step: take one with zero gradients."""
    for parameter in model.parameters():
        if not parameter.stop_gradient:
            parameter.grad = paddle.zeros_like(parameter)
    optimizer.step()
    optimizer.clear_grad()


def _plain(tree):
    """`tree` with NumPy scalars turned into Python's."""
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    return tree.item() if isinstance(tree, np.generic) else tree
