"""Cut the embedded demo data set out of Fashion-MNIST.

    python tools/make_demo_data.py FOLDER OUTPUT.npz

FOLDER holds the four `*-ubyte.gz` files of Fashion-MNIST (Debian: package dataset-fashion-mnist, folder
usr/share/datasets/fashion-mnist). Of every class the first 800 training and the first 200 test images are taken,
in the order of the files.
"""

import gzip
import sys
from pathlib import Path

import numpy as np


def read_idx(path):
    """The array of one IDX file: [count] labels or [count, 28, 28] pixels, uint8."""
    data = gzip.decompress(path.read_bytes())
    dims = data[3]
    shape = np.frombuffer(data, ">i4", dims, offset=4)
    return np.frombuffer(data, "uint8", offset=4 + 4 * dims).reshape(shape)


def first_of_each_class(images, labels, count):
    """The first `count` samples of each class, in the order of the file."""
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in range(10)]))
    return images[chosen], labels[chosen]


def main(folder, output):
    arrays = {}
    for split, prefix, count in (("train", "train", 800), ("test", "t10k", 200)):
        images = read_idx(Path(folder) / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(Path(folder) / f"{prefix}-labels-idx1-ubyte.gz")
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = first_of_each_class(images, labels, count)
    np.savez_compressed(output, **arrays)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
