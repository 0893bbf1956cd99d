"""The engines that run exported models on the CPU: float32 images [B, C, H, W] -> outputs [B, K], NumPy arrays.

Everything that is known of an engine stands here: its name, the files it reads, the precisions it has, what it needs.
"""

import contextlib
import io
import os
import sys
from pathlib import Path

import numpy as np
from packaging.version import Version

from passl_xcit.engine.paddle_program import program_shapes
from passl_xcit.ops.library import why_no_bfloat16
from passl_xcit.utils.errors import CheckpointError, ConfigError, DataError
from passl_xcit.utils.registry import nearest
from passl_xcit.utils.startup import usable_cores

EAGER = "paddle"  # the engine of a model with its weights: Paddle without a program
FLOAT32, BFLOAT16 = PRECISIONS = ("float32", "bfloat16")
TOLERANCE = {FLOAT32: 1e-4, BFLOAT16: 0.05}  # largest difference, as a share of the model's largest output
OLDEST_OPENVINO = Version("2025.4")
PROGRAM, PARAMETERS, ONNX = "model.json", "model.pdiparams", "model.onnx"


class PaddleInference:
    """Paddle's own engine for an exported program.

    Each engine has FILES, which it reads; PRECISIONS, in which it computes if the processor can; `package`, which
    imports what it needs; and `shapes`: of images, [B, C, H, W], and of outputs, [B, K], as the file says, -1 for any.

    Args:
        folder: of an export that `ExportedModel` has verified.
        precision: of PRECISIONS.
        threads: by default one a core.

    Raises:
        CheckpointError: the program would do anything but compute.
        DataError: when called, where the engine fails.
    """

    FILES, PRECISIONS = (PROGRAM, PARAMETERS), (FLOAT32,)
    ONEDNN = False

    def __init__(self, folder, precision=FLOAT32, threads=None):
        inference, self.precision = self.package(), precision
        self.shapes = program_shapes(folder / PROGRAM)
        config = inference.Config(*(str(folder / name) for name in self.FILES))
        config.disable_gpu()
        config.set_cpu_math_library_num_threads(threads or usable_cores())
        config.enable_mkldnn() if self.ONEDNN else config.disable_mkldnn()
        if precision == BFLOAT16:
            config.enable_mkldnn_bfloat16()
        self.predictor = inference.create_predictor(config)
        self.has_run = False

    @staticmethod
    def package():
        from paddle import inference

        return inference

    def __call__(self, images):
        (name,), (output,) = self.predictor.get_input_names(), self.predictor.get_output_names()
        tensor = self.predictor.get_input_handle(name)
        tensor.reshape(images.shape)
        tensor.copy_from_cpu(images)
        quiet = contextlib.nullcontext() if self.has_run else without_chatter()
        with _failures(images, self.precision), _threads_kept(), quiet:
            self.predictor.run()
        self.has_run = True
        return self.predictor.get_output_handle(output).copy_to_cpu()


class OneDnn(PaddleInference):
    """The same, where oneDNN computes what it can."""

    PRECISIONS, ONEDNN = PRECISIONS, True

    @staticmethod
    def has_bfloat16():
        import paddle

        return paddle.amp.is_bfloat16_supported("cpu")


class OnnxRuntime:
    """ONNX Runtime; see PaddleInference."""

    FILES, PRECISIONS, EXTRA = (ONNX,), (FLOAT32,), "export"

    def __init__(self, folder, precision=FLOAT32, threads=None):
        onnxruntime, self.precision = self.package(), precision
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or usable_cores()
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(str(folder / ONNX), options, providers=["CPUExecutionProvider"])
        sides = (*self.session.get_inputs(), *self.session.get_outputs())
        self.shapes = [[length if isinstance(length, int) else -1 for length in side.shape] for side in sides]

    @staticmethod
    def package():
        import onnxruntime

        return onnxruntime

    def __call__(self, images):
        (given,) = self.session.get_inputs()
        with _failures(images, self.precision):
            return self.session.run(None, {given.name: images})[0]


class OpenVino:
    """OpenVINO reading the ONNX file; see PaddleInference."""

    FILES, PRECISIONS, EXTRA = (ONNX,), PRECISIONS, "openvino"
    HINTS = {FLOAT32: "f32", BFLOAT16: "bf16"}

    def __init__(self, folder, precision=FLOAT32, threads=None):
        core, self.precision = self.package().Core(), precision
        program = core.read_model(str(folder / ONNX))
        threads = threads or usable_cores()
        options = {"INFERENCE_PRECISION_HINT": self.HINTS[precision], "INFERENCE_NUM_THREADS": threads}
        self.compiled = core.compile_model(program, "CPU", options)
        sides = (side.partial_shape for side in (*program.inputs, *program.outputs))
        self.shapes = [[-1 if length.is_dynamic else length.get_length() for length in side] for side in sides]

    @staticmethod
    def package():
        import openvino

        if Version(openvino.__version__.partition("-")[0]) < OLDEST_OPENVINO:
            raise ImportError("OpenVINO does not read what paddle2onnx writes")
        return openvino

    @classmethod
    def has_bfloat16(cls):
        return "BF16" in cls.package().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")

    def __call__(self, images):
        with _failures(images, self.precision):
            return self.compiled(images)[0]


