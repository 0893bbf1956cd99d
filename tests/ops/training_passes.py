"""What tests of native operators in training share: one pass forward and back, and what every operator must keep."""

import os
from unittest import mock

import numpy as np
import paddle
from paddle import nn
from test_native_xcit import draw, filled

from passl_xcit.ops.conditions import applies_in_training
from passl_xcit.ops.library import MODE, Library

TOLERANCE = 1e-4  # of the largest value
OF_THE_LARGEST = 0.05


def filled_in_training(layer):
    """The layer in training, without dropout, with parameters drawn by name; and these."""
    layer, weights = filled(layer)
    for each in layer.sublayers():
        if isinstance(each, nn.Dropout):
            each.p = 0.0
    layer.train()
    return layer, weights


def is_statistic(name):
    return name.endswith(("._mean", "._variance"))


def passed(layer, inputs, call=None, mode="on", threads=2, weight=None, frozen=()):
    """{name: array} of the output y, of the gradients and of the running statistics, after one pass forward and back.

    Args:
        inputs: {name: array} of what `call`, or the layer, is called with.
        weight: what y is multiplied by for the loss; if it is not given, some numbers.
        frozen: how names begin of the inputs and parameters that shall get no gradient.
    """
    tensors = {name: paddle.to_tensor(value, stop_gradient=False) for name, value in inputs.items()}
    before = {name: value.numpy() for name, value in layer.state_dict().items() if is_statistic(name)}
    trained = {**dict(layer.named_parameters()), **tensors}
    for name, tensor in trained.items():
        tensor.stop_gradient = is_statistic(name) or name.startswith(frozen or ("nothing",))
    paddle.seed(7)
    with mock.patch.dict(os.environ, {MODE: mode}), mock.patch.object(Library, "threads", lambda self: threads):
        assert applies_in_training(layer, next(iter(tensors.values()))) == (mode == "on")
        y = (call or layer)(*tensors.values())
        (y * paddle.to_tensor(draw(y.shape, seed=1) if weight is None else weight)).sum().backward()
    found = {name: tensor.grad.numpy() for name, tensor in trained.items() if tensor.grad is not None}
    found.update({name: value.numpy() for name, value in layer.state_dict().items() if is_statistic(name)})
    layer.clear_gradients()
    layer.set_state_dict({name: paddle.to_tensor(value) for name, value in before.items()})
    return {**found, "y": y.numpy()}


def textbook(weights, inputs, formula):
    """{name: float64 array} of formula(weights, *inputs), y, and its gradients."""
    exact, given = (
        {name: paddle.to_tensor(value.astype("float64"), stop_gradient=False) for name, value in arrays.items()}
        for arrays in (weights, inputs)
    )
    y = formula(exact, *given.values())
    (y * paddle.to_tensor(draw(y.shape, seed=1).astype("float64"))).sum().backward()
    tensors = {name: value for name, value in {**exact, **given}.items() if not is_statistic(name)}
    return {**{name: value.grad.numpy() for name, value in tensors.items()}, "y": y.numpy()}


def same(ours, expected, portable=None):
    """To TOLERANCE; what is more sensitive than that, to four times the error of the portable formulation.

    Gradients of biases are sums of many terms that may cancel out: they are held against a share of the largest of all.
    """
    assert ours.keys() == expected.keys()
    largest = max(np.abs(value).max() for value in expected.values())
    for name, value in expected.items():
        limit = TOLERANCE * max(np.abs(value).max(), OF_THE_LARGEST * largest)
        if portable is not None:
            limit = max(limit, 4 * np.abs(portable[name] - value).max())
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=limit, err_msg=name)


def without_statistics(found):
    return {name: value for name, value in found.items() if not is_statistic(name)}


def same_bits(ours, expected):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def keeps_its_bits(pass_of):
    """pass_of(threads=) has the same bits each time, for any number of threads; returns one pass for each number."""
    found = []
    for threads in (1, 2, 3):
        first, second = (pass_of(threads=threads) for _ in range(2))
        same_bits(second, first)
        found.append(first)
    return found


def freezes(pass_of, frozen):
    """pass_of(frozen=) has no gradients of what is frozen, and the others as ever."""
    expected, ours = pass_of(), pass_of(frozen=frozen)
    gone = {name for name in expected if name.startswith(frozen) and not is_statistic(name)}
    assert gone
    same_bits(ours, {name: value for name, value in expected.items() if name not in gone})


def adds_up(layer, loss):
    """The gradients of a second loss() are added to those of the first."""
    found = []
    for _ in range(2):
        loss().backward()
        found.append({name: value.grad.numpy() for name, value in layer.named_parameters() if value.grad is not None})
    same_bits(found[1], {name: 2 * value for name, value in found[0].items()})


def applies_in_spite_of(why, layer, x):
    """Whether the native operator applies in training to a layer and an input that something happened to."""
    assert applies_in_training(layer, x)
    if why == "dropout":
        [each for each in layer.sublayers() if isinstance(each, nn.Dropout)][-1].p = 0.1
    elif why == "dropout of the attention":
        layer.attn.attn_drop.p = 0.1
    elif why == "SyncBatchNorm":
        layer = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
    elif why == "BatchNorm in evaluation":
        next(each for each in layer.sublayers() if isinstance(each, nn.BatchNorm2D)).eval()
    elif why == "evaluation":
        layer.eval()
    elif why == "a hook":
        layer.sublayers()[-1].register_forward_post_hook(lambda *_: None)
    elif why in ("bfloat16", "float64"):
        x = x.astype(why)
    else:
        assert why == "no gradients"
    with paddle.set_grad_enabled(why != "no gradients"):
        return applies_in_training(layer, x)


def losses(classify, parameters, images, steps=6):
    """Of some steps of AdamW that teach classify(images), [B, B], a class for each image."""
    optimizer, found = paddle.optimizer.AdamW(1e-3, parameters=parameters), []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(classify(images), paddle.arange(images.shape[0]))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        found.append(loss.item())
    return found


def gradients(model, images):
    """{name: array} of a model's parameters by some loss, forgotten afterwards."""
    y = model(images)
    (y * paddle.to_tensor(draw(y.shape, seed=1))).sum().backward()
    found = {name: value.grad.numpy() for name, value in model.named_parameters() if value.grad is not None}
    model.clear_gradients()
    return found
