"""What a training does to all of its tensors at once, in C++: AdamW's step, a moving average, the norm of gradients.

Paddle does it tensor by tensor, with several operators for each. For float32 tensors on a CPU; see native/update.h.
"""

import ctypes
import math

from passl_xcit.ops.conditions import is_plain
from passl_xcit.ops.library import library
from passl_xcit.ops.structures import addresses, integers, pointers

MOMENTS = ("moment1", "moment2", "beta1_power", "beta2_power")


class AdamWTensor(ctypes.Structure):
    _fields_ = [*pointers("weight", "gradient", *MOMENTS), *integers("size", "decays")]


class AveragedTensor(ctypes.Structure):
    _fields_ = [*pointers("average", "value"), *integers("size")]


class SquaredTensor(ctypes.Structure):
    _fields_ = [*pointers("value"), *integers("size")]


def _list_of(tensor, *numbers):
    """The struct of a list of `tensor` structs and some numbers."""
    fields = [*integers("count"), ("tensors", ctypes.POINTER(tensor)), *[(name, ctypes.c_double) for name in numbers]]
    return type(f"{tensor.__name__}s", (ctypes.Structure,), {"_fields_": fields})


AdamW = _list_of(AdamWTensor, "rate", "decay", "beta1", "beta2", "epsilon")
Average = _list_of(AveragedTensor, "decay")


class Squares(ctypes.Structure):
    _fields_ = [*integers("count"), ("tensors", ctypes.POINTER(SquaredTensor)), *pointers("sum")]


def applies_to(tensors):
    """Whether the functions of this file can be used for some tensors."""
    return library() is not None and all(map(is_plain, tensors))


def adamw_step(rows, rate, decay, beta1, beta2, epsilon):
    """One step of AdamW (arXiv 1711.05101, algorithm 2), in place.

    Args:
        rows: for each parameter (weight, gradient, moment1, moment2, beta1_power, beta2_power, whether it decays), all
            float32 tensors; the powers are those of this step, [1], and afterwards those of the next.
        rate: the learning rate.
    """
    tensors = [AdamWTensor(*addresses(*row[:6]), _size(row[0]), row[6]) for row in rows]
    library().run("adamw", AdamW(len(tensors), _array(AdamWTensor, tensors), rate, decay, beta1, beta2, epsilon))


def move_averages(pairs, decay):
    """average = decay * average + (1 - decay) * value, in place, for pairs (average, value) of float32 tensors."""
    tensors = [AveragedTensor(*addresses(average, value), _size(average)) for average, value in pairs]
    library().run("average", Average(len(tensors), _array(AveragedTensor, tensors), decay))


def norm_of(tensors):
    """The Euclidean norm of float32 tensors together, a float; summed in float64."""
    listed = [SquaredTensor(tensor.data_ptr(), _size(tensor)) for tensor in tensors]
    total = ctypes.c_double()
    library().run("squares", Squares(len(listed), _array(SquaredTensor, listed), ctypes.addressof(total)))
    return math.sqrt(total.value)


def _size(tensor):
    return math.prod(tensor.shape)  # `size` takes ten times as long


def _array(struct, values):
    return (struct * len(values))(*values)
