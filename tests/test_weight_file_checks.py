"""The bounds that refusals have to keep can be broken."""

import time

import numpy as np
import pytest
from weight_file_checks import bounds, refusal_of

from passl_xcit.utils.errors import CheckpointError

MUCH = 2**32  # bytes: more than a long run of tests leaves free in its heap, where an array would need no new memory


def test_too_much_memory_is_an_error():
    with pytest.raises(MemoryError), bounds(size=2**26):
        np.empty(MUCH, np.uint8)


def test_too_much_time_is_an_error():
    with pytest.raises(AssertionError), bounds(seconds=0.01):
        start = time.process_time()
        while time.process_time() < start + 0.02:
            pass


def test_memory_is_free_again_after_the_bounds():
    with bounds(size=2**26):
        pass
    np.empty(MUCH, np.uint8)


@pytest.mark.parametrize("message", ["f: two\nlines", "another: name", "f: " + "x" * 500])
def test_a_refusal_in_another_form_is_an_error(message):
    def read():
        raise CheckpointError(message)

    with pytest.raises(AssertionError):
        refusal_of(read, "f")
