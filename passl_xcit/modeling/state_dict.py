"""The weights in what a weight file holds: which of its entries they are, and whether they are numbers."""

import numpy as np

from passl_xcit.utils.errors import CheckpointError

# Paddle's table {structured name: automatic name}, which `paddle.save` adds to every state dict.
_PADDLE_NAME_TABLE = "StructuredToParameterName@@"


def state_dict_of(tree, name):
    """The weights in what `read_file` returned: a bare state dict, or a checkpoint's `state_dict`.

    Args:
        tree: the file's content; it is not changed.
        name: what error messages call the file.

    Returns:
        {parameter name: numpy array}, in the file's order. A uint16 array is Paddle's bfloat16.

    Raises:
        CheckpointError: it is not a dict of named arrays, or some of them are not finite.
    """
    tree = tree.get("state_dict", tree) if isinstance(tree, dict) else tree
    if not isinstance(tree, dict):
        raise CheckpointError(f"{name}: its state dict is a {type(tree).__name__}, not a dict of named arrays")
    weights = {key: _array_of(value) for key, value in tree.items() if key != _PADDLE_NAME_TABLE}
    if not weights:
        raise CheckpointError(f"{name}: holds no weights")
    others = [key for key, value in weights.items() if not isinstance(key, str) or not isinstance(value, np.ndarray)]
    if others:
        raise CheckpointError(f"{name}: is not a dict of named arrays: see {_first(others)}")
    broken = [key for key, value in weights.items() if not _is_finite(value)]
    if broken:
        raise CheckpointError(f"{name}: holds non-finite values in {_first(broken)}")
    return weights


def _array_of(value):
    """Paddle stores a Tensor outside a plain state dict as `(name, array)`."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        return value[1]
    return value


def _is_finite(array):
    if array.dtype == np.uint16:
        exponent = np.uint16(0x7F80)
        return not ((array & exponent) == exponent).any()
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _first(names):
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more