# In the order in which `default_engine` takes the first that has its files.
ENGINES = {"paddle_inference": PaddleInference, "onednn": OneDnn, "onnxruntime": OnnxRuntime, "openvino": OpenVino}


@contextlib.contextmanager
def _failures(images, precision):
    try:
        yield
    except Exception as error:  # engines raise classes of their own
        shape = list(images.shape)
        raise DataError(
            f"the engine cannot compute images of shape {shape} in {precision}: {_last_line(error)}"
        ) from error


def _last_line(error):
    return next((line for line in str(error).splitlines()[::-1] if line.strip()), type(error).__name__)


def check_engine(engine, precision):
    """Raise ConfigError for an engine or a precision that is none, whatever this machine has."""
    if engine is not None and engine not in (EAGER, *ENGINES):
        raise ConfigError(f"there is no engine {engine!r}{nearest(str(engine), (EAGER, *ENGINES))}")
    if precision not in PRECISIONS:
        raise ConfigError(f"precision must be {' or '.join(PRECISIONS)}, not {precision!r}")


def label(engine, precision):
    """What `export.json` calls an engine in a precision, such as "onednn" or "onednn bfloat16"."""
    return engine if precision == FLOAT32 else f"{engine} {precision}"


def why_not(engine, precision):
    """Why an engine of ENGINES cannot compute in `precision` on this machine; None if it can."""
    kind = ENGINES[engine]
    if precision not in kind.PRECISIONS:
        others = " and ".join(name for name, other in ENGINES.items() if precision in other.PRECISIONS)
        return f"it computes in {kind.PRECISIONS[0]} only; {others} can"
    try:
        kind.package()
    except ImportError:
        return f"its package is not installed or too old: pip install -U 'passl_xcit[{kind.EXTRA}]'"
    if precision == BFLOAT16 and not kind.has_bfloat16():
        return "this processor has no bfloat16 instructions"
    return None


def why_not_eager(precision, device):
    """Why the model itself cannot compute in `precision` on `device`; None if it can."""
    if precision == FLOAT32:
        return None
    return why_no_bfloat16() if device == "cpu" else f"it does so on a CPU only, not on {device}"


def default_engine(files):
    """The engine for an export of these files."""
    return next(name for name, kind in ENGINES.items() if set(kind.FILES) <= set(files))


def open_runtime(folder, engine, precision=FLOAT32, threads=None):
    """What runs the export in `folder`: an object of the class in ENGINES; see PaddleInference.

    Raises:
        ConfigError: the engine cannot run here, or not in this precision, or the export has not the files it reads.
        CheckpointError: the files are none that the engine reads.
    """
    reason = why_not(engine, precision)
    if reason:
        raise ConfigError(f"engine {engine} cannot run in {precision} here: {reason}")
    kind, folder = ENGINES[engine], Path(folder)
    missing = [name for name in kind.FILES if not (folder / name).exists()]
    if missing:
        form = "onnx" if ONNX in missing else "paddle"
        raise ConfigError(f"{folder}: has no {missing[0]}, which engine {engine} reads: export with --format {form}")
    try:
        with without_chatter():
            return kind(folder, precision, threads)
    except CheckpointError:
        raise
    except Exception as error:  # engines raise classes of their own
        raise CheckpointError(f"{folder}: engine {engine} cannot read it: {_last_line(error)}") from error


def difference_from(expected, run, images):
    """The largest difference of an engine's outputs, as a share of the largest expected one; None if it fails."""
    try:
        return float(np.abs(run(images) - expected).max() / np.abs(expected).max())
    except DataError:
        return None


def is_right(difference, precision):
    """Whether an engine with this difference from the model may stand for it."""
    return difference is not None and difference <= TOLERANCE[precision]


def runtimes(folder, precision=FLOAT32):
    """{name: runtime} of the engines that can run what lies in the folder of an export, on this machine."""
    there = [name for name, kind in ENGINES.items() if all((folder / file).exists() for file in kind.FILES)]
    return {name: open_runtime(folder, name, precision) for name in there if why_not(name, precision) is None}


@contextlib.contextmanager
def _threads_kept():
    """Paddle Inference leaves the whole process with one thread, and with it everything else that Paddle computes."""
    import paddle

    try:
        yield
    finally:
        if hasattr(paddle.base.core, "set_num_threads"):
            asked = os.environ.get("OMP_NUM_THREADS", "")
            paddle.base.core.set_num_threads(int(asked) if asked.isdigit() else usable_cores())


@contextlib.contextmanager
def without_chatter():
    """What the engines print by themselves goes nowhere; what goes wrong is raised."""
    sys.stdout.flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number, _ in kept:
            os.dup2(nowhere, number)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
