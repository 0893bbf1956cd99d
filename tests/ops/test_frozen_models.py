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
from passl_xcit.ops.frozen import Freeze, frozen
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


def gradients(model):
    y = model(images())
    sum((part**2).sum() for part in (y if isinstance(y, (list, tuple)) else [y])).backward()
    found = np.concatenate([parameter.grad.numpy().ravel() for parameter in model.parameters() if parameter.trainable])
    model.clear_gradients()
    return found


@pytest.mark.parametrize("batch", [1, 3])
def test_it_computes_the_same_bits(native, model, batch):
    with frozen(model):
        found = [answer(model, images(batch)) for _ in range(2)]
    for bits in found:
        np.testing.assert_array_equal(bits, answer(model, images(batch)))


def test_so_it_does_in_bfloat16_and_in_float32_again(bfloat16, model):
    with frozen(model):
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
    with frozen(model):
        for batch in (1, 2, 3):
            answer(model, images(batch))
    parts = sum(type(layer).__name__ in NATIVE for layer in model.sublayers())
    assert packings.total() == parts


def test_afterwards_its_weights_count_at_once(native, model):
    with frozen(model):
        before = answer(model, images())
    change(model)
    assert (answer(model, images()) != before).any()


def test_frozen_twice_it_stays_frozen_to_the_outer_end(native, model, packings):
    with frozen(model):
        with frozen(model):
            answer(model, images())
        once = packings.total()
        answer(model, images())
    assert packings.total() == once > 0


def test_an_exception_ends_it(native, model):
    with pytest.raises(ZeroDivisionError), frozen(model):
        before = answer(model, images())
        raise ZeroDivisionError
    change(model)
    assert (answer(model, images()) != before).any()


def test_a_training_step_in_between_takes_the_weights_themselves(native, model):
    with frozen(model):
        answer(model, images())
        change(model)
        model.train()
        with_it = gradients(model)
    np.testing.assert_array_equal(with_it, gradients(model))


def test_a_copy_of_it_is_not_frozen(native, model):
    with frozen(model):
        before = answer(model, images())
        other = change(copy.deepcopy(model))
        assert (answer(other, images()) != before).any()
        np.testing.assert_array_equal(before, answer(model, images()))


def test_hooks_see_what_they_would(native, model):
    seen = []
    with frozen(model):
        before = answer(model, images())
        hook = model.sublayers()[-1].register_forward_post_hook(lambda *args: seen.append(args))
        deep = [layer for layer in model.sublayers() if type(layer).__name__ == "Mlp"][0].fc1
        inner = deep.register_forward_post_hook(lambda *args: seen.append(args))
        np.testing.assert_allclose(answer(model, images()), before, rtol=1e-4, atol=1e-4)
        assert any(args[0] is deep for args in seen)
        hook.remove()
        inner.remove()
        np.testing.assert_array_equal(answer(model, images()), before)


def test_paddles_operators_take_the_weights_themselves(native, model):
    with frozen(model), paddle_only():
        answer(model, images())
        change(model)
        found = answer(model, images())
    with paddle_only():
        np.testing.assert_array_equal(found, answer(model, images()))


def test_threads_share_it(native, model):
    found = []
    with frozen(model):
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
    with frozen(model):
        before = answer(model, images())
        model.to(dtype="float64")
        model.to(dtype="float32")
        paddle.full([10**6], float("nan"))
        np.testing.assert_array_equal(answer(model, images()), before)


def test_what_is_kept_goes_with_the_model(native):
    model = filled(XCiT(**TINY))[0]
    Freeze(model)
    answer(model, images())
    gone = weakref.ref(model.blocks[0])
    del model
    gc.collect()
    assert gone() is None


class TestRenew:
    @pytest.mark.parametrize("how", ["set_state_dict", "step", "to"])
    def test_weights_that_were_changed_count(self, native, model, how):
        freeze = Freeze(model)
        before = answer(model, images())
        if how == "set_state_dict":
            model.set_state_dict({name: 1.1 * value for name, value in model.state_dict().items()})
        elif how == "step":
            change(model)
        else:
            change(model).to(dtype="float64")
            model.to(dtype="float32")
        freeze.renew()
        found = answer(model, images())
        freeze.melt()
        np.testing.assert_array_equal(found, answer(model, images()))
        assert (found != before).any()

    def test_weights_that_were_not_changed_are_not_packed_again(self, native, model, packings):
        freeze = Freeze(model)
        for _ in range(3):
            freeze.renew()
            answer(model, images())
        assert packings.total() == sum(type(layer).__name__ in NATIVE for layer in model.sublayers())

    def test_a_running_statistic_counts_too(self, native):
        model = filled(XCiT(**TINY))[0]
        freeze = Freeze(model)
        before = answer(model, images())
        statistic = model.blocks[0].local_mp.bn._mean
        statistic.set_value(statistic + 0.5)
        freeze.renew()
        assert (answer(model, images()) != before).any()
