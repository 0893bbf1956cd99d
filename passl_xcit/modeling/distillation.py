"""A student that learns from a frozen teacher as well as from the labels.

Shapes: B images, K classes.
"""

from typing import Optional, Sequence

import numpy as np
import paddle
from paddle import nn

from passl_xcit.losses import hard_distillation, mutual_kl, soft_distillation
from passl_xcit.modeling.architectures import Classification, freeze_
from passl_xcit.modeling.layers import constant
from passl_xcit.modeling.resize import scale_images
from passl_xcit.utils.errors import ConfigError
from passl_xcit.utils.registry import MODELS, join

KINDS = ("dml", "hard", "soft")
DML_WEIGHTS = ("dml_loss_weight", "head_loss_weight")
UNUSED = {"dml": ("alpha", "tau"), "hard": ("tau", *DML_WEIGHTS), "soft": DML_WEIGHTS}


class DistillationWrapper(nn.Layer):
    """The student, as far as anything outside training sees; its parameters are `Student.*`, as in PASSL's files.

    The teacher is no sublayer: it is in evaluation mode, without gradients, and in no state dict, checkpoint or
    optimizer. (PASSL's teacher stood in training mode, so that its BatchNorms drifted.)

    Args:
        models: two pairs (name, model): the teacher and the student.
        pretrained_list: for each of `models` a weight file or address, or null.
        freeze_params_list: for each of `models` whether it is frozen; the teacher must be, the student not.
        infer_model_key: which of them is the student.
        dml_loss_weight, head_loss_weight: loss = dml_loss_weight * mutual_kl + head_loss_weight * label loss (PASSL).
        distillation_type: "dml", or DeiT's "hard" or "soft": loss = (1 - alpha) * label loss + alpha * distillation.
        alpha, tau: weight and temperature of DeiT's losses.
        teacher_size: side in pixels to which the teacher's images are scaled; null leaves them as the student's.
        input_mean, input_std: how the student's images are normalised; needed with the next two only.
        teacher_mean, teacher_std: how the teacher's are to be, for a teacher that was trained otherwise.

    Raises:
        ValueError: for names, lists, numbers of classes or values that do not fit one another.
    """

    def __init__(
        self,
        models: Sequence[dict],
        pretrained_list: Optional[Sequence[Optional[str]]] = None,
        freeze_params_list: Sequence[bool] = (True, False),
        infer_model_key: str = "Student",
        dml_loss_weight: float = 0.5,
        head_loss_weight: float = 0.5,
        distillation_type: str = "dml",
        alpha: float = 0.5,
        tau: float = 1.0,
        teacher_size: Optional[int] = None,
        input_mean: Optional[Sequence[float]] = None,
        input_std: Optional[Sequence[float]] = None,
        teacher_mean: Optional[Sequence[float]] = None,
        teacher_std: Optional[Sequence[float]] = None,
    ):
        super().__init__()
        names = [name for name, _ in models]
        _check_lists(names, infer_model_key, pretrained_list, freeze_params_list)
        _check_numbers(distillation_type, alpha, tau, teacher_size)
        if min(dml_loss_weight, head_loss_weight) < 0:
            raise ValueError(
                f"dml_loss_weight {dml_loss_weight}, head_loss_weight {head_loss_weight}: expected 0 or more"
            )
        by_name = dict(models)
        student = by_name.pop(infer_model_key)
        (teacher,) = by_name.values()
        if not all(isinstance(model, Classification) for model in (student, teacher)):
            raise ValueError("models must be two classifications, each a backbone with a head")
        if student.num_classes != teacher.num_classes:
            raise ValueError(f"models have {teacher.num_classes} and {student.num_classes} classes: expected as many")
        self.infer_model_key = infer_model_key
        self.add_sublayer(infer_model_key, student)
        freeze_(teacher)
        self._hidden = (teacher,)  # in a tuple, which nn.Layer does not look into
        self._given_logits = None
        self.pretrained = dict(zip(names, pretrained_list or [None, None]))
        self.weights = (dml_loss_weight, head_loss_weight) if distillation_type == "dml" else (alpha, 1 - alpha)
        self.distillation_type, self.tau, self.teacher_size = distillation_type, tau, teacher_size
        normalisations = (input_mean, input_std, teacher_mean, teacher_std)
        self.renormalise = _renormalisation(*normalisations, student.backbone.in_chans)

    @property
    def student(self):
        return self._sub_layers[self.infer_model_key]

    @property
    def teacher(self):
        return self._hidden[0]

    @property
    def backbone(self):
        return self.student.backbone

    @property
    def num_classes(self):
        return self.student.num_classes

    def train(self):
        """Training mode for the student; `freeze` may keep parts of it out."""
        super().train()
        self.student.train()

    def forward(self, images):
        """images [B, in_chans, H, W] -> the student's logits [B, K]"""
        return self.student(images)

    def extract_feat(self, images, stage="neck"):
        """The student's features; see `Classification.extract_feat`."""
        return self.student.extract_feat(images, stage)

    def train_iter(self, images, targets):
        """-> {"loss", "acc1", "acc5", "head_loss", "<kind>_loss"}; targets int [B] or soft [B, K]"""
        teacher_logits = self._teacher_logits(images)
        logits = self.student(images)
        outputs = self.student.head.loss(logits, targets)
        head_loss, distilled = outputs["loss"], self._distillation(logits, teacher_logits)
        weight, head_weight = self.weights
        outputs["loss"] = weight * distilled + head_weight * head_loss
        return {**outputs, "head_loss": head_loss, f"{self.distillation_type}_loss": distilled}

    def give_teacher_logits(self, logits):
        """Let the next calls of `train_iter` take these logits [B, K], in order, instead of asking the teacher."""
        self._given_logits = logits

    @paddle.no_grad()
    def _teacher_logits(self, images):
        if self._given_logits is None:
            return self.teacher(self.teacher_images(images))
        logits, rest = self._given_logits[: len(images)], self._given_logits[len(images) :]
        self._given_logits = rest if len(rest) else None
        return logits

    def _distillation(self, logits, teacher_logits):
        if self.distillation_type == "dml":
            return mutual_kl(logits, teacher_logits)
        if self.distillation_type == "hard":
            return hard_distillation(logits, teacher_logits)
        return soft_distillation(logits, teacher_logits, self.tau)

    def teacher_images(self, images):
        """The student's images [B, in_chans, H, W] in the size and normalisation that the teacher was trained with."""
        if self.renormalise is not None:
            scale, shift = (
                constant(np.reshape, values, (1, -1, 1, 1), dtype=images.dtype) for values in self.renormalise
            )
            images = images * scale + shift
        if self.teacher_size is None:
            return images
        return scale_images(images, self.teacher_size, "bicubic")


