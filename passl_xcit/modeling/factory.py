"""The one door into a model: `create_model` by name, `get_model` as mmpretrain's users call it, `build` for YAML."""

import dataclasses
import difflib
import fnmatch
import hashlib
import os
from pathlib import Path

# Importing these files fills the registries.
from passl_xcit.modeling import architectures, heads  # noqa: F401
from passl_xcit.modeling.backbones import crossvit, regnet, xcit
from passl_xcit.modeling.distillation import DistillationWrapper, student_node, unused_keys
from passl_xcit.modeling.download import cached_download
from passl_xcit.modeling.weights import load_weights
from passl_xcit.modeling.zoo import entries, find, normal_form
from passl_xcit.utils.config import load_config
from passl_xcit.utils.device import check_device
from passl_xcit.utils.errors import CheckpointError, ConfigError
from passl_xcit.utils.logger import TRAINER, get_logger
from passl_xcit.utils.registry import BACKBONES, HEADS, MODELS

logger = get_logger(TRAINER)
PRESETS = (*xcit.VARIANTS, *crossvit.VARIANTS, *regnet.VARIANTS)


def build(node, training=True, path="model"):
    """The model that a config's node describes; of a distillation without `training` the student alone.

    Raises:
        ConfigError: for an unknown name or argument, or sizes that do not fit one another.
        CheckpointError: the weights that the node names for teacher or student cannot be had, or do not fit.
    """
    if not training:
        return MODELS.build(*student_node(node, path))
    model = MODELS.build(node, path)
    if isinstance(model, DistillationWrapper):
        unused = unused_keys(node)
        if unused:
            logger.warning(f"{path}: {', '.join(unused)}: without effect on the {model.distillation_type} loss")
        _load_pretrained(model)
    return model


def teacher_digest(model):
    """SHA-256 of all values of a distillation's teacher; None for another model."""
    if not isinstance(model, DistillationWrapper):
        return None
    digest = hashlib.sha256()
    for name, tensor in model.teacher.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def create_model(name, pretrained=False, num_classes=1000, in_chans=3, **overrides):
    """A model by any of its names, in training mode as every new Paddle layer.

    Args:
        name: of published weights, as facebookresearch, IBM, timm, mmpretrain, MindCV or PaddleViT call them
            (`xcit_nano_12_p16_384_dist`, `xcit-nano-12-p16_3rdparty-dist_in1k-384px`, `crossvit_9`), or of an
            architecture (`xcit_nano_12_p8`, `regnety_080`); upper or lower case, '-' or '_' do not matter.
        pretrained: True takes the published weights, downloaded once into a folder (see `cached_download`); a path or
            an address takes that file, of any format that `read_checkpoint` reads.
        num_classes: K; where the file has another number of classes, the head starts untrained, and a line says so.
        in_chans: channels of the images; the first convolution of the file is made to fit.
        overrides: further arguments of the backbone, such as drop_path_rate=0.1.

    Returns:
        A `Classification`: images [B, in_chans, H, W] -> logits [B, K].

    Raises:
        ConfigError: no model has this name (the nearest are listed), or an argument is wrong.
        CheckpointError: the weights cannot be had, or do not fit.
    """
    preset, entry = _resolve(name)
    backbone = {"name": preset, "in_chans": in_chans, **overrides}
    return _build_and_load(name, backbone, {"num_classes": num_classes}, pretrained, entry)


def get_model(model, pretrained=False, device=None, backbone=None, head=None):
    """A model in evaluation mode, with the arguments and the behaviour of mmpretrain's `get_model`.

    Args:
        model: a name as for `create_model`, or the path of a YAML config of ours.
        pretrained: as for `create_model`.
        device: where the model goes, such as "cpu" or "gpu:0"; by default it stays on Paddle's current device.
        backbone, head: dicts of arguments that replace those of the name or config, such as head={"num_classes": 10}.

    Raises:
        ConfigError, CheckpointError: as `create_model`.
    """
    for name, node in (("backbone", backbone), ("head", head)):
        if node is not None and not isinstance(node, dict):
            raise ConfigError(f"{name} must be a dict of arguments, not {node!r}")
    if device is not None:
        check_device(device)
    if Path(str(model)).suffix in (".yaml", ".yml"):
        built = _from_config(model, pretrained, backbone, head)
    else:
        preset, entry = _resolve(str(model))
        built = _build_and_load(model, {"name": preset, **(backbone or {})}, head or {}, pretrained, entry)
    if device is not None:
        _move(built, device)
    built.eval()
    return built


def _move(model, device):
    try:
        model.to(device)
    except ValueError as error:
        raise ConfigError(f"'{device}' cannot be used: {str(error).strip().splitlines()[-1]}", "device") from error


def list_models(pattern=None, pretrained=False):
    """Names for `create_model`, sorted: of published weights and, unless `pretrained`, of bare architectures.

    Args:
        pattern: shell pattern such as "xcit_*_dist"; where no main name matches, other projects' names are listed.
        pretrained: leave out the architectures that have no published weights under their name.
    """
    names = {entry.name for entry in entries()} | (set() if pretrained else set(PRESETS))
    if pattern is None:
        return sorted(names)
    aliases = {alias for entry in entries() for alias in entry.aliases}
    return sorted(_matching(pattern, names) or _matching(pattern, aliases))


