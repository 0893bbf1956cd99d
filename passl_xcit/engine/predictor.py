"""What a model says of images: from a weight file, or the name of published weights, to classes and probabilities."""

import contextlib
import itertools
import json
import os
from collections import defaultdict, deque
from typing import NamedTuple, Optional, Tuple

import numpy as np
import paddle
from PIL import Image

from passl_xcit.datasets.dataset import BadImage, shown
from passl_xcit.datasets.imagenet import as_rgb, images_in, open_image
from passl_xcit.datasets.preprocess import Preprocess
from passl_xcit.datasets.worker_pool import NO_SAMPLE, can_fork, in_workers
from passl_xcit.engine import builder
from passl_xcit.engine.cost import CostWatch
from passl_xcit.engine.exported import ExportedModel, is_export
from passl_xcit.engine.features import STAGE, pooled_features
from passl_xcit.engine.runtimes import EAGER, FLOAT32, check_engine, why_not_eager
from passl_xcit.engine.weight_entries import (
    model_of_file,
    preprocess_of_config,
    preprocess_of_file,
    warn_of_other_preprocess,
)
from passl_xcit.metrics import softmax
from passl_xcit.modeling import factory
from passl_xcit.modeling.weights import put_weights, read_weights
from passl_xcit.modeling.zoo import find
from passl_xcit.ops.frozen import Frozen
from passl_xcit.ops.library import native_precision
from passl_xcit.utils.config import load_config
from passl_xcit.utils.device import select_device
from passl_xcit.utils.errors import CheckpointError, ConfigError, DataError
from passl_xcit.utils.startup import usable_cores

TOPK = 5
TIMEOUT = 300  # seconds for a batch of a worker, as in a training


class Guess(NamedTuple):
    """A class, its name where that is known, and its probability from 0 to 1."""

    index: int
    name: Optional[str]
    probability: float


class Prediction(NamedTuple):
    """Of one image (its path, or "image 3" for the fourth of those without one) the most probable classes, or why not.

    `top` begins with the most probable class, and is empty where `error` says why the image cannot be used.
    """

    image: str
    top: Tuple[Guess, ...]
    error: Optional[str] = None


class Features(NamedTuple):
    """Of one image (see Prediction) its features, a float32 array [C], or None and why there are none."""

    image: str
    features: Optional[np.ndarray]
    error: Optional[str] = None


