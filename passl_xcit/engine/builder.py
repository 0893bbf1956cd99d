"""The one file that turns a config into objects; every other class takes plain keyword arguments."""

import contextlib
import math
from dataclasses import dataclass
from typing import Any, Optional, Sequence

import paddle

# Importing these files fills the registries.
from passl_xcit.datasets import (  # noqa: F401
    auto_augment,
    batch_transforms,
    cifar10,
    demo_fashion_mnist,
    imagenet,
    random_images,
    transforms,
)
from passl_xcit.datasets.dataloader import ImageLoader
from passl_xcit.datasets.dataset import check_labels
from passl_xcit.datasets.preprocess import at_size
from passl_xcit.datasets.sampler import DistributedBatchSampler  # noqa: F401
from passl_xcit.engine.evaluator import Evaluator
from passl_xcit.engine.gradients import NonFiniteGuard
from passl_xcit.engine.mixed_precision import PRECISION, float32, tell_of_cpu
from passl_xcit.engine.run_settings import run_settings
from passl_xcit.engine.trainer import Trainer, with_sync_batch_norm
from passl_xcit.engine.weight_entries import describe
from passl_xcit.hooks import (  # noqa: F401
    checkpoint_hook,
    early_stop_hook,
    ema_hook,
    evaluate_hook,
    log_hook,
    teacher_cache_hook,
    visual_hook,
)
from passl_xcit.modeling import factory
from passl_xcit.solver import lr_scheduler, optimizer  # noqa: F401
from passl_xcit.utils.config import Override
from passl_xcit.utils.dist import rank, world_size
from passl_xcit.utils.errors import ConfigError, DataError
from passl_xcit.utils.logger import TRAINER, get_logger
from passl_xcit.utils.registry import DATASETS, HOOKS, LR_SCHEDULERS, MODELS, OPTIMIZERS, SAMPLERS, Section, join

logger = get_logger(TRAINER)


@dataclass
class Split:
    """`dataloader.train` or `.val`; PASSL's distillation files have `num_workers` here, others in `loader`."""

    dataset: dict
    sampler: dict
    loader: Optional[dict] = None
    num_workers: Optional[int] = None


@dataclass
class Loaders:
    """`dataloader`."""

    train: Optional[dict] = None
    val: Optional[dict] = None


@dataclass
class Experiment:
    """The top level of a config file: PASSL's keys.

    `is_train` and `timestamp` are what PASSL adds to the config that it prints; a printed config runs as a file.
    """

    model: dict
    dataloader: dict
    epochs: Optional[int] = None
    output_dir: str = "outputs"
    seed: int = 0
    device: Optional[str] = None
    lr_scheduler: Optional[dict] = None
    optimizer: Optional[dict] = None
    log_config: Optional[dict] = None
    checkpoint: Optional[dict] = None
    custom_config: Optional[Sequence[dict]] = None
    accum_steps: int = 1
    use_amp: bool = False
    AMP: Optional[dict] = None
    non_finite: Optional[dict] = None
    is_train: Any = None
    timestamp: Any = None


LOADER = Section("loader", ImageLoader, runtime=("dataset", "batch_sampler"))
SPLIT = Section("dataloader", Split, nodes={"dataset": DATASETS, "sampler": SAMPLERS, "loader": LOADER})
LOADERS = Section("dataloader", Loaders, nodes={"train": SPLIT, "val": SPLIT})
GUARD = Section("non_finite", NonFiniteGuard)
EXPERIMENT = Section(
    "the config",
    Experiment,
    nodes={
        "model": MODELS,
        "dataloader": LOADERS,
        "lr_scheduler": LR_SCHEDULERS,
        "optimizer": OPTIMIZERS,
        "log_config": HOOKS,
        "checkpoint": HOOKS,
        "custom_config": HOOKS,
        "AMP": PRECISION,
        "non_finite": GUARD,
    },
)
AUTO = "auto"  # as `num_classes`: as many as the data set has
HOW_READ = ("transforms", "batch_transforms", "on_bad_image", "max_bad_share")  # of a data set's arguments
NEEDED_TO_TRAIN = ("epochs", "lr_scheduler", "optimizer", "dataloader.train")


