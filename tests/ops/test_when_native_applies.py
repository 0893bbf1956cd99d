"""When the native operators are used and when the portable formulation has to be; threads, processes, new weights."""

import multiprocessing
import os
import threading
from unittest import mock

import numpy as np
import paddle
import pytest
from paddle import nn
from test_native_xcit import draw, make_class_block, make_xca_block, natively, portable, same

from passl_xcit.modeling.attention import channel_maps
from passl_xcit.modeling.backbones.xcit import XCiT
from passl_xcit.ops.conditions import applies
from passl_xcit.ops.library import portable as paddle_only

TINY = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}


@pytest.fixture
def block(native):
    return make_xca_block(3, 8)[0]


@pytest.fixture
def x():
    return paddle.to_tensor(draw([2, 12, 24]))


def used(layer, x):
    with paddle.no_grad():
        return applies(layer, x)


def test_it_is_used_in_evaluation_without_gradients(block, x):
    assert used(block, x)


def test_it_is_used_where_gradients_are_on_but_nobody_wants_one(block, x):
    for parameter in block.parameters():
        parameter.stop_gradient = True
    assert applies(block, x)


@pytest.mark.parametrize("what", ["input", "parameter"])
def test_it_is_not_used_where_a_gradient_is_wanted(block, x, what):
    for parameter in block.parameters():
        parameter.stop_gradient = True
    (x if what == "input" else block.gamma2).stop_gradient = False
    assert not applies(block, x)


def test_it_is_not_used_in_training(block, x):
    block.train()
    assert not used(block, x)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_it_is_not_used_for_other_dtypes(block, x, dtype):
    assert not used(block, x.astype(dtype))
    block.mlp.fc1.to(dtype=dtype)
    assert not used(block, x)


def test_it_is_not_used_for_what_is_strided(block, x):
    assert not used(block, paddle.to_tensor(draw([12, 2, 24])).transpose([1, 0, 2]))


def test_it_is_not_used_where_a_hook_watches(block, x):
    seen = []
    hook = block.attn.attn_drop.register_forward_post_hook(lambda layer, inputs, output: seen.append(output))
    assert not used(block, x)
    with paddle.no_grad():
        block(x, 3, 4)
    assert seen
    hook.remove()
    assert used(block, x)


def test_it_is_not_used_with_a_layer_of_the_users_own(block, x):
    class Adapted(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    block.mlp.fc1 = Adapted(24, 96)
    assert not used(block, x)


def test_it_is_not_used_for_the_maths_of_mindcv(native):
    model = XCiT(**TINY, act="gelu_tanh", qk_norm=False)
    model.eval()
    images = paddle.to_tensor(draw([2, 3, 8, 8]))
    tokens = paddle.zeros([2, 4, 24])
    assert not any(used(layer, tokens) for layer in [*model.blocks, *model.cls_attn_blocks])
    assert not used(model.patch_embed, images)


def test_it_is_not_used_while_a_program_is_traced(native, tmp_path):
    model = XCiT(**TINY)
    model.eval()
    images = paddle.to_tensor(draw([2, 3, 16, 16]))
    expected = natively(model, images)
    spec = [paddle.static.InputSpec([None, 3, 16, 16], "float32")]
    paddle.jit.save(paddle.jit.to_static(model, input_spec=spec), str(tmp_path / "model"))
    same(paddle.jit.load(str(tmp_path / "model"))(images).numpy(), expected)


def test_the_attention_of_a_model_can_still_be_looked_at(native):
    model = XCiT(**TINY)
    model.eval()
    assert len(channel_maps(model, paddle.to_tensor(draw([2, 3, 16, 16])))) == 2


@pytest.mark.parametrize("change", ["loading", "a step", "in place"])
def test_new_weights_count_at_once(block, x, change):
    before = natively(block, x, 3, 4)
    if change == "loading":
        block.set_state_dict({name: value * 1.1 for name, value in block.state_dict().items()})
    elif change == "in place":
        with paddle.no_grad():
            block.mlp.fc2.weight.scale_(1.1)
    else:
        optimizer = paddle.optimizer.AdamW(0.01, parameters=block.parameters())
        block(x, 3, 4).square().sum().backward()
        optimizer.step()
    after = natively(block, x, 3, 4)
    assert np.abs(after - before).max() > 1e-3
    same(after, portable(block, x, 3, 4))


def test_several_threads_compute_at_the_same_time(native):
    block, _ = make_xca_block(2, 24)
    inputs = [paddle.to_tensor(draw([3, 30 * (i + 1), 48], seed=i)) for i in range(4)]
    expected = [natively(block, x, x.shape[1] // 10, 10) for x in inputs]
    found = [[] for _ in inputs]

    def work(index):
        x = inputs[index]
        with paddle.no_grad():
            found[index] = [block(x, x.shape[1] // 10, 10).numpy() for _ in range(20)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for outputs, wanted in zip(found, expected):
        for output in outputs:
            np.testing.assert_array_equal(output, wanted)


def _in_the_child(connection, block, x):
    with paddle.no_grad():
        connection.send(block(x).numpy())


def test_a_forked_process_computes_the_same(native):
    block, x = make_class_block(2, 12)[0], paddle.to_tensor(draw([4, 50, 24]))
    expected = natively(block, x)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_in_the_child, args=(theirs, block, x))
    process.start()
    assert ours.poll(30), "the child hangs"
    np.testing.assert_array_equal(ours.recv(), expected)
    process.join(30)
    assert process.exitcode == 0


def test_off_means_the_portable_formulation(block, x):
    with mock.patch.dict(os.environ, {"PASSL_XCIT_NATIVE": "off"}):
        assert not used(block, x)


def test_paddles_operators_can_be_asked_for(block, x):
    with paddle_only():
        with paddle_only():
            assert not used(block, x)
        assert not used(block, x)
    assert used(block, x)
