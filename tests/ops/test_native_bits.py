"""Which bits of a native operator's result may depend on what: on the number of threads and on other images, none."""

import numpy as np
import paddle
import pytest
from test_native_crossvit import make_block, make_fusion
from test_native_xcit import draw, each_operator, natively


def operators():
    """{name: (layer, inputs)} with nothing that is a multiple of a vector."""
    x = paddle.to_tensor(draw([5, 11 * 13, 36]))
    ours = {"transformer block": (make_block(3, 12)[0], (x,)), "fusion": (make_fusion(3, 12)[0], (x,))}
    return {**each_operator(), **ours}


EACH = sorted(operators())


@pytest.mark.parametrize("name", EACH)
def test_the_number_of_threads_changes_no_bit(native, name):
    layer, inputs = operators()[name]
    layer.eval()
    alone = natively(layer, *inputs, threads=1)
    for threads in (1, 2, 3, 7):
        np.testing.assert_array_equal(natively(layer, *inputs, threads=threads), alone)


@pytest.mark.parametrize("name", EACH)
def test_an_image_gets_the_same_bits_in_any_batch(native, name):
    layer, (x, *size) = operators()[name]
    layer.eval()
    together = natively(layer, x, *size)
    for image in range(x.shape[0]):
        np.testing.assert_array_equal(natively(layer, x[image : image + 1], *size)[0], together[image])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", EACH)
def test_a_number_that_is_none_is_seen_in_its_image_and_in_no_other(native, name, value):
    layer, (x, *size) = operators()[name]
    layer.eval()
    clean = natively(layer, x, *size)
    spoilt = x.numpy()
    spoilt[2].flat[7] = value
    ours = natively(layer, paddle.to_tensor(spoilt), *size)
    assert not np.isfinite(ours[2]).all()
    np.testing.assert_array_equal(np.delete(ours, 2, axis=0), np.delete(clean, 2, axis=0))
