"""Models whose weights stay as they are for a while: native operators pack them once, not in every call.

Packed weights are a copy in the order in which the operators read them. For one image, packing takes longer than
computing with what was packed.
"""

import threading
import weakref
from dataclasses import dataclass
from typing import Callable

import numpy as np

from passl_xcit.ops.library import library

_frozen = weakref.WeakKeyDictionary()  # layer -> _Kept, of the layers that are frozen now
_lock = threading.Lock()


class _Kept:
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


class Frozen:
    """A context in which native operators of a model in evaluation keep what they made of its parameters.

    From its beginning to its end no parameter, buffer or setting of a layer may change or move, in no thread,
    so that there may be no training step and no loading. Hooks, modes and precisions may change. Outside of it weights
    count at once. One object may be entered again, and then keeps what it had: its first beginning counts.

    It costs memory: once more what the blocks' parameters take, about half of that in bfloat16.
    """

    def __init__(self, model):
        self._model, self._depth, self._kept = model, 0, None

    def __reduce__(self):  # a copy's weights are its own
        return Frozen, (self._model,)

    def __enter__(self):
        with _lock:
            if self._kept is None:
                layers = self._model.sublayers(include_self=True)
                self._kept = {layer: _Kept(layer) for layer in layers if "native_parts" in vars(layer)}
            if not self._depth:
                self._entered = {layer: kept for layer, kept in self._kept.items() if layer not in _frozen}
                _frozen.update(self._entered)
            self._depth += 1

    def __exit__(self, *_):
        with _lock:
            self._depth -= 1
            if not self._depth:
                for layer in self._entered:
                    _frozen.pop(layer, None)


def frozen_part(layer):
    """What is kept of a layer that is frozen now; None of another."""
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
