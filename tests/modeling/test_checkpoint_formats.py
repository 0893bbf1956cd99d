"""Weight files: what is read, what is refused and in which words, and writing that cannot damage the old file."""

import errno
import hashlib
import io
import os
import pickle
import resource
import signal
import stat
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from formula_arrays import formula
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from weight_file_checks import KEYS, STORED, bounds, same

from passl_xcit.modeling import checkpoint_formats
from passl_xcit.modeling.checkpoint_formats import (
    FORMATS,
    digest_of,
    read_file,
    write_file,
    write_safetensors,
    write_torch,
    write_weights,
)
from passl_xcit.modeling.formats import paddle_pickle
from passl_xcit.modeling.state_dict import state_dict_of
from passl_xcit.utils.errors import CheckpointError

ROOT = Path(__file__).parents[2]
REAL_FILES = ROOT / "tests/golden/formats"


def checkpoint():
    """A training checkpoint in PASSL's shape, with every kind of value that may be in one."""
    state = {
        "backbone.w": np.arange(6, dtype="f4").reshape(2, 3) / 7,
        "backbone.f": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "backbone.half": np.arange(3, dtype="f2"),
        "backbone.bf16": np.array([0x3F80, 0x4000], "u2"),
        "backbone.part": np.arange(12, dtype="i8")[::3],
        "zero_d": np.array(3),
        "empty": np.zeros((0, 3), "f4"),
        "mask": np.array([True, False]),
    }
    optimizer = {"moment1": {"backbone.w": np.ones((2, 3), "f4")}, "beta1_pow": np.array([0.9])}
    schedule = {"last_lr": 1e-3, "milestones": [1, 2], "range": (0.5, None), "warm": True, "name": "Cosine"}
    return {"epoch": 3, "seed": 2**70, "state_dict": state, "optimizer": optimizer, "lr_scheduler": schedule}


def contiguous(value):
    """`value` as it comes out of a file: a strided array becomes a plain one."""
    if isinstance(value, dict):
        return {key: contiguous(item) for key, item in value.items()}
    return value.copy(order="K") if isinstance(value, np.ndarray) else value


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "epoch_3.pdparams"
    write_file(path, checkpoint())
    return path


def refusal(path, **options):
    with pytest.raises(CheckpointError) as caught:
        read_file(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


# What is read.


def test_a_written_tree_is_read_bit_for_bit(saved):
    assert same(read_file(saved), contiguous(checkpoint()))
    assert same(read_file(str(saved)), contiguous(checkpoint()))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(KEYS.filter(lambda key: key != "digest"), STORED, max_size=4))
