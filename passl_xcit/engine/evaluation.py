"""An evaluation from weights to the report: which classes, which labels, and what is kept of it."""

import time
from typing import NamedTuple, Optional

import numpy as np

from passl_xcit.engine import builder
from passl_xcit.engine.class_list import SomeClasses, read_class_list
from passl_xcit.engine.evaluation_report import Evaluation, RealAccuracy, check_folder, origin_of, write_report
from passl_xcit.engine.real_labels import labels_of, read_real_labels, real_correct
from passl_xcit.engine.recorder import Recorder
from passl_xcit.engine.weight_entries import warn_of_other_preprocess
from passl_xcit.metrics import TOPK
from passl_xcit.utils.dist import is_main
from passl_xcit.utils.errors import ConfigError
from passl_xcit.utils.logger import TRAINER, get_logger

logger = get_logger(TRAINER)


class EvaluationOptions(NamedTuple):
    """Paths; None for what is not wanted.

    Attributes:
        report: folder that gets the report.
        real_labels: see engine/real_labels.py.
        class_list: see engine/class_list.py.
    """

    report: Optional[str] = None
    real_labels: Optional[str] = None
    class_list: Optional[str] = None


def check_options(options):
    """Raise ConfigError for options that cannot be right, before anything is built."""
    if options.real_labels and options.class_list:
        raise ConfigError("--real_labels and --class_list cannot go together: ReaL labels name any class of the model")
    if options.report:
        check_folder(options.report)


def evaluate_model(cfg, model, weights, options, config_file):
    """Evaluate `model` by `cfg`, print PASSL's lines and return {"acc1": percent, "acc5": percent}.

    Args:
        weights: the file, or its address, that the model was loaded from; None for a new model.
        options: EvaluationOptions.
        config_file: the path that `cfg` was read from.

    Raises:
        UserError: see `launch.run`; a file of the options is not what it should be, or the report cannot be written.
    """
    if options.class_list:
        model = _restricted(model, options.class_list)
    recorder = Recorder(model.num_classes) if options.report or options.real_labels else None
    evaluator = builder.build_evaluator(cfg, model, bool(weights), recorder)
    loader = evaluator.loader
    builder.check_class_order(model, loader.dataset)
    warn_of_other_preprocess(cfg, model, weights)
    labels = _real_labels(options.real_labels, model, loader.dataset)
    origin = None
    if options.report and is_main():
        origin = origin_of(cfg, config_file, model, weights, loader, options)
    begun = time.perf_counter()
    metrics = evaluator.evaluate()
    if recorder is None:
        return metrics
    seconds = time.perf_counter() - begun
    records = recorder.gather(loader)
    real = labels and _real_accuracy(records, labels)
    if origin:
        names = loader.dataset.class_names or model.class_names
        write_report(options.report, Evaluation(records, metrics, loader.dataset, names, real, origin, seconds))
        logger.info(f"report: {options.report}")
    return metrics


def _restricted(model, path):
    class_list = read_class_list(path, model.num_classes, model.class_names)
    logger.info(f"{path}: {len(class_list.indices)} of the model's {model.num_classes} classes count, no others")
    return SomeClasses(model, class_list)


def _real_labels(path, model, dataset):
    """The ReaL labels of each image; None where none are wanted."""
    if not path:
        return None
    labels = labels_of(dataset, read_real_labels(path, model.num_classes), path)
    if not any(labels):
        raise ConfigError(f"--real_labels {path}: has no label for any image of {dataset.where}")
    return labels


def _real_accuracy(records, labels):
    """RealAccuracy; its line in the log has the form of PASSL's."""
    right = [real_correct(records.best[:, :k], labels) for k in TOPK]
    count = int(np.isfinite(right[0]).sum())
    correct = [int(np.nansum(column)) for column in right]
    texts = [f"acc{k} ({100 * hits / count:6.3f})" for k, hits in zip(TOPK, correct)]
    logger.info(f"Validate ReaL Epoch [1] {', '.join(texts)}, {count} of {len(labels)} images have labels")
    return RealAccuracy(right[0], count, *correct)
