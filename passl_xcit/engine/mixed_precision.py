"""Training in half precision: PASSL's `use_amp` and `AMP`, on Paddle's own auto-cast and loss scaling."""

import contextlib
from typing import Any, Optional, Sequence

import paddle

from passl_xcit.utils.errors import ConfigError
from passl_xcit.utils.logger import TRAINER, get_logger

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


class MixedPrecision:
    """How a training uses half precision. Losses, softmax and XCA's attention stay in float32.

    On a CPU Paddle has no half precision: the training is in float32 there, which a line of the log says.

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
        self.enabled = (auto_cast is None or auto_cast.enable) and _device_has(dtype)
        scale = {} if scale_loss is None else {"init_loss_scaling": float(scale_loss)}
        self.scaler = paddle.amp.GradScaler(
            enable=self.enabled and dtype == "float16", use_dynamic_loss_scaling=use_dynamic_loss_scaling, **scale
        )

    def prepare(self, model, optimizer):
        """With O2, turn the weights of `model` into half precision and let `optimizer` keep a float32 copy."""
        if self.enabled and self.level == "O2":
            paddle.amp.decorate(
                model, optimizer, level="O2", dtype=self.dtype, master_weight=True, save_dtype="float32"
            )

    def auto_cast(self):
        """The context of forward passes."""
        if not self.enabled:
            return contextlib.nullcontext()
        return paddle.amp.auto_cast(level=self.level, dtype=self.dtype, **self.lists)

    def evaluation(self):
        """The context of evaluations: float32, but where the weights are in half precision."""
        return self.auto_cast() if self.level == "O2" else contextlib.nullcontext()

    def backward(self, loss):
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer):
        """Make the gradients those of the loss itself."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer):
        """Update the weights, unless a scaled gradient is not finite; then lower the scale."""
        self.scaler.step(optimizer)
        self.scaler.update()

    @property
    def scale_can_fall(self):
        """Whether a gradient that is not finite may only say that the loss scale is too high."""
        return self.scaler.is_enable() and self.scaler.is_use_dynamic_loss_scaling() and self.scale > 1

    @property
    def scale(self):
        """The loss scale."""
        return float(self.scaler.state_dict()["scale"].item()) if self.scaler.is_enable() else 1.0

    def state_dict(self):
        return self.scaler.state_dict()

    def set_state_dict(self, state):
        if self.scaler.is_enable() and state:
            self.scaler.load_state_dict(state)


def float32():
    """The MixedPrecision of a training without."""
    return MixedPrecision(auto_cast=AutoCast(enable=False))


def _device_has(dtype):
    device = paddle.get_device()
    if device == "cpu":
        return False
    has = {"float16": paddle.amp.is_float16_supported, "bfloat16": paddle.amp.is_bfloat16_supported}[dtype]
    if not has(device):
        raise ConfigError(f"{device} has no {dtype} training; try the other dtype, or use_amp: false", "AMP.dtype")
    return True


def warn_of_cpu():
    if paddle.get_device() == "cpu":
        logger.warning("use_amp: Paddle has no half precision on a CPU: training in float32")