def test_writing_and_reading_is_the_identity(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("law") / "tree.pdparams"
    write_file(path, tree)
    assert same(read_file(path), tree)
    assert os.listdir(path.parent) == ["tree.pdparams"]


@pytest.mark.parametrize("kind", ["checkpoint", "state dict"])
def test_paddle_load_reads_what_was_written(kind, tmp_path):
    paddle, path = pytest.importorskip("paddle"), str(tmp_path / "weights.pdparams")
    tree = checkpoint() if kind == "checkpoint" else checkpoint()["state_dict"]
    write_file(path, tree)
    arrays = paddle.load(path, return_numpy=True)
    assert arrays.pop("digest") == digest_of(tree)
    assert same(arrays, contiguous(tree))
    tensors = paddle.load(path)
    weights, expected = (tensors["state_dict"], tree["state_dict"]) if "state_dict" in tree else (tensors, tree)
    for name, array in expected.items():
        assert weights[name].numpy().tobytes() == array.tobytes() and weights[name].shape == list(array.shape)


def test_a_layer_saved_by_paddle_is_read_and_one_saved_here_is_loaded_by_paddle(tmp_path):
    paddle = pytest.importorskip("paddle")
    layer, other = paddle.nn.Linear(3, 2), paddle.nn.Linear(3, 2)
    paddle.save(layer.state_dict(), str(tmp_path / "layer.pdparams"))
    weights = state_dict_of(read_file(tmp_path / "layer.pdparams"), "layer")
    write_file(tmp_path / "ours.pdparams", weights)
    assert list(weights) == ["weight", "bias"]
    assert other.set_state_dict(paddle.load(str(tmp_path / "ours.pdparams"))) == ([], ["digest"])
    np.testing.assert_array_equal(other.weight.numpy(), layer.weight.numpy())


def test_python_reads_a_written_file_without_a_warning(saved):
    read = "import pickle, sys; print(pickle.load(sys.stdin.buffer)['state_dict']['zero_d'])"
    with open(saved) as file:
        done = subprocess.run([sys.executable, "-W", "error", "-c", read], stdin=file, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_the_extension_does_not_matter(saved):
    for name in ("weights.safetensors", "weights.pth", "weights"):
        assert same(read_file(saved.rename(saved.with_name(name))), contiguous(checkpoint()))
        saved = saved.with_name(name)


def test_a_file_without_digest_is_accepted(tmp_path):
    (tmp_path / "epoch_1.pd").write_bytes(pickle.dumps({"epoch": 1, "state_dict": {"w": np.ones(2)}}))
    assert same(read_file(tmp_path / "epoch_1.pd"), {"epoch": 1, "state_dict": {"w": np.ones(2)}})


def test_a_link_is_followed(saved):
    saved.with_name("latest.pdparams").symlink_to(saved.name)
    assert same(read_file(saved.with_name("latest.pdparams")), contiguous(checkpoint()))


# What is refused.


def file_of(folder, content):
    (folder / "weights.pdparams").write_bytes(content)
    return folder / "weights.pdparams"


def test_a_missing_file_is_answered_with_the_nearest_names(saved):
    (saved.with_name("epoch_12.pdparams")).touch()
    (saved.with_name("log.txt")).touch()
    message = refusal(saved.with_name("epoch_2.pdparams"))
    assert message == "there is no such file; did you mean 'epoch_12.pdparams' or 'epoch_3.pdparams'?"
    assert refusal(saved.with_name("epoch_3")).endswith("did you mean 'epoch_3.pdparams' or 'epoch_12.pdparams'?")


def test_a_missing_file_without_near_names_or_without_folder_is_named(tmp_path):
    assert refusal(tmp_path / "a.pdparams") == "there is no such file"
    assert refusal(tmp_path / "no" / "a.pdparams") == f"there is no such file, nor a folder {tmp_path / 'no'}"


def test_a_folder_a_pipe_and_a_loop_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    assert refusal(tmp_path) == "is a folder; give the weight file itself"
    assert refusal(tmp_path / "pipe") == "is not a regular file; give the weight file itself"
    assert refusal(tmp_path / "loop") == "cannot be read: Too many levels of symbolic links"


@pytest.fixture
def unprivileged():
    """Root may read and write everything, so that its rights are put down for the test."""
    if os.geteuid() != 0:
        yield
    else:
        os.seteuid(65534)
        yield
        os.seteuid(0)


@pytest.fixture
def open_folder(tmp_path):
    """A folder that another user can reach."""
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    return tmp_path


def test_a_file_that_may_not_be_read_is_refused(open_folder, saved, request):
    saved.chmod(0)
    request.getfixturevalue("unprivileged")
    assert refusal(saved) == "cannot be read: Permission denied"


def test_an_empty_file_and_one_over_the_limit_are_refused(tmp_path):
    assert refusal(file_of(tmp_path, b"")) == "is empty; copy or download it again"
    path = file_of(tmp_path, b"\x80\x04N.")
    assert refusal(path, limit=3) == "has 4 bytes, more than the limit of 3"


def zip_of(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 132735\n"
EXPORTED = "is an exported Paddle model (.pdiparams); give the .pdparams file it was made from"
WENT_WRONG = "is an HTML page; the download went wrong"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zip_of(**{"cat.jpg": b"\xff\xd8"}), "is a zip archive; unpack it and give the weight file in it"),
        (zip_of(**{"a/model.safetensors": b"x"}), "is a zip archive; unpack it and give the weight file in it"),
        (b"\xd8^:\x7f\xa1\xe1", "is an encrypted MindSpore checkpoint; save it without enc_key"),
        (bytes(16) + b"\x06\0\0\0", EXPORTED),
        (LFS, "is a git-lfs pointer; fetch the file itself with `git lfs pull`"),
        (b"<!DOCTYPE html>\n<html>404</html>", WENT_WRONG),
        (b"\r\n  <html lang='en'>", WENT_WRONG),
        (b"\xef\xbb\xbf<?xml version='1.0'?><html>", WENT_WRONG),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", r"is not a weight file; it starts with b'\xff\xd8\xff\xe0\x00\x10JFIF'"),
        (b"\n\n[section]\nkey = value\n", r"is not a weight file; it starts with b'\n\n[section]\nkey '"),
        (b"}q\x00.", r"is not a weight file; it starts with b'}q\x00.'"),
        (pickle.dumps([1], 4), "holds a list, not a dict of weights"),
        (pickle.dumps(None, 4), "holds a NoneType, not a dict of weights"),
    ],
)
def test_what_is_not_a_weight_file_is_named(content, message, tmp_path):
    assert refusal(file_of(tmp_path, content)) == message


