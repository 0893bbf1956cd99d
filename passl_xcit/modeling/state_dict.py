"""The weights in what a weight file holds: which of its entries they are, and whether they are numbers."""

import numpy as np

from passl_xcit.modeling.checkpoint_formats import read_file
from passl_xcit.utils.errors import CheckpointError

CONTAINERS = ("model", "state_dict")  # of facebookresearch, DeiT and PaddleViT; of PASSL, mmpretrain and timm
EMA_CONTAINERS = ("model_ema", "state_dict_ema", "ema_state_dict")
EMA_PREFIX = "ema."  # MindCV's moving averages stand beside the weights
# What our own files say of themselves beside the weights, and Paddle's table {structured name: automatic name}, which
# `paddle.save` adds to every state dict. `model` would be a container.
MATHS, COUNTERS, CLASS_NAMES = "maths", "num_batches_tracked", "class_names"
MODEL_CONFIG, PREPROCESS = "model_config", "preprocess"
_NOT_WEIGHTS = ("StructuredToParameterName@@", MATHS, COUNTERS, CLASS_NAMES, MODEL_CONFIG, PREPROCESS)


def read_checkpoint(path):
    """The arrays in a weight file, checkpoint or optimizer file of any format, under the file's own names.

    Args:
        path: a file of Paddle, torch, safetensors or MindSpore; what it is, is seen from its content.

    Returns:
        {name: numpy array}: the weights, if the file has them under `model` or `state_dict`, else all that it holds,
        with the names of nested dicts joined by dots and single numbers as arrays of no dimension. bfloat16, which
        NumPy does not have, comes as float32 of the same value.

    Raises:
        CheckpointError: there is no such file, it is not a weight file, damaged, or holds more than plain data.
    """
    arrays = {}
    _collect(_inside(read_file(path), CONTAINERS), "", arrays)
    if not arrays:
        raise CheckpointError(f"{path}: holds no arrays")
    return arrays


def _collect(value, name, arrays):
    value = _array_of(value)
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in _NOT_WEIGHTS:
                _collect(item, f"{name}.{key}" if name else str(key), arrays)
    elif isinstance(value, (np.ndarray, np.generic, bool, int, float)) and not _is_huge(value):
        arrays[name] = _widened(np.asarray(value))


def _is_huge(value):
    return isinstance(value, int) and value.bit_length() > 63


def state_dict_of(tree, name, ema=False):
    """The weights in what `read_file` returned.

    Args:
        tree: the file's content, a state dict or something that holds one; it is not changed.
        name: what error messages call the file.
        ema: take the moving averages of the weights instead of the weights.

    Returns:
        {parameter name: numpy array}, in the file's order. bfloat16 comes as float32.

    Raises:
        CheckpointError: it is not a dict of named arrays, or some of them are not finite, or there is no EMA.
    """
    if ema and not _has_averages(tree):
        raise CheckpointError(f"{name}: holds no moving averages (EMA) of weights; take the weights themselves")
    tree = _inside(tree, EMA_CONTAINERS if ema else CONTAINERS)
    if not isinstance(tree, dict):
        raise CheckpointError(f"{name}: its state dict is a {type(tree).__name__}, not a dict of named arrays")
    weights = {key: _array_of(value) for key, value in tree.items() if key not in _NOT_WEIGHTS}
    if not weights:
        raise CheckpointError(f"{name}: holds no weights")
    others = [key for key, value in weights.items() if not isinstance(key, str) or not isinstance(value, np.ndarray)]
    if others:
        raise CheckpointError(f"{name}: is not a dict of named arrays: see {_first(others)}")
    weights = {key: _widened(value) for key, value in _chosen(weights, ema).items()}
    broken = [key for key, value in weights.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]
    if broken:
        raise CheckpointError(f"{name}: holds non-finite values in {_first(broken)}")
    return weights


def _inside(tree, containers):
    """What stands under the first of `containers`, however deep; `tree` itself without one."""
    while isinstance(tree, dict) and (found := next((key for key in containers if _is_container(tree, key)), None)):
        tree, containers = tree[found], CONTAINERS
    return tree


def _is_container(tree, key):
    return key in tree and not isinstance(tree[key], np.ndarray)


def _has_averages(tree):
    inner = _inside(tree, CONTAINERS)
    beside = isinstance(inner, dict) and any(str(key).startswith(EMA_PREFIX) for key in inner)
    return beside or (isinstance(tree, dict) and any(isinstance(tree.get(key), dict) for key in EMA_CONTAINERS))


def _chosen(weights, ema):
    """Of weights and their moving averages in one dict, the ones that are wanted."""
    averages = {key[len(EMA_PREFIX) :]: value for key, value in weights.items() if key.startswith(EMA_PREFIX)}
    if not averages:
        return weights
    others = {key: value for key, value in weights.items() if not key.startswith(EMA_PREFIX)}
    return {**others, **averages} if ema or not others else others


def _array_of(value):
    """Paddle stores a Tensor outside a plain state dict as `(name, array)`."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        return value[1]
    return value


def _widened(array):
    """uint16 is how Paddle's files hold bfloat16, the upper half of a float32."""
    if array.dtype != np.uint16:
        return array
    return np.left_shift(array, 16, dtype="uint32", out=np.empty(array.shape, "uint32")).view("float32")


def _first(names):
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more
