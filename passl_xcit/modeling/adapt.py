"""Weights of another task made to fit a model: another number of classes, input channels or image size."""

import numpy as np
import paddle
import paddle.nn.functional as F


def adapted(arrays, model):
    """`arrays`, {name: ndarray}, with what belongs to another task made to fit `model`, and a line for each change.

    The head of another number of classes, or none, is replaced by the model's own. What does not fit in another way
    is left as it is.
    """
    targets, lines = model.state_dict(), []
    fitting = {name: _fitted(name, array, targets.get(name), lines) for name, array in arrays.items()}
    theirs, ours = ({n: value for n, value in own.items() if n.startswith("head.")} for own in (arrays, targets))
    if is_other_head(theirs, ours):
        lines.append(_new_head(theirs, ours))
        fitting = {name: array for name, array in fitting.items() if name not in theirs}
        fitting.update({name: tensor.numpy() for name, tensor in ours.items()})
    return fitting, lines


def _fitted(name, array, tensor, lines):
    if tensor is None or not _differ_in_axis_1(array.shape, tensor.shape):
        return array
    if array.ndim == 4:
        lines.append(f"{name}: {array.shape[1]} input channels become {tensor.shape[1]}")
        return with_channels(array, tensor.shape[1])
    if ".pos_embed." in name and array.ndim == 3:
        lines.append(f"{name}: {array.shape[1]} positions are resized to {tensor.shape[1]}")
        return resized_positions(array, tensor.shape[1])
    return array


def is_other_head(theirs, ours):
    """Whether one head is missing, or the two differ in the number of classes, their last axis, and in nothing else."""
    if not theirs or not ours:
        return bool(ours)
    if theirs.keys() != ours.keys():
        return False
    shapes = [(list(theirs[name].shape), list(ours[name].shape)) for name in ours]
    if not all(a and len(a) == len(b) and a[:-1] == b[:-1] for a, b in shapes):
        return False
    classes = {a[-1] for a, _ in shapes}
    return len(classes) == 1 and min(classes) > 0 and any(a != b for a, b in shapes)


def _differ_in_axis_1(theirs, ours):
    theirs, ours = list(theirs), list(ours)
    return theirs != ours and len(theirs) == len(ours) > 1 and theirs[:1] + theirs[2:] == ours[:1] + ours[2:]


def _new_head(theirs, ours):
    (classes,) = {tensor.shape[-1] for tensor in ours.values()}
    has = f"{next(iter(theirs.values())).shape[-1]:,} classes" if theirs else "no classifier"
    return f"has {has}, the model {classes:,}: the model's head starts untrained"


def with_channels(kernel, channels):
    """A first convolution's kernel [C_out, C_in, k, k] for images of another number of channels.

    Equal channels give what they gave: one channel gets the sum of the kernel's; further ones take the given in turn,
    each shared among those that have it. Of fewer, the first ones are scaled up to keep the sum of a constant kernel.
    """
    given = kernel.shape[1]
    if channels == 1:
        return kernel.sum(axis=1, keepdims=True)
    if channels < given:
        return kernel[:, :channels] * (given / channels)
    turns = np.arange(channels) % given
    return kernel[:, turns] / np.bincount(turns)[turns].astype(kernel.dtype)[:, None, None]


def resized_positions(positions, count):
    """[1, M, C], class token first, for `count` tokens: the square grid of the others is resized bicubically."""
    old, new = (int(round((number - 1) ** 0.5)) for number in (positions.shape[1], count))
    if old**2 != positions.shape[1] - 1 or new**2 != count - 1:
        return positions
    grid = paddle.to_tensor(positions[:, 1:].reshape(1, old, old, -1).astype("float32")).transpose([0, 3, 1, 2])
    grid = F.interpolate(grid, size=[new, new], mode="bicubic", align_corners=False)  # [1, C, new, new]
    tokens = grid.flatten(2).transpose([0, 2, 1]).numpy()  # [1, new * new, C]
    return np.concatenate([positions[:, :1], tokens], axis=1)
