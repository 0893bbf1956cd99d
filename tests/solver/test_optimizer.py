"""AdamW against its published formula, and which parameters it decays."""

import numpy as np
import paddle
import pytest
from paddle import nn

import passl_xcit.solver.optimizer  # noqa: F401 (registers)
from passl_xcit.modeling.distillation import DistillationWrapper
from passl_xcit.utils.errors import ConfigError
from passl_xcit.utils.registry import OPTIMIZERS

RATE = 0.1


class Backbone(nn.Layer):
    def __init__(self, dtype):
        super().__init__()
        like = {"dtype": dtype, "default_initializer": nn.initializer.Normal()}
        self.weight = self.create_parameter([2, 3], **like)
        self.cls_token = self.create_parameter([1, 1, 2], **like)
        self.bias = self.create_parameter([3], **like)

    def no_weight_decay(self):
        return {"cls_token"}


class Model(nn.Layer):
    """Just parameters, under the names that the optimizer looks at."""

    def __init__(self, dtype="float64"):
        super().__init__()
        paddle.seed(0)
        self.backbone = Backbone(dtype)


def build(model, learning_rate=RATE, **arguments):
    node = {"name": "AdamW", **arguments}
    OPTIMIZERS.check(node, "optimizer")
    return OPTIMIZERS.build(node, "optimizer", learning_rate=learning_rate, model=model)


def gradient(step, name, shape):
    return np.random.default_rng([step, len(name)]).normal(size=shape) * 10.0 ** (step - 1)


def take_steps(model, optimizer, steps):
    for step in range(steps):
        loss = 0.0
        for name, parameter in model.named_parameters():
            factors = gradient(step, name, parameter.shape)
            loss = loss + (parameter * paddle.to_tensor(factors, dtype=parameter.dtype)).sum()
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    return {name: parameter.numpy() for name, parameter in model.named_parameters()}


def published_adamw(values, steps, decayed, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.01, clip=lambda g: g):
    """Loshchilov, Hutter 2019, arXiv 1711.05101, algorithm 2, with the decay multiplied by the learning rate."""
    values = {name: value.copy() for name, value in values.items()}
    first, second = ({name: np.zeros_like(value) for name, value in values.items()} for _ in range(2))
    for step in range(steps):
        gradients = clip({name: gradient(step, name, value.shape) for name, value in values.items()})
        for name in values:
            first[name] = beta1 * first[name] + (1 - beta1) * gradients[name]
            second[name] = beta2 * second[name] + (1 - beta2) * gradients[name] ** 2
            unbiased = first[name] / (1 - beta1 ** (step + 1)), second[name] / (1 - beta2 ** (step + 1))
            decay = RATE * weight_decay * values[name] if name in decayed else 0
            values[name] = values[name] - RATE * unbiased[0] / (np.sqrt(unbiased[1]) + epsilon) - decay
    return values


def assert_published(model, arguments, decayed, tolerance=1e-8, **published):
    """Three steps end at the formula's values; Paddle's kernel takes the weight decay as a float32."""
    before = {name: parameter.numpy().astype("float64") for name, parameter in model.named_parameters()}
    after = take_steps(model, build(model, **arguments), steps=3)
    expected = published_adamw(before, 3, decayed, **published)
    for name, value in after.items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=tolerance, err_msg=name)


ALL = {"backbone.weight", "backbone.cls_token", "backbone.bias"}


@pytest.mark.parametrize("arguments", [{}, {"beta1": 0.5, "beta2": 0.9, "epsilon": 1e-3, "weight_decay": 0.3}])
def test_a_step_is_the_published_one_with_decoupled_decay(arguments):
    assert_published(Model(), arguments, decayed=ALL, **arguments)


@pytest.mark.parametrize(
    ("patterns", "rule", "decayed"),
    [
        ([], "passl", ALL),
        (["cls"], "passl", ALL - {"backbone.cls_token"}),
        (["backbone"], "passl", set()),
        (["token", "weight"], "passl", {"backbone.bias"}),
        (["Weight"], "passl", ALL),
        ([], "official", {"backbone.weight"}),
        (["weight"], "official", set()),
    ],
)
def test_what_is_excluded_is_not_decayed(patterns, rule, decayed):
    arguments = {"weight_decay": 0.5, "exclude_from_weight_decay": patterns, "weight_decay_rule": rule}
    assert_published(Model(), arguments, decayed, weight_decay=0.5)


def by_global_norm(gradients):
    norm = np.sqrt(sum((value**2).sum() for value in gradients.values()))
    return {name: value / max(1, norm / 2.0) for name, value in gradients.items()}


def by_own_norm(gradients):
    return {name: value / max(1, np.sqrt((value**2).sum()) / 2.0) for name, value in gradients.items()}


@pytest.mark.parametrize(("name", "clip"), [("global_norm", by_global_norm), ("clip_norm", by_own_norm)])
def test_gradients_are_clipped_to_the_norm(name, clip):
    """An epsilon of 1 makes the length of the gradients count, which Adam otherwise divides out."""
    arguments = {"epsilon": 1.0, "grad_clip": {"name": name, "value": 2}}
    model = Model("float32")  # the only type that clip_norm's kernel takes
    assert_published(model, arguments, decayed=ALL, tolerance=1e-6, epsilon=1.0, clip=clip)