def check_config(cfg, training):
    """Raise ConfigError, before anything is built, if `cfg` holds a wrong key or value or lacks a needed one."""
    with cfg.errors_name_files():
        EXPERIMENT.check(with_class_count(cfg, 1).to_dict(), "")
        for key, hook in (("log_config", "LogHook"), ("checkpoint", "CheckpointHook")):
            if cfg.get(key) and cfg[key]["name"] != hook:
                raise ConfigError(f"must be a {hook}; other hooks stand in custom_config", f"{key}.name")
        for path in NEEDED_TO_TRAIN if training else ("dataloader.val",):
            _need(cfg, path)
        if cfg.get("epochs") is not None and cfg["epochs"] < 1:
            raise ConfigError(f"must be at least 1, not {cfg['epochs']}", "epochs")
        if cfg.get("accum_steps", 1) < 1:
            raise ConfigError(f"must be at least 1, not {cfg['accum_steps']}", "accum_steps")
        if not 0 <= cfg.get("seed", 0) < 2**63:
            raise ConfigError(f"must lie in [0, 2**63), not {cfg['seed']}", "seed")


def _need(cfg, path):
    node = cfg.to_dict()
    for key in path.split("."):
        node = node.get(key)
        if node is None:
            raise ConfigError(f"'{path}' is needed {'to evaluate' if path.endswith('val') else 'to train'}", path)


def takes_classes_of_data(cfg):
    """Whether the model of `cfg` has `num_classes: auto` somewhere."""
    return any(_auto_counts(cfg["model"], "model"))


def with_class_count(cfg, count):
    """`cfg` with this number wherever its model has `num_classes: auto`."""
    paths = _auto_counts(cfg.get("model"), "model")
    return cfg.overridden([Override(path, count, f"num_classes: {AUTO}") for path in paths])


def _auto_counts(node, path):
    """Dotted paths of every `num_classes: auto` in a tree of nodes."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in children:
        if key == "num_classes" and value == AUTO:
            yield join(path, key)
        yield from _auto_counts(value, join(path, key))


def with_classes_of_data(cfg, split):
    """`cfg` with the number of classes of the data set of `split` wherever its model has `num_classes: auto`."""
    if not takes_classes_of_data(cfg):
        return cfg
    node = {**cfg["dataloader"][split]["dataset"], "transforms": None, "batch_transforms": None}
    with cfg.errors_name_files():
        dataset = DATASETS.build(node, f"dataloader.{split}.dataset", seed=cfg.get("seed", 0))
    names = dataset.class_names
    return with_class_count(cfg, int(dataset.labels.max()) + 1 if names is None else len(names))


def with_image_size(cfg, size):
    """`cfg` with an evaluation of images of `size` pixels; see `preprocess.at_size`."""
    path = "dataloader.val.dataset.transforms"
    with cfg.errors_name_files():
        _need(cfg, "dataloader.val")
        try:
            nodes = at_size(cfg["dataloader"]["val"]["dataset"].get("transforms") or [], size)
        except ConfigError as error:
            raise ConfigError(f"{error.message}: --size {size}", path) from error
    return cfg.overridden([Override(path, nodes, f"--size {size}")])


def build_model(cfg, training=True):
    """The model, with weights that depend on `seed` only; prints its number of parameters as PASSL does.

    To evaluate a distillation's student no teacher is built.
    """
    paddle.seed(cfg.get("seed", 0))
    with cfg.errors_name_files():
        model = factory.build(cfg["model"], training)
    trainable = sum(parameter.size for parameter in model.parameters() if not parameter.stop_gradient)
    logger.info(f"Number of Parameters is {format_count(trainable)}.")
    return model


def format_count(number):
    """3,049,016 -> '3.05M', in powers of a thousand, as PASSL prints it."""
    power = min(int(math.log10(max(number, 1)) // 3), 5)
    return f"{number / 1000**power:.2f}{['', 'K', 'M', 'B', 'T', 'Q'][power]}"


def build_loader(cfg, split, num_classes, class_list=None):
    """The ImageLoader of `split` ("train" or "val") for a model of `num_classes` classes, of a ClassList or all."""
    node, path, seed = cfg["dataloader"][split], f"dataloader.{split}", cfg.get("seed", 0)
    with cfg.errors_name_files():
        _check_split(split, node)
        dataset = DATASETS.build(node["dataset"], f"{path}.dataset", seed=seed, model_classes=num_classes)
        if class_list:
            class_list.check_data(dataset)
        check_labels(dataset.labels, dataset.class_names, num_classes, dataset.where)
        position = {"length": len(dataset), "rank": rank(), "world_size": world_size()}
        sampler = SAMPLERS.build(node["sampler"], f"{path}.sampler", seed=seed, pad=split == "train", **position)
        runtime = {"dataset": dataset, "batch_sampler": sampler}
        return LOADER.build(_loader_node(node, path), f"{path}.loader", **runtime)


def build_train_loader_to_evaluate(cfg, num_classes):
    """The ImageLoader of the training images as an evaluation reads them: each once, with val's transforms."""
    if cfg["dataloader"].get("train") is None:
        raise ConfigError("'dataloader.train' is needed: its images are compared with", "dataloader.train")
    train, val = (cfg["dataloader"][split]["dataset"] for split in ("train", "val"))
    own = {key: value for key, value in train.items() if key not in HOW_READ}
    node = {**own, **{key: val[key] for key in HOW_READ if key in val}}
    cfg = cfg.overridden([Override("dataloader.val.dataset", node, cfg.where("dataloader.train.dataset"))])
    return build_loader(cfg, "val", num_classes)


