"""torch's files, the zip form and the older one: every lie in the archive, the pickle or a tensor is refused.

Hostile files are built piece by piece; `test_real_files.py` has those that torch wrote.
"""

import io
import pickle
import struct
import warnings
import zipfile

import numpy as np
import pytest
from formula_arrays import formula
from pickle_assembler import DANGEROUS_CALLS, array, call, group, mapping, named, number, program, shape, text
from weight_file_checks import refusal_of, same

from passl_xcit.modeling.formats import torch_legacy, torch_zip

NAME = "evil.pth"
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}

REBUILD = named("torch._utils", "_rebuild_tensor_v2")
HOOKS = call(named("collections", "OrderedDict"))
SIX = formula([6])
MATRIX = formula([2, 3])


def identity(*items):
    return group(*items) + b"Q"


def storage(numel=6, kind="FloatStorage", key="0"):
    return identity(text("storage"), named("torch", kind), text(key), text("cpu"), number(numel))


def tensor(of=None, offset=0, size=(2, 3), stride=(3, 1)):
    return call(REBUILD, of or storage(), number(offset), shape(*size), shape(*stride), b"\x89", HOOKS)


def members(body=None, **more):
    """{name: content} of a sound file with one tensor, changed by `more`."""
    sound = {"data.pkl": program(body or mapping(w=tensor()), 2), "byteorder": b"little", "data/0": SIX.tobytes()}
    return {**sound, "version": b"3\n", **more}


def archive(contents, folder="archive/", compression=zipfile.ZIP_STORED):
    """A zip archive of {name: bytes} or [(name, bytes)]."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as zipped, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two members of one name
        for name, content in contents.items() if isinstance(contents, dict) else contents:
            zipped.writestr(folder + name, content)
    return file.getvalue()


def read(data):
    return torch_zip.read(data, NAME)


def refusal(data):
    return refusal_of(lambda: read(data), NAME)


def refusal_of_body(body):
    return refusal(archive(members(body)))


def test_the_sound_file_that_the_others_differ_from_is_read():
    assert same(read(archive(members())), {"w": MATRIX})
    assert same(read(archive(members(), folder="my weights/")), {"w": MATRIX})
    without = members()
    del without["byteorder"], without["version"]
    assert same(read(archive(without)), {"w": MATRIX})


# The archive.


def patched(data, old, new, count=1):
    """`data` with the one place `old` changed, of the same length."""
    assert data.count(old) == count and len(old) == len(new)
    return data.replace(old, new)


def entry_of(data, name):
    """Where the directory's entry of a member begins."""
    return data.rindex(b"PK\1\2", 0, data.rindex(name))


def with_entry(data, name, offset, form, value):
    """`data` with another value in a field of a member's entry in the directory."""
    start = entry_of(data, name) + offset
    return data[:start] + struct.pack(form, value) + data[start + struct.calcsize(form) :]


def encrypted(data):
    return with_entry(data, b"archive/data/0", 8, "<H", 1)


def half_a_header(data):
    """A member that begins with the last bytes of the file, which are a comment."""
    moved = with_entry(data, b"archive/data/0", 42, "<I", len(data))
    return moved[:-2] + struct.pack("<H", 8) + b"PK\3\4abcd"


