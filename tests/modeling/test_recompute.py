"""XCiT's blocks computed again in the backward pass: the same numbers."""

import numpy as np
import paddle
import pytest

from passl_xcit.modeling.backbones.xcit import XCiT


def step(use_recompute, training=True):
    """(output, gradients, running statistics) of one forward and backward pass."""
    paddle.seed(1)
    backbone = XCiT(
        patch_size=4,
        embed_dim=16,
        depth=3,
        num_heads=2,
        drop_path_rate=0.3,
        drop_rate=0.1,
        use_recompute=use_recompute,
    )
    backbone.train() if training else backbone.eval()
    images = paddle.randn([4, 3, 16, 16])
    paddle.seed(2)
    features = backbone(images)
    (features * features).sum().backward()
    gradients = {name: p.grad.numpy() for name, p in backbone.named_parameters() if p.grad is not None}
    statistics = {name: t.numpy() for name, t in backbone.state_dict().items() if name.endswith(("_mean", "_variance"))}
    return features.numpy(), gradients, statistics


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_recomputed_blocks_give_the_same_bytes(training):
    """Drop path and dropout draw the same twice, and BatchNorm counts a batch once."""
    kept, again = step(False, training), step(True, training)
    assert np.array_equal(kept[0], again[0])
    for one, other in zip(kept[1:], again[1:]):
        assert set(one) == set(other)
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_statistics_of_recomputed_blocks_do_follow_the_batches():
    fresh = XCiT(patch_size=4, embed_dim=16, depth=3, num_heads=2).state_dict()
    after = step(True)[2]
    assert all((after[name] != fresh[name].numpy()).any() for name in after)
