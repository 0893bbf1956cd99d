"""Which operators a config runs, and what a device has for them: known before the training, and without the device.

A training step and an evaluation are run on the CPU, with images of noise, and the program of an export is traced;
Paddle's own log says which kernels they took. They run in float32 there. Which types half precision takes on the device
follows from the rules of Paddle's auto-cast:

    an operator of the black list: float32; any other: half or float32, by its inputs and by what the model forbids, so
    both are looked up; a gradient: the types of its operator; the update of the weights: float32, and with O2 half too.
"""

import contextlib
import logging
import tempfile
from collections import defaultdict
from typing import NamedTuple

import paddle

from passl_xcit.engine import builder
from passl_xcit.hooks.ema_hook import EMAHook
from passl_xcit.ops.library import portable
from passl_xcit.utils.device import check_device, is_custom
from passl_xcit.utils.errors import UserError
from passl_xcit.utils.kernels import (
    kernel_name,
    kernels_of,
    kernels_of_ascend,
    only_in_float32,
    recorded_calls,
)

TRAINING, EVALUATION, EXPORT = PARTS = ("training", "evaluation", "export")
NATIVE, FALLS_BACK, MISSING = VERDICTS = ("native", "falls back to CPU", "missing")
FLOAT32 = "float32"
OF_NORM = {"square", "sum", "stack", "sqrt"}  # of the gradient's norm, which is computed in float32 always
NO_KERNELS = {"data", "full_int_array"}  # an exported program's inputs and its attributes
ANY_SCHEDULE = {"name": "TimmCosine", "learning_rate": 0.001, "T_max": 1, "decay_unit": "step"}


class Row(NamedTuple):
    """What a device has for one operator in one type."""

    operator: str
    dtype: str
    parts: tuple  # of PARTS
    verdict: str  # one of VERDICTS


class Kernels(NamedTuple):
    """{operator: set of types} of a device, and of the CPU, to which it falls back."""

    device: dict
    cpu: dict

    def verdict(self, operator, dtype):
        if dtype in self.device.get(operator, ()):
            return NATIVE
        return FALLS_BACK if dtype in self.cpu.get(operator, ()) else MISSING


def kernels_for(device):
    """The Kernels of a device such as `npu:0`; of Ascend's plugin by the project's table where it is not installed.

    Raises:
        ConfigError: there is no such device here, and no table of it.
    """
    kind = device.partition(":")[0]
    if kind == "npu" and not is_custom(kind):
        return Kernels(kernels_of_ascend(), kernels_of("cpu"))
    check_device(device)
    return Kernels(kernels_of(kind), kernels_of("cpu"))


def preflight(cfg, device):
    """[Row] of all operators that the config's training step, evaluation and exported program run on a device.

    Args:
        cfg: a Config; its data need not be there.
        device: such as `npu`.

    Raises:
        ConfigError: for a config that cannot be run.
        UserError: this Paddle does not log its kernels.
    """
    kernels, found = kernels_for(device), defaultdict(set)
    if device == "cpu":  # where Paddle has no half precision, and a training is in float32
        cfg = cfg.with_values(use_amp=False)
    for part, calls in calls_of(cfg, kernels).items():
        for operator, dtype in calls:
            found[operator, dtype].add(part)
    rows = [Row(*key, tuple(sorted(parts, key=PARTS.index)), kernels.verdict(*key)) for key, parts in found.items()]
    return sorted(rows, key=lambda row: (-VERDICTS.index(row.verdict), row.operator, row.dtype))


def on_noise(cfg):
    """The config with a few images of noise in place of its data, and without files of weights."""
    data, batch = cfg["dataloader"], 2 * cfg.get("accum_steps", 1)
    for split in data.values():
        kept = {key: split["dataset"].get(key) for key in ("transforms", "batch_transforms")}
        noise = {"name": "RandomImages", "num_images": 2 * batch, "channels": _channels(cfg["model"]), **kept}
        split.update(dataset=noise, num_workers=None, loader=None)
        split["sampler"]["batch_size"] = batch
    model = cfg["model"]
    if "pretrained_list" in model:
        model["pretrained_list"] = [None] * len(model["models"])
    return cfg.with_values(
        dataloader=data, model=model, epochs=1, lr_scheduler=ANY_SCHEDULE, custom_config=_averages(cfg)
    )


def _averages(cfg):
    return [node for node in cfg.get("custom_config") or [] if node["name"] == EMAHook.__name__]


