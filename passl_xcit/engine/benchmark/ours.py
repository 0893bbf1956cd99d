"""What the workers of our own contenders do: the model as it is, and its export in the engines.

Each function takes the task of `protocol.serve`, which holds a Case's values, the paths of the inputs, "engine"
and "threads", and returns a step that gives an array: what the contenders of a case must agree on.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import paddle
from safetensors.numpy import load_file

from passl_xcit.engine.benchmark.cases import COPIED, MATRIX
from passl_xcit.engine.mixed_precision import MixedPrecision, float32
from passl_xcit.engine.runtimes import open_runtime, why_not_eager
from passl_xcit.modeling import factory
from passl_xcit.ops.frozen import Frozen
from passl_xcit.ops.library import native_precision
from passl_xcit.solver.optimizer import NativeAdamW
from passl_xcit.utils.errors import ConfigError

LEARNING_RATE = 1e-6  # so that many steps on one batch stay ordinary ones


def build(task):
    """See `protocol.serve`."""
    return {"matmul": matmul, "copy": copy, "inference": inference, "train": train}[task["mode"]](task)


def matmul(task):
    """A product of two square matrices."""
    paddle.seed(0)
    left, right = paddle.rand([2, MATRIX, MATRIX]).astype(task["precision"])  # each [MATRIX, MATRIX]

    def step():
        paddle.matmul(left, right)
        return np.ones([1, 1])

    return step


def copy(task):
    """Memory to memory, each thread its share."""
    threads = task["threads"]
    given, taken = (np.ones([threads, COPIED // threads // 4], "float32") for _ in range(2))
    pool = ThreadPoolExecutor(threads)

    def step():
        list(pool.map(np.copyto, taken, given))
        return taken[:, :1]

    return step


def inference(task):
    """Logits [B, K]."""
    images = load_file(task["inputs"])["images"]
    if task["engine"] != "eager":
        return partial(open_runtime(task["export"], task["engine"], task["precision"], task["threads"]), images)
    _check_precision(task["precision"])
    model = _model(task)
    model.eval()
    frozen = Frozen(model)

    @paddle.no_grad()
    def step():
        with native_precision(task["precision"]), frozen:
            return model(paddle.to_tensor(images)).numpy()

    return step


def _check_precision(precision):
    reason = why_not_eager(precision, paddle.get_device())
    if reason:
        raise ConfigError(f"{precision}: {reason}")


def train(task):
    """A step of training with AdamW, loss and gradients: [loss, norm of all gradients]."""
    if task["engine"] != "eager":
        raise ConfigError(f"{task['engine']}: an exported program cannot be trained")
    model, precision = _model(task), float32()
    inputs = load_file(task["inputs"])
    images, targets = (paddle.to_tensor(inputs[name]) for name in ("images", "targets"))
    if task["precision"] != "float32":
        precision = MixedPrecision(dtype=task["precision"])
        if not precision.enabled:
            _check_precision(task["precision"])
    return training_step(model.parameters(), lambda: _loss(model, precision, images, targets))


def _loss(model, precision, images, targets):
    with precision.auto_cast():
        return model.train_iter(images, targets)["loss"]


def training_step(parameters, loss_of):
    """A step with AdamW; what it returns the first time is [loss, norm of all gradients], later [loss]."""
    numbers = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01}  # as AdamW's in torch
    optimizer = NativeAdamW((), **numbers, grad_clip=None, learning_rate=LEARNING_RATE, parameters=parameters)
    told = []

    def step():
        loss = loss_of()
        loss.backward()
        if not told:
            squares = [float((p.grad.astype("float64") ** 2).sum()) for p in parameters if p.grad is not None]
            told.append(sum(squares) ** 0.5)
            answer = [loss.item(), told[0]]
        else:
            answer = [loss.item()]
        optimizer.step()
        optimizer.clear_grad()
        return np.array(answer)

    return step


def _model(task):
    return factory.create_model(task["model"], pretrained=task["ours"])