def test_a_file_is_known_by_its_content_whatever_its_extension(tmp_path):
    real = [path for path in REAL_FILES.iterdir() if not path.name.startswith("paddle")]
    assert len(real) > 9
    for path in real:
        assert same(read_file(file_of(tmp_path, path.read_bytes())), read_file(path))


def test_an_exported_paddle_file_is_known(tmp_path):
    paddle = pytest.importorskip("paddle")
    paddle.save(paddle.zeros([2]), str(tmp_path / "binary"), use_binary_format=True)
    assert refusal(tmp_path / "binary").startswith("is an exported Paddle model")


def test_a_reader_is_added_by_one_entry(tmp_path, monkeypatch):
    form = FORMATS[0]._replace(label="text", matches=lambda head: head == b"abc", read=lambda data, name: {"a": data})
    monkeypatch.setattr(checkpoint_formats, "FORMATS", (form, *FORMATS))
    assert read_file(file_of(tmp_path, b"abc")) == {"a": b"abc"}


def test_nothing_is_tried_in_turn(tmp_path, monkeypatch):
    tried = []
    watched = tuple(form._replace(read=form.read and watch(form, tried)) for form in FORMATS)
    monkeypatch.setattr(checkpoint_formats, "FORMATS", watched)
    for path in sorted(REAL_FILES.iterdir()):
        tried.clear()
        content = path.read_bytes()
        refusal(file_of(tmp_path, content[: len(content) - 7]))
        assert len(tried) == 1, path


def watch(form, tried):
    def read(data, name):
        tried.append(form.label)
        return form.read(data, name)

    return read


def test_a_hostile_file_is_refused_under_its_own_name(tmp_path):
    path = file_of(tmp_path, b"\x80\x04cposix\nsystem\n(X\x05\0\0\0touchtR.")
    assert refusal(path).startswith("asks for 'posix.system', which is not plain data")


# Damage.


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_every_truncation_is_refused(step, saved):
    data = saved.read_bytes()
    for size in range(0, len(data), step):
        saved.write_bytes(data[:size])
        assert refusal(saved)


