"""What an evaluation leaves in a folder: a page for people, the same as JSON, and a line for each sample.

Shares are percent, as in PASSL's lines; probabilities, NLL and Brier scores are not. What is undefined (the precision
of a class that is never predicted) is null.
"""

import csv
import datetime
import hashlib
import io
import json
import os
import shlex
import sys
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np
import paddle

from passl_xcit.engine.evaluation_page import MATRIX_CLASSES, render, thumbnail
from passl_xcit.engine.recorder import Records
from passl_xcit.engine.run_record import versions, whole_config, without_secrets
from passl_xcit.engine.system_check import processor
from passl_xcit.metrics import (
    calibration,
    class_counts,
    confused_pairs,
    confusion_matrix,
    wilson_interval,
)
from passl_xcit.modeling.factory import local_file
from passl_xcit.modeling.identify import looks_like
from passl_xcit.utils.dist import world_size
from passl_xcit.utils.errors import ConfigError
from passl_xcit.utils.new_file import make_parent, replace_file
from passl_xcit.utils.shipped import shipped

OPTION = "--report"
PAGE, DATA, PREDICTIONS = "report.html", "report.json", "predictions.csv"
BLOCKS = 50  # of a condensed confusion matrix, rows and columns
PAIRS = 20
ERRORS = 24
DECIMALS = 6
CHUNK_BYTES = 2**20


class RealAccuracy(NamedTuple):
    """Accuracy by ReaL labels.

    Attributes:
        right: of each sample 1.0 or 0.0; nan for one without labels.
        count: samples with labels.
        correct1, correct5: of these, how many are right by the best and by the five best classes.
    """

    right: np.ndarray
    count: int
    correct1: int
    correct5: int


class Evaluation(NamedTuple):
    """All that a report is made of.

    Attributes:
        records: Records.
        metrics: what `Evaluator.evaluate` returned.
        dataset: the ImageDataset.
        class_names: a list, or None.
        real: RealAccuracy, or None.
        origin: see `origin_of`.
        seconds: that the evaluation took.
    """

    records: Records
    metrics: dict
    dataset: object
    class_names: Optional[list]
    real: Optional[RealAccuracy]
    origin: dict
    seconds: float


def check_folder(folder):
    """Raise ConfigError for a folder that is not there and cannot be made, or cannot be written to; makes none."""
    nearest = Path(folder)
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise ConfigError(f"{OPTION} {folder}: {nearest} is no folder that can be written to")


def write_report(folder, evaluation):
    """Write PAGE, DATA and PREDICTIONS into `folder`, each whole or not at all; earlier ones are replaced.

    Raises:
        CheckpointError: a file cannot be written.
    """
    report = make_report(evaluation)
    pictures = [thumbnail(evaluation.dataset, error["index"]) for error in report["confident_errors"]]
    texts = {
        PREDICTIONS: predictions_csv(evaluation),
        DATA: json.dumps(report, indent=1, allow_nan=False) + "\n",
        PAGE: render(report, pictures),
    }
    folder = Path(folder)
    make_parent(folder / PAGE)
    for name, text in texts.items():
        data = text.encode("utf-8", "backslashreplace")  # a path may hold bytes that are no text
        replace_file(folder / name, lambda file, data=data: file.write(data))


def make_report(evaluation):
    """The content of DATA: {section: plain values}."""
    records, dataset = evaluation.records, evaluation.dataset
    counts = class_counts(records.targets, records.predictions, evaluation.origin["model"]["classes"])
    pairs = confused_pairs(records.targets, records.predictions)
    return {
        "accuracy": _accuracy(evaluation, counts),
        "real": _real(evaluation.real),
        "calibration": _calibration(records),
        "classes": _classes(counts, pairs, evaluation.class_names),
        "confused_pairs": [dict(zip(("target", "prediction", "samples"), row)) for row in pairs[:PAIRS].tolist()],
        "confusion": _confusion(records, len(counts.total)),
        "confident_errors": _confident_errors(records, dataset),
        "speed": {
            "images_per_sec": round(len(dataset) / evaluation.seconds, 2),
            "seconds": round(evaluation.seconds, 2),
        },
        "origin": evaluation.origin,
    }


def _accuracy(evaluation, counts):
    records, metrics = evaluation.records, evaluation.metrics
    total = len(records.targets)
    return {
        "samples": total,
        "unusable": int((~records.usable).sum()),
        "acc1": metrics["acc1"],
        "acc1_interval": _interval(records.within(1).sum(), total),
        "acc5": metrics["acc5"],
        "acc5_interval": _interval(records.within(5).sum(), total),
        "mean_class_accuracy": _percent(_mean(counts.recall)),
        "mean_f1": _percent(_mean(counts.f1)),
        "loss": _mean_of(records, records.nll),
    }


def _real(real):
    if real is None:
        return None
    shares = {
        f"acc{k}": {"value": 100.0 * correct / real.count, "interval": _interval(correct, real.count)}
        for k, correct in ((1, real.correct1), (5, real.correct5))
    }
    return {"samples": real.count, **shares}


def _calibration(records):
    usable = records.usable
    correct = records.within(1)[usable]
    found = calibration(records.confidence[usable], correct)
    return {
        "bins": len(found.counts),
        "ece": _percent(found.ece),
        "nll": _mean_of(records, records.nll),
        "brier": _mean_of(records, records.brier),
        "accuracy": _percent(correct.mean()),
        "mean_confidence": 100.0 * _mean_of(records, records.confidence),
        "samples_in_bin": found.counts.tolist(),
        "confidence_in_bin": [_percent(value) for value in found.confidence],
        "accuracy_in_bin": [_percent(value) for value in found.accuracy],
    }


