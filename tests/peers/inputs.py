"""What every peer gets: random weights, images and labels made of names and formulas, and the command line.

NumPy and the standard library only: each peer runs this file with its own interpreter.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fill_by_name import fill_by_name

# MindSpore's names of what fill_by_name draws about 1; a LayerScale's `gamma1` is another thing than a norm's `gamma`.
_TORCH_TERMS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
STEPS_SEEN = 17  # a BatchNorm's num_batches_tracked


def random_weights(shapes, temperature=1.0):
    """{a peer's name: shape} -> {name: array}; nothing keeps its initial value, and nothing is too small to be seen.

    Args:
        temperature: about which XCA's temperatures lie. Without q/k normalisation the products of 200 tokens are
            large, and a softmax of them would be one-hot.
    """
    return {name: _draw(name, tuple(shape), temperature) for name, shape in shapes.items()}


def _draw(name, shape, temperature):
    parent, _, last = name.rpartition(".")
    if last == "num_batches_tracked":
        return np.array(STEPS_SEEN)
    alias = f"{parent}.{_TORCH_TERMS.get(last, last)}"
    value = fill_by_name({alias: shape})[alias]
    if last == "temperature":
        return value * temperature
    if len(shape) == 3:  # class tokens and tables of positions, which are no matrices
        return 0.5 * value * np.sqrt(np.prod(shape[1:]))
    return value


def random_images(batch, size):
    """float32 [batch, 3, *size], standard normal."""
    return np.random.RandomState(sum(size)).standard_normal((batch, 3, *size)).astype("float32")


def labels(batch):
    """int64 [batch], below 1,000"""
    return (np.arange(batch) * 389 + 7) % 1000


def image_size(text):
    """'160x192' -> (160, 192)"""
    height, width = text.split("x")
    return int(height), int(width)


def parse_args(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("models", nargs="+", help="the peer's own names")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--output", type=Path, help="folder for weights, images, logits and gradients of one model")
    task.add_argument("--names", type=Path, help="only write {model: {name: shape}} to this JSON file")
    parser.add_argument("--sizes", type=image_size, nargs="+", default=[(224, 224)], metavar="HxW")
    parser.add_argument("--train_sizes", type=image_size, nargs="*", default=[], metavar="HxW")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--img_size", type=int, help="build the model for this image size")
    args = parser.parse_args()
    if args.output and len(args.models) > 1:
        parser.error("--output takes one model")
    return args


def write_names(path, shapes):
    """{model: {name: shape}} -> JSON file"""
    path.write_text(json.dumps(shapes))
