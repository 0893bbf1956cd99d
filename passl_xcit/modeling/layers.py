"""Building blocks that every backbone shares: the only copy of each."""

import contextlib
import math
from functools import lru_cache

import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.distributed.fleet.utils import recompute

from passl_xcit.ops.library import portable

trunc_normal_ = nn.initializer.TruncatedNormal(std=0.02)
zeros_ = nn.initializer.Constant(0.0)
ones_ = nn.initializer.Constant(1.0)
BATCH_NORMS = (nn.BatchNorm2D, nn.SyncBatchNorm)


class DropPath(nn.Layer):
    """Stochastic depth: drops the whole residual branch of a sample with probability `rate`.

    The kept ones are divided by the keep probability (Huang et al. 2016, arXiv 1603.09382).
    """

    def __init__(self, rate=0.0):
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop_path_rate must lie in [0, 1), not {rate}")
        self.rate = rate

    def forward(self, x):
        """[B, ...] -> [B, ...]"""
        factors = self.draw(x)
        return x if factors is None else x * factors.astype(x.dtype)

    def draw(self, x):
        """What the samples of x [B, ...] are multiplied by, float32 [B, 1, ...]; None where nothing is dropped."""
        if not self.training or self.rate == 0.0:
            return None
        # As paddle.bernoulli draws, and divided by a tensor: Ascend has no kernels for it and for a quotient by a
        # number. In float32: neither it nor the CPU draws in half precision.
        keep = paddle.full([x.shape[0]] + [1] * (x.ndim - 1), 1.0 - self.rate, dtype="float32")
        return (paddle.rand(keep.shape, dtype="float32") < keep).astype("float32") / keep


def recomputed(layer, *inputs):
    """layer(*inputs), computed once more in the backward pass instead of keeping what the gradients need.

    The second time the same draws are made, and BatchNorm's running statistics stay as they are: without care they
    would see every batch twice.
    """
    runs = []

    def run(*inputs):
        runs.append(layer)
        again = contextlib.nullcontext() if len(runs) == 1 else _running_statistics_kept(layer)
        # Not by native operators: Paddle's recompute does not see what they save, and no gradients would come back.
        with portable(), again:
            return layer(*inputs)

    return recompute(run, *inputs, use_reentrant=False)


@contextlib.contextmanager
def _running_statistics_kept(layer):
    norms = [norm for norm in layer.sublayers() if isinstance(norm, BATCH_NORMS)]
    momenta = [norm._momentum for norm in norms]
    for norm in norms:
        norm._momentum = 1.0  # the share of the old statistics
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm._momentum = momentum


class QkvAttention(nn.Layer):
    """What attention by one projection to q, k and v is made of; a subclass says what attends to what."""

    def __init__(self, dim, num_heads, qkv_bias, attn_drop, proj_drop):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3, bias_attr=None if qkv_bias else False)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)


def split_heads(x, num_heads):
    """[B, M, C] -> [B, h, M, d], h heads of d = C / h channels"""
    return x.reshape([0, 0, num_heads, -1]).transpose([0, 2, 1, 3])


def attend(q, k, v, drop):
    """q [B, h, Q, d], k and v [B, h, M, d] -> [B, Q, C]"""
    attn = F.softmax(paddle.matmul(q * q.shape[-1] ** -0.5, k, transpose_y=True), axis=-1)  # [B, h, Q, M]
    return paddle.matmul(drop(attn), v).transpose([0, 2, 1, 3]).flatten(2)  # [B, h, Q, d] -> [B, Q, C]


class Gelu(nn.Layer):
    """GELU by the error function or, where a model's `act` says so, by the tanh approximation (arXiv 1606.08415)."""

    KINDS = ("gelu", "gelu_tanh")

    def __init__(self, act="gelu"):
        super().__init__()
        self.set_act(act)

    def set_act(self, act):
        if act not in self.KINDS:
            raise ValueError(f"act must be {' or '.join(self.KINDS)}, not {act!r}")
        self.act = act

    def forward(self, x):
        """[...] -> [...]"""
        if self.act == "gelu_tanh" and not paddle.in_dynamic_mode():  # paddle2onnx 2.1.0 would export the other one
            return 0.5 * x * (1 + paddle.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
        return F.gelu(x, approximate=self.act == "gelu_tanh")


class Mlp(nn.Layer):
    """Linear, GELU, Linear: [..., C] -> [..., C]."""

    def __init__(self, dim, hidden_dim, drop=0.0):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = Gelu()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x):
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


def check_rates(**rates):
    """Raise ValueError, with its name, for a dropout rate outside [0, 1)."""
    for name, rate in rates.items():
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"{name} must lie in [0, 1), not {rate}")


def init_transformer_(layer):
    """Set one layer as the XCiT reference starts it (pass to `Layer.apply`).

    Linear: truncated normal of std 0.02 and zero bias; LayerNorm and BatchNorm: 1 and 0; Conv2D: torch's
    default, U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weight and bias, because Paddle's own default ignores groups
    and differs by 5 to 10 times (facebookresearch/xcit, xcit.py, `_init_weights`).
    """
    if isinstance(layer, nn.Linear):
        trunc_normal_(layer.weight)
        _fill(zeros_, layer.bias)
    elif isinstance(layer, (nn.LayerNorm, nn.BatchNorm2D)):
        _fill(ones_, layer.weight)
        _fill(zeros_, layer.bias)
    elif isinstance(layer, nn.Conv2D):
        fan_in = math.prod(layer.weight.shape[1:])  # [C_out, C_in / groups, kH, kW]
        uniform_ = nn.initializer.Uniform(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
        _fill(uniform_, layer.weight)
        _fill(uniform_, layer.bias)


def _fill(initializer, parameter):
    if parameter is not None:
        initializer(parameter)


def constant(make, *arguments, dtype):
    """The array of floats `make(*arguments)` as a tensor, which stays on the current device for the next call.

    A graph that is being exported gets one of its own: a tensor belongs to the graph that it was made in.
    """
    if paddle.in_dynamic_mode():
        return _kept(make, arguments, dtype, paddle.get_device())
    return _made(make, arguments, dtype)


@lru_cache(maxsize=64)
def _kept(make, arguments, dtype, device):
    return _made(make, arguments, dtype)


def _made(make, arguments, dtype):
    return paddle.to_tensor(make(*arguments).astype("float32"), dtype=dtype)


def parameter_filled(layer, shape, value):
    """A new parameter of `layer` with every element set to `value`."""
    return layer.create_parameter(shape, default_initializer=nn.initializer.Constant(value))
