"""What a weight file says of itself, so that it alone is enough to predict: its model and its preprocessing.

`model_config` is the model's node in a config, `preprocess` is `Preprocess.to_dict()`. A file may come from a stranger:
what stands in these entries is checked as a config is, and a model is built only when it fits the file's arrays.
"""

import contextlib

import paddle

from passl_xcit.datasets.preprocess import Preprocess, check_plain
from passl_xcit.engine.run_settings import transforms_difference
from passl_xcit.modeling import factory
from passl_xcit.modeling.distillation import student_node
from passl_xcit.modeling.state_dict import MODEL_CONFIG, PREPROCESS
from passl_xcit.modeling.weights import explain, put_weights
from passl_xcit.utils.errors import CheckpointError, ConfigError
from passl_xcit.utils.logger import TRAINER, get_logger
from passl_xcit.utils.registry import MODELS, join

logger = get_logger(TRAINER)

MOST = 100_000  # no argument of a model is a larger number
DEPTHS = ("depth", "cls_attn_layers", "d")  # arguments of backbones that count blocks, each of which takes time to make


def describe(cfg, model):
    """The entries {"model_config", "preprocess"} of the weights that a training of `cfg` writes.

    `preprocess` is None, with a warning, where the evaluation's transforms are no preprocessing: they draw at random,
    say. It is None in silence where the config has no evaluation.
    """
    return {MODEL_CONFIG: student_node(cfg["model"], "model")[0], PREPROCESS: _preprocess_entry(cfg, model)}


def _preprocess_entry(cfg, model):
    if cfg["dataloader"].get("val") is None:
        return None
    try:
        return preprocess_of_config(cfg, model).to_dict()
    except ConfigError as error:
        logger.warning(f"the weights will not say how images are preprocessed: {error}")
        return None


def preprocess_of_config(cfg, model):
    """The Preprocess that evaluates `model` by the config; ConfigError where its transforms are none."""
    nodes = cfg["dataloader"]["val"]["dataset"].get("transforms") or []
    return Preprocess(nodes, model.backbone.in_chans)


def preprocess_of_file(entry, path):
    """The Preprocess that the file `path` says in its `entry`.

    Raises:
        CheckpointError: the entry is damaged, or asks for what this program does not have.
    """
    with _blamed_on(path, PREPROCESS):
        return Preprocess.from_dict(entry)


def warn_of_other_preprocess(cfg, model, path):
    """Say in a line where the evaluation of `cfg` preprocesses otherwise than the weights, loaded from `path`, say."""
    if model.preprocess is None:
        return
    nodes = cfg["dataloader"]["val"]["dataset"].get("transforms") or []
    difference = transforms_difference(preprocess_of_file(model.preprocess, path).nodes, nodes)
    if difference:
        argument, theirs, ours = difference
        logger.warning(f"{argument} is {ours} in the config, but {theirs} in what {path} says of its own evaluation")


def model_of_file(found, path):
    """The model that a file describes, with its weights, in evaluation mode.

    Args:
        found: what `read_weights` found in the file `path`.

    Raises:
        CheckpointError: the file does not say which model it is, or its arrays are not those of that model.
    """
    if found.model_config is None:
        raise CheckpointError(
            f"{path}: does not say which model it is and how images are preprocessed, as files of other programs and "
            "of version 0.1 do not; give the config"
        )
    with _blamed_on(path, MODEL_CONFIG):
        check_plain(found.model_config, "", MOST)
        _check_depths(found.model_config, len(found.arrays))
        MODELS.check(found.model_config, "")
        with paddle.LazyGuard():  # names and shapes only: what a damaged file says may not fit into the memory
            shapes = _shapes(factory.build(found.model_config, training=False, path="").state_dict())
        differences = explain(_shapes(found.arrays), shapes)
        if differences:
            raise ConfigError(f"is not the model of its arrays: {differences[0].strip()}")
        model = factory.build(found.model_config, training=False, path="")
    put_weights(model, found, path)
    model.eval()
    return model


def _check_depths(node, arrays, path=""):
    """Raise ConfigError where a tree of nodes asks for more blocks than there are arrays."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if key in DEPTHS and _sum(value) > arrays:
            raise ConfigError(f"asks for {_sum(value):g} blocks, but there are {arrays} arrays", join(path, key))
        _check_depths(value, arrays, join(path, key))


def _sum(value):
    """The sum of the numbers in nested lists."""
    return sum(map(_sum, value)) if isinstance(value, list) else value if type(value) in (int, float) else 0


def _shapes(arrays):
    return {name: list(array.shape) for name, array in arrays.items()}


@contextlib.contextmanager
def _blamed_on(path, entry):
    try:
        yield
    except ConfigError as error:
        raise CheckpointError(f"{path}: its entry {entry}: {error}") from error
