"""FLOPs in closed form, against counts that others published, that mmengine made, and of the layers of our models."""

import math

import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paddle import nn

from passl_xcit.modeling.flops import count_flops, count_streams
from passl_xcit.utils.errors import ConfigError
from passl_xcit.utils.registry import BACKBONES

PUBLISHED = {  # mmpretrain 1.2.0, configs/xcit/metafile.yml: patch 16 at 224 and 384, patch 8 at 224 and 384
    "nano_12": (557074560, 1636347520, 2156861056, 6337760896),
    "tiny_12": (1239698112, 3641468352, 4807399872, 14126142912),
    "tiny_24": (2339305152, 6872966592, 9205828032, 27052135872),
    "small_12": (4814951808, 14143179648, 18691601280, 54923537280),
    "small_24": (9095064960, 26721471360, 35812053888, 105236704128),
    "medium_24": (16129561088, 47388932608, 63524706816, 186672626176),
    "large_24": (35855948544, 105345095424, 141225699072, 415003137792),
}
CASES = [(16, 224), (16, 384), (8, 224), (8, 384)]

# mmengine 0.10.7, FlopAnalyzer on timm 1.0.31 with unfused attention, in eval mode.
COUNTED = [
    ("crossvit_tiny_240", 240, 1569962880),
    ("crossvit_small_240", 240, 5630015232),
    ("crossvit_base_240", 240, 21220388352),
    ("crossvit_9_240", 240, 1848921600),
    ("crossvit_15_240", 240, 5807298816),
    ("crossvit_18_240", 240, 9053321088),
    ("crossvit_9_dagger_240", 240, 1987175424),
    ("crossvit_15_dagger_240", 240, 6129031680),
    ("crossvit_18_dagger_240", 240, 9495381504),
    ("crossvit_15_dagger_408", 408, 21447341376),
    ("crossvit_18_dagger_408", 408, 32473770784),
    ("regnety_160", 224, 15957693360),
    ("regnety_160", 288, 26370468272),
    ("regnety_004", 97, 105577840),
    ("regnetx_002", 225, 243533104),
]
TINY_XCIT = {"name": "XCiT", "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 3.0}
TINY_XCIT.update(qkv_bias=False, cls_attn_layers=1, tokens_norm=False)
GREY_XCIT = {"name": "XCiT", "patch_size": 16, "in_chans": 1, "embed_dim": 96, "depth": 1, "num_heads": 2}
GREY_XCIT.update(mlp_ratio=1.5, cls_attn_layers=3)
TINY_CROSSVIT = {"name": "CrossViT", "img_size": (48, 48), "patch_size": (8, 12), "embed_dim": (24, 40)}
TINY_CROSSVIT.update(depth=((1, 2, 0),), num_heads=(2, 4), mlp_ratio=(2.0, 1.5, 1.0))
DAGGER_CROSSVIT = {"name": "CrossViT", "img_size": (96, 64), "patch_size": (12, 16), "embed_dim": (32, 64)}
DAGGER_CROSSVIT.update(depth=((2, 3), (1, 1)), num_heads=(2, 4), mlp_ratio=(2.0, 3.0), multi_conv=True)
COUNTED_NODES = [
    (TINY_XCIT, 64, 9528384),
    (GREY_XCIT, 96, 10157664),
    (TINY_CROSSVIT, 48, 1316768),
    (DAGGER_CROSSVIT, 96, 8425504),
]


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("size", PUBLISHED)
def test_xcit_costs_what_mmpretrain_published(size, place):
    patch, pixels = CASES[place]
    assert count_flops(f"xcit_{size}_p{patch}", pixels) == PUBLISHED[size][place]


@pytest.mark.parametrize(("backbone", "size", "flops"), COUNTED)
def test_a_preset_costs_what_mmengine_counts_on_timm_s_model(backbone, size, flops):
    assert count_flops(backbone, size) == flops


@pytest.mark.parametrize(("node", "size", "flops"), COUNTED_NODES)
def test_a_config_node_costs_what_mmengine_counts_on_timm_s_model(node, size, flops):
    assert count_flops(node, size) == flops


# A second count: hooks on the layers of our models, and by hand what they do without a layer.


def flops_of_layers(node, size):
    """The built backbone, and what its layers cost in one forward of one image."""
    backbone, costs = BACKBONES.build(node), []
    backbone.eval()
    for layer in backbone.sublayers():
        layer.register_forward_post_hook(lambda layer, inputs, output: costs.append(cost_of(layer, output)))
    with paddle.no_grad():
        backbone(paddle.zeros([1, node.get("in_chans", 3), size, size]))
    return backbone, sum(costs)


def cost_of(layer, output):
    elements = math.prod(output.shape) if isinstance(output, paddle.Tensor) else 0
    if isinstance(layer, nn.Linear):
        return elements * layer.weight.shape[0]
    if isinstance(layer, nn.Conv2D):
        return elements * math.prod(layer.weight.shape[1:])
    return elements * (5 if isinstance(layer, nn.LayerNorm) else 2 if isinstance(layer, nn.BatchNorm2D) else 0)


@pytest.mark.parametrize(("node", "size"), [(TINY_XCIT, 64), (GREY_XCIT, 96)])
def test_xcit_s_layers_cost_as_much(node, size):
    backbone, layers = flops_of_layers(node, size)
    tokens, width = (size // node["patch_size"]) ** 2, node["embed_dim"]
    attention = width**2 * tokens + 2 * width * tokens * width // node["num_heads"]  # with its projection
    queries_keys_values = width**2 + 2 * width**2 * (tokens + 1)
    class_attention = queries_keys_values + 2 * width * (tokens + 1)
    last_norm = 5 * width * tokens  # of the patch tokens, which ours leaves out
    without_layer = 64 * width * tokens + last_norm
    without_layer += len(backbone.blocks) * attention + len(backbone.cls_attn_blocks) * class_attention
    assert count_flops(node, size) == layers + without_layer


@pytest.mark.parametrize("node", [TINY_CROSSVIT, DAGGER_CROSSVIT], ids=["plain", "dagger"])
def test_crossvit_s_layers_cost_as_much(node):
    _, layers = flops_of_layers(node, node["img_size"][0])
    patches = [(side // patch) ** 2 for side, patch in zip(node["img_size"], node["patch_size"])]
    without_layer = 0
    for branch, (count, width) in enumerate(zip(patches, node["embed_dim"])):
        attention = sum(stage[branch] for stage in node["depth"]) * 2 * (count + 1) ** 2 * width
        visited = len(node["depth"]) * 2 * (count + 1) * width  # by the other branch's class token
        last_norm, head = 5 * width * count, 1000 * width
        without_layer += attention + visited + last_norm + head
    assert count_flops(node, node["img_size"][0]) == layers + without_layer


@pytest.mark.parametrize(("name", "size"), [("regnety_002", 70), ("regnetx_002", 64)])
def test_regnet_s_layers_cost_as_much(name, size):
    backbone, layers = flops_of_layers({"name": name}, size)
    side = math.ceil(size / 32)
    assert count_flops(name, size) == layers + backbone.num_features * (side**2 + 1000)


# Laws and errors.


@given(st.integers(1, 60), st.integers(1, 60))
def test_xcit_costs_the_same_for_each_further_token(rows, other_rows):
    def cost(rows):
        return count_flops("xcit_nano_12_p8", 8 * rows)

    by_token = (cost(2) - cost(1)) // 3
    assert cost(rows) - cost(other_rows) == by_token * (rows**2 - other_rows**2)


@pytest.mark.parametrize("size", [97, 224, 240])
def test_crossvit_scales_images_to_its_own_size(size):
    assert count_flops("crossvit_9_240", size) == 1848921600


def test_a_size_that_does_not_divide_into_patches_is_refused():
    with pytest.raises(ValueError, match="225 pixels do not divide into patches of 16"):
        count_flops("xcit_nano_12_p16", 225)


def test_an_unknown_backbone_is_refused():
    with pytest.raises(ConfigError, match="no backbone 'xcit_nano_12_p17'; did you mean 'xcit_nano_12_p16'"):
        count_flops("xcit_nano_12_p17", 224)


STREAMS = {  # what the blocks read, and what they write, from the papers' numbers
    "xcit_nano_12_p16": 2 * (128 * (12 * 196 + 2 * 197),),
    "crossvit_9_240": (128 * 401 * 6 + 256 * 197 * 12, 128 * 401 * 3 + 256 * 197 * 9),
}


@pytest.mark.parametrize("name", STREAMS)
def test_what_blocks_hand_on_is_what_goes_in_and_out_of_them(name):
    assert count_streams(name, 224) == STREAMS[name]


@pytest.mark.parametrize(
    ("name", "size", "blocks"),
    [("regnety_002", 64, "BottleneckBlock"), ("xcit_nano_12_p16", 32, "XCABlock|ClassAttentionBlock")],
)
def test_streams_are_those_of_the_layers_of_the_model(name, size, blocks):
    seen, model = [], BACKBONES.build({"name": name})
    for layer in model.sublayers():
        if type(layer).__name__ in blocks.split("|"):
            layer.register_forward_post_hook(lambda layer, given, out: seen.append((given[0].size, out.size)))
    model.eval()
    with paddle.no_grad():
        model(paddle.zeros([1, 3, size, size]))
    assert count_streams(name, size) == tuple(map(sum, zip(*seen)))