def _channels(node):
    """The first `in_chans` in a tree of nodes; 3 where none says it."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    found = [node["in_chans"]] if isinstance(node, dict) and "in_chans" in node else []
    return next((count for count in [*found, *map(_channels, children)] if count != 3), 3)


class Half:
    """The types that operators take under Paddle's auto-cast on a device that is not there.

    Args:
        precision: a MixedPrecision; the device here need not have its type.
        kernels: the Kernels of the device.
    """

    def __init__(self, precision, kernels):
        self.dtype, self.everywhere = precision.dtype, precision.level == "O2"
        custom = precision.operators(only_in_float32(self.dtype, *kernels))
        listed = paddle.amp.amp_lists.black_list()[self.dtype][precision.level] | custom["custom_black_list"]
        self.black = {kernel_name(name) for name in listed - custom["custom_white_list"]}

    def of_forward(self, calls):
        """{(operator, type)} of forward passes that ran in float32 here, with auto-cast's own casts."""
        return self._types(calls, self.black) | {("cast", FLOAT32), ("cast", self.dtype)}

    def of_backward(self, calls):
        """The same of a backward pass: a gradient has the types of its operator, and what has another name any."""
        return self._types(calls, {f"{operator}_grad" for operator in self.black})

    def of_update(self, calls):
        """The same of what follows the backward pass, to which no list applies."""
        return self._types(calls, OF_NORM) if self.everywhere else set(calls)

    def _types(self, calls, black):
        found = set(calls)
        return found | {
            (operator, self.dtype) for operator, dtype in found if dtype == FLOAT32 and operator not in black
        }


def calls_of(cfg, kernels):
    """{part: {(operator, type)}} that the config runs on a device with these Kernels."""
    cfg = on_noise(builder.with_class_count(cfg, 1000))
    with tempfile.TemporaryDirectory() as folder, _no_log(), _on_cpu(), portable():
        model = builder.build_model(cfg)
        trainer = builder.build_trainer(cfg.with_values(output_dir=folder, checkpoint=None), model)
        half = Half(trainer.precision, kernels) if cfg.get("use_amp") else None
        calls = {TRAINING: _of_training(trainer, half)}
        if cfg["dataloader"].get("val"):
            evaluator = builder.build_evaluator(cfg, model)
            calls[EVALUATION] = _of_evaluation(evaluator, trainer.precision, half)
            calls[EXPORT] = _of_export(model, next(iter(evaluator.loader))[0])
    return calls


def _of_training(trainer, half):
    averages = [hook for hook in trainer.hooks if isinstance(hook, EMAHook)]
    batch = next(iter(trainer.train_loader))
    with recorded_calls() as calls:
        for hook in averages:
            hook.run_begin(trainer)
        trainer.train_step(*batch)
        for hook in averages:
            hook.train_iter_end(trainer)
    found = _types_of(calls)
    if not found:
        raise UserError("this Paddle logs no kernels; if GLOG_minloglevel is set, unset it")
    if half is None:
        return set(found)
    gradients = [index for index, (operator, _) in enumerate(found) if operator.endswith("_grad")]
    first, last = (gradients[0], gradients[-1] + 1) if gradients else (0, 0)
    return half.of_forward(found[:first]) | half.of_backward(found[first:last]) | half.of_update(found[last:])


def _of_evaluation(evaluator, precision, half):
    with precision.evaluation(), recorded_calls() as calls:
        evaluator.evaluate()
    return half.of_forward(_types_of(calls)) if half and half.everywhere else set(_types_of(calls))


def _types_of(calls):
    return [(call.operator, call.dtype) for call in calls]


def _of_export(model, images):
    """{(operator, type)} of the program that an export would write, traced for images like these [B, C, H, W]."""
    model.eval()
    spec = paddle.static.InputSpec([None, *images.shape[1:]], "float32")
    program = paddle.jit.to_static(model.forward, input_spec=[spec], full_graph=True).concrete_program.main_program
    known = {*kernels_of("cpu"), *kernels_of_ascend()} - NO_KERNELS
    found = set()
    for operation in program.global_block().ops:
        operator = operation.name().rpartition(".")[2].rstrip("_")
        values = [
            value for value in [*operation.operands_source(), *operation.results()] if value.is_dense_tensor_type()
        ]
        if operator in known and values:
            found.add((operator, values[0].dtype.name.lower()))
    return found


@contextlib.contextmanager
def _on_cpu():
    before = paddle.get_device()
    paddle.set_device("cpu")
    try:
        yield
    finally:
        paddle.set_device(before)


@contextlib.contextmanager
def _no_log():
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