def unused_keys(node):
    """The keys of a DistillationWrapper's node that its loss does not look at."""
    return [key for key in UNUSED[node.get("distillation_type", "dml")] if key in node]


def student_node(node, path):
    """(node, path) of the student in a config's model node; `node` itself where that is no distillation."""
    if node.get("name") != DistillationWrapper.__name__:
        return node, path
    key = node.get("infer_model_key", "Student")
    for index, item in enumerate(node["models"]):
        if key in item:
            return item[key], f"{path}.models.{index}.{key}"
    raise ConfigError(f"'{key}' is not one of models", f"{path}.infer_model_key")


def _check_lists(names, infer_model_key, pretrained_list, freeze_params_list):
    if sorted(names) != ["Student", "Teacher"]:
        raise ValueError(f"models needs one named Teacher and one named Student, not {names}")
    if infer_model_key != "Student":
        raise ValueError(f"infer_model_key must be 'Student', not '{infer_model_key}': the teacher is not trained")
    if pretrained_list is not None and len(pretrained_list) != 2:
        raise ValueError(f"pretrained_list needs one entry for each of models, not {len(pretrained_list)}")
    expected = [name != infer_model_key for name in names]
    if list(freeze_params_list) != expected:
        raise ValueError(f"freeze_params_list must be {expected}: the teacher is frozen, the student learns")


def _check_numbers(distillation_type, alpha, tau, teacher_size):
    if distillation_type not in KINDS:
        raise ValueError(f"distillation_type must be {', '.join(KINDS)}, not '{distillation_type}'")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], not {alpha}")
    if not 0.01 <= tau <= 1000:
        raise ValueError(f"tau must lie between 0.01 and 1000, not {tau}")
    if teacher_size is not None and not 1 <= teacher_size <= 10_000:
        raise ValueError(f"teacher_size must lie between 1 and 10,000 pixels, not {teacher_size}")


def _renormalisation(input_mean, input_std, teacher_mean, teacher_std, channels):
    """(scale, shift) per channel from the student's normalised values to the teacher's; None where nothing is given."""
    given = [input_mean, input_std, teacher_mean, teacher_std]
    if all(values is None for values in given):
        return None
    if any(values is None or len(values) != channels for values in given):
        raise ValueError(f"teacher_mean needs input_mean, input_std and teacher_std with it, {channels} numbers each")
    if min(*input_std, *teacher_std) <= 0:
        raise ValueError("teacher_std and input_std must be above 0")
    scale = tuple(ours / theirs for ours, theirs in zip(input_std, teacher_std))
    shift = tuple((ours - theirs) / std for ours, theirs, std in zip(input_mean, teacher_mean, teacher_std))
    return scale, shift


class _NamedModels:
    """The items of `models`: mappings of one name to a model's node; PASSL's form. As a Registry for a Schema."""

    def check(self, item, path):
        (name, node) = self._split(item, path)
        MODELS.check(node, join(path, name))

    def build(self, item, path, **runtime):
        name, node = self._split(item, path)
        return name, MODELS.build(node, join(path, name), **runtime)

    def filled(self, item):
        return {name: MODELS.filled(node) for name, node in item.items()} if isinstance(item, dict) else item

    def _split(self, item, path):
        if not isinstance(item, dict) or len(item) != 1:
            raise ConfigError(
                "expected one name with a model below it, such as `Teacher: {name: Classification, ...}`", path
            )
        return next(iter(item.items()))


MODELS.register(DistillationWrapper, nodes={"models": _NamedModels()})
