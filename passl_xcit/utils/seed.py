"""Randomness without state: every draw is a function of the seed and of where it is made.

Nothing has to be saved for an exact resume, and results do not depend on the number of workers.
"""

import numpy as np

SHUFFLE, SAMPLE, BATCH = range(3)  # the purposes that must not share their draws


def generator(seed, purpose, *position):
    """A NumPy Generator for one purpose at one position, such as (epoch, sample index)."""
    return np.random.default_rng(np.random.SeedSequence([seed, purpose, *position]))


def step_seed(seed, step, rank):
    """A seed below 2**31 for the framework's own draws (dropout, drop path) in one training step of one process."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0] >> 1)
