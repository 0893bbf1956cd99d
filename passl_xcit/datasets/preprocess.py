"""How an image becomes a model's input when nothing is trained: one definition for evaluation and prediction.

It is the list of an evaluation's transforms, by name and arguments as in a config, and the number of channels. Weight
files carry it, and it may come from a stranger: what is no plain data of moderate size is refused, and only registered
transforms that draw nothing are made of it.
"""

import numpy as np
from PIL import Image

# Importing these files fills the registry.
from passl_xcit.datasets import auto_augment, transforms  # noqa: F401
from passl_xcit.datasets.dataset import BadImage
from passl_xcit.datasets.imagenet import as_rgb
from passl_xcit.utils.errors import ConfigError, DataError
from passl_xcit.utils.refusals import short
from passl_xcit.utils.registry import TRANSFORMS, join

MODES = {1: "L", 3: "RGB"}
PROBE = (64, 48)  # width and height of a blank image
MAX_TRANSFORMS, MAX_ITEMS, MAX_TEXT, MAX_NUMBER = 16, 64, 200, 4096  # a file's squares have 4,096 pixels at most


class Preprocess:
    """Turns a PIL image into a model's input as an evaluation does, byte for byte.

    Args:
        nodes: the transforms, as in `dataloader.val.dataset.transforms`.
        channels: of the model's input: 3, or 1 for grey images.

    Attributes:
        mode: what images are converted to first, "RGB" or "L".
        size: [height, width] in pixels of every result; None where it depends on the image.

    Raises:
        ConfigError: an unknown or random transform, a wrong argument, or a list that leaves no [C, H, W] array.
    """

    def __init__(self, nodes, channels=3):
        if type(channels) is not int or channels not in MODES:
            raise ConfigError(f"images have 1 or 3 channels, not {short(channels)}", "channels")
        if not isinstance(nodes, (list, tuple)):
            raise ConfigError(f"expected a list of transforms, not {nodes!r}", "transforms")
        self.nodes, self.channels, self.mode = list(nodes), channels, MODES[channels]
        self._transforms = [_made(node, join("transforms", index)) for index, node in enumerate(nodes)]
        shapes = {self._probe(size).shape for size in (PROBE, PROBE[::-1])}
        self.size = list(shapes.pop()[1:]) if len(shapes) == 1 else None

    @classmethod
    def of_pipeline(cls, size, resize, interpolation, mean, std):
        """That of published weights: see `Pipeline` in modeling/zoo.py, whose fields these are."""
        resize = resize if isinstance(resize, int) else list(resize)
        return cls(
            [
                {"name": "Resize", "size": resize, "interpolation": interpolation},
                {"name": "CenterCrop", "size": size},
                {"name": "Transpose"},
                {"name": "Normalize", "mean": list(mean), "std": list(std)},
            ]
        )

    @classmethod
    def from_dict(cls, tree):
        """What `to_dict` returned, perhaps by way of a stranger's file; `summary` is for people, and is not read.

        Raises:
            ConfigError: it is anything else; the text is one line.
        """
        if not isinstance(tree, dict) or not {"transforms", "channels"} <= set(tree):
            raise ConfigError("expected a mapping with 'transforms' and 'channels'")
        nodes = tree["transforms"]
        if not isinstance(nodes, list) or len(nodes) > MAX_TRANSFORMS:
            raise ConfigError(f"expected a list of at most {MAX_TRANSFORMS} transforms", "transforms")
        check_plain(nodes, "transforms", MAX_NUMBER)
        return cls(nodes, tree["channels"])

    def to_dict(self):
        """{"transforms", "channels", "summary"}: plain values for a weight file."""
        return {"transforms": self.nodes, "channels": self.channels, "summary": self.summary()}

    def at_size(self, size):
        """The Preprocess whose results have `size` pixels; see the function of this name."""
        return Preprocess(at_size(self.nodes, size), self.channels)

    def summary(self):
        """{"size", "crop_ratio", "interpolation", "mean", "std", "mode"}; None for what the transforms do not say."""
        filled = {node["name"]: TRANSFORMS.filled(node) for node in self.nodes}
        resize, crop, normalize = (filled.get(name, {}) for name in ("Resize", "CenterCrop", "Normalize"))
        return {
            "size": self.size,
            "crop_ratio": _crop_ratio(resize.get("size"), crop.get("size")),
            "interpolation": resize.get("interpolation"),
            "mean": normalize.get("mean"),
            "std": normalize.get("std"),
            "mode": self.mode,
        }

    def __call__(self, image, name="the image"):
        """PIL image of any mode -> float32 [C, H, W].

        Raises:
            BadImage: it cannot be decoded, is too large, or a transform cannot take it; the text begins with `name`.
        """
        image = as_rgb(image, name)
        if self.mode != "RGB":
            image = image.convert(self.mode)
        try:
            for transform in self._transforms:
                image = transform(image, None)
        except DataError as error:
            raise BadImage(f"{name}: {error}") from error
        return np.asarray(image).astype("float32", copy=False)

    def _probe(self, size):
        try:
            result = self(Image.new(self.mode, size), "a blank image")
        except DataError as error:
            raise ConfigError(str(error), "transforms") from error
        if result.ndim != 3 or len(result) != self.channels:
            found = f"an image of shape {list(result.shape)}"
            raise ConfigError(f"leave {found}, not [{self.channels}, H, W]: add Transpose and Normalize", "transforms")
        return result


