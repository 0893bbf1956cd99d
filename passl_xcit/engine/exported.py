"""The folder of an export: what it says of itself, whether it is whole, and its model in one of the engines."""

import hashlib
import json
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, get_type_hints

import numpy as np

from passl_xcit.datasets.preprocess import Preprocess
from passl_xcit.engine.runtimes import (
    ONNX,
    PARAMETERS,
    PROGRAM,
    default_engine,
    difference_from,
    is_right,
    open_runtime,
)
from passl_xcit.modeling.backbones.backbone import check_sides
from passl_xcit.utils.errors import CheckpointError, ConfigError, DataError
from passl_xcit.utils.refusals import short
from passl_xcit.utils.typing_check import describe, fits

SIDECAR = "export.json"
VERSION = 1  # of what stands in it
MOST_BYTES = 64 * 2**20  # of it: the names of a million classes
FILES = ({PROGRAM, PARAMETERS}, {ONNX}, {PROGRAM, PARAMETERS, ONNX})  # that an export may have
AGAIN = "copy the whole folder again, or export again"


class Sidecar(NamedTuple):
    """What `export.json` says of the export it lies in.

    `image_size` (height, width) in pixels is what the model was evaluated with; with `any_size` images may have other
    sides, multiples of `size_divisor`. `preprocess` is `Preprocess.to_dict()`. `difference` holds for each engine its
    largest difference from the model, as a share of the model's largest output, None for one that failed; `trial` the
    model's outputs for `trial_images`; `sha256` the other files' digests.
    """

    version: int
    softmax: bool
    image_size: List[int]
    any_size: bool
    size_divisor: int
    channels: int
    num_classes: int
    class_names: Optional[List[str]]
    preprocess: Optional[Dict]
    difference: Dict
    trial: List[List[float]]
    passl_xcit: str
    paddle: str
    sha256: Dict

    def write(self, folder):
        (folder / SIDECAR).write_bytes(_sealed(self._asdict()))


