"""Training checkpoints: one file in PASSL's shape, with what an exact resume needs besides.

`epoch`, `state_dict`, `optimizer` and `lr_scheduler` are PASSL's entries. The optimizer's state stands under the
parameters' structured names, because Paddle's own names count every layer that the process ever built.
"""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import paddle

from passl_xcit.modeling.checkpoint_formats import read_file, write_file
from passl_xcit.modeling.state_dict import MATHS, state_dict_of
from passl_xcit.modeling.weights import set_weights, switch_maths
from passl_xcit.utils.errors import CheckpointError
from passl_xcit.utils.logger import TRAINER, get_logger

logger = get_logger(TRAINER)

LINKS = ("latest", "best")  # further names of numbered files
STATE = ("optimizer", "lr_scheduler", "epoch", "iter", "samples", "best")


def save_checkpoint(path, trainer, save_optimizer=True):
    """Write the state of `trainer` to `path`: the old file or the new one is there, whatever happens."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    state = trainer.state
    tree = {
        "epoch": state.epoch,
        "state_dict": {name: tensor.numpy() for name, tensor in trainer.model.state_dict().items()},
        "optimizer": optimizer_arrays(trainer.optimizer, trainer.model) if save_optimizer else None,
        "lr_scheduler": _plain(trainer.lr_scheduler.state_dict()) if save_optimizer else None,
        "iter": state.iter,
        "samples": state.samples,
        "best": dict(state.best),
        "paddle": paddle.__version__,
        MATHS: dict(trainer.model.backbone.maths),
        **trainer.identity(),
    }
    write_file(path, tree)


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
    for key, value in trainer.identity().items():
        if tree.get(key) != value:
            raise CheckpointError(
                f"{path}: was written with {key} {tree.get(key)}, this run has {value}: "
                "resume with the settings it was started with, or start anew with --load"
            )
    _check_state(tree, trainer.iters_per_epoch, path)
    arrays = state_dict_of(tree, str(path))
    set_weights(trainer.model, arrays, path)
    switch_maths(trainer.model, tree.get(MATHS), path)
    set_optimizer_arrays(trainer.optimizer, trainer.model, tree["optimizer"], path)
    set_weights(trainer.model, arrays, path)  # the step that made the optimizer's tensors may have decayed weights
    trainer.lr_scheduler.set_state_dict(tree["lr_scheduler"])
    state = trainer.state
    state.epoch, state.iter, state.samples, state.best = tree["epoch"], tree["iter"], tree["samples"], tree["best"]
    logger.info(f"Resume training from {path} success!")


def _check_state(tree, iters_per_epoch, path):
    """Raise CheckpointError unless the counters of a checkpoint are numbers that belong together."""
    counters = [tree[key] for key in ("epoch", "iter", "samples")]
    if not all(type(counter) is int and counter >= 0 for counter in counters):
        raise CheckpointError(f"{path}: epoch, iter and samples are {counters}, expected three whole numbers")
    if not 0 <= tree["iter"] - tree["epoch"] * iters_per_epoch <= iters_per_epoch:
        raise CheckpointError(f"{path}: {tree['iter']} iterations are not {tree['epoch']} epochs of {iters_per_epoch}")
    if not isinstance(tree["best"], dict) or not all(
        isinstance(value, (int, float)) for value in tree["best"].values()
    ):
        raise CheckpointError(f"{path}: its best evaluation is {tree['best']!r}, expected numbers")
    if not isinstance(tree["optimizer"], dict) or not isinstance(tree["lr_scheduler"], dict):
        raise CheckpointError(f"{path}: the state of its optimizer or schedule is not one of ours")


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
    """
    files = {}
    paths = [path for path in Path(folder).glob("*.pdparams") if path.is_file()]
    for path in sorted(paths, key=lambda path: path.stem in LINKS, reverse=True):
        info = path.stat()
        files[info.st_ino] = (info.st_mtime_ns, path)
    return [path for _, path in sorted(files.values(), reverse=True)]


def link_checkpoint(path, name):
    """Make `name` another name of the file `path`, without a moment in which there is none."""
    temporary = Path(name).with_name(f".{Path(name).name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, temporary)
    os.replace(temporary, name)
    temporary.unlink(missing_ok=True)  # to rename one name of a file to another of its names does nothing


def optimizer_arrays(optimizer, model):
    """{"parameter/accumulator": array}, such as `head.fc_cls.weight/moment1`."""
    return {name: tensor.numpy() for name, tensor in _accumulators(optimizer, model).items()}


def set_optimizer_arrays(optimizer, model, arrays, source):
    """Copy what `optimizer_arrays` returned into `optimizer`; CheckpointError unless every entry fits."""
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
    """{"parameter/accumulator": tensor}. Paddle's names are `<automatic name>_<accumulator>_<count>`."""
    structured = {parameter.name: name for name, parameter in model.named_parameters()}
    found = {}
    for key, tensor in optimizer.state_dict().items():
        if isinstance(tensor, paddle.Tensor):
            owner = max((name for name in structured if key.startswith(f"{name}_")), key=len)
            accumulator = re.sub(r"_\d+$", "", key[len(owner) + 1 :])
            found[f"{structured[owner]}/{accumulator}"] = tensor
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