def _classes(counts, pairs, names):
    most = {}
    for target, prediction, samples in pairs.tolist():  # the most frequent first
        most.setdefault(target, {"prediction": prediction, "samples": samples})
    columns = zip(counts.total.tolist(), counts.predicted.tolist(), counts.recall, counts.precision, counts.f1)
    return [
        {
            "class": index,
            "name": names[index] if names else str(index),
            "samples": total,
            "predicted": predicted,
            "accuracy": _percent(recall),  # the recall of a class is its accuracy
            "accuracy_interval": _interval(counts.correct[index], total),
            "precision": _percent(precision),
            "f1": _percent(f1),
            "most_confused_with": most.get(index),
        }
        for index, (total, predicted, recall, precision, f1) in enumerate(columns)
    ]


def _confusion(records, num_classes):
    """The whole matrix of few classes; of many, one of blocks of classes that follow one another."""
    blocks = None if num_classes <= MATRIX_CLASSES else BLOCKS
    matrix = confusion_matrix(records.targets, records.predictions, num_classes, blocks)
    return {"classes_per_block": -(-num_classes // blocks) if blocks else 1, "matrix": matrix.tolist()}


def _confident_errors(records, dataset):
    wrong = np.flatnonzero(records.usable & ~records.within(1))
    order = wrong[np.argsort(-records.confidence[wrong], kind="stable")][:ERRORS]
    return [
        {
            "index": index,
            "path": dataset.name(index),
            "target": int(records.targets[index]),
            "prediction": int(records.predictions[index]),
            "probability": round(float(records.confidence[index]), DECIMALS),
            "target_probability": round(float(np.exp(-records.nll[index])), DECIMALS),
        }
        for index in order.tolist()
    ]


def predictions_csv(evaluation):
    """A line for each sample, in the data set's order; without a prediction where the image cannot be used."""
    records, names = evaluation.records, evaluation.class_names
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    real = ["real_correct"] if evaluation.real else []
    columns = ["path", "target", "target_name", "prediction", "prediction_name", "probability", "margin", "correct"]
    table.writerow([*columns, "top5", "top5_probabilities", *real])
    correct, margins = records.within(1).tolist(), records.margin.tolist()
    for index, (target, best, numbers) in enumerate(zip(records.targets.tolist(), records.best, records.probabilities)):
        if records.usable[index]:
            places, numbers = best.tolist(), [f"{number:.{DECIMALS}f}" for number in numbers]
            top = [_name(names, places[0]), numbers[0], f"{margins[index]:.{DECIMALS}f}"]
            row = [places[0], *top, correct[index], " ".join(map(str, places)), " ".join(numbers)]
        else:
            row = [None, None, None, None, False, None, None]
        labelled = [_real_word(evaluation.real.right[index])] if evaluation.real else []
        table.writerow([evaluation.dataset.name(index), target, _name(names, target), *row, *labelled])
    return text.getvalue()


def _name(names, index):
    return names[index] if names else None


def _real_word(right):
    return None if np.isnan(right) else bool(right)


def origin_of(cfg, config_file, model, weights, loader, options):
    """What an evaluation belongs to, as plain values: weights by their digest, data, config, device, versions."""
    dataset, nodes = loader.dataset, cfg["dataloader"]["val"]["dataset"].get("transforms") or []
    class_list = getattr(model, "class_list", None)
    whole = model.model if class_list else model
    listed = {"classes": list(class_list.indices), "of": whole.num_classes} if class_list else {}
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(without_secrets(argument) for argument in sys.argv),
        "weights": _file_entry(weights),
        "model": {
            "name": looks_like(whole.state_dict()) or type(whole.backbone).__name__,
            "parameters": sum(part.size for part in model.parameters() if not part.stop_gradient),
            "classes": model.num_classes,
        },
        "class_list": _file_entry(options.class_list, **listed),
        "real_labels": _file_entry(options.real_labels),
        "preprocessing": nodes,
        "data": {"where": dataset.where, **dataset.fingerprint()},
        "device": {"name": paddle.get_device(), "processor": processor(), "processes": world_size()},
        "batch_size": loader.batch_sampler.batch_size,
        "workers": loader.num_workers,
        "versions": versions(),
        "config": {"file": str(config_file), "content": whole_config(cfg)},
    }


def _file_entry(file, **more):
    """{"file", "bytes", "sha256"} of a path or an address; None where there is none."""
    if file is None:
        return None
    digest, path = hashlib.sha256(), shipped(local_file(file))
    with open(path, "rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            digest.update(chunk)
    return {"file": without_secrets(str(file)), "bytes": os.path.getsize(path), "sha256": digest.hexdigest(), **more}


def _mean(values):
    """The mean of those that are defined; nan where none is."""
    values = values[~np.isnan(values)]
    return values.mean() if len(values) else np.nan


def _mean_of(records, values):
    return float(values[records.usable].mean(dtype="float64"))


def _percent(share):
    return None if np.isnan(share) else 100.0 * float(share)


def _interval(correct, total):
    return [_percent(bound) for bound in wilson_interval(correct, total)]
