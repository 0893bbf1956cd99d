"""Loading weights strictly: all of a model or nothing of it, from any of the file formats and dialects."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import paddle

from passl_xcit.modeling.adapt import adapted, is_other_head
from passl_xcit.modeling.backbones.crossvit import CrossViT
from passl_xcit.modeling.backbones.regnet import RegNet
from passl_xcit.modeling.backbones.xcit import XCiT
from passl_xcit.modeling.checkpoint_formats import read_file, write_file
from passl_xcit.modeling.identify import looks_like
from passl_xcit.modeling.name_maps import recognise
from passl_xcit.modeling.state_dict import CLASS_NAMES, COUNTERS, MATHS, MODEL_CONFIG, PREPROCESS, state_dict_of
from passl_xcit.utils.errors import CheckpointError
from passl_xcit.utils.logger import TRAINER, get_logger
from passl_xcit.utils.refusals import short

LINES_SHOWN = 8
_BACKBONES = {"xcit": XCiT, "crossvit": CrossViT, "regnet": RegNet}
logger = get_logger(TRAINER)


class FileWeights(NamedTuple):
    """Weights of a file under our names; `dialect` is None where no known model was recognised.

    `model_config` (the model's node in a config) and `preprocess` (a `Preprocess` as a dict) are what the file says,
    unchecked; None where it says nothing.
    """

    arrays: dict
    family: str = None
    dialect: str = None
    counters: dict = {}
    maths: dict = {}
    class_names: list = None
    model_config: object = None
    preprocess: object = None


def read_weights(path, ema=False):
    """The weights in `path`, of any format and dialect, as FileWeights.

    Raises:
        CheckpointError: if the file cannot be read or holds no finite weights.
    """
    tree = read_file(path)
    arrays = state_dict_of(tree, str(path), ema)
    try:
        known = recognise(arrays)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    maths, counters = (tree.get(key, {}) for key in (MATHS, COUNTERS))
    if not all(isinstance(part, dict) and all(isinstance(key, str) for key in part) for part in (maths, counters)):
        raise CheckpointError(f"{path}: what it says of its own weights (maths, num_batches_tracked) is damaged")
    said = (maths, _class_names(tree, path), _mapping(tree, MODEL_CONFIG, path), _mapping(tree, PREPROCESS, path))
    if known is None:
        return FileWeights(arrays, None, None, {}, *said)
    return FileWeights(known.weights, known.family, known.dialect, {**counters, **known.counters}, *said)


def _class_names(tree, path):
    names = tree.get(CLASS_NAMES)
    if names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        return names
    raise CheckpointError(f"{path}: its class_names are no list of names")


def _mapping(tree, key, path):
    if not isinstance(tree.get(key), (dict, type(None))):
        raise CheckpointError(f"{path}: its {key} is no mapping")
    return tree.get(key)


def load_weights(model, path, adapt=False, ema=False):
    """Read the weight file or training checkpoint `path` into `model`.

    Files of PASSL, facebookresearch and IBM, timm, mmpretrain and MindCV are known by their content. Where a MindCV
    file needs other maths than the paper's (see `backbone.MATHS`), the model is switched to them. Where the file says
    what its classes are called, the model's `class_names` are these; what it says of preprocessing is `preprocess`.

    Args:
        model: a `Classification`, or any Layer whose names the file has; of a distillation the student is loaded.
        path: str or path.
        adapt: accept a file with another number of classes (the head then stays as it is), other input channels
            (the first convolution's are summed, or repeated and scaled) or, in CrossViT, another image size
            (position embeddings are resized); each is said in one line.
        ema: take the moving averages that the file has beside the weights.

    Raises:
        CheckpointError: if the file cannot be read, or names or shapes differ; the model is then unchanged.
    """
    put_weights(model, read_weights(path, ema), path, adapt)


def put_weights(model, found, path, adapt=False):
    """`load_weights` of what `read_weights` found in `path`."""
    model = getattr(model, "student", model)
    arrays = _without_backbone_prefix(found.arrays, model)
    arrays, lines = adapted(arrays, model) if adapt else (arrays, [])
    values = _fitting_values(model, arrays, path)
    switch_maths(model, maths_of(found), path)
    _assign(model, values)
    if found.class_names and len(found.class_names) == getattr(model, "num_classes", None) and not lines:
        model.class_names = found.class_names
    model.preprocess = found.preprocess
    for line in lines:
        logger.info(f"{path}: {line}")


def set_weights(model, arrays, source):
    """Copy `arrays`, {name: ndarray}, into the parameters and buffers of `model`; CheckpointError unless all fit."""
    _assign(model, _fitting_values(model, arrays, source))


def _assign(model, values):
    for name, tensor in model.state_dict().items():
        value = values[name]
        tensor.set_value(paddle.to_tensor(value).astype(tensor.dtype) if tensor.dtype == paddle.bfloat16 else value)


def _fitting_values(model, arrays, source):
    """`arrays` in the types of the model's tensors; CheckpointError unless all names, shapes and values fit."""
    targets = model.state_dict()
    have = {name: list(array.shape) for name, array in arrays.items()}
    want = {name: list(tensor.shape) for name, tensor in targets.items()}
    differences = explain(have, want)
    if differences:
        what = _identified(arrays, targets)
        raise CheckpointError(
            f"{source} does not fit the model, which is left as it was{what}:\n" + "\n".join(differences)
        )
    return {name: _as_type_of(tensor, arrays[name], name, source) for name, tensor in targets.items()}


def extract_weights(checkpoint, output, prefix="", remove_prefix=False, ema=False):
    """Write the weights of `checkpoint` whose names begin with `prefix.` to the file `output`; returns their number.

    With `ema` their moving averages, which EMAHook keeps, are written instead, under the same names.

    Raises:
        CheckpointError: if a file cannot be read or written, no name begins so, or there are no averages.
    """
    tree = read_file(checkpoint)
    require_output(output, checkpoint)
    if Path(output).suffix != ".pdparams":
        raise CheckpointError(f"{output}: Paddle's weights go to a file that ends in .pdparams")
    arrays = state_dict_of(tree, str(checkpoint), ema)
    start = f"{prefix}." if prefix else ""
    chosen = {name: array for name, array in arrays.items() if name.startswith(start)}
    if not chosen:
        raise CheckpointError(f"{checkpoint}: no name begins with '{start}'; the first is {short(next(iter(arrays)))}")
    named = {name[len(start) :] if remove_prefix else name: array for name, array in chosen.items()}
    kept = (MATHS, CLASS_NAMES, PREPROCESS) if prefix else (MATHS, CLASS_NAMES, PREPROCESS, MODEL_CONFIG)
    write_file(output, {**named, **{key: tree[key] for key in kept if tree.get(key) is not None}})
    return len(chosen)


def require_output(output, source):
    """Raise CheckpointError unless `output` is the path of a file other than `source`, which is there."""
    if not isinstance(output, (str, os.PathLike)) or "\0" in str(output):
        raise CheckpointError(f"{output!r} is not the path of a file to write")
    if os.path.exists(output) and os.path.samefile(source, output):
        raise CheckpointError(f"{output}: is the source itself, of which just the weights would be left")


def explain(have, want):
    """Lines saying how two {name: shape} tables, the file's and the model's, differ; empty when they agree."""
    missing = [f"  - {name} {want[name]}: the model has it, the file has not" for name in want if name not in have]
    extra = [
        f"  + {_in_line(name)} {have[name]}: the file has it, the model has not" for name in have if name not in want
    ]
    both = [name for name in want if name in have and have[name] != want[name]]
    shapes = [f"  ~ {name}: file {have[name]}, model {want[name]}" for name in both]
    return [*_shortened(missing), *_shortened(extra), *_shortened(shapes)]


def _in_line(name):
    """A name from a file, fit for a line on a terminal."""
    return name if name.isprintable() and len(name) <= 120 else short(name)


def _shortened(lines):
    rest = len(lines) - LINES_SHOWN
    return lines if rest <= 0 else [*lines[:LINES_SHOWN], f"    ... and {rest} more of this kind"]


def _identified(arrays, targets):
    """The part of a refusal that names the two architectures, where they are known and differ."""
    theirs, ours = looks_like(arrays), looks_like(targets)
    if theirs is None:
        return ""
    if theirs == ours:
        return _other_classes(arrays, targets)
    return f" (this looks like {theirs}" + (f", the model is {ours})" if ours else ")")


def _other_classes(arrays, targets):
    heads = [{name: value for name, value in own.items() if name.startswith("head.")} for own in (arrays, targets)]
    if not heads[0] or not is_other_head(*heads):
        return ""
    theirs, ours = (next(iter(head.values())).shape[-1] for head in heads)
    return f" (it has {theirs} classes, the model {ours}: set num_classes; a training replaces the head by itself)"


def _as_type_of(tensor, array, name, source):
    """`array`, contiguous and in the type of `tensor`; for bfloat16, which NumPy does not have, float32."""
    dtype = "float32" if tensor.dtype == paddle.bfloat16 else str(tensor.dtype).rsplit(".", 1)[-1]
    with np.errstate(over="ignore"):
        value = np.ascontiguousarray(array).astype(dtype).reshape(tensor.shape)
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise CheckpointError(f"{source}: {name} has values that {value.dtype} cannot hold")
    return value


def _without_backbone_prefix(arrays, model):
    """For a model that is a backbone alone: its names, and no head."""
    if any(name.startswith("backbone.") for name in model.state_dict()):
        return arrays
    inner = {name[9:]: array for name, array in arrays.items() if name.startswith("backbone.")}
    return inner or arrays


def maths_of(found):
    """The arguments of the backbone in which these weights need another function than the paper's; {} if in none."""
    known = _BACKBONES[found.family].MATHS if found.family in _BACKBONES else {}
    return dict(known.get(found.dialect, found.maths))


def switch_maths(model, wanted, path):
    """Let `model` compute as its weights, read from `path`, need it, and say so where that is a change.

    Args:
        wanted: {argument of the backbone: value}; empty for the arguments that the model was built with.

    Raises:
        CheckpointError: if the model has no such arguments or values.
    """
    backbone = getattr(model, "backbone", model)
    before = getattr(backbone, "maths", {})
    wanted = wanted or getattr(backbone, "built_maths", {})
    if wanted == before:
        return
    try:
        backbone.set_maths(**wanted)
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its weights need {wanted}: {error}") from error
    logger.info(f"{path}: its weights need {wanted}, which the model now computes with")
