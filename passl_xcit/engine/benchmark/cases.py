"""What is measured: cases, and the files that all contenders of a case get."""

import math
from itertools import product
from typing import NamedTuple

import numpy as np
import paddle
from safetensors.numpy import save_file

from passl_xcit.engine.export import export_model
from passl_xcit.modeling import factory
from passl_xcit.modeling.checkpoint_formats import write_weights
from passl_xcit.modeling.convert import convert_weights
from passl_xcit.modeling.flops import count_flops, count_streams
from passl_xcit.utils.errors import ConfigError
from passl_xcit.utils.startup import usable_cores

MODES = ("inference", "train", "matmul", "copy")
PRECISIONS = ("float32", "bfloat16")
CLASSES = 1000
TRAINING = 3  # a step computes the forward products, and as many twice for the gradients of inputs and weights
MATRIX = 2048  # rows and columns of the matrices that measure how fast the machine multiplies
COPIED = 2**28  # bytes that measure how fast the machine copies, far more than caches hold


class Case(NamedTuple):
    """One thing that contenders do in turns. `model` is "" for the machine's limits, the modes matmul and copy.

    Several processes do the same side by side, each with so many threads.
    """

    model: str
    mode: str
    batch_size: int
    image_size: int  # pixels, height and width
    precision: str
    threads: int
    processes: int = 1

    def __str__(self):
        if self.mode in ("matmul", "copy"):
            return f"{self.mode} {self.precision}, {self.crew}"
        what = f"{self.model} {self.mode} {self.precision}"
        return f"{what}, {self.image_size} px, batch {self.batch_size}, {self.crew}"

    @property
    def crew(self):
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return threads if self.processes == 1 else f"{self.processes} processes of {threads}"

    @property
    def cores(self):
        """What all threads together keep busy."""
        return self.threads * self.processes


def cases_of(models, modes, batch_sizes, image_sizes, precisions, threads, processes):
    """All combinations, after those that measure the limits of as many cores of the machine.

    Processes that together would have more threads than there are cores are left out.

    Raises:
        ConfigError: for a model, mode or precision that there is not, and a size that a model cannot take.
    """
    for name, values, known in (("mode", modes, MODES[:2]), ("precision", precisions, PRECISIONS)):
        unknown = [value for value in values if value not in known]
        if unknown:
            raise ConfigError(f"{unknown[0]}: there is no such {name}; expected {', '.join(known)}")
    crews = [crew for crew in product(threads, processes) if crew[1] == 1 or math.prod(crew) <= usable_cores()]
    sizes = product(models, modes, image_sizes, batch_sizes, precisions)
    cases = [
        Case(model, mode, batch_size, image_size, precision, *crew)
        for (model, mode, image_size, batch_size, precision), crew in product(sizes, crews)
    ]
    for case in cases:
        flops_of(case)
    limits = []
    for cores in sorted({case.cores for case in cases}):
        limits += [Case("", "matmul", 0, 0, precision, cores) for precision in precisions]
        limits.append(Case("", "copy", 0, 0, "float32", cores))
    return limits + cases


def flops_of(case):
    """Multiply-adds of a process's step; ConfigError for an unknown model or a size that it cannot take."""
    step = TRAINING if case.mode == "train" else 1
    try:
        return step * case.batch_size * count_flops(factory.architecture_of(case.model), case.image_size)
    except ValueError as error:
        raise ConfigError(f"{case.model}: {error}") from error


def bytes_of(case):
    """Bytes that a process's step reads from memory and writes to it at least, all in float32.

    In inference the parameters, the images and each block's input are read once, each block's output and the logits
    written once. What a block computes in between, and what a cache keeps, is not counted. A training step reads
    parameters and images again in the backward pass, as it does each block's input, and the gradient of its output,
    and writes that of its input; it writes the gradients of the parameters; AdamW reads these, and reads and writes the
    parameters and its two means.
    """
    model = factory.create_model(case.model, num_classes=CLASSES)
    parameters = sum(p.size for p in model.parameters() if p.trainable)  # without running statistics
    image = 3 * case.image_size**2
    read, written = count_streams(factory.architecture_of(case.model), case.image_size)
    if case.mode == "train":
        each, of_batch = 10 * parameters, 2 * image + 3 * read + 2 * written + 2 * CLASSES
    else:
        each, of_batch = parameters, image + read + written + CLASSES
    return 4 * (each + case.batch_size * of_batch)


def write_inputs(case, folder, formats=()):
    """Write images and labels, weights as ours and timm's, and an export in these formats; their paths.

    The weights are those of a new model, but for LayerScale, which is drawn from 0.5 to 1: a new deep model's is 1e-5
    and would hide a block that computes something else.

    Raises:
        ConfigError: for an unknown model.
    """
    rng = np.random.default_rng(0)
    shape = (case.batch_size, 3, case.image_size, case.image_size)
    inputs = {"images": rng.standard_normal(shape, "float32"), "targets": rng.integers(0, CLASSES, case.batch_size)}
    save_file(inputs, folder / "inputs.safetensors")
    paddle.seed(0)
    model = factory.create_model(case.model, num_classes=CLASSES)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for name, array in arrays.items():
        if ".gamma" in name:
            arrays[name] = rng.uniform(0.5, 1, array.shape).astype("float32")
    write_weights(folder / "ours.pdparams", arrays)
    convert_weights(folder / "ours.pdparams", folder / "timm.safetensors", to="timm")
    if formats and case.mode == "inference":
        model = factory.create_model(case.model, pretrained=str(folder / "ours.pdparams"))
        export_model(model, folder / "export", [case.image_size] * 2, formats=formats)
    files = {"export": "export", "inputs": "inputs.safetensors", "ours": "ours.pdparams", "timm": "timm.safetensors"}
    return {name: str(folder / file) for name, file in files.items()}
