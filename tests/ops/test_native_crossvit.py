"""CrossViT's native operators compute what the layers' portable formulation and the textbook say."""

import math

import paddle
import paddle.nn.functional as F
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_native_xcit import draw, filled, float64, hidden, natively, per_example, portable, same, widths

from passl_xcit.modeling.backbones.crossvit import VARIANTS, Block, CrossAttentionBlock, CrossViT
from passl_xcit.ops.conditions import applies

lengths = st.integers(1, 230)
TINY = {"img_size": [36, 48], "embed_dim": [24, 36], "depth": [[1, 2], [2, 1]], "num_heads": [2, 3]}


def make_block(heads, d, mlp_ratio=4.0, qkv_bias=True):
    return filled(Block(heads * d, heads, max(mlp_ratio, 1 / (heads * d)), qkv_bias, 0.1, 0.1, 0.1))


def make_fusion(heads, d, qkv_bias=True):
    return filled(CrossAttentionBlock(heads * d, heads, qkv_bias, 0.1, 0.1, 0.1))


def attention(q, k, v, heads):
    """Softmax(q k^T / sqrt d) v of each head, side by side: q [B, Q, C], k and v [B, M, C] -> [B, Q, C]"""
    mixed = []
    for one_q, one_k, one_v in zip(*(part.split(heads, axis=-1) for part in (q, k, v))):
        scores = one_q @ one_k.transpose([0, 2, 1]) / math.sqrt(one_q.shape[-1])
        mixed.append(F.softmax(scores, axis=-1) @ one_v)
    return paddle.concat(mixed, axis=-1)


def norm(weights, name, x, epsilon=1e-6):
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], epsilon)


def linear(weights, name, x):
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def textbook_block(weights, x, heads, epsilons=(1e-6, 1e-6), keeps=(1.0, 1.0)):
    """x + keep1 MSA(LN1 x), then x + keep2 MLP(LN2 x), [B, M, C], in float64"""
    q, k, v = linear(weights, "attn.qkv", norm(weights, "norm1", x, epsilons[0])).chunk(3, axis=-1)
    x = x + keeps[0] * linear(weights, "attn.proj", attention(q, k, v, heads))
    active = F.gelu(linear(weights, "mlp.fc1", norm(weights, "norm2", x, epsilons[1])))
    return x + keeps[1] * linear(weights, "mlp.fc2", active)


def textbook_fusion(weights, x, heads, epsilon=1e-6):
    """The class token + its attention to LN1 x: [B, M, C] -> [B, 1, C], in float64"""
    u = norm(weights, "norm1", x, epsilon)
    q, k, v = (linear(weights, f"attn.{name}", tokens) for name, tokens in (("wq", u[:, :1]), ("wk", u), ("wv", u)))
    return x[:, :1] + linear(weights, "attn.proj", attention(q, k, v, heads))


def exact(x):
    return paddle.to_tensor(x.astype("float64"))


@per_example(max_examples=60)
@given(widths, lengths, st.integers(1, 5), st.integers(1, 4), hidden, st.booleans())
def test_a_transformer_block_is_the_textbooks(native, width, tokens, batch, threads, mlp_ratio, qkv_bias):
    block, weights = make_block(*width, mlp_ratio, qkv_bias)
    x = draw([batch, tokens, width[0] * width[1]])
    ours = natively(block, paddle.to_tensor(x), threads=threads)
    same(ours, textbook_block(float64(weights), exact(x), width[0]).numpy())
    same(ours, portable(block, paddle.to_tensor(x)))