def _loader_node(node, path):
    loader, workers = dict(node.get("loader") or {}), node.get("num_workers")
    if workers is not None and "num_workers" in loader:
        raise ConfigError("is given twice: here and in loader", f"{path}.num_workers")
    return loader if workers is None else {**loader, "num_workers": workers}


def _check_split(split, node):
    """Raise ConfigError for what only the other split may have."""
    dataset, path = node["dataset"], f"dataloader.{split}.dataset"
    if split == "val" and node["sampler"].get("drop_last"):
        raise ConfigError("must be false: an evaluation leaves no sample out", "dataloader.val.sampler.drop_last")
    if split == "val" and dataset.get("batch_transforms"):
        raise ConfigError("an evaluation mixes no images", f"{path}.batch_transforms")
    if split == "val" and dataset.get("on_bad_image") == "skip":
        raise ConfigError("an evaluation replaces no image: raise or count_as_wrong", f"{path}.on_bad_image")
    if split == "train" and dataset.get("on_bad_image") == "count_as_wrong":
        raise ConfigError("a training counts no image as wrong: raise or skip", f"{path}.on_bad_image")


def build_evaluator(cfg, model, explain_chance=False, recorder=None):
    loader = build_loader(cfg, "val", model.num_classes, getattr(model, "class_list", None))
    return Evaluator(model, loader, explain_chance, recorder)


def build_trainer(cfg, model):
    """The Trainer of `cfg` for `model`, with its loaders, optimizer, schedule and hooks."""
    hooks = build_hooks(cfg)
    train_loader = build_loader(cfg, "train", model.num_classes)
    check_class_order(model, train_loader.dataset)
    model = with_sync_batch_norm(model)
    evaluates = any(isinstance(hook, evaluate_hook.EvaluateHook) for hook in hooks)
    with cfg.errors_name_files():
        if evaluates:
            _need(cfg, "dataloader.val")
        schedule = build_schedule(cfg, train_loader)
        optimizer = OPTIMIZERS.build(cfg["optimizer"], "optimizer", learning_rate=schedule, model=model)
        precision = _build_precision(cfg)
        guard = GUARD.build(cfg.get("non_finite") or {}, "non_finite")
    evaluator = build_evaluator(cfg, model) if evaluates else None
    if evaluator:
        check_same_classes(train_loader.dataset, evaluator.loader.dataset)
    return Trainer(
        model,
        train_loader,
        optimizer,
        schedule,
        epochs=cfg["epochs"],
        hooks=hooks,
        evaluator=evaluator,
        output_dir=cfg.get("output_dir", "outputs"),
        seed=cfg.get("seed", 0),
        accum_steps=cfg.get("accum_steps", 1),
        precision=precision,
        guard=guard,
        settings=run_settings(cfg, model, train_loader.dataset),
        description=describe(cfg, model),
    )


def build_schedule(cfg, train_loader):
    """The schedule of `cfg`; prints the images a step, and how they scale the learning rate."""
    node, batch_size = cfg["lr_scheduler"], train_loader.batch_sampler.batch_size
    schedule = schedule_of(cfg, max(1, len(train_loader)), batch_size * world_size())
    _log_global_batch(batch_size, node.get("base_batch_size"), node.get("end_lr", node.get("learning_rate")))
    return schedule


