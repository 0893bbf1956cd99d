"""When the native operators are used and when the portable formulation has to be; threads, processes, new weights."""

import copy
import multiprocessing
import os
import threading
from operator import attrgetter
from unittest import mock

import numpy as np
import paddle
import pytest
from paddle import nn
from test_native_crossvit import make_block, make_fusion
from test_native_xcit import draw, make_class_block, make_xca_block, natively, portable, same
from training_passes import filled_in_training

from passl_xcit.modeling.attention import channel_maps
from passl_xcit.modeling.backbones.xcit import XCiT
from passl_xcit.ops.conditions import applies, applies_in_training
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


def replaced(path, make):
    """What puts another layer in the place of one."""

    def change(block):
        *parents, name = path.split(".")
        setattr(attrgetter(".".join(parents))(block) if parents else block, name, make())

    return change


CHANGES = {
    "another activation": replaced("mlp.act", nn.ReLU),
    "other layers in place of one": replaced("mlp.fc1", lambda: nn.Sequential(nn.Linear(24, 96), nn.ReLU())),
    "no norm": replaced("norm1", nn.Identity),
    "a norm without weights": replaced("norm2", lambda: nn.LayerNorm([24], weight_attr=False, bias_attr=False)),
    "another epsilon": lambda block: setattr(block.norm3, "_epsilon", 1e-3),
    "a narrower layer": replaced("mlp.fc1", lambda: nn.Linear(24, 8)),
    "a dilated convolution": replaced("local_mp.conv1", lambda: nn.Conv2D(24, 24, 3, padding=2, dilation=2, groups=24)),
    "a full convolution": replaced("local_mp.conv1", lambda: nn.Conv2D(24, 24, 3, padding=1)),
    "other heads": lambda block: setattr(block.attn, "num_heads", 4),
    "no factor": replaced("gamma1", lambda: None),
    "another forward": lambda block: setattr(block.attn, "forward", lambda x: x),
    "statistics of its own": replaced("local_mp.bn", lambda: nn.BatchNorm2D(24, use_global_stats=False)),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_it_is_not_used_for_a_block_that_was_changed(block, x, change, training):
    block.train() if training else block.eval()
    for dropout in (layer for layer in block.sublayers() if isinstance(layer, nn.Dropout)):
        dropout.p = 0.0
    asked = applies_in_training if training else used
    assert asked(block, x)
    CHANGES[change](block)
    block.train() if training else block.eval()
    assert not asked(block, x)


def test_it_is_used_for_a_copy(block, x):
    assert used(copy.deepcopy(block), x)


@pytest.mark.parametrize("part", ["local_mp.bn", "attn.attn_drop"])
def test_it_is_not_used_where_a_part_is_training(block, x, part):
    attrgetter(part)(block).train()
    assert not used(block, x)


def test_it_is_not_used_for_no_images_and_one_value_a_channel(block):
    assert not used(block, paddle.zeros([0, 12, 24]))
    block.train()
    for layer in block.sublayers():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    assert applies_in_training(block, paddle.zeros([1, 2, 24]))
    assert not applies_in_training(block, paddle.zeros([1, 1, 24]))


@pytest.mark.parametrize("shape", [[4, 16, 24], [2, 12, 32], [12, 24]])
def test_tokens_of_another_shape_are_refused(block, shape):
    with paddle.no_grad(), pytest.raises(ValueError, match=r"expected tokens \[B, 12, 24\], not \["):
        block(paddle.zeros(shape), 3, 4)


@pytest.mark.parametrize("make", [make_class_block, make_block, make_fusion])
def test_tokens_of_other_channels_are_refused(native, make):
    with paddle.no_grad(), pytest.raises(ValueError, match=r"expected tokens \[B, M, 24\], not \[2, 12, 32\]"):
        make(3, 8)[0](paddle.zeros([2, 12, 32]))


def test_a_parameter_that_is_replaced_before_the_backward_pass_is_told(native):
    block, x = filled_in_training(make_xca_block(3, 8)[0])[0], paddle.to_tensor(draw([2, 12, 24]))
    y = block(x, 3, 4)
    block.mlp.fc1 = nn.Linear(24, 96)
    with pytest.raises(
        (RuntimeError, OSError), match="XCABlock: a parameter was replaced between the forward and the backward"
    ):
        y.sum().backward()


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