@per_example(max_examples=40)
@given(widths, lengths, st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_the_fusion_is_the_textbooks(native, width, tokens, batch, threads, qkv_bias):
    fusion, weights = make_fusion(*width, qkv_bias)
    x = draw([batch, tokens, width[0] * width[1]])
    ours = natively(fusion, paddle.to_tensor(x), threads=threads)
    same(ours, textbook_fusion(float64(weights), exact(x), width[0]).numpy())
    same(ours, portable(fusion, paddle.to_tensor(x)))


@pytest.mark.parametrize("hidden", [513, 1100])
def test_hidden_channels_are_taken_some_at_a_time(native, hidden):
    block, _ = make_block(2, 16, mlp_ratio=hidden / 32)
    x = paddle.to_tensor(draw([3, 130, 32]))
    same(natively(block, x), portable(block, x))


@pytest.mark.parametrize("epsilons", [(1e-3, 1e-7), (1e-7, 1e-3)])
def test_each_norm_has_its_own_epsilon(native, epsilons):
    block, weights = make_block(2, 12)
    block.norm1.epsilon, block.norm2.epsilon = epsilons
    x = draw([2, 10, 24])
    same(natively(block, paddle.to_tensor(x)), textbook_block(float64(weights), exact(x), 2, epsilons).numpy())


def test_the_fusions_norm_has_its_epsilon(native):
    fusion, weights = make_fusion(2, 12)
    fusion.norm1.epsilon = 1e-3
    x = draw([2, 10, 24])
    same(natively(fusion, paddle.to_tensor(x)), textbook_fusion(float64(weights), exact(x), 2, 1e-3).numpy())


@pytest.mark.parametrize("score", [-3e3, 3e3])
@pytest.mark.parametrize("tokens", [1, 15, 31, 33, 100])
def test_scores_that_are_equal_and_large_mix_all_tokens_equally(native, tokens, score):
    """No token beyond the last one takes part, nor is any score too large or too small for e^x."""
    block, weights = make_block(2, 16)
    weights["attn.qkv.weight"][:, :64] = 0
    weights["attn.qkv.bias"][:32], weights["attn.qkv.bias"][32:64] = 1, score / 4
    block.set_state_dict({name: paddle.to_tensor(value.astype("float32")) for name, value in weights.items()})
    x = draw([2, tokens, 32])
    same(natively(block, paddle.to_tensor(x)), textbook_block(float64(weights), exact(x), 2).numpy())


@pytest.mark.parametrize("factor", [3e3, 1e6])
def test_scores_that_differ_much_choose_one_token(native, factor):
    block, _ = make_block(2, 8)
    block.attn.qkv.weight.set_value(block.attn.qkv.weight * paddle.to_tensor([factor] * 32 + [1.0] * 16))
    x = paddle.to_tensor(draw([2, 40, 16]))
    same(natively(block, x), portable(block, x))


KINDS = {
    "plain": {},
    "dagger": {"multi_conv": True},
    "without biases of q, k and v": {"qkv_bias": False},
    "with the norms of mindcv": {"block_norm_eps": 1e-7, "input_scaling": "bilinear_aligned"},
    "with dropout, which is of training": {"drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.1},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_has_the_features_of_the_portable_formulation(native, kind):
    model, _ = filled(CrossViT(**{**TINY, **KINDS[kind]}))
    images = paddle.to_tensor(draw([3, 3, 48, 40]))
    same(natively(Features(model), images), portable(Features(model), images))


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_models_of_all_sizes_have_the_features_of_the_portable_formulation(native, name):
    model, _ = filled(CrossViT(**{**VARIANTS[name], "depth": ((1, 1),)}))
    images = paddle.to_tensor(draw([1, 3, 64, 64]))
    same(natively(Features(model), images), portable(Features(model), images))


class Features(paddle.nn.Layer):
    """The class tokens of both branches side by side."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return paddle.concat(self.model(images), axis=1)


def use(layer, x):
    with paddle.no_grad():
        return applies(layer, x)


@pytest.mark.parametrize("make", [make_block, make_fusion])
def test_it_is_used_in_evaluation_and_not_where_something_is_hung_into_it(native, make):
    layer, _ = make(2, 8)
    x = paddle.to_tensor(draw([2, 5, 16]))
    assert use(layer, x)
    assert not use(layer, x.astype("bfloat16"))
    hook = layer.attn.attn_drop.register_forward_post_hook(lambda *_: None)
    assert not use(layer, x)
    hook.remove()
    layer.train()
    assert not use(layer, x)


def test_the_tanh_approximation_is_not_computed_as_the_exact_gelu(native):
    model = CrossViT(**TINY, act="gelu_tanh")
    model.eval()
    blocks = [block for stage in model.blocks for blocks in stage.blocks for block in blocks]
    assert len(blocks) == 6
    assert not any(use(block, paddle.zeros([1, 5, block.norm1.weight.shape[0]])) for block in blocks)


@pytest.mark.slow
def test_an_exported_program_holds_paddles_operators(native, tmp_path):
    model, _ = filled(CrossViT(**TINY))
    images = paddle.to_tensor(draw([2, 3, 36, 36]))
    expected = natively(Features(model), images)
    spec = [paddle.static.InputSpec([None, 3, 36, 36], "float32")]
    paddle.jit.save(paddle.jit.to_static(Features(model), input_spec=spec), str(tmp_path / "model"))
    same(paddle.jit.load(str(tmp_path / "model"))(images).numpy(), expected)