def at_size(nodes, size):
    """An evaluation's transforms for images whose shorter side has `size` pixels and that show the same part of all.

    What cuts to a size and what scales before it are scaled together.

    Args:
        nodes: a list of transforms, as in a config.

    Raises:
        ConfigError: nothing in the list says a size.
    """
    sizes = {node["name"]: node["size"] for node in nodes if node["name"] in ("CenterCrop", "Resize")}
    now = sizes.get("CenterCrop", sizes.get("Resize"))
    if now is None:
        raise ConfigError("have no CenterCrop and no Resize whose size could be another", "transforms")
    ratio = size / _short_side(now)
    return [{**node, "size": _scaled(node["size"], ratio)} if node["name"] in sizes else node for node in nodes]


def _scaled(size, ratio):
    return round(size * ratio) if isinstance(size, int) else [round(side * ratio) for side in size]


def _short_side(size):
    return size if isinstance(size, int) else min(size)


def _made(node, path):
    TRANSFORMS.check(node, path)
    transform = TRANSFORMS.build(node, path)
    if getattr(transform, "draws", False):
        raise ConfigError(f"{node['name']} draws at random, which an evaluation must not", path)
    return transform


def _crop_ratio(resize, crop):
    """The share of the resized image's shorter side that is left; None where one of the two is not there."""
    if resize is None or crop is None:
        return None
    return round(_short_side(crop) / _short_side(resize), 4)


def check_plain(value, path, most):
    """Raise ConfigError unless `value` is a small tree of text, finite numbers up to `most`, true, false and null."""
    if isinstance(value, (dict, list)):
        if len(value) > MAX_ITEMS or path.count(".") > MAX_ITEMS:
            raise ConfigError(f"more than {MAX_ITEMS} items", path)
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(value, dict):
                _check_text(key, path)
            check_plain(item, join(path, key), most)
    elif isinstance(value, str):
        _check_text(value, path)
    elif type(value) in (int, float):
        if not abs(value) <= most:  # so NaN is refused as well
            raise ConfigError(f"{short(value)} is not a number up to {most:,}", path)
    elif value is not None and type(value) is not bool:
        raise ConfigError(f"a {type(value).__name__} is neither text nor a number", path)


def _check_text(text, path):
    if not isinstance(text, str) or len(text) > MAX_TEXT or not text.isprintable():
        raise ConfigError(f"expected a text in one line, not {short(text)}", path)
