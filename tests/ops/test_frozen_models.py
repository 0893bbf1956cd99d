"""A frozen model computes the same, bit for bit, and packs its weights once; none of its weights are seen too late."""

import copy
import gc
import threading
import weakref

import numpy as np
import paddle
import pytest
from test_native_crossvit import TINY as TINY_CROSSVIT
from test_native_xcit import draw, filled

from passl_xcit.modeling.backbones.crossvit import CrossViT
from passl_xcit.modeling.backbones.xcit import XCiT
from passl_xcit.ops.frozen import Frozen
from passl_xcit.ops.library import native_precision
from passl_xcit.ops.library import portable as paddle_only

TINY = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
NATIVE = ("ConvPatchEmbed", "XCABlock", "ClassAttentionBlock", "Block", "CrossAttentionBlock")
MODELS = {
    "xcit": lambda: XCiT(**TINY),
    "xcit without biases": lambda: XCiT(**TINY, qkv_bias=False, tokens_norm=True),
    "crossvit": lambda: CrossViT(**TINY_CROSSVIT),
}


@pytest.fixture(params=MODELS)
def model(request):
    return filled(MODELS[request.param]())[0]


def images(batch=2):
    return paddle.to_tensor(draw([batch, 3, 48, 48]))


def answer(model, x):
    with paddle.no_grad():
        y = model(x)
    return np.concatenate([part.numpy() for part in (y if isinstance(y, (list, tuple)) else [y])], axis=1)


def change(model):
    """Something of each parameter, as a step of an optimizer does."""
    with paddle.no_grad():
        for parameter in model.parameters():
            parameter.set_value(parameter * 1.05 + 0.01)
    return model


def mlp_of(model):
    """One that a native operator computes."""
    return next(layer.mlp for layer in model.sublayers() if "mlp" in layer._sub_layers)


def gradients(model):
    y = model(images())
    sum((part**2).sum() for part in (y if isinstance(y, (list, tuple)) else [y])).backward()
    found = np.concatenate([parameter.grad.numpy().ravel() for parameter in model.parameters() if parameter.trainable])
    model.clear_gradients()
    return found


@pytest.mark.parametrize("batch", [1, 3])
def test_it_computes_the_same_bits(native, model, batch):
    with Frozen(model):
        found = [answer(model, images(batch)) for _ in range(2)]
    for bits in found:
        np.testing.assert_array_equal(bits, answer(model, images(batch)))


def test_so_it_does_in_bfloat16_and_in_float32_again(bfloat16, model):
    with Frozen(model):
        found = {}
        for precision in ("bfloat16", "float32", "bfloat16"):
            with native_precision(precision):
                found.setdefault(precision, []).append(answer(model, images()))
    np.testing.assert_array_equal(*found["bfloat16"])
    for precision, (bits, *_) in found.items():
        with native_precision(precision):
            np.testing.assert_array_equal(bits, answer(model, images()))
    assert (found["bfloat16"][0] != found["float32"][0]).any()


def test_its_weights_are_packed_once(native, model, packings):
    answer(model, images())
    assert not +packings  # an operator packs for itself
    with Frozen(model):
        for batch in (1, 2, 3):
            answer(model, images(batch))
    parts = sum(type(layer).__name__ in NATIVE for layer in model.sublayers())
    assert packings.total() == parts


def test_afterwards_its_weights_count_at_once(native, model):
    with Frozen(model):
        before = answer(model, images())
    change(model)
    assert (answer(model, images()) != before).any()


def test_frozen_twice_it_stays_frozen_to_the_outer_end(native, model, packings):
    with Frozen(model):
        with Frozen(model):
            answer(model, images())
        once = packings.total()
        answer(model, images())
    assert packings.total() == once > 0


def test_an_exception_ends_it(native, model):
    with pytest.raises(ZeroDivisionError), Frozen(model):
        before = answer(model, images())
        raise ZeroDivisionError
    change(model)
    assert (answer(model, images()) != before).any()


def test_a_training_step_in_between_takes_the_weights_themselves(native, model):
    with Frozen(model):
        answer(model, images())
        change(model)
        model.train()
        with_it = gradients(model)
    np.testing.assert_array_equal(with_it, gradients(model))


def test_a_copy_of_it_is_not_frozen(native, model):
    with Frozen(model):
        before = answer(model, images())
        other = change(copy.deepcopy(model))
        assert (answer(other, images()) != before).any()
        np.testing.assert_array_equal(before, answer(model, images()))


def test_hooks_see_what_they_would(native, model):
    seen = []
    with Frozen(model):
        before = answer(model, images())
        hook = model.sublayers()[-1].register_forward_post_hook(lambda *args: seen.append(args))
        deep = mlp_of(model).fc1
        inner = deep.register_forward_post_hook(lambda *args: seen.append(args))
        np.testing.assert_allclose(answer(model, images()), before, rtol=1e-4, atol=1e-4)
        assert any(args[0] is deep for args in seen)
        hook.remove()
        inner.remove()
        np.testing.assert_array_equal(answer(model, images()), before)


def test_paddles_operators_take_the_weights_themselves(native, model):
    with Frozen(model), paddle_only():
        answer(model, images())
        change(model)
        found = answer(model, images())
    with paddle_only():
        np.testing.assert_array_equal(found, answer(model, images()))


def test_threads_share_it(native, model):
    found = []
    with Frozen(model):
        threads = [threading.Thread(target=lambda: found.append(answer(model, images()))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for bits in found:
        np.testing.assert_array_equal(bits, answer(model, images()))
    assert len(found) == 4


def test_parameters_that_move_are_not_read_where_they_were(native, model):
    """Paddle frees the memory of a tensor that gets another one."""
    with Frozen(model):
        before = answer(model, images())
        model.to(dtype="float64")
        model.to(dtype="float32")
        paddle.full([10**6], float("nan"))
        np.testing.assert_array_equal(answer(model, images()), before)


def test_what_is_kept_goes_with_its_object(native):
    model = filled(XCiT(**TINY))[0]
    frozen = Frozen(model)
    with frozen:
        answer(model, images())
    gone = weakref.ref(model.blocks[0])
    del model, frozen
    gc.collect()
    assert gone() is None


class TestUsedAgain:
    """One object, entered twice."""

    def test_it_keeps_what_it_packed(self, native, model, packings):
        frozen = Frozen(model)
        for _ in range(3):
            with frozen:
                answer(model, images())
        assert packings.total() == sum(type(layer).__name__ in NATIVE for layer in model.sublayers())

    def test_outside_it_weights_count_at_once(self, native, model):
        with Frozen(model):
            before = answer(model, images())
        change(model)
        assert (answer(model, images()) != before).any()

    def test_others_keep_nothing_of_it(self, native, model):
        first = Frozen(model)
        with first:
            before = answer(model, images())
        change(model)
        with Frozen(model):
            assert (answer(model, images()) != before).any()

    def test_its_copy_is_of_the_copied_model(self, native, model):
        frozen = Frozen(model)
        with frozen:
            answer(model, images())
        other, frozen_other = copy.deepcopy((model, frozen))
        change(other)
        with frozen_other:
            found = answer(other, images())
        np.testing.assert_array_equal(found, answer(other, images()))


def test_threads_enter_and_leave_it_as_they_like(native, model):
    frozen, found = Frozen(model), []

    def use():
        for _ in range(5):
            with frozen:
                found.append(answer(model, images()))

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = answer(model, images())
    assert len(found) == 20 and all((bits == expected).all() for bits in found)