def decayed_in(model, **arguments):
    """Names of the parameters that shrink in a step without gradient."""
    optimizer = build(model, learning_rate=1.0, weight_decay=0.5, **arguments)
    for parameter in model.parameters():
        parameter.set_value(paddle.ones_like(parameter))
    sum((parameter * 0).sum() for parameter in model.parameters()).backward()
    optimizer.step()
    values = {name: parameter.numpy() for name, parameter in model.named_parameters()}
    assert all(np.isin(value, (1.0, 0.5)).all() for value in values.values())
    return {name for name, value in values.items() if (value == 0.5).all()}


OFFICIALLY_DECAYED = {
    "backbone.patch_embed.proj.0.0.weight",
    "backbone.patch_embed.proj.2.0.weight",
    "backbone.pos_embeder.token_projection.weight",
    "backbone.blocks.0.attn.temperature",
    "backbone.blocks.0.attn.qkv.weight",
    "backbone.blocks.0.attn.proj.weight",
    "backbone.blocks.0.local_mp.conv1.weight",
    "backbone.blocks.0.local_mp.conv2.weight",
    "backbone.blocks.0.mlp.fc1.weight",
    "backbone.blocks.0.mlp.fc2.weight",
    "backbone.cls_attn_blocks.0.attn.qkv.weight",
    "backbone.cls_attn_blocks.0.attn.proj.weight",
    "backbone.cls_attn_blocks.0.mlp.fc1.weight",
    "backbone.cls_attn_blocks.0.mlp.fc2.weight",
    "head.fc_cls.weight",
}
PASSL_UNDECAYED = {
    "backbone.blocks.0.attn.temperature",
    "backbone.cls_token",
    "backbone.pos_embeder.token_projection.weight",
    "backbone.pos_embeder.token_projection.bias",
}
PASSL_PATTERNS = ["temperature", "pos_embed", "cls_token", "dist_token"]


def trainable(model):
    return {name: parameter for name, parameter in model.named_parameters() if not parameter.stop_gradient}


def test_the_official_rule_decays_weights_of_layers_and_the_temperature(tiny_model):
    assert decayed_in(tiny_model(), weight_decay_rule="official") == OFFICIALLY_DECAYED


def test_the_official_rule_decays_the_same_of_a_student(tiny_model):
    """Its parameters are called Student.*, and its class token has three axes: only its name exempts it."""
    model = DistillationWrapper([("Teacher", tiny_model()), ("Student", tiny_model())])
    assert decayed_in(model, weight_decay_rule="official") == {f"Student.{name}" for name in OFFICIALLY_DECAYED}


def test_passls_patterns_leave_four_parameters_undecayed(tiny_model):
    model = tiny_model()
    assert set(trainable(model)) - decayed_in(model, exclude_from_weight_decay=PASSL_PATTERNS) == PASSL_UNDECAYED


@pytest.mark.parametrize("rule", ["official", "passl"])
def test_a_step_of_a_model_is_the_published_one_under_either_rule(rule, tiny_model):
    """In float64; in the first step the moments are the gradient g and its square: p - lr g / (|g| + eps) - lr wd p."""
    model, patterns = tiny_model(), PASSL_PATTERNS if rule == "passl" else []
    decayed = OFFICIALLY_DECAYED if rule == "official" else set(trainable(model)) - PASSL_UNDECAYED
    paddle.seed(1)
    model.train_iter(paddle.randn([4, 3, 8, 8]), paddle.to_tensor([0, 1, 2, 0]))["loss"].backward()
    before = {
        name: (p.numpy().astype("float64"), p.grad.numpy().astype("float64")) for name, p in trainable(model).items()
    }
    build(model, weight_decay=0.05, weight_decay_rule=rule, exclude_from_weight_decay=patterns).step()
    for name, parameter in trainable(model).items():
        value, slope = before[name]
        expected = value - RATE * slope / (np.abs(slope) + 1e-8) - (RATE * 0.05 * value if name in decayed else 0)
        np.testing.assert_allclose(parameter.numpy(), expected, rtol=0, atol=1e-6, err_msg=name)


def test_frozen_parameters_stay(tiny_model):
    model = tiny_model()
    model.head.fc_cls.weight.stop_gradient = True
    before = model.head.fc_cls.weight.numpy().copy()
    model.train_iter(paddle.ones([2, 3, 8, 8]), paddle.to_tensor([0, 1]))["loss"].backward()
    build(model, weight_decay=0.5).step()
    np.testing.assert_array_equal(model.head.fc_cls.weight.numpy(), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_decay_rule": "timm"}, "weight_decay_rule must be 'passl' or 'official', not 'timm'"),
        ({"beta1": 1.0}, "Invalid value of beta1, expect beta1 in [0,1)."),
        ({"beta2": -0.1}, "Invalid value of beta2, expect beta2 in [0,1)."),
        ({"epsilon": -1}, "Invalid value of epsilon, expect epsilon >= 0."),
        *(
            ({"grad_clip": node}, "grad_clip is {name: global_norm or clip_norm, value: number above 0}, not {")
            for node in (
                {},
                {"name": "global_norm"},
                {"name": "norm", "value": 1},
                {"name": ["global_norm"], "value": 1},
                {"name": "global_norm", "value": "one"},
                {"name": "global_norm", "value": [1]},
                {"name": "global_norm", "value": True},
                {"name": "global_norm", "value": 0},
                {"name": "global_norm", "value": -1},
                {"name": "global_norm", "value": 1, "more": 2},
            )
        ),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigError) as caught:
        build(Model(), **arguments)
    assert str(caught.value).startswith(f"optimizer.{next(iter(arguments))}: {message}")
