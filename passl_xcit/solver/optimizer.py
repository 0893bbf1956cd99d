"""Optimizers with PASSL's names and keys."""

from typing import Optional, Sequence

import paddle
from paddle import nn

from passl_xcit.ops.update import adamw_step, applies_to
from passl_xcit.utils.registry import OPTIMIZERS
from passl_xcit.utils.typing_check import fits

GRAD_CLIPS = {"global_norm": nn.ClipGradByGlobalNorm, "clip_norm": nn.ClipGradByNorm}

# Paddle's names of what it keeps for each parameter.
ACCUMULATORS = ("moment1_0", "moment2_0", "beta1_pow_acc_0", "beta2_pow_acc_0")


class NativeAdamW(paddle.optimizer.AdamW):
    """Paddle's AdamW, whose steps are one native operator each where that can be; its state is Paddle's.

    Args:
        undecayed: Paddle's names of the parameters that are not decayed.
        options: of Paddle's AdamW, with one group of parameters.
    """

    def __init__(self, undecayed, beta1, beta2, epsilon, weight_decay, grad_clip, **options):
        self._numbers = {"decay": weight_decay, "beta1": beta1, "beta2": beta2, "epsilon": epsilon}
        self._undecayed, self._clip = undecayed, grad_clip
        super().__init__(
            beta1=beta1,
            beta2=beta2,
            epsilon=epsilon,
            weight_decay=weight_decay,
            grad_clip=grad_clip,
            apply_decay_param_fun=lambda name: name not in undecayed,
            **options,
        )
        self._trained, self._kept = options["parameters"], {}

    @paddle.no_grad()
    def step(self):
        """Move the parameters that have a gradient; Paddle makes the moments in the first step."""
        pairs = [(each, each.grad) for each in self._trained if not each.stop_gradient]
        pairs = [(weight, gradient) for weight, gradient in pairs if gradient is not None]
        if not applies_to([tensor for pair in pairs for tensor in pair]) or not self._keeps(pairs):
            return super().step()
        clipped = self._clip(pairs) if self._clip else pairs
        rows = [(*pair, *self._kept[pair[0].name], pair[0].name not in self._undecayed) for pair in clipped]
        adamw_step(rows, self.get_lr(), **self._numbers)

    def _keeps(self, pairs):
        """Whether the moments of all these parameters are there, and float32; Paddle never makes others for them."""
        if all(weight.name in self._kept for weight, _ in pairs):
            return True
        state = self.state_dict()
        for weight, _ in pairs:
            self._kept[weight.name] = [state.get(f"{weight.name}_{name}") for name in ACCUMULATORS]
        tensors = [tensor for weight, _ in pairs for tensor in self._kept[weight.name]]
        if any(tensor is None for tensor in tensors) or not applies_to(tensors):
            self._kept.clear()
        return bool(self._kept)


def AdamW(
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
    exclude_from_weight_decay: Optional[Sequence[str]] = None,
    weight_decay_rule: str = "passl",
    grad_clip: Optional[dict] = None,
    learning_rate=None,
    model=None,
):
    """AdamW over the trainable parameters of `model`.

    Args:
        exclude_from_weight_decay: parameters whose name contains one of these texts are not decayed.
        weight_decay_rule: `passl`: every other parameter is decayed, norms and biases too. `official`: also exempt
            are 1-D parameters, biases and the backbone's `no_weight_decay()` (timm 0.4.9, as XCiT was trained).
        grad_clip: {"name": "global_norm" or "clip_norm", "value": float}.
        learning_rate, model: given by the program.
    """
    if weight_decay < 0:
        raise ValueError(f"weight_decay must not be negative, but is {weight_decay}")
    excluded = undecayed_names(model, exclude_from_weight_decay or (), weight_decay_rule)
    return NativeAdamW(
        excluded,
        beta1,
        beta2,
        epsilon,
        weight_decay,
        _build_grad_clip(grad_clip),
        learning_rate=learning_rate,
        parameters=[parameter for parameter in model.parameters() if not parameter.stop_gradient],
    )


def undecayed_names(model, patterns, rule):
    """Paddle's own names (not the structured ones) of the parameters that weight decay leaves alone."""
    if rule not in ("passl", "official"):
        raise ValueError(f"weight_decay_rule must be 'passl' or 'official', not '{rule}'")
    # By Paddle's names, because what the backbone is called in the model differs: a distillation's is Student.backbone.
    kept = model.backbone.no_weight_decay() if rule == "official" else ()
    exempt = {parameter.name for name, parameter in model.backbone.named_parameters() if name in kept}
    names = set()
    for name, parameter in model.named_parameters():
        by_rule = rule == "official" and (parameter.ndim == 1 or name.endswith(".bias") or parameter.name in exempt)
        if by_rule or any(pattern in name for pattern in patterns):
            names.add(parameter.name)
    return names


def _build_grad_clip(node):
    if node is None:
        return None
    complete = set(node) == {"name", "value"} and node["name"] in list(GRAD_CLIPS) and fits(node["value"], float)
    if not complete or node["value"] <= 0:
        raise ValueError(f"grad_clip is {{name: {' or '.join(GRAD_CLIPS)}, value: number above 0}}, not {node}")
    return GRAD_CLIPS[node["name"]](float(node["value"]))


OPTIMIZERS.register(AdamW, runtime=("learning_rate", "model"))
