"""bfloat16 on a CPU: trainings with `AMP`, evaluations and predictions, by native operators where there are some."""

import numpy as np
import pytest
from tiny_run import Stop, tiny_run, tiny_trainer

from passl_xcit.engine import mixed_precision, runtimes
from passl_xcit.engine.predictor import Predictor
from passl_xcit.ops import library
from passl_xcit.utils.errors import ConfigError
from tools.predict import main as predict

PLAIN = ("model.architecture.drop_rate=0.0",)  # no native operator has dropout
HALF = (*PLAIN, "use_amp=true", "AMP={dtype: bfloat16}")
SAID = "use_amp: native operators train in bfloat16, with weights and all else in float32"


@pytest.fixture
def bfloat16(monkeypatch):
    monkeypatch.delenv(library.PRECISION, raising=False)
    if library.why_no_bfloat16():
        pytest.skip(library.why_no_bfloat16())


@pytest.fixture
def precisions(monkeypatch):
    """The list of (operator, whether in bfloat16) of all calls, as they come."""
    found, run = [], library.Library.run

    def noted(self, name, operator, half=False, **workspace):
        found.append((name, half))
        return run(self, name, operator, half, **workspace)

    monkeypatch.setattr(library.Library, "run", noted)
    return found


@pytest.fixture
def without(monkeypatch):
    """A processor without."""
    reason = "native operators in avx2 have none (it needs AVX512-BF16)"
    for module in (mixed_precision, runtimes):
        monkeypatch.setattr(module, "why_no_bfloat16", lambda: reason)
    return reason


def weights_of(trainer):
    return {name: tensor.numpy() for name, tensor in trainer.model.state_dict().items()}


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_a_training_computes_blocks_in_bfloat16_and_keeps_its_weights_in_float32(
    level, bfloat16, precisions, tmp_path, capsys
):
    trainer = tiny_trainer(tmp_path, *HALF, f"AMP.level={level}", "epochs=1")
    assert SAID in capsys.readouterr().out
    trainer.train()
    assert {("xca_training", True), ("xca_backward", True)} <= set(precisions)
    # Evaluations are in bfloat16 for O2 only, as on other devices.
    assert ("xca_block", level == "O2") in precisions and ("xca_block", level == "O1") not in precisions
    assert all(value.dtype == np.float32 for value in weights_of(trainer).values())
    assert trainer.precision.scale == 1.0


def test_it_learns_other_numbers_than_in_float32_but_almost_the_same(bfloat16, tmp_path):
    losses = []
    for options in (HALF, PLAIN):
        trainer = tiny_trainer(tmp_path, *options, "epochs=1")
        trainer.train()
        losses.append(trainer.state.outputs["loss"].item())
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_resumed_training_ends_with_the_bytes_of_an_uninterrupted_one(bfloat16, tmp_path):
    whole, resumed = (f"output_dir={tmp_path}/{name}" for name in ("whole", "resumed"))
    every = (*HALF, "checkpoint={name: CheckpointHook, by_epoch: false, interval: 4}")
    tiny_run(tmp_path, whole, *every)
    stopped = tiny_trainer(tmp_path, resumed, *every, hooks=[Stop(8)])
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    tiny_run(tmp_path, resumed, *every, resume_from="auto")
    assert (tmp_path / "resumed" / "iter_12.pdparams").read_bytes() == (
        tmp_path / "whole" / "iter_12.pdparams"
    ).read_bytes()


def test_where_there_is_none_a_training_is_in_float32_and_says_why_once(without, tmp_path, capsys):
    half = tiny_trainer(tmp_path, *HALF, "epochs=1")
    half.train()
    text = f"training in float32 (bfloat16: {without})"
    assert capsys.readouterr().out.count(text) == 1
    plain = tiny_trainer(tmp_path, *PLAIN, "epochs=1")
    plain.train()
    for name, value in weights_of(plain).items():
        np.testing.assert_array_equal(weights_of(half)[name], value)


def test_float16_on_a_cpu_is_told_of_bfloat16(bfloat16, tmp_path, capsys):
    tiny_trainer(tmp_path, "use_amp=true")
    assert "training in float32 (native operators have bfloat16: AMP.dtype=bfloat16)" in capsys.readouterr().out


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_an_evaluation_alone_is_in_what_a_trainings_own_is(level, bfloat16, precisions, tmp_path):
    tiny_run(tmp_path, *HALF, f"AMP.level={level}", evaluate_only=True)
    assert dict(precisions)["xca_block"] == (level == "O2")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    tiny_run(folder, "epochs=1")
    return folder / "out" / "latest.pdparams"


def test_a_predictor_computes_in_the_precision_that_it_was_made_with(bfloat16, precisions, weights):
    images = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype("float32")
    half, plain = Predictor(weights, precision="bfloat16"), Predictor(weights)
    ours, exact = half.logits(images), plain.logits(images)
    assert dict(precisions[: len(precisions) // 2])["xca_block"] and not dict(precisions)["xca_block"]
    assert (ours != exact).any()
    np.testing.assert_allclose(ours, exact, atol=0.02 * np.abs(exact).max())


def test_so_do_its_features(bfloat16, precisions, weights):
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype="uint8")
    ((_, features, _),) = Predictor(weights, precision="bfloat16").features(image)
    assert np.isfinite(features).all() and dict(precisions)["xca_block"]


def test_a_predictor_where_there_is_none_is_one_line(without, weights):
    with pytest.raises(
        ConfigError, match=r"engine paddle cannot predict in bfloat16 here: native operators in avx2 have"
    ):
        Predictor(weights, precision="bfloat16")


def test_a_switched_off_library_says_so(weights, monkeypatch):
    monkeypatch.setenv(library.MODE, "off")
    with pytest.raises(ConfigError, match="native operators are not in use: PASSL_XCIT_NATIVE=off"):
        Predictor(weights, precision="bfloat16")


def test_the_tool_predicts_in_it(bfloat16, precisions, weights, tmp_path):
    image = next((weights.parents[1] / "val").rglob("*.png"))
    assert predict([str(image), "--weights", str(weights), "--precision", "bfloat16", "--format", "json"]) == 0
    assert dict(precisions)["xca_block"]
