"""`use_amp` and `AMP`: what a config may say. What half precision computes is for a device that has it."""

import numpy as np
import paddle
import pytest
from tiny_run import tiny_run, tiny_trainer

from passl_xcit.engine import mixed_precision
from passl_xcit.engine.mixed_precision import LossScale, MixedPrecision
from passl_xcit.modeling.backbones.xcit import XCA
from passl_xcit.utils.errors import ConfigError


def test_on_a_cpu_training_is_in_float32_and_says_so(tmp_path, capsys):
    options = ("use_amp=true", "AMP={level: O2, scale_loss: 1024.0}", "epochs=1", f"output_dir={tmp_path}/x")
    half = tiny_trainer(tmp_path, *options)
    assert "use_amp: Paddle has no half precision on a CPU: training in float32" in capsys.readouterr().out
    plain = tiny_trainer(tmp_path, "epochs=1", f"output_dir={tmp_path}/x")
    half.train()
    plain.train()
    for name, tensor in plain.model.state_dict().items():
        assert np.array_equal(tensor.numpy(), half.model.state_dict()[name].numpy())


@pytest.mark.parametrize("overrides", [("use_amp=false",), ()])
def test_a_block_without_use_amp_is_told(overrides, tmp_path, capsys):
    assert tiny_trainer(tmp_path, *overrides, "AMP={level: O2}").precision.level == "O1"
    assert "WARNING: AMP: without effect, since use_amp is false" in capsys.readouterr().out
    tiny_trainer(tmp_path, *overrides)
    assert "AMP" not in capsys.readouterr().out


def test_passls_block_is_taken(tmp_path):
    block = "{level: O1, scale_loss: 128.0, save_dtype: float32, auto_cast: {custom_black_list: [elementwise_add]}}"
    trainer = tiny_trainer(tmp_path, "use_amp=true", f"AMP={block}")
    assert trainer.precision.lists["custom_black_list"] == ["elementwise_add"]


@pytest.mark.parametrize(
    "block, text",
    [
        ("{level: O3}", "AMP.level: level must be O1 or O2, not 'O3'"),
        ("{dtype: float64}", "AMP.dtype: dtype must be float16 or bfloat16, not 'float64'"),
        ("{scale_loss: 0.0}", r"AMP.scale_loss: scale_loss must lie between 1 and 2\*\*32, not 0.0"),
        ("{auto_cast: {blacklist: [x]}}", "AMP.auto_cast.blacklist: auto_cast takes no 'blacklist'"),
        ("{save_dtype: float16}", "save_dtype can only be float32"),
    ],
)
def test_what_cannot_be_is_refused(block, text, tmp_path):
    with pytest.raises(ConfigError, match=text):
        tiny_run(tmp_path, "use_amp=true", f"AMP={block}")


def test_where_paddle_cannot_ask_a_plugin_casting_tells_whether_there_is_half_precision(monkeypatch):
    """Paddle 3.0.0, which is the one of the images with Ascend's plugin."""

    def of_paddle_3_0(place):
        raise TypeError("is_float16_supported(): incompatible function arguments")

    monkeypatch.setattr(paddle, "get_device", lambda: "npu:0")
    monkeypatch.setattr(paddle.amp, "is_float16_supported", of_paddle_3_0)
    monkeypatch.setattr(mixed_precision, "_casts_to", lambda dtype: True)
    assert MixedPrecision().enabled
    monkeypatch.setattr(mixed_precision, "_casts_to", lambda dtype: False)
    with pytest.raises(ConfigError, match="AMP.dtype: npu:0 has no float16 training; try the other dtype, or use_amp"):
        MixedPrecision()


@pytest.mark.parametrize("dtype, epsilon", [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_xcas_attention_of_half_precision_is_computed_in_float32(dtype, epsilon):
    """Over many tokens the product of q and k passes float16's 65,504, though the attention is moderate."""
    paddle.seed(3)
    attention = XCA(16, 2, True, 0.0, 0.0)
    q, k = (10 * paddle.randn([2, 3000, 16]).astype(dtype) for _ in range(2))
    found = attention.attention(q, k)
    expected = attention.attention(q.astype("float32"), k.astype("float32")).numpy()
    assert found.dtype == q.dtype
    assert np.abs((q.astype("float32").numpy() ** 2).sum(axis=1)).max() > 65504
    np.testing.assert_allclose(found.astype("float32").numpy(), expected, rtol=epsilon)


def test_the_loss_scale_falls_with_each_overflow_and_rises_after_2000_updates_without():
    scale = LossScale(1024.0, dynamic=True)
    for _ in range(3):
        scale.update(overflow=True)
    assert (scale.value, scale.good_steps) == (128.0, 0)
    for _ in range(1999):
        scale.update(overflow=False)
    assert (scale.value, scale.good_steps) == (128.0, 1999)
    scale.update(overflow=False)
    assert (scale.value, scale.good_steps) == (256.0, 0)


@pytest.mark.parametrize("dynamic, overflow, first, last", [(True, True, 1.0, 1.0), (False, True, 8.0, 8.0)])
def test_the_loss_scale_does_not_fall_below_1_nor_where_it_is_fixed(dynamic, overflow, first, last):
    scale = LossScale(first, dynamic)
    scale.update(overflow)
    assert scale.value == last
