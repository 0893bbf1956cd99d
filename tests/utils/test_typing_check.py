"""Values as YAML gives them, against type hints."""

from typing import Any, List, Optional, Sequence, Tuple, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paddle import nn

from passl_xcit.utils.typing_check import describe, fits

FITTING = [
    (3, int),
    (3, float),
    (0.5, float),
    ("a", str),
    (True, bool),
    (None, Optional[int]),
    (3, Union[int, Sequence[int]]),
    ([3, 4], Union[int, Sequence[int]]),
    ([3, 0.5], Sequence[float]),
    ((3, 4), Sequence[int]),
    ([3, 4], List[int]),
    ([3, 4], Tuple[int, ...]),
    ([], Sequence[dict]),
    ([{}], Sequence[dict]),
    ({"a": 1}, dict),
    ({"a": 1}, Any),
]
MISFITS = [
    (3.0, int),
    ("3", int),
    (True, int),
    (True, float),
    (1, bool),
    ("true", bool),
    ("5e-4", float),
    (None, int),
    (None, str),
    (3, str),
    ("ab", Sequence[str]),
    ([3, "a"], Sequence[int]),
    ([True], Sequence[int]),
    ([[3]], Sequence[int]),
    (3, Sequence[int]),
    ([], dict),
    ({}, Sequence[dict]),
    ({"a": 1}, nn.Layer),
    ([3], Optional[int]),
]


@pytest.mark.parametrize(("value", "hint"), FITTING)
def test_fits(value, hint):
    assert fits(value, hint)


@pytest.mark.parametrize(("value", "hint"), MISFITS)
def test_does_not_fit(value, hint):
    assert not fits(value, hint)


hints = st.sampled_from([int, float, str, bool, dict])
values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.builds(dict))


@given(values, hints)
def test_optional_adds_null_and_nothing_else(value, hint):
    assert fits(value, Optional[hint]) == (value is None or fits(value, hint))


@given(st.lists(values, max_size=4), hints)
def test_a_list_fits_when_all_its_items_do(items, hint):
    assert fits(items, Sequence[hint]) == all(fits(item, hint) for item in items)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "int"),
        (float, "number"),
        (bool, "true/false"),
        (Optional[str], "text or null"),
        (Union[int, Sequence[int]], "int or a list of int"),
        (Optional[Sequence[dict]], "a list of mapping or null"),
        (Optional[nn.Layer], "mapping or null"),
    ],
)
def test_a_hint_in_words(hint, words):
    assert describe(hint) == words
