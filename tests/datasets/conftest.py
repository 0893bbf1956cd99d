"""What the tests of several transforms need."""

import json
import random
from collections import defaultdict, deque
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


class Replay:
    """Stands in for a Generator: answers as the reference program was answered, if asked for the same ranges.

    Args:
        draws: [[kind, argument, ..., value], ...] as tests/golden/make_transform_goldens.py writes them.
    """

    def __init__(self, draws):
        self.left = defaultdict(deque)
        for kind, *answer in draws:
            self.left[kind].append(answer)

    def _answer(self, kind, *arguments):
        *asked, value = self.left[kind].popleft()
        assert list(arguments) == pytest.approx(asked)
        return value

    def random(self):
        return self._answer("random")

    def uniform(self, low, high):
        return self._answer("uniform", low, high)

    def integers(self, low, high):
        return low if high - low == 1 else self._answer("integers", low, high)

    def normal(self, mean, deviation):
        return mean if deviation == 0 else self._answer("normal", mean, deviation)

    def beta(self, a, b):
        return self._answer("beta", a, b)

    def all_used(self):
        return not any(self.left.values())


@pytest.fixture
def replay():
    return Replay


@pytest.fixture
def golden():
    """Read a golden file: a list of cases from JSON, a dict of arrays from npz."""

    def read(name):
        if name.endswith(".json"):
            return json.loads((GOLDEN / name).read_text())
        with np.load(GOLDEN / name) as arrays:
            return dict(arrays)

    return read


@pytest.fixture
def global_generators_untouched():
    """Fails a test that has drawn from `random` or from NumPy's global generator."""
    before = random.getstate(), np.random.get_state()
    yield
    np.testing.assert_equal((random.getstate(), np.random.get_state()), before)
