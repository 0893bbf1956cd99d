"""Training in half precision: PASSL's `use_amp` and `AMP`, on Paddle's own auto-cast, or on a CPU native operators."""

import contextlib
import warnings
from typing import Any, Optional, Sequence

import paddle

from passl_xcit.ops.library import native_precision, why_no_bfloat16
from passl_xcit.utils.device import operators_without
from passl_xcit.utils.errors import ConfigError
from passl_xcit.utils.logger import TRAINER, get_logger
from passl_xcit.utils.registry import Section

logger = get_logger(TRAINER)


class AutoCast:
    """PASSL's `AMP.auto_cast`: operators that are to run in half precision, or never.

    Args:
        enable: False switches the half precision off.
        custom_white_list, custom_black_list: Paddle's names of operators, such as matmul_v2.
    """

    def __init__(
        self,
        enable: bool = True,
        custom_white_list: Optional[Sequence[str]] = None,
        custom_black_list: Optional[Sequence[str]] = None,
    ):
        self.enable = enable
        self.lists = {"custom_white_list": custom_white_list, "custom_black_list": custom_black_list}


# Softmax is in Paddle's black list for O1, but not for O2.
FLOAT32 = ("softmax",)


class LossScale:
    """The factor that keeps small gradients of float16 above zero (Micikevicius et al. 2018, arXiv 1710.03740, 3.2).

    It is halved when a gradient overflows, and doubled after 2,000 updates without, as Paddle's GradScaler does it,
    which ends with a TypeError at the first overflow (Paddle 3.3.1, NumPy 2.4).

    Args:
        value: the scale to start with; 1 scales nothing.
        dynamic: whether it changes.
    """

    GOOD_STEPS = 2000

    def __init__(self, value, dynamic):
        self.value, self.dynamic, self.good_steps = value, dynamic, 0

    def update(self, overflow):
        """Note whether the gradient of a step overflowed."""
        if not self.dynamic:
            return
        self.good_steps = 0 if overflow else self.good_steps + 1
        if overflow:
            self.value = max(1.0, self.value / 2)
        elif self.good_steps == self.GOOD_STEPS:
            self.value, self.good_steps = min(2.0 * self.value, 2.0**32), 0


