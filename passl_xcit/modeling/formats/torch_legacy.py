"""torch's weight files from before torch 1.6: five pickles one behind the other, then the storages.

Source: torch/serialization.py (`_legacy_save`), torch 2.13.
"""

from passl_xcit.modeling.formats.torch_pickle import TorchMachine
from passl_xcit.utils.arrays import stored_dtype
from passl_xcit.utils.pickle_machine import Machine
from passl_xcit.utils.refusals import damaged, unwanted

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def read(data, name):
    """As `torch_zip.read`, for a file in the older form, which torch still writes when asked to."""
    magic, position = _plain(data, name, 0)
    protocol, position = _plain(data, name, position)
    system, position = _plain(data, name, position)
    if (magic, protocol) != (_MAGIC, _PROTOCOL) or type(system) is not dict:
        raise damaged(name, "does not begin as a torch file does")
    if system.get("little_endian") is not True:
        raise unwanted(name, "holds big-endian tensors")
    machine = TorchMachine(data, name, {}, position)
    top = machine.run()
    keys, position = _plain(data, name, machine.position)
    machine.storages = _storages(data, name, position, keys, machine.codes)
    return machine.plain(top, 0)


def _plain(data, name, position):
    machine = Machine(data, name, position)
    return machine.plain(machine.run(), 0), machine.position


def _storages(data, name, position, keys, codes):
    """{key: bytes} of what is left of the file: of each storage the number of its elements, then these."""
    if type(keys) is not list or any(type(key) is not str for key in keys) or sorted(keys) != sorted(codes):
        raise damaged(name, "has other storages than its tensors ask for")
    storages, view = {}, memoryview(data)
    for key in keys:
        start = position + 8
        count = int.from_bytes(data[position:start], "little")
        position = start + count * stored_dtype(codes[key]).itemsize
        storages[key] = view[start:position]
    if position != len(data):
        raise damaged(name, "does not end with its last storage")
    return storages
