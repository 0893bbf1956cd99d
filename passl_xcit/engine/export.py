"""A model as a program that runs without this package, compared with the model before it is declared good."""

import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from passl_xcit.engine.exported import VERSION, Sidecar, digests, trial_images
from passl_xcit.engine.runtimes import (
    ENGINES,
    FLOAT32,
    ONNX,
    PARAMETERS,
    PRECISIONS,
    PROGRAM,
    TOLERANCE,
    check_engine,
    difference_from,
    is_right,
    label,
    runtimes,
    without_chatter,
)
from passl_xcit.ops.library import portable
from passl_xcit.utils.errors import ConfigError, UserError

FORMATS = ("paddle", "onnx")
OPSET = 17
GRAPH_BYTES = 4 * 2**20  # room for a program without its weights, of which an XCiT of 24 blocks has 1.0 MB


class Exported(nn.Layer):
    """What an exported program computes: images [B, C, H, W] -> logits, or with `softmax` probabilities, [B, K]."""

    def __init__(self, model, softmax):
        super().__init__()
        self.model, self.softmax = model, softmax

    def forward(self, images):
        logits = self.model(images).astype("float32")
        return F.softmax(logits, axis=-1) if self.softmax else logits


def export_model(model, folder, image_size, softmax=False, formats=FORMATS[:1], preprocess=None, precision=FLOAT32):
    """Write `model` as a program into a new folder, with `export.json` beside it.

    XCiT and RegNet take images of any size then (XCiT's sides are multiples of its patches), CrossViT of `image_size`;
    batches may have any size. What is written computes in float32; engines can compute it in bfloat16.

    Args:
        image_size: (height, width) in pixels of the images that the program is compared with.
        softmax: give probabilities instead of logits.
        formats: of FORMATS.
        preprocess: `Preprocess.to_dict()`, for `export.json`.
        precision: "bfloat16" compares the engines in bfloat16 as well.

    Returns:
        What stands in `export.json`, a Sidecar.

    Raises:
        ConfigError: the folder is there and not empty; an optional package is missing; no engine has the precision.
        UserError: no engine computes what the model computes; nothing is left in the folder.
    """
    check_engine(None, precision)
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is there already and not empty; give another folder")
    _check_space(folder, model, len(formats))
    was_training = model.training
    with _new_folder(folder) as made, without_chatter():
        exported = Exported(model, softmax)
        exported.eval()
        try:
            _write_program(exported, made, image_size)
            if "onnx" in formats:
                _write_onnx(made)
            differences = _checked_differences(exported, made, image_size, precision)
            if "paddle" not in formats:
                (made / PROGRAM).unlink()
                (made / PARAMETERS).unlink()
                kept = {name for name, engine in ENGINES.items() if ONNX in engine.FILES}
                differences = {of: value for of, value in differences.items() if of.partition(" ")[0] in kept}
            sidecar = _sidecar(exported, made, image_size, preprocess, differences)
        finally:
            model.train() if was_training else model.eval()
        sidecar.write(made)
    return sidecar


def _check_space(folder, model, formats):
    """Before anything is written: on a full disk paddle2onnx ends the whole process without a word."""
    weights = sum(tensor.size * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    needed = (weights + GRAPH_BYTES) * formats
    there = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ConfigError(f"{folder}: needs {needed / 1e6:.1f} MB, but {free / 1e6:.1f} MB are free: make room there")


@contextlib.contextmanager
def _new_folder(folder):
    """Yields a folder that becomes `folder` at the end, and is removed after an error."""
    made = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        yield made
        made.chmod(0o755)
        os.replace(made, folder)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        if made:
            shutil.rmtree(made, ignore_errors=True)


def _write_program(exported, folder, image_size):
    backbone = exported.model.backbone
    sides = [None, None] if backbone.TRACED_FOR_ANY_SIZE else image_size
    spec = paddle.static.InputSpec([None, backbone.in_chans, *sides], "float32", name="images")
    program = paddle.jit.to_static(exported, input_spec=[spec], full_graph=True)
    paddle.jit.save(program, str(folder / Path(PROGRAM).stem))


def _write_onnx(folder):
    try:
        import onnxruntime  # noqa: F401 which runs it for the comparison
        import paddle2onnx
    except ImportError as error:
        raise ConfigError("ONNX needs paddle2onnx and onnxruntime: pip install 'passl_xcit[export]'") from error
    files = (str(folder / name) for name in (PROGRAM, PARAMETERS, ONNX))
    # None of its optimisers: the usual one installs packages while it runs.
    paddle2onnx.export(*files, opset_version=OPSET, enable_onnx_checker=True, optimize_tool="None", verbose=False)


def _sidecar(exported, folder, image_size, preprocess, differences):
    model, backbone = exported.model, exported.model.backbone
    said = Sidecar(
        version=VERSION,
        softmax=exported.softmax,
        image_size=list(image_size),
        any_size=backbone.TRACED_FOR_ANY_SIZE,
        size_divisor=backbone.size_divisor,
        channels=backbone.in_chans,
        num_classes=model.num_classes,
        class_names=None if model.class_names is None else list(model.class_names),
        preprocess=preprocess,
        difference=differences,
        trial=[],
        passl_xcit=sys.modules["passl_xcit"].__version__,  # the package lies above this floor, and is there
        paddle=paddle.__version__,
        sha256=digests(folder),
    )
    return said._replace(trial=_outputs(exported, trial_images(said)).tolist())


def _checked_differences(exported, folder, image_size, precision):
    """{label: largest difference of the engine or, if it fails, None}"""
    shapes, differences = _trial_shapes(exported.model.backbone, image_size), {}
    for each in PRECISIONS[: 1 + PRECISIONS.index(precision)]:
        found = _compare(exported, runtimes(folder, each), shapes)
        right = [name for name, difference in found.items() if is_right(difference, each)]
        if not right and each != FLOAT32:
            raise ConfigError(f"no engine here can compute these formats in {each}")
        runnable = {ENGINES[name].FILES for name in right}
        if each == FLOAT32 and runnable != {ENGINES[name].FILES for name in found}:
            raise UserError(
                f"{folder}: no engine computes what the model computes: largest differences {found}, as a share of its "
                f"largest output, where {TOLERANCE[each]:g} is allowed: nothing was kept"
            )
        differences.update({label(name, each): value for name, value in found.items()})
    return differences


def _trial_shapes(backbone, image_size):
    """[B, C, H, W] that engines are tried with: several batches and, where they may differ, several sizes."""
    height, width = image_size
    shapes = [(1, height, width), (3, height, width)]
    if backbone.TRACED_FOR_ANY_SIZE:
        shapes.append((2, height, 2 * width))
    return [(count, backbone.in_chans, *sides) for count, *sides in shapes]


def _compare(exported, engines, shapes):
    """{engine: largest difference from the model, as a share of the model's largest output, or None}"""
    rng = np.random.default_rng(0)
    trials = [rng.standard_normal(shape, "float32") for shape in shapes]
    expected = [_outputs(exported, images) for images in trials]
    return {name: _largest(run, trials, expected) for name, run in engines.items()}


def _largest(run, trials, expected):
    differences = [difference_from(wanted, run, images) for images, wanted in zip(trials, expected)]
    return None if None in differences else float(np.max(differences))


@paddle.no_grad()
def _outputs(exported, images):
    with portable():  # whatever precision is asked for of native operators
        return Exported.forward(exported, paddle.to_tensor(images)).numpy()
