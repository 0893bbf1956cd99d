"""The batches of a loader, to be compared."""

import numpy as np


def arrays(loader):
    """[(images, targets), ...] of a loader's epoch, as NumPy arrays."""
    return [(images.numpy(), targets.numpy()) for images, targets in loader]


def assert_same_batches(ours, theirs):
    assert len(ours) == len(theirs)
    for (images, targets), (other_images, other_targets) in zip(ours, theirs):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(targets, other_targets)