class Predictor:
    """A model with its preprocessing and the names of its classes.

    Args:
        weights: a weight file or checkpoint that says which model it is, as a training here writes it, its address,
            or the name of published weights (`create_model`'s names), which are downloaded; or the folder of an export.
        config: path of a config, whose model and evaluation transforms are taken; for weights that do not say theirs.
        device: such as "cpu" or "gpu:0"; by default the config's, else Paddle's current one.
        batch_size: images that run through the model together, if they have one size.
        topk: how many classes to tell; by default 5, or all of a model that has fewer.
        num_workers: processes that read and preprocess images.
        class_names: a list of names, instead of those that the weights tell.
        engine: what computes: "paddle", for weights; for an export one of `runtimes.ENGINES`. None takes "paddle" or,
            for an export, see ExportedModel. Engines for exports run on the CPU.
        precision: "float32", or "bfloat16" where the engine has it: "paddle" in native operators on a CPU
            (docs/native.md).
        size: pixels of the images that the model gets, instead of those that the weights say; they show the same part
            of a picture (`preprocess.at_size`).

    Attributes:
        model: in evaluation mode; or an ExportedModel. It may be changed between two calls.
        preprocess: a Preprocess.
        class_names: a list, or None where nobody tells them.

    Raises:
        CheckpointError: the weights cannot be had or read, do not fit, or do not say what they are; an export is not
            what it was when it was written.
        ConfigError: the config or an argument is wrong, or the engine cannot run here.
    """

    def __init__(
        self,
        weights,
        config=None,
        device=None,
        batch_size=32,
        topk=None,
        num_workers=0,
        class_names=None,
        engine=None,
        precision=FLOAT32,
        size=None,
    ):
        if not isinstance(weights, (str, os.PathLike)) or not str(weights):
            raise ConfigError(f"weights must be a path, an address or a name, not {weights!r}")
        numbers = (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("size", 1 if size is None else size, 1),
        )
        for name, value, least in numbers:
            if type(value) is not int or value < least:
                raise ConfigError(f"{name} must be a whole number, at least {least}, not {value!r}")
        self.batch_size = batch_size
        self.num_workers = min(num_workers, usable_cores()) if can_fork() else 0
        check_engine(engine, precision)
        if is_export(weights):
            self.model, self.preprocess = _from_export(weights, config, device, engine, precision)
        else:
            _check_eager(weights, engine)
            self.model, self.preprocess = _eager(weights, config, device)
            _check_precision(precision)
        self.precision = precision
        if size is not None:
            self.preprocess = self.preprocess.at_size(size)
            self._check_size(size)
        self.cost = CostWatch(self.model)
        self.topk = self._checked_topk(topk)
        self.class_names = self.model.class_names if class_names is None else self._checked_names(class_names)

    def _check_size(self, size):
        """Before any image is read: each of them would be refused."""
        exported = isinstance(self.model, ExportedModel)
        check = self.model.check_size if exported else self.model.backbone.check_size
        try:
            check(*(self.preprocess.size or (size, size)))
        except DataError as error:
            raise ConfigError(f"size {size}: {error}") from error

    def _checked_topk(self, topk):
        classes = self.model.num_classes
        if topk is None:
            return min(TOPK, classes)
        if type(topk) is not int or not 1 <= topk <= classes:
            raise ConfigError(f"topk must lie between 1 and {classes}, the model's number of classes, not {topk!r}")
        return topk

    def _checked_names(self, names):
        if isinstance(names, str) or not (hasattr(names, "__len__") and all(isinstance(name, str) for name in names)):
            raise ConfigError(f"class_names must be a list of texts, not {names!r}"[:200])
        if len(names) != self.model.num_classes:
            raise ConfigError(f"{len(names)} class names, but the model has {self.model.num_classes} classes")
        return list(names)

    def __call__(self, images):
        """A list of what `predict` yields."""
        return list(self.predict(images))

    def predict(self, images):
        """Yield a Prediction for each image, in order; one that cannot be used has an `error`, and ends nothing.

        The model must not be changed before the last.

        Args:
            images: the path of an image, or of a folder (all images below it, sorted, without hidden ones); a PIL
                image; a uint8 array [H, W, 3] or [H, W]; or an iterable of these, which is read a few batches ahead.

        Raises:
            DataError: a folder cannot be read or holds no image, or a worker process died.
            ConfigError: for what is no image at all.
        """
        for name, answer in self._answered(images, lambda batch: map(self._top, softmax(self.logits(batch)))):
            yield Prediction(name, (), answer) if isinstance(answer, str) else Prediction(name, answer)

    def features(self, images, stage=STAGE):
        """Yield Features for each image, in order, for images as `predict` takes them.

        Args:
            stage: of the model, whose features are averaged over an image's tokens; see `pooled_features`.

        Raises:
            ConfigError: the model has no such stage, or is an export, which gives its outputs only.
        """
        if isinstance(self.model, ExportedModel):
            raise ConfigError(f"{self.model.folder}: is an export, which gives no features: give the weights")
        for name, answer in self._answered(images, lambda batch: self._features(batch, stage)):
            yield Features(name, None, answer) if isinstance(answer, str) else Features(name, answer)

    def _answered(self, images, compute):
        """Yield (name, what `compute` says, or the text why nothing) of each image.

        Args:
            compute: float32 array [B, C, H, W] -> an iterable of B answers.
        """
        waiting = deque()
        tasks = self._tasks(images, waiting)
        if self.num_workers:
            describe = "image number {} (from 0)".format
            prepared = in_workers(self._prepare, tasks, self.num_workers, timeout=TIMEOUT, describe=describe)
        else:
            prepared = map(self._prepare, tasks)
        for (errors, *arrays), context in zip(prepared, self._contexts()):
            errors = json.loads(errors.tobytes())
            with context:
                found = iter(_by_shape(arrays, compute))
            for place, name in enumerate(waiting.popleft()):
                yield name, errors[str(place)] if str(place) in errors else next(found)

    def _contexts(self):
        """For each batch of a stream: to keep packed weights pays from the second one on."""
        plain = contextlib.nullcontext()
        yield plain
        yield from itertools.repeat(plain if isinstance(self.model, ExportedModel) else Frozen(self.model))

    @paddle.no_grad()
    def logits(self, images):
        """float32 [B, C, H, W], as `preprocess` makes them -> float32 [B, K]"""
        if isinstance(self.model, ExportedModel):
            return self.model(images)
        with self.cost.watched(images.shape), self._in_precision():
            return self.model(paddle.to_tensor(images)).astype("float32").numpy()

    def _features(self, images, stage):
        with self.cost.watched(images.shape), self._in_precision():
            return pooled_features(self.model, paddle.to_tensor(images), stage).numpy()

    def _in_precision(self):
        return contextlib.nullcontext() if self.precision == FLOAT32 else native_precision(self.precision)

    def _tasks(self, images, waiting):
        """Yield batches [(number, name, path or PIL image or BadImage)]; `waiting` gets their names."""
        numbered = enumerate(_flat(images))
        while True:
            batch = [(number, *_named(image, number)) for number, image in itertools.islice(numbered, self.batch_size)]
            if not batch:
                return
            waiting.append([name for _, name, _ in batch])
            yield batch

    def _prepare(self, batch, progress=lambda number: None):
        """[{place: reason} of the images that cannot be used, as JSON, *the others float32 [C, H, W]]"""
        errors, arrays = {}, []
        for place, (number, name, image) in enumerate(batch):
            progress(number)
            try:
                arrays.append(self._input(image, shown(name)))
            except BadImage as error:
                errors[place] = str(error)[len(f"{shown(name)}: ") :]
        progress(NO_SAMPLE)
        return [np.frombuffer(json.dumps(errors).encode(), "uint8"), *arrays]

    def _input(self, image, name):
        if isinstance(image, BadImage):
            raise image
        return self.preprocess(open_image(image) if isinstance(image, str) else image, name)

    def _top(self, probabilities):
        best = np.argsort(-probabilities, kind="stable")[: self.topk].tolist()
        names = self.class_names
        return tuple(Guess(index, names[index] if names else None, float(probabilities[index])) for index in best)