@pytest.mark.parametrize("step", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_no_single_flipped_bit_changes_what_is_read(step, saved):
    data, expected = saved.read_bytes(), contiguous(checkpoint())
    silent = 0
    for place in range(0, 8 * len(data), step):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        saved.write_bytes(damaged)
        try:
            tree = read_file(saved)
        except CheckpointError:
            continue
        silent += 1
        assert same(tree, expected)
    assert silent < 10


@pytest.mark.parametrize(
    ("part", "other"),
    [
        (b"epoch", b"epocH"),
        (np.float32(1 / 7).tobytes(), np.float32(1 / 6).tobytes()),
        (b"digest", b"digesT"),
        (b"sha256:", b"sha257:"),
        (b"Cosine", b"cosine"),
    ],
)
def test_a_damage_that_still_unpickles_is_told_by_the_digest(part, other, saved):
    data = saved.read_bytes()
    assert data.count(part) == 1
    saved.write_bytes(data.replace(part, other))
    assert refusal(saved) == "is damaged: digest differs; use an older checkpoint or copy the file again"


def test_a_digest_over_values_that_are_never_written_is_refused(tmp_path):
    tree = {"w": np.float32(1), "digest": "sha256:" + "0" * 64}
    assert "digest differs" in refusal(file_of(tmp_path, pickle.dumps(tree, 4)))


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree["state_dict"].update({"backbone.w": tree["state_dict"]["backbone.w"].reshape(3, 2)}),
        lambda tree: tree["state_dict"].update({"backbone.bf16": tree["state_dict"]["backbone.bf16"].view("i2")}),
        lambda tree: tree["state_dict"].update({"new": tree["state_dict"].pop("backbone.w")}),
        lambda tree: tree["state_dict"].update({"backbone.w": tree["state_dict"].pop("backbone.w")}),
        lambda tree: tree.update(epoch=3.0),
        lambda tree: tree.update(epoch=True),
        lambda tree: tree["lr_scheduler"].update(range=[0.5, None]),
    ],
    ids=["shape", "dtype", "name", "order", "int or float", "int or bool", "tuple or list"],
)
def test_the_digest_covers(change):
    tree = checkpoint()
    change(tree)
    assert digest_of(tree) != digest_of(checkpoint())


# Writing.


def test_a_value_that_cannot_be_stored_leaves_nothing_behind(saved):
    before = saved.read_bytes()
    with pytest.raises(TypeError, match="^optimizer.scale: a float64 cannot be stored"):
        write_file(saved, {"epoch": 1, "optimizer": {"scale": np.float64(1)}})
    with pytest.raises(ValueError, match="^digest: this key is kept"):
        write_file(saved, {"digest": "x"})
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]


def refused_write(path, tree):
    with pytest.raises(CheckpointError) as caught:
        write_file(path, tree)
    return str(caught.value)


