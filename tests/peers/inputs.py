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

# MindSpore's names in torch's terms; a LayerScale's `gamma1` is another thing than a norm's `gamma`.
_TORCH_TERMS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
BATCHES_TRACKED = 17
CLASS_TOKEN = 1e-3  # LayerNorm's eps of 1e-6 can be seen in the norm of numbers about as small as this
VARIANCE = 1e-2  # and BatchNorm's of 1e-5 in a variance that is not much larger


def random_weights(shapes, temperature=5.0):
    """{a peer's name: shape} -> {name: array}; nothing keeps its initial value, and nothing is too small to be seen.

    Args:
        temperature: about which XCA's temperatures lie. It makes the softmax neither uniform nor one-hot: normalised
            products of random q and k of 200 tokens are about 0.07, and without the normalisation about 14.
    """
    batch_norms = {_split(name)[0] for name in shapes if _split(name)[1] == "running_var"}
    weights = {}
    for name, shape in shapes.items():
        parent, kind = _split(name)
        value = _drawn(f"{parent}.{kind}", tuple(shape))
        if kind == "temperature":
            value *= temperature
        elif kind == "weight" and parent in batch_norms:
            value *= VARIANCE**0.5
        weights[name] = value
    return weights


def _split(name):
    """'blocks.0.norm1.gamma' -> ('blocks.0.norm1', 'weight')"""
    parent, _, last = name.rpartition(".")
    return parent, _TORCH_TERMS.get(last, last)


def _drawn(name, shape):
    if name.endswith("num_batches_tracked"):
        return np.array(BATCHES_TRACKED)
    value = fill_by_name({name: shape})[name]
    if name.endswith("running_var"):
        return value * VARIANCE
    if len(shape) == 3 and shape[0] == 1:  # a class token or a table of positions, whose row 0 is the class token's
        value *= 0.5 * np.sqrt(np.prod(shape[1:]))
        value[:, 0] *= CLASS_TOKEN
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
    parser.add_argument("--double", action="store_true", help="the gradients in float64, all else in float32")
    parser.add_argument("--img_size", type=int, help="build the model for this image size")
    args = parser.parse_args()
    if args.output and len(args.models) > 1:
        parser.error("--output takes one model")
    return args


def write_names(path, shapes):
    """{model: {name: shape}} -> JSON file"""
    path.write_text(json.dumps(shapes))