def _by_shape(arrays, compute):
    """For each array [C, H, W] what `compute` says of it, or a text that says why the model cannot take it."""
    by_shape, answers = defaultdict(list), {}
    for place, array in enumerate(arrays):
        by_shape[array.shape].append(place)
    for places in by_shape.values():
        try:
            answers.update(zip(places, compute(np.stack([arrays[place] for place in places]))))
        except DataError as error:  # a size that the model cannot take
            answers.update(dict.fromkeys(places, str(error)))
    return [answers[place] for place in range(len(arrays))]


def _from_export(folder, config, device, engine, precision):
    """(ExportedModel, Preprocess) of the folder of an export."""
    if engine == EAGER:
        raise ConfigError(f"{folder}: is an export, which engine {EAGER} does not run; give the weights")
    if config is not None:
        raise ConfigError(f"{folder}: is an export, which says its own model and preprocessing: leave out the config")
    if device not in (None, "cpu"):
        raise ConfigError(f"{folder}: is an export, which runs on the CPU here, not on {device}")
    model = ExportedModel(folder, engine, precision)
    if model.preprocess is None:
        raise CheckpointError(f"{folder}: does not say how images are preprocessed; export with tools/export.py")
    return model, model.preprocess


def _check_eager(weights, engine):
    """Raise ConfigError for an engine that needs an export."""
    if engine not in (None, EAGER):
        raise ConfigError(
            f"engine {engine} runs the folder of an export, and {weights} is none: write one with "
            f"python tools/export.py {weights} --output_dir DIR"
        )


