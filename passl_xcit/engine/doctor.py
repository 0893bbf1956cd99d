"""What `tools/doctor.py` does: looks at the machine, a config, a data set and a device before a run does."""

import contextlib
import logging
from functools import partial
from pathlib import Path

from passl_xcit.engine import builder
from passl_xcit.engine.comparison_check import check_computation
from passl_xcit.engine.dataset_check import check_data
from passl_xcit.engine.device_comparison import TOLERANCE
from passl_xcit.engine.operator_check import check_operators
from passl_xcit.engine.preflight import on_noise
from passl_xcit.engine.report import Finding, Section
from passl_xcit.engine.system_check import devices, installation, machine, trouble_with
from passl_xcit.modeling import factory
from passl_xcit.utils.config import load_config
from passl_xcit.utils.device import check_device, default_device
from passl_xcit.utils.errors import ConfigError, DataError, UserError
from passl_xcit.utils.logger import get_logger

SIDE_OF_NAMED_MODELS = 224
CLASSES = 1000  # where the data set is to say it


def examine(
    config_file=None,
    overrides=(),
    device=None,
    data=None,
    data_limit=None,
    reference=None,
    model=None,
    tolerance=TOLERANCE,
):
    """The sections of the report, a list of Section.

    Args:
        config_file, overrides: as for `launch.run`; the config is checked, and says the device and the output folder.
        device: such as "npu:0", in place of the config's.
        data, data_limit: a data set to look into; see `check_data`.
        reference: the device, "cpu", to compare `device` with.
        model: a name for `create_model`, to compare with it in place of the config's model.
        tolerance: of that comparison.

    Raises:
        ConfigError: for a config or arguments that cannot be right.
    """
    if reference:
        if bool(config_file) == bool(model):
            raise ConfigError("--compare needs one model: give -c CONFIG or --model NAME")
        check_device(reference)
    with _warnings_kept_back():
        cfg = _read(config_file, overrides) if config_file else {}
        device = device or cfg.get("device") or default_device()
        trouble = trouble_with(device)
        sections = [installation(), machine(cfg.get("output_dir", "outputs"), device), devices(device, trouble)]
        num_classes = None
        if cfg:
            built = _build(cfg)
            num_classes = None if builder.takes_classes_of_data(cfg) else built.num_classes
            sections += [_config(cfg, config_file, built, num_classes), check_operators(cfg, device)]
        if data:
            sections.append(check_data(data, data_limit, num_classes))
        if reference:
            make = partial(_build, cfg) if cfg else partial(factory.create_model, model)
            size = _image_size(cfg) if cfg else (SIDE_OF_NAMED_MODELS,) * 2
            sections.append(check_computation(make, size, device, reference, tolerance, trouble))
    return sections


@contextlib.contextmanager
def _warnings_kept_back():
    """Inside, the log's warnings are not printed: they are findings here."""
    logger = get_logger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _read(config_file, overrides):
    cfg = load_config(config_file, overrides)
    builder.check_config(cfg, training=True)
    return cfg


def _build(cfg):
    """The model of `cfg`; of a distillation the student."""
    cfg = builder.with_class_count(cfg, CLASSES)
    with cfg.errors_name_files():
        return factory.build(cfg["model"], training=False)


def _config(cfg, config_file, model, num_classes):
    trained = sum(parameter.size for parameter in model.parameters() if not parameter.stop_gradient)
    classes = f"{num_classes} classes" if num_classes else "as many classes as the data set"
    sizes = f"{builder.format_count(trained)} parameters, {classes}"
    findings = [
        Finding("config", f"{config_file}: all keys are known"),
        Finding("model", f"{type(model.backbone).__name__}, {sizes}"),
    ]
    findings += [_data_of(cfg, split, num_classes) for split in ("train", "val") if cfg["dataloader"].get(split)]
    return Section("config", findings)


def _data_of(cfg, split, num_classes):
    """The finding on a split's data, which are looked up as a training does; of the training's, on the schedule too.

    `num_classes` is the model's, or None where the data say it.
    """
    node = cfg["dataloader"][split]["dataset"]
    root = node.get("dataroot")
    if root is not None and not Path(root).exists():
        advice = f"{root} is not there: give --data_dir, or set dataloader.{split}.dataset.dataroot"
        return Finding(f"{split} data", f"{root}: not there", "warning", advice)
    try:
        classes = num_classes or _build(builder.with_classes_of_data(cfg, split)).num_classes
        loader = builder.build_loader(cfg, split, classes)
        if not len(loader):
            raise DataError(f"{len(loader.dataset)} images do not fill one batch: use a smaller batch_size")
        if split == "train":
            builder.build_schedule(cfg, loader)
    except UserError as error:
        return Finding(f"{split} data", root or node["name"], "error", str(error))
    return Finding(f"{split} data", f"{root or node['name']}: {len(loader.dataset)} images")


def _image_size(cfg):
    """(height, width) of the images that `cfg` trains with."""
    images, _ = next(iter(builder.build_loader(on_noise(cfg), "train", CLASSES)))
    return images.shape[2:]
