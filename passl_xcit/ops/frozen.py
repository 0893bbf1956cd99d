"""Models whose weights stay as they are for a while: native operators pack them once, not in every call.

Packed weights are a copy in the order in which the operators read them. For one image, packing takes longer than
computing with what was packed.
"""

import contextlib
import weakref
from dataclasses import dataclass
from typing import Callable

import numpy as np

from passl_xcit.ops.library import library
from passl_xcit.ops.structures import addresses, is_plain

_frozen = weakref.WeakKeyDictionary()  # layer -> _Frozen


class _Frozen:
    """What is kept of a layer, without a reference to it.

    Attributes:
        sublayers: of the layer.
        operators: (library, name, half) -> struct, and the tensors that it points to.
    """

    def __init__(self, layer):
        self.sublayers, self.operators = layer.sublayers(), {}
        self._as_made = None

    def is_as_made(self, ask, layer):
        """What `ask` says of the layer, its sublayers and parameters, which it is asked once."""
        if self._as_made is None:
            self._as_made = ask(layer, [layer, *self.sublayers], layer.parameters())
        return self._as_made


@contextlib.contextmanager
def frozen(model):
    """Inside, native operators of the model in evaluation may keep what they made of its parameters and settings.

    So none of these may change, in no thread. Hooks, modes, devices and precisions may. It costs memory: once more what
    the blocks' parameters take, half of that in bfloat16.
    """
    freeze = Freeze(model)
    try:
        yield
    finally:
        freeze.melt()


class Freeze:
    """The same from now on, until `melt` or the end of the model.

    Where others can reach the model, `renew` before a forward pass finds weights that were loaded in the meantime.
    """

    def __init__(self, model):
        layers = [layer for layer in model.sublayers(include_self=True) if "native_parts" in vars(layer)]
        self._layers = [layer for layer in layers if layer not in _frozen]
        self._model = model
        self._start()

    def _start(self):
        _frozen.update((layer, _Frozen(layer)) for layer in self._layers)
        self._tensors = [each for each in (*self._model.parameters(), *self._model.buffers()) if is_plain(each)]
        self._where = addresses(*self._tensors)
        self._sizes = [each.size for each in self._tensors]
        self._seen = self._sample()

    def melt(self):
        for layer in self._layers:
            _frozen.pop(layer, None)

    def renew(self):
        """Start again if the weights have changed: where they lie, or some values of each."""
        if addresses(*self._tensors) != self._where or self._sample() != self._seen:
            self._start()

    def _sample(self):
        return library().sample(self._where, self._sizes) if library() else None


def frozen_part(layer):
    """What is kept of a layer that is frozen; None of another."""
    return _frozen.get(layer)


@dataclass(frozen=True)
class Evaluation:
    """An operator in evaluation.

    Attributes:
        name: there are <name> and <name>_packed; see native/implement.h.
        parameters: layer -> its tensors, None for those that it does without.
        struct: layer, tensors -> the struct of <name>, for the smallest input.
        with_input: that struct, input and output -> the struct with these.
        fits_bfloat16: layer -> whether it can be computed in bfloat16, too.
    """

    name: str
    parameters: Callable
    struct: Callable
    with_input: Callable
    fits_bfloat16: Callable = lambda layer: False

    def run(self, layer, *tensors):
        """Compute the layer on what `with_input` takes."""
        native = library()
        half = self.half(layer, native)
        native.run(self.name, self.with_input(self._struct(layer, native, half), *tensors), half)

    def half(self, layer, native):
        """Whether to compute in bfloat16 now."""
        return native.in_bfloat16() and self.fits_bfloat16(layer)

    def of_now(self, layer, *tensors):
        """The struct with the parameters themselves, frozen or not."""
        return self.with_input(self.struct(layer, self.parameters(layer)), *tensors)

    def _struct(self, layer, native, half):
        """With packed weights where the layer is frozen."""
        found = frozen_part(layer)
        if found is None:
            return self.struct(layer, self.parameters(layer))
        key = native, self.name, half
        if key not in found.operators:
            found.operators.setdefault(key, self._packed(layer, native, half))  # another thread may have been faster
        kept = found.operators[key]
        operator = type(kept[0]).from_buffer_copy(kept[0])
        operator.kept = kept  # in case that another thread lets go of it meanwhile
        return operator

    def _packed(self, layer, native, half):
        """The struct, and the tensors that it points to: its own, in case that the layer's are freed nevertheless."""
        name, tensors = f"{self.name}_packed", self.parameters(layer)
        operator = self.struct(layer, tensors)
        packed = np.empty(native.size_of(name, operator, half), "uint8")
        native.run(name, operator, half, workspace=packed.ctypes.data)
        rest = [None if tensor is None or tensor.ndim in (2, 4) else tensor.detach().clone() for tensor in tensors]
        operator = self.struct(layer, rest)
        operator.packed = packed.ctypes.data
        return operator, packed, rest