def _check_precision(precision):
    """Raise ConfigError where engine `paddle` cannot compute in it on the current device."""
    reason = why_not_eager(precision, paddle.get_device())
    if reason:
        raise ConfigError(f"engine {EAGER} cannot predict in {precision} here: {reason}; an export's engines may")


def _eager(weights, config, device):
    """(model in evaluation mode, Preprocess)"""
    cfg = None
    if config is not None and not isinstance(config, (str, os.PathLike)):
        raise ConfigError(f"config must be a path, not {config!r}"[:200])
    if config is not None:
        cfg = load_config(config)
        builder.check_config(cfg, training=False)
    device = device or (cfg and cfg.get("device"))
    if device:
        select_device(device)
    model, preprocess = _from_weights(weights) if cfg is None else _from_config(cfg, weights)
    model.eval()
    return model, preprocess


def _from_weights(weights):
    """(model, Preprocess) of weights that say what they are."""
    entry = None if os.path.exists(weights) else find(str(weights))
    if entry:
        pipeline = entry.evaluation
        preprocess = Preprocess.of_pipeline(
            pipeline.size, pipeline.resize, pipeline.interpolation, pipeline.mean, pipeline.std
        )
        return factory.create_model(entry.name, pretrained=True), preprocess
    path = factory.weights_file(weights)
    found = read_weights(path)
    model = model_of_file(found, path)
    if found.preprocess is None:
        raise CheckpointError(f"{path}: does not say how images are preprocessed; give the config")
    return model, preprocess_of_file(found.preprocess, path)


def _from_config(cfg, weights):
    path = factory.weights_file(weights)
    found = read_weights(path)
    cfg = builder.with_class_count(cfg, _classes_of(found.arrays))
    with cfg.errors_name_files():
        model = factory.build(cfg["model"], training=False)
        preprocess = preprocess_of_config(cfg, model)
    put_weights(model, found, path)
    warn_of_other_preprocess(cfg, model, path)
    return model, preprocess


def _classes_of(arrays):
    """How many classes the head of these weights has; 1 where there is none, which fits no model."""
    heads = [array for name, array in arrays.items() if name.startswith("head.") and array.ndim]
    return heads[0].shape[-1] if heads else 1


def _flat(images):
    """Yield the images of `images`, one of them or an iterable, with those of folders.

    A folder without images ends nothing where it is one of many: it is yielded itself, and cannot be used as an image.
    """
    alone = isinstance(images, (str, os.PathLike))
    if isinstance(images, (str, os.PathLike, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim < 4):
        images = [images]
    try:
        images = iter(images)
    except TypeError:
        raise _no_image(images) from None
    for image in images:
        if isinstance(image, (str, os.PathLike)) and os.path.isdir(image):
            try:
                found = images_in(image)
            except DataError:
                if alone:
                    raise
                found = [image]
            yield from found
        else:
            yield image


def _named(image, number):
    """(name, what a worker process is given): a path, a decoded image, or the BadImage that it is."""
    if isinstance(image, (str, os.PathLike)):
        return os.fsdecode(image), os.fsdecode(image)
    if not isinstance(image, (Image.Image, np.ndarray)):
        raise _no_image(image)
    name = f"image {number}"
    try:
        return name, as_rgb(_from_array(image, name) if isinstance(image, np.ndarray) else image, name)
    except BadImage as error:
        return name, error


def _from_array(array, name):
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) or not array.size:
        raise BadImage(f"{name}: an array {array.dtype} {list(array.shape)}, expected uint8 [H, W, 3] or [H, W]")
    return Image.fromarray(array)


def _no_image(value):
    what = type(value).__name__
    return ConfigError(f"expected the path of an image or a folder, a PIL image or a uint8 array, not a {what}")