def get_config(name):
    """What is known of published weights: backbone, addresses, parameters, FLOPs, accuracies and their pipelines.

    Raises:
        ConfigError: no published weights have this name.
    """
    preset, entry = _resolve(name)
    if entry is None:
        raise ConfigError(_no_weights(name, preset))
    return dataclasses.asdict(entry)


def is_address(weights):
    return "://" in str(weights)


def local_file(weights):
    """`weights`, a path or an http(s) address, as a path; an address is downloaded once."""
    if not is_address(weights):
        return weights
    known = [file for entry in entries() for file in entry.weights if file.url == str(weights)]
    return cached_download(str(weights), sha256=known[0].sha256 if known else "")


def weights_file(weights):
    """`weights`, a path, an address or the name of published weights, as a path; what is not here is downloaded.

    Raises:
        CheckpointError: they cannot be had.
    """
    entry = None if os.path.exists(weights) else find(str(weights))
    if entry:
        return _download(entry)
    path = local_file(weights)
    if Path(path).name == str(path) and not Path(path).suffix and not os.path.exists(path):
        raise CheckpointError(f"{path}: there is no such file, and no weights of that name{_nearest_names(path)}")
    return path


def _load_pretrained(wrapper):
    for name, weights in wrapper.pretrained.items():
        is_student = name == wrapper.infer_model_key
        model = wrapper.student if is_student else wrapper.teacher
        if weights:
            load_weights(model, weights_file(weights), adapt=is_student)
        elif not is_student:
            logger.warning(f"{name} has no entry in pretrained_list: an untrained teacher teaches noise")


def _build_and_load(name, backbone, head, pretrained, entry):
    BACKBONES.check(backbone, name)
    body = BACKBONES.build(backbone, name)
    node = {"name": body.HEAD, "in_channels": body.num_features, **head}
    HEADS.check(node, name)
    model = architectures.Classification(head=HEADS.build(node, name), backbone=body)
    if pretrained is True and entry is None:
        raise ConfigError(_no_weights(name, backbone["name"]))
    if _is_wanted(pretrained):
        load_weights(model, _download(entry) if pretrained is True else local_file(pretrained), adapt=True)
    return model


def _is_wanted(pretrained):
    """Whether there are weights to load; ConfigError for what is neither a bool nor a path, nor an address."""
    if pretrained is None or isinstance(pretrained, bool):
        return bool(pretrained)
    if not isinstance(pretrained, (str, os.PathLike)) or not str(pretrained):
        raise ConfigError(f"pretrained must be True, False, a path or an address, not {pretrained!r}")
    return True


def _from_config(path, pretrained, backbone, head):
    if pretrained is True:
        raise ConfigError(f"{path}: pretrained=True needs the name of published weights; give their path instead")
    cfg = load_config(path)
    with cfg.errors_name_files():
        node = cfg.to_dict()["model"]
        key = "architecture" if "architecture" in node else "backbone"
        node = {**node, key: {**node[key], **(backbone or {})}, "head": {**node["head"], **(head or {})}}
        MODELS.check(node, "model")
        model = build(node, training=False)
    if _is_wanted(pretrained):
        load_weights(model, local_file(pretrained), adapt=True)
    return model


def architecture_of(name):
    """The architecture, such as "xcit_nano_12_p16", that a name of `create_model` means; ConfigError for no such."""
    return _resolve(name)[0]


def _download(entry):
    file = entry.weights[0]
    return cached_download(file.url, sha256=file.sha256)


def _resolve(name):
    """(preset, ZooEntry or None) that `name` means."""
    entry = find(str(name))
    if entry is not None:
        return entry.backbone, entry
    preset = next((preset for preset in PRESETS if normal_form(preset) == normal_form(str(name))), None)
    if preset is None:
        shown = repr(str(name)) if len(str(name)) <= 80 else repr(str(name)[:80]) + "..."
        raise ConfigError(f"no model {shown}{_nearest_names(name)}")
    return preset, None


def _nearest_names(name):
    known = {normal_form(known): known for entry in entries() for known in entry.names}
    known.update({normal_form(preset): preset for preset in PRESETS})
    close = difflib.get_close_matches(normal_form(str(name)), known, n=3)
    found = " or ".join(f"'{known[form]}'" for form in close)
    return f"; did you mean {found}?" if found else "; passl_xcit.list_models() gives all names"


def _no_weights(name, preset):
    published = [entry.name for entry in entries() if entry.backbone == preset]
    which = f"it has {', '.join(published)}" if published else "none are published for it here; give a path"
    return f"'{name}' is an architecture, not the name of weights: {which}"


def _matching(pattern, names):
    return [name for name in names if fnmatch.fnmatchcase(normal_form(name), normal_form(str(pattern)))]
