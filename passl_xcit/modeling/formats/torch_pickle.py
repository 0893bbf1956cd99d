"""What stands for torch's names in a pickle: tensors that view storages, which the file keeps outside the pickle.

Sources: torch/_utils.py (`_rebuild_*`), torch/serialization.py (`persistent_id`), torch 2.13; the inert names are
those of the training checkpoints of facebookresearch (Namespace), torch's schedulers (Counter) and mmengine.
"""

from math import prod

import numpy as np

from passl_xcit.utils import numpy_pickle
from passl_xcit.utils.arrays import BFLOAT16, MAX_SIZE, check_shape, own_array, stored_dtype
from passl_xcit.utils.pickle_machine import Function, Machine, StandIn
from passl_xcit.utils.refusals import short

STORAGES = {
    "Float": "f4",
    "Double": "f8",
    "Half": "f2",
    "BFloat16": BFLOAT16,
    "Long": "i8",
    "Int": "i4",
    "Short": "i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "b1",
}
_DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool complex64 complex128"


class _StorageType(StandIn):
    def __init__(self, code):
        self.code = code


class _Storage(StandIn):
    """The bytes that one or more tensors view, by the key they have in the file."""

    def __init__(self, code, key, numel):
        self.code, self.key, self.numel = code, key, numel


class _Tensor(StandIn):
    """A view of a storage, which is copied out when the whole pickle has been read."""

    def __init__(self, storage, offset, shape, strides):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides
        self.array = None

    def plain(self, machine, depth):
        dtype = stored_dtype(self.storage.code)
        machine.spend(prod(self.shape) * dtype.itemsize)
        if self.array is None:
            raw = machine.bytes_of(self.storage, dtype.itemsize)
            self.array = own_array(self._view(raw, dtype), self.storage.code, machine.name)
        return self.array

    def _view(self, raw, dtype):
        if 0 in self.shape:
            return np.empty(self.shape, dtype)
        # The step along an axis of size 1 is never taken, and may be any number.
        strides = [step * dtype.itemsize if size > 1 else 0 for size, step in zip(self.shape, self.strides)]
        return np.ndarray(self.shape, dtype, buffer=raw, offset=self.offset * dtype.itemsize, strides=strides)


class _Text(StandIn):
    """A name that is kept as text."""

    def __init__(self, text):
        self.text = text

    def plain(self, machine, depth):
        return self.text


class _InertClass(StandIn):
    """A class whose objects become dicts of their attributes."""

    def call(self, machine, arguments):
        if arguments != ():
            raise machine.unwanted("makes an object with arguments")
        return _Attributes()


class _Attributes(StandIn):
    """An object of which only the attributes are kept."""

    def __init__(self):
        self.state = {}

    def set_state(self, machine, state):
        if type(state) is not dict:
            raise machine.unwanted("sets the state of an object to something that is not a dict")
        self.state = state

    def plain(self, machine, depth):
        return machine.plain(self.state, depth)


