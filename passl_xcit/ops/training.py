"""What operators with gradients share: a forward operator that saves what the backward operator needs, in a PyLayer."""

from abc import ABC, abstractmethod

import paddle
from paddle.autograd import PyLayer

from passl_xcit.ops.library import library
from passl_xcit.ops.structures import address, addresses, is_plain, parameters_of


class Training(ABC):
    """One call of a layer's operators in training, x -> y, with what no gradient is taken of.

    Attributes:
        name: the operators are <name>_training, <name>_saved and <name>_backward; see native/implement.h.
        parameters: names in the layer, in the order of `Backward`.
        constant: names of parameters that nothing depends on; their gradients are zero.
        Backward: the struct of <name>_backward: that of <name>_training, dy, dx, and gradients of the parameters.
        half: whether it is in bfloat16.
    """

    constant = ()
    half = False

    def __init__(self, layer):
        self.layer = layer

    def result_of(self, x):
        """An empty tensor for y."""
        return paddle.empty_like(x)

    @abstractmethod
    def forward_struct(self, x, y):
        """The struct of <name>_training, its `saved` not set."""

    def run_forward(self, operator):
        """Compute what the struct of <name>_training says."""
        library().run(f"{self.name}_training", operator, self.half)

    def apply(self, x):
        """y, with gradients of x and the parameters"""
        self.given = self.tensors()
        return _Operator.apply(x, self, *self.given)

    def tensors(self):
        """The parameters and the constant ones, None for those that the layer does without."""
        return parameters_of(self.layer, (*self.parameters, *self.constant))

    def gradients_of(self, inputs, saved, dy):
        """Gradients of `inputs`, x and the parameters that there are.

        Raises:
            RuntimeError: the layer has other parameters than in the forward pass.
        """
        tensors = self.tensors()
        if not all(now is then and (now is None or is_plain(now)) for now, then in zip(tensors, self.given)):
            kind = type(self.layer).__name__
            raise RuntimeError(f"{kind}: a parameter was replaced between the forward and the backward pass")
        forward, dy = self.forward_struct(inputs[0], dy), dy.contiguous()
        forward.saved = address(saved)
        gradients = [paddle.empty_like(tensor) for tensor in inputs]
        operator = self.Backward(forward, *addresses(dy, gradients[0]))
        names = (*self.parameters, *self.constant)
        there = [name for name, tensor in zip(names, tensors) if tensor is not None]
        for name, gradient in zip(there, gradients[1:]):
            if name in self.constant:
                gradient.zero_()
            else:
                setattr(operator, name, address(gradient))
        library().run(f"{self.name}_backward", operator, self.half)
        return gradients


def saved_for(name, operator, half=False):
    """A tensor for what the operator <name>_training saves."""
    return paddle.empty([library().size_of(f"{name}_saved", operator, half) // 4 + 1], dtype="float32")


def wanted_of(gradients, inputs):
    """The gradients with None for inputs that want none, as PyLayer has them."""
    return tuple(None if tensor.stop_gradient else gradient for tensor, gradient in zip(inputs, gradients))


class _Operator(PyLayer):
    @staticmethod
    def forward(ctx, x, call, *parameters):
        y = call.result_of(x)
        operator = call.forward_struct(x, y)
        saved = saved_for(call.name, operator, call.half)
        operator.saved = address(saved)
        call.run_forward(operator)
        ctx.save_for_backward(saved, x, *(tensor for tensor in parameters if tensor is not None))
        ctx.call = call
        return y

    @staticmethod
    def backward(ctx, dy):
        saved, *inputs = ctx.saved_tensor()
        return wanted_of(ctx.call.gradients_of(inputs, saved, dy), inputs)