def zip64_size(size):
    """A member whose size is said in the extra field that larger files have."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        info = zipfile.ZipInfo("archive/data.pkl")
        info.extra = struct.pack("<HHQ", 1, 8, size)
        zipped.writestr(info, program(b"}"))
    return with_entry(file.getvalue(), b"archive/data.pkl", 24, "<I", 2**32 - 1)


SOUND = archive(members())
DEFLATED = archive(members(**{"data/0": SIX.tobytes()}), compression=zipfile.ZIP_DEFLATED)
BOMB = archive(members(**{"data/0": bytes(2**26)}), compression=zipfile.ZIP_DEFLATED)
TWO_FOLDERS = archive({**{f"a/{k}": v for k, v in members().items()}, "b/data.pkl": program(b"}")}, folder="")
END = SOUND.rindex(b"PK\5\6")

BAD_ARCHIVES = {
    "deflated": (DEFLATED, "has a compressed or encrypted member 'archive/data.pkl'"),
    "zip bomb": (BOMB, "has members larger than the whole file"),
    "encrypted": (encrypted(SOUND), "has a compressed or encrypted member 'archive/data/0'"),
    "two folders": (TWO_FOLDERS, "has two data.pkl"),
    "nested data.pkl": (archive(members(**{"x/data.pkl": program(b"}")})), "has two data.pkl"),
    "one name twice": (archive([*members().items(), ("data/0", bytes(24))]), "has two members of one name"),
    "data.pkl twice": (archive([*members().items(), ("data.pkl", program(b"}"))]), "has two members of one name"),
    "outside the folder": (archive({"a/data.pkl": program(b"}"), "b/x": b""}, folder=""), "outside the folder"),
    "folder above": (archive(members(**{"../evil": b"x"})), "outside the folder"),
    "absolute path": (archive({"a/data.pkl": program(b"}"), "/etc/passwd": b""}, folder=""), "outside the folder"),
    "big-endian": (archive(members(byteorder=b"big")), "holds big-endian tensors"),
    "TorchScript": (archive(members(**{"constants.pkl": b"x"})), "is a TorchScript program; if you trust it"),
    "no data.pkl": (archive({"data/0": b"x"}), "is a zip archive; unpack it"),
    "wrong checksum": (patched(SOUND, SIX.tobytes(), bytes(24)), "has a member 'archive/data/0' that differs"),
    "checksum changed": (with_entry(SOUND, b"archive/data/0", 16, "<I", 0), "differs from its checksum"),
    "size of 4 GB": (with_entry(SOUND, b"archive/data/0", 24, "<I", 2**32 - 2), "larger than the whole file"),
    "size beyond the end": (with_entry(SOUND, b"archive/version", 24, "<I", 300), "differs from its checksum"),
    "offset beyond the end": (with_entry(SOUND, b"archive/data/0", 42, "<I", 2**31), "no member 'archive/data/0'"),
    "offset of half a header": (half_a_header(SOUND), "no member 'archive/data/0'"),
    "offset in a member": (with_entry(SOUND, b"archive/data/0", 42, "<I", 40), "no member 'archive/data/0' where"),
    "zip64 size of 2**62": (zip64_size(2**62), "larger than the whole file"),
    "directory of 4 GB": (SOUND[: END + 12] + struct.pack("<I", 2**32 - 2) + SOUND[END + 16 :], "no sound zip"),
    "directory too short": (SOUND[: END + 12] + struct.pack("<I", 60) + SOUND[END + 16 :], "has"),
    "directory cut": (SOUND[:-60] + SOUND[END:], "no sound zip directory"),
    "end cut": (SOUND[:-10], "no sound zip directory"),
    "no directory": (SOUND[:200], "no sound zip directory"),
    "version 9.9": (with_entry(SOUND, b"archive/data/0", 6, "<H", 99), "'zip file version 9.9'"),
    "storage named by text": (archive(members(**{"data/x": b""})), "has a storage named 'x', which is not a number"),
    "storage named -1": (archive(members(**{"data/-1": b""})), "has a storage named '-1'"),
    "storage named by another digit": (archive(members(**{"data/\u0661": b""})), "has a storage named '\\u0661'"),
    "a long name": (archive([("x" * 60_000, b""), *members().items()], compression=8), "member 'archive/xxx"),
    "100,001 members": (archive(members()) + b"PK\1\2" * 100_001, "is an archive of more than 100,000 members"),
    "empty data.pkl": (archive(members(**{"data.pkl": b""})), "is cut short"),
    "data.pkl of protocol 0": (archive(members(**{"data.pkl": b"cposix\nsystem\n."})), "not a pickle of protocol"),
    "data.pkl with a tail": (archive(members(**{"data.pkl": program(b"}") + b"}"})), "1 bytes after its end"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_a_bad_archive_is_refused(case):
    data, reason = BAD_ARCHIVES[case]
    assert reason in refusal(data)


def test_members_that_lie_in_each_other_cost_nothing():
    large = archive([*members().items(), ("extra", bytes(2**22))])
    first, end = entry_of(large, b"archive/extra"), large.rindex(b"PK\5\6")
    entries = [large[first:end].replace(b"extra", f"{number:05}".encode()) for number in range(10_000)]
    size = struct.unpack("<I", large[end + 12 : end + 16])[0] + sum(map(len, entries))
    bomb = large[:end] + b"".join(entries) + large[end : end + 12] + struct.pack("<I", size) + large[end + 16 :]
    assert len(zipfile.ZipFile(io.BytesIO(bomb)).infolist()) == 10_005
    assert "larger than the whole file" in refusal(bomb)


# The names in the pickle.


@pytest.mark.parametrize(("module", "name", "argument"), DANGEROUS_CALLS)
def test_no_function_is_called_and_the_refusal_names_it(module, name, argument, tmp_path):
    evil = call(named(module, name), text(argument.format(tmp_path / "marker")))
    message = refusal_of_body(mapping(w=tensor(), x=evil))
    assert f"asks for '{module}.{name}', which is not plain data; only tensors" in message
    assert not list(tmp_path.iterdir())


FOREIGN = [
    ("torch.nn.modules.linear", "Linear"),
    ("torchvision.models.resnet", "ResNet"),
    ("__main__", "Net"),
    ("torch._utils", "_rebuild_sparse_tensor"),
    ("torch._utils", "_rebuild_qtensor"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("torch", "ComplexFloatStorage"),
    ("torch", "QInt8Storage"),
    ("torch", "float32.__class__"),
    ("torch.storage", "UntypedStorage"),
    ("torch.storage", "_load_from_bytes"),
    ("torch.serialization", "load"),
    ("torch.hub", "load"),
    ("mmengine.config.config", "ConfigDict"),
    ("mmengine.logging.history_buffer", "HistoryBuffer.min"),
    ("argparse", "ArgumentParser"),
]


@pytest.mark.parametrize(("module", "name"), FOREIGN)
@pytest.mark.parametrize("form", [lambda kind: kind + b")\x81", lambda kind: call(kind, text("x")), lambda kind: kind])
def test_a_class_that_is_not_on_the_list_is_refused_in_every_form(module, name, form):
    message = refusal_of_body(mapping(model=form(named(module, name))))
    assert f"asks for '{module}.{name}', which is not plain data" in message
    assert message.endswith("if you trust it, save its state_dict() alone with torch.save")


NAMESPACE, HISTORY = named("argparse", "Namespace"), named("mmengine.logging.history_buffer", "HistoryBuffer")
GETATTR, COUNTER = named("builtins", "getattr"), named("collections", "Counter")
PARAMETER = named("torch._utils", "_rebuild_parameter")
FLOATS = named("torch", "FloatStorage")
NOT_A_FUNCTION = "calls something that is not a constructor"
NOT_A_STORAGE = "holds something outside the pickle that is not a storage"
STORAGE_FORM, TENSOR_FORM = "has a storage in an unusual form", "makes a tensor with unusual arguments"

BAD_OBJECTS = {
    "Namespace with arguments": (call(NAMESPACE, text("x")), "makes an object with arguments"),
    "Namespace with a tuple": (NAMESPACE + b")\x81" + group(b"N", mapping()) + b"b", "something that is not a dict"),
    "Namespace as a class": (NAMESPACE, "holds a class"),
    "state of a class": (NAMESPACE + mapping() + b"b", "not a new object"),
    "state of a tensor": (tensor() + mapping() + b"b", "not a new object"),
    "state of text": (text("x") + mapping() + b"b", "not a new object"),
    "state of a dict by a tuple": (mapping() + group(b"N") + b"b", "not a new object"),
    "a function with NEWOBJ": (call(REBUILD)[:-1] + b"\x81", TENSOR_FORM),
    "NEWOBJ of text": (text("x") + b")\x81", NOT_A_FUNCTION),
    "NEWOBJ of a tensor": (tensor() + b")\x81", NOT_A_FUNCTION),
    "a type called": (call(FLOATS, number(9)), NOT_A_FUNCTION),
    "a dtype called": (call(named("torch", "float32"), number(9)), NOT_A_FUNCTION),
    "getattr of Namespace": (call(GETATTR, NAMESPACE, text("__init__")), "something that is not mmengine's"),
    "getattr of a global": (call(GETATTR, REBUILD, text("__globals__")), "something that is not mmengine's"),
    "getattr by a number": (call(GETATTR, HISTORY, number(1)), "something that is not mmengine's"),
    "getattr with a default": (call(GETATTR, HISTORY, text("x"), b"N"), "something that is not mmengine's"),
    "what getattr gave, called": (call(call(GETATTR, HISTORY, text("mean")), text("x")), NOT_A_FUNCTION),
    "getattr alone": (GETATTR, "holds a class"),
    "Counter of a list": (call(COUNTER, b"]"), "makes a Counter of something that is not a dict"),
    "Counter of two": (call(COUNTER, mapping(), mapping()), "makes a Counter of something that is not a dict"),
    "Size of two": (call(named("torch", "Size"), shape(1), shape(2)), "makes a torch.Size of something"),
    "Size of a list": (call(named("torch", "Size"), b"]"), "makes a torch.Size of something"),
    "device of a number": (call(named("torch", "device"), number(1)), "makes a torch.device with unusual"),
    "device of two texts": (call(named("torch", "device"), text("a"), text("b")), "makes a torch.device with unusual"),
    "parameter of a storage": (call(PARAMETER, storage(), b"\x88", HOOKS), "something that is not a tensor"),
    "parameter of an array": (call(PARAMETER, array(), b"\x88", HOOKS), "something that is not a tensor"),
    "parameter of two": (call(PARAMETER, tensor(), tensor()), "something that is not a tensor"),
    "a storage as a value": (storage(), "holds a class, a function or an object without data"),
    "a type as a value": (FLOATS, "holds a class, a function or an object without data"),
    "identity is text": (text("storage") + b"Q", NOT_A_STORAGE),
    "identity is a whole model": (identity(text("module"), text("x"), b"N", b"N"), NOT_A_STORAGE),
    "identity is empty": (b")Q", NOT_A_STORAGE),
    "identity too short": (identity(text("storage"), FLOATS, text("0")), STORAGE_FORM),
    "identity with a view": (
        identity(text("storage"), FLOATS, text("0"), text("cpu"), number(6), shape(0, 6)), STORAGE_FORM
    ),
    "type is text": (identity(text("storage"), text("f4"), text("0"), text("cpu"), number(6)), STORAGE_FORM),
    "key is a number": (identity(text("storage"), FLOATS, number(0), text("cpu"), number(6)), STORAGE_FORM),
    "number is text": (identity(text("storage"), FLOATS, text("0"), text("cpu"), text("6")), STORAGE_FORM),
    "number is negative": (tensor(storage(-1)), "less than 0 or more than 2**40 numbers"),
    "tensor of an array": (tensor(array()), TENSOR_FORM),
    "tensor with five arguments": (call(REBUILD, storage(), number(0), shape(6), shape(1), b"\x89"), TENSOR_FORM),
    "tensor with a conjugate bit": (
        call(REBUILD, storage(), number(0), shape(6), shape(1), b"\x89", HOOKS, mapping(conj=b"\x88")), TENSOR_FORM
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_OBJECTS)
def test_a_known_name_in_an_unknown_form_is_refused(case):
    body, reason = BAD_OBJECTS[case]
    assert reason in refusal_of_body(mapping(x=body))


# Lies about tensors.

OUTSIDE, REPEATED, SIZES = "reaches outside its storage", "repeats the values of its storage", "not made of sizes"
BAD_TENSORS = {
    "storage missing": (tensor(storage(key="1")), "in storage '1', but lacks it"),
    "storage too short": (tensor(storage(7)), "wants 7 numbers of 4 bytes in storage '0', but has 24 bytes"),
    "storage too long": (tensor(storage(5), size=(5,), stride=(1,)), "wants 5 numbers of 4 bytes in storage '0'"),
    "storage of another type": (tensor(storage(kind="DoubleStorage")), "wants 6 numbers of 8 bytes in storage '0'"),
    "storage of 2**40": (tensor(storage(2**40)), "wants 1099511627776 numbers of 4 bytes in storage '0'"),
    "storage of 2**60": (tensor(storage(2**60)), "less than 0 or more than 2**40 numbers"),
    "storage with a name of many lines": (tensor(storage(key="x\n" * 999)), "in storage 'x\\nx\\n"),
    "offset outside": (tensor(offset=1), OUTSIDE),
    "offset of 2**62": (tensor(offset=2**62), OUTSIDE),
    "offset negative": (tensor(offset=-1), SIZES),
    "row too long": (tensor(size=(7,), stride=(1,)), REPEATED),
    "stride outside": (tensor(stride=(4, 1)), OUTSIDE),
    "stride of 2**62": (tensor(stride=(2**62, 1)), OUTSIDE),
    "stride negative": (tensor(stride=(-3, 1)), SIZES),
    "stride 0": (tensor(stride=(0, 1)), REPEATED),
    "stride 0, large": (tensor(storage(6), size=(2**39, 2), stride=(0, 1)), REPEATED),
    "strides that overlap": (tensor(size=(4, 3), stride=(1, 1)), REPEATED),
    "2**40 of six": (tensor(size=(2**20, 2**20), stride=(1, 1)), REPEATED),
    "fewer strides": (tensor(stride=(1,)), "another number of strides than of sizes"),
    "more strides": (tensor(stride=(3, 1, 1)), "another number of strides than of sizes"),
    "strides in a list": (
        call(REBUILD, storage(), number(0), shape(6), b"]" + number(1) + b"a", b"\x89", HOOKS),
        "another number of strides than of sizes",
    ),
    "stride is a bool": (call(REBUILD, storage(), number(0), shape(6), group(b"\x88"), b"\x89", HOOKS), SIZES),
    "offset is a float": (call(REBUILD, storage(), b"G" + bytes(8), shape(6), shape(1), b"\x89", HOOKS), SIZES),
    "size negative": (tensor(size=(-2, 3)), SIZES),
    "size is a list": (call(REBUILD, storage(), number(0), b"]", b")", b"\x89", HOOKS), SIZES),
    "2**62 x 2**62": (tensor(size=(2**62, 2**62)), "2**40 numbers"),
    "huge beside zero": (tensor(size=(0, 2**62)), "2**40 numbers"),
    "nine axes": (tensor(size=[1] * 9, stride=[1] * 9), "more than 8 axes"),
    "bool that is 2": (tensor(storage(24, "BoolStorage"), size=(24,), stride=(1,)), "neither 0 nor 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_a_lie_about_a_tensor_is_refused(case):
    body, reason = BAD_TENSORS[case]
    assert reason in refusal_of_body(mapping(w=body))


def test_one_storage_copied_out_a_thousand_times_is_refused():
    million = storage(2**20)
    columns = [tensor(million, 0, (2**20,), (1,)) for _ in range(1000)]
    data = archive(members(b"](" + b"".join(columns) + b"e", **{"data/0": bytes(2**22)}))
    assert "unpacks to many times its own size" in refusal(data)


GOOD_TENSORS = {
    "a row": (tensor(size=(6,), stride=(1,)), SIX),
    "transposed": (tensor(size=(3, 2), stride=(1, 3)), MATRIX.T.copy()),
    "every second": (tensor(offset=1, size=(3,), stride=(2,)), SIX[1::2].copy()),
    "a number": (tensor(offset=5, size=(), stride=()), np.array(SIX[5])),
    "an axis of one, with any stride": (tensor(size=(1, 6), stride=(2**62, 1)), SIX.reshape(1, 6)),
    "stride 0 along an axis of one": (tensor(size=(6, 1), stride=(1, 0)), SIX.reshape(6, 1)),
    "nothing of a storage": (tensor(size=(2, 0, 3), stride=(1, 1, 1)), np.zeros((2, 0, 3), "f4")),
    "nothing, from far away": (tensor(offset=2**62, size=(0, 3), stride=(2**62, 2**62)), np.zeros((0, 3), "f4")),
    "Namespace by a call": (call(NAMESPACE) + mapping(lr=b"N") + b"b", {"lr": None}),
    "Namespace without attributes": (NAMESPACE + b")\x81", {}),
    "Namespace with a tensor": (NAMESPACE + b")\x81" + mapping(w=tensor()) + b"b", {"w": MATRIX}),
    "Counter": (call(COUNTER, b"}" + number(3) + number(1) + b"s"), {3: 1}),
    "device": (call(named("torch", "device"), text("cuda"), number(1)), "cuda:1"),
    "dtype": (named("torch", "bfloat16"), "torch.bfloat16"),
    "parameter with a state": (
        call(named("torch._utils", "_rebuild_parameter_with_state"), tensor(), b"\x88", HOOKS, mapping(x=b"N")), MATRIX
    ),
    "a state dict's metadata": (HOOKS + text("w") + tensor() + b"s" + mapping(_metadata=b"}") + b"b", {"w": MATRIX}),
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD_TENSORS)
def test_the_same_forms_without_a_lie_are_read(case):
    body, expected = GOOD_TENSORS[case]
    assert same(read(archive(members(mapping(x=body)))), {"x": expected})


def test_tensors_of_one_storage_are_arrays_of_their_own():
    tree = read(archive(members(mapping(a=tensor(), b=tensor(size=(3, 2), stride=(1, 3))))))
    tree["a"][:] = 7
    assert same(tree["b"], MATRIX.T.copy())


def test_a_bfloat16_is_widened_exactly_even_where_it_is_not_a_number():
    bits = np.array([0x3F80, 0xC000, 0x7F80, 0xFF80, 0x7FC1, 0x0001, 0x8000], "u2")
    body = mapping(
        w=tensor(storage(7, "BFloat16Storage"), 0, (7,), (1,)), n=tensor(storage(7, "BFloat16Storage"), 1, (), ())
    )
    tree = read(archive(members(body, **{"data/0": bits.tobytes()})))
    assert same(tree["w"].view("u4"), bits.astype("u4") << 16)
    assert same(tree["n"], np.array(-2, "f4"))


# The older form.


def legacy(body=None, magic=MAGIC, protocol=1001, system=SYSTEM, keys=("0",), tail=None):
    tail = struct.pack("<q", 6) + SIX.tobytes() if tail is None else tail
    pickled = [magic, pickle.dumps(protocol, 2), pickle.dumps(system, 2), program(body or mapping(w=tensor()), 2)]
    return b"".join(pickled) + (keys if isinstance(keys, bytes) else pickle.dumps(list(keys), 2)) + tail


def legacy_refusal(data):
    return refusal_of(lambda: torch_legacy.read(data, NAME), NAME)


def test_the_sound_older_file_is_read():
    assert same(torch_legacy.read(legacy(), NAME), {"w": MATRIX})


BEGIN, OTHER, LAST = (
    "does not begin as a torch file",
    "other storages than its tensors",
    "not end with its last storage",
)
BAD_LEGACY = {
    "another magic number": (legacy(magic=MAGIC[:12] + b"\x51\x19."), BEGIN),
    "another protocol": (legacy(protocol=1002), BEGIN),
    "protocol is a list": (legacy(protocol=[1001]), BEGIN),
    "system is a list": (legacy(system=[]), BEGIN),
    "big-endian": (legacy(system={**SYSTEM, "little_endian": False}), "holds big-endian tensors"),
    "no byte order": (legacy(system={}), "holds big-endian tensors"),
    "a key too many": (legacy(keys=("0", "1")), OTHER),
    "a key twice": (legacy(keys=("0", "0")), OTHER),
    "no key": (legacy(keys=()), OTHER),
    "another key": (legacy(keys=("1",)), OTHER),
    "a number as key": (legacy(keys=(0,)), OTHER),
    "a number beside a key": (legacy(keys=("0", 1)), OTHER),
    "keys in a dict": (legacy(keys=pickle.dumps({"0": 1}, 2)), OTHER),
    "keys nested": (legacy(keys=(["0"],)), OTHER),
    "bytes after the end": (legacy(tail=struct.pack("<q", 6) + SIX.tobytes() + b"\0"), LAST),
    "storage cut": (legacy(tail=struct.pack("<q", 6) + SIX.tobytes()[:-1]), LAST),
    "no storage": (legacy(tail=b""), LAST),
    "storage of another size": (legacy(tail=struct.pack("<q", 5) + SIX.tobytes()[:-4]), "but has 20 bytes"),
    "storage of 2**62": (legacy(tail=struct.pack("<q", 2**62) + SIX.tobytes()), LAST),
    "storage of -1": (legacy(tail=struct.pack("<q", -1) + SIX.tobytes()), LAST),
    "whole model": (legacy(identity(text("module"), named("torch.nn", "Linear"), b"N", b"N")), "'torch.nn.Linear'"),
    "name in the keys": (legacy(keys=program(FLOATS)), "asks for 'torch.FloatStorage'"),
    "name in the header": (legacy(magic=program(FLOATS)), "asks for 'torch.FloatStorage'"),
    "only the magic number": (MAGIC, "is cut short"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_LEGACY)
def test_a_bad_older_file_is_refused(case):
    data, reason = BAD_LEGACY[case]
    assert reason in legacy_refusal(data)


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_a_lie_about_a_tensor_is_refused_in_an_older_file_as_well(case):
    assert legacy_refusal(legacy(mapping(w=BAD_TENSORS[case][0])))


@pytest.mark.parametrize(("module", "name", "argument"), DANGEROUS_CALLS[:5])
def test_no_function_is_called_for_an_older_file(module, name, argument, tmp_path):
    evil = call(named(module, name), text(argument.format(tmp_path / "marker")))
    assert f"asks for '{module}.{name}'" in legacy_refusal(legacy(mapping(w=tensor(), x=evil)))
    assert not list(tmp_path.iterdir())


def test_an_older_view_marked_none_is_a_plain_storage():
    viewed = identity(text("storage"), FLOATS, text("0"), text("cpu"), number(6), b"N")
    assert same(torch_legacy.read(legacy(mapping(w=tensor(viewed))), NAME), {"w": MATRIX})
