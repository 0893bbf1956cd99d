"""Weights are recognised as the model they belong to, whose name a refusal can then give."""

import numpy as np
import paddle
import pytest

from passl_xcit.modeling import factory
from passl_xcit.modeling.identify import looks_like

SOME = [name for name in factory.PRESETS if not name.startswith("regnet")] + [
    "regnetx_002",
    "regnety_002",
    "regnety_032",
    "regnety_160",
]


@pytest.mark.parametrize("preset", SOME)
def test_every_preset_is_recognised_by_the_shapes_of_its_weights(preset):
    with paddle.LazyGuard():
        model = factory.create_model(preset, num_classes=7)
    assert looks_like(model.state_dict()) == preset


def test_another_size_of_a_family_is_described():
    with paddle.LazyGuard():
        model = factory.create_model("xcit_nano_12_p8", depth=3)
    assert looks_like(model.state_dict()) == "an XCiT of patch_size 8, embed_dim 128, depth 3, num_heads 4"


def test_the_backbone_alone_is_recognised_too():
    with paddle.LazyGuard():
        model = factory.create_model("xcit_nano_12_p8")
    assert looks_like(model.backbone.state_dict()) == "xcit_nano_12_p8"


@pytest.mark.parametrize("names", [[], ["fc.weight"], ["pos_embeder"]])
def test_other_networks_are_not(names):
    assert looks_like({name: np.zeros(3) for name in names}) is None


@pytest.mark.parametrize("name", ["pos_embeder.w", "blocks.0.revert_projs.0.0.weight", "s1_b1.conv0._conv.weight"])
@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 3, 4, 5)])
def test_where_too_much_is_missing_nothing_is_claimed(name, shape):
    assert looks_like({name: np.zeros(shape)}) is None