class MixedPrecision:
    """How a training uses half precision. Losses, softmax and XCA's attention stay in float32.

    On a CPU Paddle has no half precision: native operators compute in bfloat16 there where they can, with weights in
    float32 for either level and without lists of operators; else the training is in float32. A line of the log says so.

    Args:
        level: "O1": the weights stay in float32, and operators choose; "O2": the weights are in half precision too,
            with a float32 copy that the optimizer updates and checkpoints hold.
        dtype: "float16", with loss scaling, or "bfloat16", without.
        scale_loss: the loss scale to start with; by default Paddle's, 65,536.
        use_dynamic_loss_scaling: raise and lower the scale as gradients allow; False keeps it (MindCV's `loss_scale`).
        auto_cast: lists of operators.
        save_dtype, optimizers: PASSL's keys; checkpoints are always float32, so nothing else may stand here.

    Raises:
        ValueError: for values that cannot be.
        ConfigError: the device has no such half precision.
    """

    def __init__(
        self,
        level: str = "O1",
        dtype: str = "float16",
        scale_loss: Optional[float] = None,
        use_dynamic_loss_scaling: bool = True,
        auto_cast: Optional[AutoCast] = None,
        save_dtype: Optional[str] = None,
        optimizers: Any = None,
    ):
        if level not in ("O1", "O2"):
            raise ValueError(f"level must be O1 or O2, not '{level}'")
        if dtype not in ("float16", "bfloat16"):
            raise ValueError(f"dtype must be float16 or bfloat16, not '{dtype}'")
        if scale_loss is not None and not 1 <= scale_loss <= 2**32:
            raise ValueError(f"scale_loss must lie between 1 and 2**32, not {scale_loss}")
        if save_dtype not in (None, "float32") or optimizers is not None:
            raise ValueError("save_dtype can only be float32, and optimizers null: checkpoints hold float32")
        self.level, self.dtype, self.lists = level, dtype, (auto_cast or AutoCast()).lists
        wanted = auto_cast is None or auto_cast.enable
        self.enabled = wanted and _device_has(dtype)
        self.native = wanted and dtype == "bfloat16" and _on_cpu() and why_no_bfloat16() is None
        self.without_kernel = operators_without(dtype) if self.enabled else ()
        scaled = self.enabled and dtype == "float16"
        self.loss_scale = LossScale(float(scale_loss or 65536) if scaled else 1.0, scaled and use_dynamic_loss_scaling)

    def prepare(self, model, optimizer):
        """With O2, turn the weights of `model` into half precision and let `optimizer` keep a float32 copy.

        Not with Paddle's `save_dtype`: `model.state_dict()` would be copies, into which nothing can be loaded.
        """
        if self.enabled and self.level == "O2":
            paddle.amp.decorate(model, optimizer, level="O2", dtype=self.dtype, master_weight=True)

    def auto_cast(self):
        """The context of forward passes."""
        if self.native:
            return native_precision("bfloat16")
        if not self.enabled:
            return contextlib.nullcontext()
        return paddle.amp.auto_cast(level=self.level, dtype=self.dtype, **self.operators(self.without_kernel))

    def operators(self, without_kernel):
        """The lists of operators that Paddle gets, for a device that can run `without_kernel` in float32 only."""
        white, black = (set(self.lists[f"custom_{colour}_list"] or ()) for colour in ("white", "black"))
        black.update(FLOAT32, without_kernel)
        return {"custom_white_list": white, "custom_black_list": black - white}

    def evaluation(self):
        """The context of evaluations: float32 for O1."""
        return self.auto_cast() if self.level == "O2" else contextlib.nullcontext()

    def backward(self, loss):
        (loss * self.scale).backward()

    @paddle.no_grad()
    def unscale(self, parameters):
        """Make the gradients those of the loss itself."""
        if self.scale != 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.scale_(1 / self.scale)

    @property
    def scale_can_fall(self):
        """Whether a gradient that is not finite may only say that the loss scale is too high."""
        return self.loss_scale.dynamic and self.scale > 1

    @property
    def scale(self):
        """The loss scale."""
        return self.loss_scale.value

    def state_dict(self):
        return {"scale": self.scale, "good_steps": self.loss_scale.good_steps} if self.loss_scale.dynamic else {}

    def set_state_dict(self, state):
        """Raises KeyError, TypeError or ValueError for what is no state of a loss scale."""
        if self.loss_scale.dynamic and state:
            value, good_steps = float(state["scale"]), int(state["good_steps"])
            if not 1 <= value <= 2**32 or good_steps < 0:
                raise ValueError(f"a loss scale of {value}")
            self.loss_scale.value, self.loss_scale.good_steps = value, good_steps


def float32():
    """The MixedPrecision of a training without."""
    return MixedPrecision(auto_cast=AutoCast(enable=False))


def _on_cpu():
    return paddle.get_device() == "cpu"


def _device_has(dtype):
    device = paddle.get_device()
    if _on_cpu():
        return False
    if not _supports(dtype, device) or not _casts_to(dtype):
        raise ConfigError(f"{device} has no {dtype} training; try the other dtype, or use_amp: false", "AMP.dtype")
    return True


def _supports(dtype, device):
    """What Paddle says of the device. Paddle 3.0 has no answer for those of plugins, where casting has to tell."""
    ask = {"float16": paddle.amp.is_float16_supported, "bfloat16": paddle.amp.is_bfloat16_supported}[dtype]
    try:
        return ask(device)
    except TypeError:
        return True


def _casts_to(dtype):
    """Whether Paddle's auto-cast does so on the current device: to bfloat16 on custom devices of some names only."""
    with warnings.catch_warnings(), paddle.amp.auto_cast(dtype=dtype):
        return str(paddle.matmul(paddle.ones([1, 1]), paddle.ones([1, 1])).dtype).endswith(f".{dtype}")


def tell_of_cpu(precision):
    """Say what a training with `use_amp` computes in on a CPU."""
    if not _on_cpu():
        return
    if precision.native:
        logger.info("use_amp: native operators train in bfloat16, with weights and all else in float32")
        return
    reason = why_no_bfloat16()
    hint = f"bfloat16: {reason}" if reason else "native operators have bfloat16: AMP.dtype=bfloat16"
    logger.warning(f"use_amp: Paddle has no half precision on a CPU: training in float32 ({hint})")


AUTO_CAST = Section("auto_cast", AutoCast)
PRECISION = Section("AMP", MixedPrecision, nodes={"auto_cast": AUTO_CAST})
