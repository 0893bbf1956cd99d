"""Draws are functions of the seed and of the place where they are made."""

from hypothesis import given
from hypothesis import strategies as st

from passl_xcit.utils.seed import BATCH, SAMPLE, SHUFFLE, generator, step_seed

numbers = st.integers(0, 2**31)


@given(numbers, numbers, numbers)
def test_the_same_place_has_the_same_draws_and_purposes_share_none(seed, epoch, index):
    draws = [generator(seed, purpose, epoch, index).integers(2**62) for purpose in (SHUFFLE, SAMPLE, BATCH)]
    assert draws[1] == generator(seed, SAMPLE, epoch, index).integers(2**62)
    assert len(set(draws)) == 3


@given(numbers, st.integers(0, 10**7), st.integers(0, 64))
def test_seeds_of_steps_fit_the_framework_and_differ(seed, step, rank):
    value = step_seed(seed, step, rank)
    assert type(value) is int and 0 <= value < 2**31
    assert value == step_seed(seed, step, rank)
    assert len({value, step_seed(seed, step + 1, rank), step_seed(seed, step, rank + 1)}) == 3
