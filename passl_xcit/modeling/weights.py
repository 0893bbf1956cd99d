"""Loading weights strictly: all of a model or nothing of it."""

import numpy as np

from passl_xcit.modeling.checkpoint_formats import read_file, write_file
from passl_xcit.modeling.state_dict import state_dict_of
from passl_xcit.utils.errors import CheckpointError

LINES_SHOWN = 8


def load_weights(model, path):
    """Read the weight file or training checkpoint `path` into `model`.

    Raises:
        CheckpointError: if the file cannot be read, or names or shapes differ; the model is then unchanged.
    """
    set_weights(model, state_dict_of(read_file(path), str(path)), path)


def set_weights(model, arrays, source):
    """Copy `arrays`, {name: ndarray}, into the parameters and buffers of `model`; CheckpointError unless all fit."""
    targets = model.state_dict()
    have = {name: list(array.shape) for name, array in arrays.items()}
    want = {name: list(tensor.shape) for name, tensor in targets.items()}
    differences = explain(have, want)
    if differences:
        raise CheckpointError(f"{source} does not fit the model, which is left as it was:\n" + "\n".join(differences))
    for name, tensor in targets.items():
        tensor.set_value(_as_type_of(tensor, arrays[name]).reshape(tensor.shape))


def extract_weights(checkpoint, output, prefix="", remove_prefix=False):
    """Write the weights of `checkpoint` whose names begin with `prefix.` to the file `output`; returns their number.

    Raises:
        CheckpointError: if a file cannot be read or written, or no name begins so.
    """
    arrays = state_dict_of(read_file(checkpoint), str(checkpoint))
    start = f"{prefix}." if prefix else ""
    chosen = {name: array for name, array in arrays.items() if name.startswith(start)}
    if not chosen:
        raise CheckpointError(f"{checkpoint}: no name begins with '{start}'; the first is '{next(iter(arrays))}'")
    write_file(output, {name[len(start) :] if remove_prefix else name: array for name, array in chosen.items()})
    return len(chosen)


def explain(have, want):
    """Lines saying how two {name: shape} tables, the file's and the model's, differ; empty when they agree."""
    missing = [f"  - {name} {want[name]}: the model has it, the file has not" for name in want if name not in have]
    extra = [f"  + {name} {have[name]}: the file has it, the model has not" for name in have if name not in want]
    both = [name for name in want if name in have and have[name] != want[name]]
    shapes = [f"  ~ {name}: file {have[name]}, model {want[name]}" for name in both]
    return [*_shortened(missing), *_shortened(extra), *_shortened(shapes)]


def _shortened(lines):
    rest = len(lines) - LINES_SHOWN
    return lines if rest <= 0 else [*lines[:LINES_SHOWN], f"    ... and {rest} more of this kind"]


def _as_type_of(tensor, array):
    """`array`, contiguous and in the type of `tensor`; uint16 is how Paddle's files hold bfloat16."""
    if array.dtype == np.uint16:
        array = (array.astype("uint32") << 16).view("float32")
    return np.ascontiguousarray(array).astype(str(tensor.dtype).rsplit(".", 1)[-1])
