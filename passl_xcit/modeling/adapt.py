"""Weights of another task made to fit a model: another number of classes, input channels or image size."""

import numpy as np
import paddle
import paddle.nn.functional as F

from passl_xcit.utils.logger import TRAINER, get_logger

logger = get_logger(TRAINER)


def adapted(arrays, model, path):
    """`arrays`, {name: ndarray}, with what belongs to another task made to fit `model`; each change is logged.

    The head of another number of classes is replaced by the model's own. What still does not fit is left as it is.
    """
    targets = model.state_dict()
    fitting = {name: _fitted(name, array, targets.get(name), path) for name, array in arrays.items()}
    head = {name: tensor for name, tensor in targets.items() if name.startswith("head.")}
    if all(name in arrays and list(arrays[name].shape) == tensor.shape for name, tensor in head.items()):
        return fitting
    _say_new_head(arrays, head, path)
    body = {name: array for name, array in fitting.items() if not name.startswith("head.")}
    return {**body, **{name: tensor.numpy() for name, tensor in head.items()}}


def _fitted(name, array, tensor, path):
    if tensor is None or not _differ_in_axis_1(array.shape, tensor.shape):
        return array
    if array.ndim == 4:
        logger.info(f"{path}: {name}: {array.shape[1]} input channels become {tensor.shape[1]}")
        return with_channels(array, tensor.shape[1])
    if ".pos_embed." in name and array.ndim == 3:
        logger.info(f"{path}: {name}: {array.shape[1]} positions are resized to {tensor.shape[1]}")
        return resized_positions(array, tensor.shape[1])
    return array


def _differ_in_axis_1(theirs, ours):
    theirs, ours = list(theirs), list(ours)
    return theirs != ours and len(theirs) == len(ours) > 1 and theirs[:1] + theirs[2:] == ours[:1] + ours[2:]


def _say_new_head(arrays, head, path):
    theirs = [array.shape[-1] for name, array in arrays.items() if name.startswith("head.") and array.ndim]
    ours = [tensor.shape[-1] for tensor in head.values()]
    has = f"{theirs[0]:,} classes" if theirs else "no classifier"
    logger.info(f"{path}: has {has}, the model {ours[0]:,}: the model's head starts untrained")


def with_channels(kernel, channels):
    """A first convolution's kernel [C_out, C_in, k, k] for images of another number of channels.

    One channel gets the sum, so that a grey image gives what it gives as three equal channels; more get the given
    ones in turn, scaled so that constant channels keep their sum.
    """
    if channels == 1:
        return kernel.sum(axis=1, keepdims=True)
    turns = np.arange(channels) % kernel.shape[1]
    return kernel[:, turns] * (kernel.shape[1] / channels)


def resized_positions(positions, count):
    """[1, M, C], class token first, for `count` tokens: the square grid of the others is resized bicubically."""
    old, new = (int(round((number - 1) ** 0.5)) for number in (positions.shape[1], count))
    if old**2 != positions.shape[1] - 1 or new**2 != count - 1:
        return positions
    grid = paddle.to_tensor(positions[:, 1:].reshape(1, old, old, -1).astype("float32")).transpose([0, 3, 1, 2])
    grid = F.interpolate(grid, size=[new, new], mode="bicubic", align_corners=False)  # [1, C, new, new]
    tokens = grid.flatten(2).transpose([0, 2, 1]).numpy()  # [1, new * new, C]
    return np.concatenate([positions[:, :1], tokens], axis=1)