class TorchMachine(Machine):
    """The pickle of a torch file.

    Args:
        storages: {key: memoryview of the raw little-endian bytes}; needed when `plain` is called.

    `codes` is {key: type} of the storages that the pickle asked for.
    """

    hint = "only tensors, numbers and text are read; if you trust it, save its state_dict() alone with torch.save"

    def __init__(self, data, name, storages, position=0):
        super().__init__(data, name, position)
        self.storages = storages
        self.budget += 8 * sum(map(len, storages.values()))
        self.codes = {}

    def bytes_of(self, storage, itemsize):
        raw = self.storages.get(storage.key)
        if raw is None or len(raw) != storage.numel * itemsize:
            has = "lacks it" if raw is None else f"has {len(raw)} bytes"
            wants = f"{storage.numel} numbers of {itemsize} bytes in storage {short(storage.key)}"
            raise self.damaged(f"wants {wants}, but {has}")
        return raw

    def build(self):
        """An OrderedDict has a state as well: the `_metadata` of a state dict, which is not read."""
        if len(self.stack) > 1 and type(self.stack[-2]) is dict and type(self.stack[-1]) is dict:
            self.stack.pop()
        else:
            super().build()

    def persistent(self):
        """`("storage", type, key, device, number of elements)`, before torch 1.6 with a None at the end."""
        (identity,) = self.pop(1)
        if type(identity) is not tuple or identity[:1] != ("storage",):
            raise self.unwanted("holds something outside the pickle that is not a storage, such as a whole model")
        if len(identity) not in (5, 6) or identity[5:] not in ((), (None,)):
            raise self.unwanted("has a storage in an unusual form")
        _, kind, key, _, numel, *_ = identity
        if type(kind) is not _StorageType or type(key) is not str or type(numel) is not int:
            raise self.unwanted("has a storage in an unusual form")
        if not 0 <= numel <= MAX_SIZE:
            raise self.damaged("has a storage of less than 0 or more than 2**40 numbers")
        self.codes[key] = kind.code
        self.push(_Storage(kind.code, key, numel))

    def make_tensor(self, arguments):
        """`_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)`"""
        if len(arguments) != 6 or type(arguments[0]) is not _Storage:
            raise self.unwanted("makes a tensor with unusual arguments")
        storage, offset, shape, strides = arguments[:4]
        check_shape(shape, self.name)
        if type(strides) is not tuple or len(strides) != len(shape):
            raise self.unwanted("has a tensor with another number of strides than of sizes")
        if not all(type(step) is int and step >= 0 for step in (offset, *strides)):
            raise self.unwanted("has a tensor whose strides are not made of sizes")
        if 0 not in shape:
            self.check_extent(storage, offset, shape, strides)
        return _Tensor(storage, offset, shape, strides)

    def check_extent(self, storage, offset, shape, strides):
        if any(step == 0 and size > 1 for size, step in zip(shape, strides)) or prod(shape) > storage.numel:
            raise self.unwanted(f"has a tensor of shape {shape} that repeats the values of its storage")
        if offset + sum((size - 1) * step for size, step in zip(shape, strides)) >= storage.numel:
            raise self.damaged(f"has a tensor of shape {shape} that reaches outside its storage")

    def make_parameter(self, arguments):
        """`_rebuild_parameter(tensor, requires_grad, hooks)`, or with a state, which is not read."""
        if len(arguments) not in (3, 4) or type(arguments[0]) is not _Tensor:
            raise self.unwanted("makes a parameter of something that is not a tensor")
        return arguments[0]

    def make_size(self, arguments):
        if len(arguments) != 1 or type(arguments[0]) is not tuple:
            raise self.unwanted("makes a torch.Size of something that is not a tuple")
        return arguments[0]

    def make_device(self, arguments):
        """`device("cuda", 0)`, kept as text."""
        if [type(part) for part in arguments] not in ([str], [str, int]):
            raise self.unwanted("makes a torch.device with unusual arguments")
        return ":".join(map(str, arguments))

    def make_counter(self, arguments):
        if len(arguments) != 1 or type(arguments[0]) is not dict:
            raise self.unwanted("makes a Counter of something that is not a dict")
        return arguments[0]

    def make_method(self, arguments):
        """`getattr(HistoryBuffer, "mean")`, the only form: a line in mmengine's table of statistics, kept as text."""
        if len(arguments) != 2 or arguments[0] is not _HISTORY or type(arguments[1]) is not str:
            raise self.unwanted("asks for an attribute of something that is not mmengine's HistoryBuffer")
        return arguments[1]

    operations = {**Machine.operations, ord("b"): build, ord("Q"): persistent, 0x81: Machine.reduce}


_HISTORY = _InertClass()
_PARAMETER = Function(TorchMachine.make_parameter)

TorchMachine.names = {
    **numpy_pickle.NAMES,
    **{("torch", f"{kind}Storage"): _StorageType(code) for kind, code in STORAGES.items()},
    **{("torch", name): _Text(f"torch.{name}") for name in _DTYPES.split()},
    ("torch._utils", "_rebuild_tensor_v2"): Function(TorchMachine.make_tensor),
    ("torch._utils", "_rebuild_parameter"): _PARAMETER,
    ("torch._utils", "_rebuild_parameter_with_state"): _PARAMETER,
    ("torch", "Size"): Function(TorchMachine.make_size),
    ("torch", "device"): Function(TorchMachine.make_device),
    ("collections", "Counter"): Function(TorchMachine.make_counter),
    ("argparse", "Namespace"): _InertClass(),
    ("mmengine.logging.history_buffer", "HistoryBuffer"): _HISTORY,
    ("builtins", "getattr"): Function(TorchMachine.make_method),
    ("__builtin__", "getattr"): Function(TorchMachine.make_method),
}