def trial_images(said):
    """float32 [2, C, H, W], waves that an engine is tried with when it loads; small where the model takes any size."""
    least = -(-64 // said.size_divisor) * said.size_divisor
    sides = [least, least] if said.any_size else said.image_size
    shape = (2, said.channels, *sides)
    return np.sin(np.arange(np.prod(shape)) % 9973.0).astype("float32").reshape(shape)


def digests(folder):
    """{name: SHA-256} of the files in a folder."""
    return {path.name: _digest_of_file(path) for path in sorted(folder.iterdir())}


def is_export(path):
    """Whether a path is the folder of an export, whole or not."""
    path = Path(path)
    return path.is_dir() and any((path / name).exists() for name in (SIDECAR, PROGRAM, ONNX))


class ExportedModel:
    """A verified export in an engine: float32 images [B, C, H, W] -> logits [B, K], NumPy arrays.

    An export with softmax gives the logarithms of its probabilities: logits of the same probabilities.

    Args:
        folder: that `export_model` wrote.
        engine: of `runtimes.ENGINES`; by default Paddle Inference or, for an export without its program, ONNX Runtime.
        precision: "float32" or "bfloat16".

    Attributes:
        num_classes, class_names, preprocess: None where the export does not say it.

    Raises:
        CheckpointError: the export is damaged, changed, not whole, or of another version; nothing of it has been run.
        ConfigError: the engine cannot run here, or computes something else than the model did.
        DataError: when called, for images that the model does not take.
    """

    def __init__(self, folder, engine=None, precision="float32"):
        self.folder = Path(folder)
        self.sidecar = _verified(self.folder)
        self.num_classes, self.class_names = self.sidecar.num_classes, self.sidecar.class_names
        self.preprocess = self._preprocess()
        engine = engine or default_engine(self.sidecar.sha256)
        self._run = open_runtime(self.folder, engine, precision)
        self._check_shapes(*self._run.shapes)
        self._try(engine, precision)

    def _try(self, engine, precision):
        """Engines have computed something else: oneDNN in Paddle 3.0.0 differs by a third of the largest logit."""
        found = difference_from(np.float32(self.sidecar.trial), self._run, trial_images(self.sidecar))
        if not is_right(found, precision):
            what = "fails" if found is None else f"differs from the model by {found:.2g} of its largest output"
            raise ConfigError(
                f"{self.folder}: engine {engine} in {precision} {what} on this machine: take another engine"
            )

    def _preprocess(self):
        if self.sidecar.preprocess is None:
            return None
        try:
            return Preprocess.from_dict(self.sidecar.preprocess)
        except ConfigError as error:
            raise CheckpointError(f"{self.folder / SIDECAR}: its entry preprocess: {error}") from error

    def _check_shapes(self, images, outputs):
        """Whether the program is one of the model that the sidecar describes."""
        said, sides = self.sidecar, [-1, -1] if self.sidecar.any_size else self.sidecar.image_size
        for what, found, expected in (
            ("takes images", images, [-1, said.channels, *sides]),
            ("gives outputs", outputs, [-1, said.num_classes]),
        ):
            if found != expected:
                raise CheckpointError(
                    f"{self.folder}: is not one export: the program {what} of shape {found}, {SIDECAR} says {expected} "
                    f"(-1 is any length); {AGAIN}"
                )

    def __call__(self, images):
        self._check_images(*images.shape[1:])
        outputs = self._run(images)
        if not self.sidecar.softmax:
            return outputs
        with np.errstate(divide="ignore"):
            return np.log(outputs)

    def _check_images(self, channels, height, width):
        if channels != self.sidecar.channels:
            raise DataError(f"images have {channels} channels, but the export takes {self.sidecar.channels}")
        self.check_size(height, width)

    def check_size(self, height, width):
        """Raise DataError unless the program takes images of so many pixels."""
        said = self.sidecar
        if not said.any_size and [height, width] != said.image_size:
            wanted = " x ".join(map(str, said.image_size))
            raise DataError(
                f"images of {height} x {width} pixels: this export takes {wanted} only, as CrossViT's do; export again "
                "with a config of that size"
            )
        check_sides(height, width, said.size_divisor)


def _verified(folder):
    """The Sidecar of a folder all of whose files are what it says."""
    said = _read(folder / SIDECAR)
    for name, digest in said.sha256.items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: is missing, but {SIDECAR} tells of it; {AGAIN}")
        if _digest_of_file(folder / name) != digest:
            raise CheckpointError(f"{folder / name}: is not the file that {SIDECAR} tells of: another SHA-256; {AGAIN}")
    return said


def _read(path):
    try:
        with open(path, "rb") as file:
            raw = file.read(MOST_BYTES + 1)
        tree = json.loads(raw)
        whole = _sealed({name: value for name, value in tree.items() if name != "seal"}) == raw
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}; without it an export is not used") from error
    except (ValueError, AttributeError, RecursionError) as error:  # AttributeError: no mapping
        raise CheckpointError(f"{path}: is damaged: not the JSON of an export; {AGAIN}") from error
    if tree.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: is of version {short(tree.get('version'))}, and {VERSION} is read here; export the weights again"
        )
    if not whole:
        raise CheckpointError(f"{path}: is damaged or was changed; {AGAIN}")
    return _checked(tree, path)


def _checked(tree, path):
    hints = get_type_hints(Sidecar)
    for name, hint in hints.items():
        if name not in tree or not fits(tree[name], hint):
            raise CheckpointError(f"{path}: its entry {name} should be {describe(hint)}, not {short(tree.get(name))}")
    said = Sidecar(**{name: tree[name] for name in hints})
    counts = (*said.image_size, said.size_divisor, said.channels, said.num_classes)
    names = said.class_names
    if len(said.image_size) != 2 or min(counts) < 1 or (names is not None and len(names) != said.num_classes):
        raise CheckpointError(f"{path}: its numbers fit no model, or there are not as many names as classes")
    if [len(outputs) for outputs in said.trial] != [said.num_classes] * 2 or not np.abs(said.trial).max() > 0:
        raise CheckpointError(f"{path}: its entry trial holds no outputs of 2 images")
    if set(said.sha256) not in FILES:
        raise CheckpointError(f"{path}: tells of the files {short(sorted(said.sha256))}, which make no export")
    return said


def _sealed(entries):
    """The bytes of a sidecar; their last entry is the SHA-256 of the text without it."""
    seal = hashlib.sha256(_text(entries)).hexdigest()
    return _text({**entries, "seal": seal})


def _text(entries):
    text = json.dumps(entries, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # names of folders may hold bytes that are no UTF-8


def _digest_of_file(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(2**20), b""):
            digest.update(part)
    return digest.hexdigest()
