"""Exported models in the engines that run them: float32 images [B, C, H, W] -> outputs [B, K], NumPy arrays."""

import contextlib
import io
import os
import sys

from passl_xcit.utils.errors import ConfigError, DataError
from passl_xcit.utils.startup import usable_cores

MISSING = "needs paddle2onnx and onnxruntime: pip install 'passl_xcit[export]'"
PROGRAM, PARAMETERS, ONNX = "model.json", "model.pdiparams", "model.onnx"


class PaddleInference:
    """Paddle's own engine for an exported program, on the CPU.

    Args:
        folder: of the export.
        onednn: let oneDNN run what it can.
        threads: by default one a core.

    Raises:
        DataError: when called, for images that the program cannot take.
    """

    def __init__(self, folder, onednn=False, threads=None):
        from paddle import inference

        config = inference.Config(str(folder / PROGRAM), str(folder / PARAMETERS))
        config.disable_gpu()
        config.set_cpu_math_library_num_threads(threads or usable_cores())
        config.enable_mkldnn() if onednn else config.disable_mkldnn()
        with without_chatter():  # not disable_glog_info: it would silence Paddle in this process for good
            self.predictor = inference.create_predictor(config)

    def __call__(self, images):
        (name,), (output,) = self.predictor.get_input_names(), self.predictor.get_output_names()
        tensor = self.predictor.get_input_handle(name)
        tensor.reshape(images.shape)
        tensor.copy_from_cpu(images)
        with _refusals(images):
            self.predictor.run()
        return self.predictor.get_output_handle(output).copy_to_cpu()


class OnnxRuntime:
    """ONNX Runtime, on the CPU; see PaddleInference."""

    def __init__(self, folder, threads=None):
        try:
            import onnxruntime
        except ImportError as error:
            raise ConfigError(f"ONNX {MISSING}") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or usable_cores()
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(str(folder / ONNX), options, providers=["CPUExecutionProvider"])

    def __call__(self, images):
        (given,) = self.session.get_inputs()
        with _refusals(images):
            return self.session.run(None, {given.name: images})[0]


@contextlib.contextmanager
def _refusals(images):
    try:
        yield
    except Exception as error:  # engines raise classes of their own
        reason = next((line for line in str(error).splitlines()[::-1] if line.strip()), type(error).__name__)
        raise DataError(f"the exported model cannot take images of shape {list(images.shape)}: {reason}") from error


def runtimes(folder):
    """{name: runtime} of the engines that can run what lies in the folder of an export."""
    found = {}
    if (folder / PROGRAM).exists():
        found["paddle"] = PaddleInference(folder)
        found["paddle with oneDNN"] = PaddleInference(folder, onednn=True)
    if (folder / ONNX).exists():
        found["onnxruntime"] = OnnxRuntime(folder)
    return found


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