def fail(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def half_a_dump(tree, write):
    write(b"\x80\x04}")
    if getattr(write, "__self__", None).__class__.__name__ == "BufferedWriter":
        fail()


@pytest.mark.parametrize(
    ("module", "function", "fault"),
    [(paddle_pickle, "dump", half_a_dump), (os, "fsync", fail), (os, "replace", fail)],
    ids=["write", "fsync", "rename"],
)
def test_an_error_at_any_step_keeps_the_old_file_and_removes_the_new_one(module, function, fault, saved, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr(module, function, fault)
    assert refused_write(saved, {"epoch": 4}) == f"{saved}: cannot be written: No space left on device"
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]


def test_a_full_disk_keeps_the_old_file(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root only")
    try:
        path = folder / "epoch_1.pdparams"
        write_file(path, {"w": np.ones(50_000)})
        assert refused_write(path, {"w": np.ones(100_000)}).endswith("cannot be written: No space left on device")
        assert os.listdir(folder) == [path.name] and same(read_file(path), {"w": np.ones(50_000)})
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_file_that_grows_too_large_for_the_system_keeps_the_old_file(saved):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        message = refused_write(saved, {"w": np.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message == f"{saved}: cannot be written: File too large"
    assert os.listdir(saved.parent) == [saved.name] and same(read_file(saved), contiguous(checkpoint()))


def test_a_read_only_folder_is_refused(open_folder, saved, request):
    saved.parent.chmod(0o555)
    request.getfixturevalue("unprivileged")
    assert refused_write(saved, {"epoch": 4}) == f"{saved}: cannot be written: Permission denied"
    assert same(read_file(saved), contiguous(checkpoint()))


def test_a_device_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert refused_write(tmp_path / "pipe", {}) == f"{tmp_path}/pipe: cannot be written: it is not a regular file"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_what_a_link_points_to_is_written(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.pdparams").symlink_to(tmp_path / "real" / "w.pdparams")
    write_file(tmp_path / "link.pdparams", {"w": np.ones(2)})
    assert (tmp_path / "link.pdparams").is_symlink()
    assert list(read_file(tmp_path / "real" / "w.pdparams")) == ["w"]


def test_a_missing_folder_and_a_folder_as_path_are_refused(tmp_path):
    path = tmp_path / "no" / "a.pdparams"
    assert refused_write(path, {}) == f"{path}: cannot be written: No such file or directory"
    assert refused_write(tmp_path, {}) == f"{tmp_path}: cannot be written: expected the name of a file"
    assert os.listdir(tmp_path) == [] and not list(tmp_path.parent.glob(".*.tmp"))


KILLED = """
import os, signal, sys
from passl_xcit.modeling.checkpoint_formats import write_file
setattr(os, sys.argv[2], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
write_file(sys.argv[1], {"epoch": 4})
"""


@pytest.mark.parametrize("step", ["fsync", "replace", "close"])
def test_a_process_killed_while_writing_leaves_the_old_file_or_the_new_one(step, saved):
    done = subprocess.run([sys.executable, "-c", KILLED, saved, step], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL
    assert same(read_file(saved), {"epoch": 4} if step == "close" else contiguous(checkpoint()))
    assert all(name == saved.name or name.startswith(f".{saved.name}.") for name in os.listdir(saved.parent))


def test_a_written_file_has_the_rights_of_any_new_file(saved):
    other = saved.with_name("other")
    other.touch()
    assert saved.stat().st_mode == other.stat().st_mode


# Writing in every format.


def arrays():
    """Every type that all three formats have, in every memory order."""
    tree = {code: formula([2, 3], code) for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")}
    block = formula([4, 6])
    tree.update(fortran=np.asfortranarray(block), part=block[1:3, ::2], turned=formula([2, 3, 4]).transpose(2, 0, 1))
    return {**tree, "a name\u00e9": formula([5]), "zero_d": formula([]), "empty": np.zeros((0, 3), "f4"), "same": block}


@pytest.mark.parametrize("extension", ["pdparams", "pth", "pt", "bin", "safetensors"])
def test_weights_written_by_extension_are_read_again(extension, tmp_path):
    path = tmp_path / f"weights.{extension}"
    write_weights(path, arrays())
    read = read_file(path)
    assert set(read) == set(arrays())
    for name, array in arrays().items():
        assert same(np.asarray(read[name], order="C"), np.asarray(array, order="C")), name
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("extension", ["pdparams", "pth"])
def test_a_wrapper_is_the_key_over_the_weights(extension, tmp_path):
    path = tmp_path / f"weights.{extension}"
    write_weights(path, {"w": formula([3])}, wrapper="model")
    assert same(read_file(path), {"model": {"w": formula([3])}})


def test_torch_s_form_holds_a_whole_checkpoint(tmp_path):
    tree = {**checkpoint(), "seed": -(2**40)}
    tree["state_dict"].pop("backbone.bf16")
    write_torch(tmp_path / "checkpoint.pth", tree)
    tree["state_dict"]["backbone.f"] = tree["state_dict"]["backbone.f"].copy("C")
    assert same(read_file(tmp_path / "checkpoint.pth"), contiguous(tree))


def test_safetensors_reads_what_was_written(tmp_path):
    write_weights(tmp_path / "w.safetensors", arrays())
    with safe_open(tmp_path / "w.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        for name, array in arrays().items():
            assert same(file.get_tensor(name), np.asarray(array, order="C"))
    write_safetensors(tmp_path / "w.safetensors", {"w": formula([2])}, {"format": "np", "from": "x"})
    with safe_open(tmp_path / "w.safetensors", "np") as file:
        assert file.metadata() == {"format": "np", "from": "x"} and list(file.keys()) == ["w"]


@pytest.mark.parametrize("extension", ["pdparams", "pth", "safetensors"])
def test_the_bytes_of_a_file_depend_on_the_values_only(extension, tmp_path):
    for name in ("one", "other"):
        write_weights(tmp_path / f"{name}.{extension}", arrays())
    one, other = (tmp_path / f"{name}.{extension}" for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


def torch_tree():
    return {"model": arrays(), "epoch": 3, "note": "\u00e9", "lr": 0.5, "none": [None, (True,)]}


def test_torch_reads_what_was_written(tmp_path):
    torch = pytest.importorskip("torch")
    write_torch(tmp_path / "w.pth", torch_tree())
    tree = torch.load(tmp_path / "w.pth", weights_only=True)
    weights = {name: tensor.numpy() for name, tensor in tree.pop("model").items()}
    assert all(same(weights[name], np.asarray(array, order="C")) for name, array in arrays().items())
    assert {"model": arrays(), **tree}.keys() == torch_tree().keys() and tree["none"] == [None, (True,)]


def test_the_bytes_of_a_torch_file_stay_those_that_torch_has_read(tmp_path):
    """torch 2.13.0 read this very file as the test above says, also with mmap=True: most machines have no torch."""
    write_torch(tmp_path / "w.pth", torch_tree())
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    assert digest == "1d92ffbdd29b245409c9fcc285b2ec0bfa560eed08eab5695fa0cb9caef41494"


def test_a_torch_file_is_a_sound_zip_archive_with_aligned_members(tmp_path):
    path = tmp_path / "w.pth"
    write_torch(path, arrays())
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None and archive.namelist()[0] == "archive/data.pkl"
        for member in archive.infolist():
            name, extra = struct.unpack("<HH", data[member.header_offset + 26 :][:4])
            start = member.header_offset + 30 + name + extra
            assert start % 64 == 0 and data[start:][: member.file_size] == archive.read(member)


@pytest.mark.parametrize("name", ["weights.ckpt", "weights.npz", "weights", "weights.PTH"])
def test_another_extension_is_refused(name, tmp_path):
    with pytest.raises(CheckpointError, match="weights are written as .pdparams, .safetensors or .pth"):
        write_weights(tmp_path / name, arrays())
    assert os.listdir(tmp_path) == []


def test_a_wrapper_in_a_safetensors_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds tensors only, nothing under a key 'model'"):
        write_weights(tmp_path / "w.safetensors", arrays(), wrapper="model")


@pytest.mark.parametrize("extension", ["pdparams", "pth", "safetensors"])
@pytest.mark.parametrize(
    "value",
    [np.array(["x"]), np.ones(2, "c8"), np.ones(2, ">f4"), np.array([None]), np.float32(1), {1}, b"x"],
    ids=["text", "complex", "big-endian", "objects", "a numpy scalar", "a set", "bytes"],
)
def test_a_value_that_a_format_cannot_hold_is_named_and_the_old_file_stays(extension, value, tmp_path):
    path = tmp_path / f"weights.{extension}"
    write_weights(path, {"w": formula([3])})
    with pytest.raises(TypeError, match="^b: "):
        write_weights(path, {"a": formula([3]), "b": value})
    assert os.listdir(tmp_path) == [path.name] and same(read_file(path), {"w": formula([3])})


@pytest.mark.parametrize(
    ("extension", "arrays"),
    [("safetensors", {1: formula([2])}), ("safetensors", {"b": np.ones(2, "u2")}), ("pth", {"b": np.ones(2, "u2")})],
)
def test_a_name_or_a_type_that_one_format_has_not_is_refused(extension, arrays, tmp_path):
    with pytest.raises(TypeError, match="^(1|b): "):
        write_weights(tmp_path / f"weights.{extension}", arrays)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("extension", ["pth", "safetensors"])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_an_error_while_writing_any_format_keeps_the_old_file(extension, function, tmp_path, monkeypatch):
    path = tmp_path / f"weights.{extension}"
    write_weights(path, {"w": formula([3])})
    monkeypatch.setattr(os, function, fail)
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device$"):
        write_weights(path, arrays())
    assert os.listdir(tmp_path) == [path.name] and same(read_file(path), {"w": formula([3])})


@pytest.mark.parametrize("extension", ["pdparams", "pth", "safetensors"])
def test_40_megabytes_are_read_soon_and_held_twice_at_most(extension, tmp_path):
    path = tmp_path / f"weights.{extension}"
    tree = {f"w{index}": np.full((200, 100), index, "f4") for index in range(500)}
    write_weights(path, tree)
    with bounds(seconds=1, size=95 * 10**6):
        read = read_file(path)
    assert same({name: read[name] for name in tree}, tree)


# The named arrays of a file.


def test_a_bare_state_dict_and_a_checkpoint_give_the_same_weights():
    state = checkpoint()["state_dict"]
    assert list(state_dict_of(state, "f")) == list(state_dict_of(checkpoint(), "f")) == list(state)


def test_paddle_s_names_are_taken_off_and_its_table_dropped():
    array = np.ones(2)
    tree = {"w": ("linear_0.w_0", array), "b": array, "StructuredToParameterName@@": {"w": "linear_0.w_0"}}
    weights = state_dict_of(tree, "f")
    assert list(weights) == ["w", "b"] and weights["w"] is array
    assert isinstance(tree["w"], tuple)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([1], "its state dict is a list, not a dict of named arrays"),
        ({"state_dict": None}, "its state dict is a NoneType, not a dict of named arrays"),
        ({}, "holds no weights"),
        ({"state_dict": {}}, "holds no weights"),
        ({"StructuredToParameterName@@": {}}, "holds no weights"),
        ({"w": np.ones(2), "epoch": 3}, "is not a dict of named arrays: see 'epoch'"),
        ({1: np.ones(2)}, "is not a dict of named arrays: see 1"),
        ({"w": ("name", [1.0])}, "is not a dict of named arrays: see 'w'"),
        ({"w": {"x": 1}, "a": 1, "b": 2, "c": 3}, "is not a dict of named arrays: see 'w', 'a', 'b' and 1 more"),
        ({"a": np.ones(2), "b": np.array([1, np.nan])}, "holds non-finite values in 'b'"),
        ({str(n): np.array(np.inf, "f2") for n in range(5)}, "holds non-finite values in '0', '1', '2' and 2 more"),
        ({"a": np.array([0x3F80, 0x7F80], "u2")}, "holds non-finite values in 'a'"),
        ({"a": np.array([0xFFC0], "u2")}, "holds non-finite values in 'a'"),
    ],
)
def test_what_is_not_a_dict_of_finite_named_arrays_is_refused(tree, message):
    with pytest.raises(CheckpointError) as caught:
        state_dict_of(tree, "weights.pdparams")
    assert str(caught.value) == f"weights.pdparams: {message}"


def test_the_largest_finite_values_are_accepted():
    tree = {code: np.array([np.finfo(code).max, np.finfo(code).min], code) for code in ("f2", "f4", "f8")}
    tree.update(bf16=np.array([0x7F7F, 0xFF7F], "u2"), ints=np.array([-1, 2**62]))
    assert list(state_dict_of(tree, "f")) == list(tree)
