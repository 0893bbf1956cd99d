"""What tests of weight files share: trees of plain values, exact comparison, and the bounds of a refusal."""

import contextlib
import resource
import time

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from passl_xcit.utils.arrays import DTYPES
from passl_xcit.utils.errors import CheckpointError

SECONDS, BYTES = 1, 200 * 2**20

ARRAYS = st.sampled_from(list(DTYPES)).flatmap(
    lambda code: hnp.arrays(code, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(2**70), 2**70), st.floats(), st.text(), ARRAYS
)
KEYS = st.text(max_size=8) | st.integers(-(2**23), 2**23)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)
STORED = TREES.filter(lambda tree: not holds_unstored(tree))


def holds_unstored(tree):
    if isinstance(tree, (list, tuple)):
        return any(map(holds_unstored, tree))
    if isinstance(tree, dict):
        return any(map(holds_unstored, tree.values()))
    return isinstance(tree, np.ndarray) and tree.dtype in (np.uint32, np.uint64)


def same(one, other):
    """Equal in type, order, dtype, shape, memory order and every bit."""
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, (np.ndarray, np.generic)):
        form = [(x.dtype, x.shape, x.flags.fnc, x.tobytes()) for x in (one, other)]
        return type(one) is type(other) and form[0] == form[1]
    return type(one) is type(other) and repr(one) == repr(other)


@contextlib.contextmanager
def bounds(seconds=SECONDS, size=BYTES):
    """Let a block have so many seconds of processor time, and so many bytes more than the process has already."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    start = time.process_time()
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - start < seconds


def refusal_of(read, name):
    """The text of the error that `read()` raises, without the name: one line, soon, and without much memory."""
    with bounds(), pytest.raises(CheckpointError) as caught:
        read()
    message = str(caught.value)
    assert message.startswith(f"{name}: ") and "\n" not in message and len(message) < 400 + len(str(name))
    return message[len(f"{name}: ") :]