def schedule_of(cfg, iters_per_epoch, global_batch_size):
    """The schedule of `cfg` for epochs of so many steps, with so many images a step; needs no data."""
    node = cfg["lr_scheduler"]
    node = _with_inner_base(node, node.get("base_batch_size"), "lr_scheduler")
    runtime = {"iters_per_epoch": iters_per_epoch, "global_batch_size": global_batch_size, "epochs": cfg["epochs"]}
    with cfg.errors_name_files():
        return LR_SCHEDULERS.build(node, "lr_scheduler", **runtime)


def _with_inner_base(node, base, path):
    """`node`, in which `base_batch_size` holds for the schedules inside of it too."""
    inner = node.get("learning_rate")
    if not isinstance(inner, dict):
        return node
    path = f"{path}.learning_rate"
    if "base_batch_size" in inner:
        raise ConfigError("belongs to the outermost schedule, which says it for all", f"{path}.base_batch_size")
    return {**node, "learning_rate": _with_inner_base({**inner, "base_batch_size": base}, base, path)}


def _log_global_batch(batch_size, base, learning_rate):
    total, processes = batch_size * world_size(), world_size()
    text = f"global batch {total} ({batch_size} x {processes} {'process' if processes == 1 else 'processes'})"
    if base is not None:
        text = f"learning rate {learning_rate:.3e} x {text} / {base} = {learning_rate * total / base:.3e}"
    logger.info(text)


def _build_precision(cfg):
    if not cfg.get("use_amp"):
        if cfg.get("AMP"):
            logger.warning("AMP: without effect, since use_amp is false")
        return float32()
    precision = PRECISION.build(cfg.get("AMP") or {}, "AMP")
    tell_of_cpu(precision)
    return precision


def evaluation_precision(cfg):
    """The context of an evaluation without a training: that of a training's own on a CPU, elsewhere float32."""
    if not cfg.get("use_amp") or paddle.get_device() != "cpu":
        return contextlib.nullcontext()
    with cfg.errors_name_files():
        return PRECISION.build(cfg.get("AMP") or {}, "AMP").evaluation()


def check_same_classes(train, val):
    """Labels are numbers: folders of other names in the other split would be other classes under the same numbers."""
    difference = _first_other_class(train.class_names, val.class_names)
    if difference:
        _, ours, theirs = difference
        raise DataError(f"{val.where}: its classes are not those of {train.where}: '{theirs}' instead of '{ours}'")


def check_class_order(model, dataset):
    """Raise DataError where `dataset` has the classes of the loaded weights in another order; warn of other classes."""
    for part in (getattr(model, "student", model), getattr(model, "teacher", None)):
        if part is not None:
            _check_class_order(part.class_names, dataset)


def _check_class_order(ours, dataset):
    difference = _first_other_class(ours, dataset.class_names)
    if not difference:
        return
    index, learnt, given = difference
    what = f"{dataset.where}: class {index} is '{given}', which the weights know as '{learnt}'"
    if sorted(ours) == sorted(dataset.class_names):
        raise DataError(f"{what}: the same classes in another order; name the folders so that they sort as before")
    logger.warning(f"{what}: the head was trained on other classes")


def _first_other_class(ours, theirs):
    """(number, our name, their name) of the first class that has two; None where there is none, or names are unknown.

    There are equally many, those of the head: `check_labels` has seen to it.
    """
    pairs = enumerate(zip(ours or (), theirs or ()))
    return next(((index, our, their) for index, (our, their) in pairs if our != their), None)


def build_hooks(cfg):
    """The log hook and the checkpoint hook (PASSL's defaults where the config has none), then `custom_config`'s."""
    nodes = [
        ("log_config", cfg.get("log_config") or {"name": "LogHook"}),
        ("checkpoint", cfg.get("checkpoint") or {"name": "CheckpointHook"}),
        *((f"custom_config.{index}", node) for index, node in enumerate(cfg.get("custom_config") or [])),
    ]
    with cfg.errors_name_files():
        _check_hooks([node["name"] for _, node in nodes[2:]])
        return [HOOKS.build(node, path) for path, node in nodes]


def _check_hooks(names):
    """Raise ConfigError for hooks of `custom_config` that are there twice, or lack the one they depend on."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"{twice} is there twice", "custom_config")
    if "EarlyStopHook" in names and "EvaluateHook" not in names:
        raise ConfigError("EarlyStopHook needs EvaluateHook, whose accuracies it watches", "custom_config")
    if "EMAHook" in names and "EvaluateHook" not in names:
        logger.warning("EMAHook without EvaluateHook: the average is kept, but not evaluated, and there is no best one")
