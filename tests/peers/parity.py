"""Compare models of ours, loaded from the files of a peer, with what the peer computed."""

import numpy as np
import paddle
import pytest
from inputs import labels
from peer import run

from passl_xcit.modeling.convert import convert_weights
from passl_xcit.modeling.factory import create_model
from passl_xcit.modeling.weights import load_weights

LOGITS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3
MEASURED = {}  # {(peer, model): {what: largest relative difference}}, for the table after the last test
# A softmax over keys does not see what all keys have in common: the gradient is 0, and rounding errors are left.
WITHOUT_GRADIENT = ".wk.bias"


def relative_difference(ours, theirs):
    """max |ours - theirs| / max |theirs|"""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


class Files:
    """What one run of a peer wrote: weights, and for each image size images, logits and gradients.

    Args:
        name: the peer's name of the architecture, by which `create_model` knows it too.
        sizes, train_sizes: such as "224x224"; for evaluation and for training.
        double: compute gradients in float64. Those of ReLU need it: a value within one rounding error of 0 has
            either gradient, and one such value among 10,000 makes 1 % (timm's own float32 and float64 differ so).
        options: of the architecture, such as {"img_size": 120}.
    """

    def __init__(self, peer, name, folder, sizes, train_sizes, batch=2, double=False, options=None):
        self.peer, self.name, self.folder = peer, name, folder
        self.sizes, self.train_sizes, self.double, self.options = sizes, train_sizes, double, options or {}
        arguments = ["--sizes", *sizes, "--train_sizes", *train_sizes, "--batch", batch]
        arguments += ["--double"] if double else []
        for option, value in self.options.items():
            arguments += [f"--{option}", value]
        run(peer, f"run_{peer}.py", name, "--output", folder, *arguments)

    def read(self, stem, size):
        return np.load(self.folder / f"{stem}_{size}.npy")

    def model(self, file, dtype="float32"):
        model = create_model(self.name, **self.options)
        model.to(dtype=dtype)
        load_weights(model, self.folder / file)
        return model

    def compare(self, what, difference, tolerance, where):
        known = MEASURED.setdefault((self.peer, self.name), {})
        known[what] = max(difference, known.get(what, 0.0))
        assert difference < tolerance, f"{what} of {self.name}: {where}"


def assert_same_logits(files, suffix):
    """In evaluation, at every size."""
    model = files.model(f"weights{suffix}")
    model.eval()
    for size in files.sizes:
        with paddle.no_grad():
            logits = model(paddle.to_tensor(files.read("images", size))).numpy()
        difference = relative_difference(logits, files.read("logits", size))
        files.compare("logits", difference, LOGITS_TOLERANCE, size)


def assert_same_training(files, suffix):
    """Logits in training and the gradients of one step, at every size trained at."""
    if not files.train_sizes:
        pytest.skip("this architecture is compared in evaluation only")
    for size in files.train_sizes:
        model = files.model(f"weights{suffix}")
        images = paddle.to_tensor(files.read("images", size))
        logits = model(images)
        difference = relative_difference(logits.numpy(), files.read("train_logits", size))
        files.compare("training logits", difference, LOGITS_TOLERANCE, size)
        if files.double:
            model = files.model(f"weights{suffix}", "float64")
            logits = model(images.astype("float64"))
        model.clear_gradients()
        model.head.loss(logits, paddle.to_tensor(labels(len(images))))["loss"].backward()
        _compare_gradients(files, model, f"gradients_{size}{suffix}")


def _compare_gradients(files, model, file):
    """Each relative to its own largest element; the peer's are a file of weights, so that they are loaded as such."""
    theirs = dict(files.model(file, "float64" if files.double else "float32").named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.stop_gradient:  # BatchNorm's running statistics
            continue
        ours, expected = parameter.grad.numpy(), theirs[name].numpy()
        if name.endswith(WITHOUT_GRADIENT):
            scale = np.abs(theirs[name.replace(".bias", ".weight")].numpy()).max()
            assert max(np.abs(ours).max(), np.abs(expected).max()) < GRADIENT_TOLERANCE * scale, name
        else:
            files.compare("gradients", relative_difference(ours, expected), GRADIENT_TOLERANCE, f"{file} {name}")


def assert_same_weights(files, suffix, other_suffix):
    """Two files of the same weights, of different dialects, give the same bits."""
    ours, others = (files.model(f"weights{end}").state_dict() for end in (suffix, other_suffix))
    for name, value in ours.items():
        np.testing.assert_array_equal(value.numpy(), others[name].numpy(), err_msg=name, strict=True)


def assert_round_trip_is_bit_exact(files, suffix, dialect):
    """The peer reads what came back from Paddle, and finds its own names, types and bytes."""
    original, there, back = (files.folder / name for name in (f"weights{suffix}", "ours.pdparams", f"back{suffix}"))
    convert_weights(original, there, "paddle")
    convert_weights(there, back, dialect)
    run(files.peer, "compare_torch_files.py", original, back)
