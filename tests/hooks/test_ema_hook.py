"""The moving average of the weights: its numbers, its evaluation, its file."""

import math

import numpy as np
import pytest
from tiny_run import json_lines, tiny_config, tiny_run, tiny_trainer

from passl_xcit.engine import builder
from passl_xcit.hooks.ema_hook import EMAHook
from passl_xcit.hooks.hook import Hook
from passl_xcit.modeling.checkpoint_formats import read_file
from passl_xcit.modeling.weights import load_weights


class Weights(Hook):
    """Keeps the weights before the run and after each step, as float64."""

    def run_begin(self, trainer):
        self.seen = [self._copy(trainer)]

    def train_iter_end(self, trainer):
        self.seen.append(self._copy(trainer))

    def _copy(self, trainer):
        return {name: tensor.numpy().astype("float64") for name, tensor in trainer.model.state_dict().items()}


def ema(**arguments):
    text = ", ".join(f"{key}: {value}" for key, value in arguments.items())
    return f"custom_config=[{{name: EvaluateHook}}, {{name: EMAHook, {text}}}]"


@pytest.mark.parametrize("arguments", [{"decay": 0.9}, {"decay": 0.99, "warmup_updates": 5}], ids=str)
def test_the_average_is_the_recursion_in_float64(arguments, tmp_path):
    watch = Weights()
    trainer = tiny_trainer(tmp_path, ema(**arguments), hooks=[watch])
    trainer.train()
    expected, *others = watch.seen
    for step, weights in enumerate(others, start=1):
        decay = arguments["decay"]
        if "warmup_updates" in arguments:
            decay *= 1 - math.exp(-step / arguments["warmup_updates"])
        expected = {name: decay * expected[name] + (1 - decay) * weights[name] for name in weights}
    assert set(trainer.state.ema) == set(expected)  # BatchNorm's statistics are among them
    for name, value in trainer.state.ema.items():
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-5, atol=1e-6)


def test_the_weights_are_not_changed_by_averaging_them(tmp_path):
    plain, averaged = (tiny_trainer(tmp_path, *more, f"output_dir={tmp_path}/x") for more in ((), (ema(decay=0.9),)))
    plain.train()
    averaged.train()
    for name, tensor in plain.model.state_dict().items():
        assert np.array_equal(tensor.numpy(), averaged.model.state_dict()[name].numpy())


def test_each_evaluation_has_one_of_the_average_and_its_best_file_has_that_accuracy(tmp_path, capsys):
    tiny_run(tmp_path, ema(decay=0.7), "epochs=4")
    folder = tmp_path / "out"
    values = [line["acc1"] for line in json_lines(folder) if line["mode"] == "val_ema"]
    assert len(values) == 4
    output = capsys.readouterr().out
    assert "Validate EMA Epoch [4] acc1" in output and "start evaluate EMA on epoch 4 .." in output
    metrics = tiny_run(tmp_path, load=folder / "best_ema.pdparams", evaluate_only=True)
    assert metrics["acc1"] == max(values)
    best = read_file(folder / "latest.pdparams")["best_ema"]
    assert best["acc1"] == max(values) and best["epoch"] == 1 + values.index(max(values))


def test_a_checkpoint_holds_the_average_beside_the_weights(tmp_path):
    tiny_run(tmp_path, ema(decay=0.7), "epochs=1")
    path = tmp_path / "out" / "latest.pdparams"
    tree, model = read_file(path), builder.build_model(tiny_config(tmp_path))
    load_weights(model, path, ema=True)
    for name, tensor in model.state_dict().items():
        assert np.array_equal(tensor.numpy(), tree["state_dict_ema"][name])
    assert any((tree["state_dict"][name] != array).any() for name, array in tree["state_dict_ema"].items())


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"decay": 1.0}, r"decay must lie in \[0, 1\), not 1.0"),
        ({"decay": -0.1}, r"decay must lie in \[0, 1\), not -0.1"),
        ({"warmup_updates": -1}, "warmup_updates must be 0 or more, not -1"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        EMAHook(**arguments)
