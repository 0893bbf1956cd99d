"""Features of images: the Predictor's and the file of `tools/predict.py`, against the model and PIL by hand."""

import numpy as np
import paddle
import pytest
from PIL import Image
from tiny_run import ROOT

from passl_xcit.engine import cost
from passl_xcit.engine.export import export_model
from passl_xcit.engine.predictor import Predictor
from passl_xcit.utils.errors import ConfigError, exit_with_one_line
from passl_xcit.utils.logger import setup_logger
from tools import predict

WEIGHTS = ROOT / "weights" / "xcit_demo_p4_fashion_mnist.pdparams"
CLOTHES = sorted((ROOT / "docs" / "images" / "clothes").glob("*.png"))
MEAN, STD = 72.94, 90.02


@pytest.fixture(scope="module")
def predictor():
    return Predictor(WEIGHTS)


def by_hand(model, path, size, stage):
    """float32 [C], the features of an image as the demo's evaluation prepares it, averaged over its tokens."""
    image = Image.open(path).convert("RGB").convert("L").resize((size, size), Image.Resampling.BICUBIC)
    pixels = (np.asarray(image, "float32") - MEAN) / STD
    with paddle.no_grad():
        features = model.extract_feat(paddle.to_tensor(pixels[None, None]), stage)
    features = features[0] if isinstance(features, tuple) else features
    return features.numpy()[0].reshape(-1, 64).mean(axis=0)


@pytest.mark.parametrize("stage", ["pre_logits", "cls_token", "patch_tokens", "block_2"])
@pytest.mark.parametrize("size", [None, 64])
def test_they_are_the_model_s(stage, size, predictor):
    sized = predictor if size is None else Predictor(WEIGHTS, size=size, batch_size=3)
    found = list(sized.features(CLOTHES, stage))
    assert [one.image for one in found] == [str(path) for path in CLOTHES]
    for one in found:
        assert one.error is None and one.features.dtype == np.float32 and one.features.shape == (64,)
        expected = by_hand(predictor.model, one.image, size or 28, stage)
        np.testing.assert_allclose(one.features, expected, rtol=1e-4, atol=1e-5)


def test_an_image_that_cannot_be_used_has_a_reason_and_ends_nothing(predictor):
    bad, good = predictor.features(["gone.png", np.zeros([9, 9, 3], "uint8")])
    assert bad == ("gone.png", None, "the image cannot be read: No such file or directory")
    assert good.image == "image 1" and good.features.shape == (64,) and good.error is None


def test_predictions_at_another_size_are_those_of_the_resized_image(predictor):
    (prediction,) = Predictor(WEIGHTS, size=56)(CLOTHES[0])
    image = Image.open(CLOTHES[0]).convert("RGB").convert("L").resize((56, 56), Image.Resampling.BICUBIC)
    pixels = (np.asarray(image, "float32") - MEAN) / STD
    expected = np.exp(predictor.logits(pixels[None, None])[0].astype("float64"))
    expected /= expected.sum()
    assert [guess.probability for guess in prediction.top] == pytest.approx(sorted(expected)[:-6:-1], rel=1e-4)


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(ConfigError, match=f"size must be a whole number, at least 1, not {size}"):
        Predictor(WEIGHTS, size=size)


def test_an_unknown_stage_is_refused_with_those_that_there_are(predictor):
    with pytest.raises(ConfigError, match="XCiT has no stage 'neckline'; known: cls_token, patch_tokens"):
        list(predictor.features(CLOTHES, "neckline"))


def test_an_export_has_no_features(predictor, tmp_path):
    export_model(predictor.model, tmp_path / "exported", [28, 28], preprocess=predictor.preprocess.to_dict())
    with pytest.raises(ConfigError, match="exported: is an export, which gives no features: give the weights"):
        list(Predictor(tmp_path / "exported").features(CLOTHES))


def test_large_images_are_told_of(predictor, capfd, monkeypatch):
    setup_logger()
    monkeypatch.setattr(cost, "LARGE", 63 * 63)
    assert len(Predictor(WEIGHTS, size=64)(CLOTHES)) == len(list(Predictor(WEIGHTS, size=64).features(CLOTHES)))
    output = capfd.readouterr().out
    assert output.count(f"{len(CLOTHES)} images of 64 x 64 pixels, 256 tokens each: about") == 2


# The command line.


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """(exit code, stderr) of `tools/predict.py <arguments>` with the demo's weights, run in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as exit:
            exit_with_one_line(predict.main, [*map(str, arguments), "--weights", str(WEIGHTS)])
        return exit.value.code or 0, capsys.readouterr().err

    return call


def test_the_file_holds_features_and_names(run, predictor, tmp_path):
    code, errors = run(
        CLOTHES[0].parent, "--features", "f.npz", "--stage", "block_0", "--size", "32", "--batch_size", 3
    )
    assert code == 0 and errors.endswith(f"f.npz: features [{len(CLOTHES)}, 64]\n")
    with np.load(tmp_path / "f.npz", allow_pickle=False) as file:
        assert set(file) == {"features", "images"} and list(file["images"]) == [str(path) for path in CLOTHES]
        expected = [by_hand(predictor.model, path, 32, "block_0") for path in CLOTHES]
        np.testing.assert_allclose(file["features"], expected, rtol=1e-4, atol=1e-5)


def test_images_that_cannot_be_used_are_left_out_and_told(run, tmp_path):
    code, errors = run("gone.png", CLOTHES[0], "--features", "f.npz")
    assert code == 1 and "1 of 2 images could not be used: gone.png: the image cannot be read" in errors
    with np.load(tmp_path / "f.npz") as file:
        assert list(file["images"]) == [str(CLOTHES[0])] and file["features"].shape == (1, 64)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("gone.png", "--features", "f.npz"), 1, "error: none of 1 images can be used: f.npz is not written"),
        ((CLOTHES[0], "--features", "f.npy"), 2, "error: --features f.npy: expected a file that ends in .npz"),
        ((CLOTHES[0], "--features", "no/f.npz"), 2, "error: --features no/f.npz: there is no folder no that can be"),
        ((CLOTHES[0], "--stage", "block_0"), 2, "error: --stage goes with --features"),
        ((CLOTHES[0], "--features", "f.npz", "--topk", "1"), 2, "are for predictions, and do not go with --features"),
        ((CLOTHES[0], "--features", "f.npz", "--stage", "x"), 2, "error: XCiT has no stage 'x'; known: cls_token"),
        ((CLOTHES[0], "--size", "-1"), 2, "argument --size: expected a number of pixels above 0, not '-1'"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(arguments, code, message, run, tmp_path):
    found = run(*arguments)
    assert found[0] == code and message in found[1]
    assert not list(tmp_path.iterdir())
