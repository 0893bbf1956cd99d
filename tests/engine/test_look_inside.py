"""Pages that show what a model does with an image."""

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from passl_xcit.datasets.preprocess import Preprocess
from passl_xcit.engine import look_inside
from passl_xcit.engine.look_inside import (
    as_batch,
    draw_channel_attention,
    draw_class_attention,
    draw_features,
    fitted,
    principal_colours,
    whole_image,
)
from passl_xcit.modeling.factory import create_model
from passl_xcit.utils.errors import ConfigError, DataError

MEAN, STD = [120.0, 110.0, 100.0], [60.0, 50.0, 40.0]
TINY = {"patch_size": 4, "embed_dim": 16, "depth": 6, "num_heads": 2, "cls_attn_layers": 2}


@pytest.fixture(scope="module")
def model():
    paddle.seed(1)
    return create_model("xcit_nano_12_p16_224", num_classes=3, **TINY)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, in place of their files."""
    drawn = []
    monkeypatch.setattr(look_inside, "save_figure", lambda figure, output: drawn.append(figure))
    return drawn


def image(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), "uint8"))


def titles(figure):
    return [axis.get_title().split("\n")[0] for axis in figure.axes if axis.get_title()]


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([4, 8, 16]), st.sampled_from([None, 24, 100]))
def test_an_image_is_fitted_to_whole_patches_and_keeps_its_proportions(width, height, patch, short):
    found = fitted(Image.new("L", (width, height)), patch, short)
    scale = 1 if short is None else short / min(width, height)
    assert found.mode == "L"
    for length, wanted in zip(found.size, (width * scale, height * scale)):
        assert length % patch == 0 and length >= patch
        assert abs(length - wanted) <= max(patch / 2, patch - wanted) + 1e-6


def test_an_image_that_fits_stays_as_it_is():
    picture = image(16, 24)
    assert np.array_equal(np.asarray(fitted(picture, 8)), np.asarray(picture))


def test_a_batch_is_the_normalised_image():
    picture = image(8, 12)
    expected = (np.asarray(picture).astype("float64") - MEAN) / STD
    np.testing.assert_allclose(as_batch(picture, MEAN, STD).numpy()[0], expected.transpose(2, 0, 1), rtol=1e-6)
    with pytest.raises(DataError, match="Normalize has 1 mean values, but the image has 3 channels"):
        as_batch(picture, [1.0], [1.0])


def test_a_whole_image_is_neither_cropped_nor_left_without_whole_patches(model):
    preprocess = Preprocess.of_pipeline(8, 8, "bicubic", MEAN, STD)
    picture, batch = whole_image(model, preprocess, image(15, 21).convert("RGBA"))
    assert (picture.mode, picture.size, batch.shape) == ("RGB", (16, 20), [1, 3, 20, 16])
    assert batch.numpy().tobytes() == as_batch(picture, MEAN, STD).numpy().tobytes()
    assert whole_image(model, preprocess, picture, short_side=8)[0].size == (8, 8)


def test_principal_components_are_the_covariances_largest_eigenvectors():
    features = np.random.default_rng(2).standard_normal((5, 7, 6)) * [5, 4, 3, 1, 1, 1]
    colours, explained = principal_colours(features)
    flat = features.reshape(35, 6)
    values, vectors = np.linalg.eigh(np.cov(flat.T))
    for number in range(3):
        part = (flat - flat.mean(axis=0)) @ vectors[:, -1 - number]
        found = colours[:, :, number].ravel()
        assert abs(np.corrcoef(part, found)[0, 1]) == pytest.approx(1)
        assert (found.min(), found.max()) == pytest.approx((0, 1))
    assert explained == pytest.approx(values[-3:].sum() / values.sum())


@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 1, 8), (3, 4, 2), (3, 3, 5)])
def test_features_without_three_components_have_colours_too(shape):
    colours, explained = principal_colours(np.ones(shape))
    assert colours.shape == (*shape[:2], 3) and np.isfinite(colours).all() and explained == 1.0


def test_each_layer_shows_all_heads_over_the_image(model, figures):
    picture = image(24, 16)
    draw_class_attention(model, picture, as_batch(picture, MEAN, STD), "x.png")
    row = ["head 0", "head 1", "mean of the heads"]
    assert titles(figures[0]) == ["cls_attn_blocks.0.attn", *row, "cls_attn_blocks.1.attn", *row]
    heats = [axis.images[1].get_array() for axis in figures[0].axes if len(axis.images) == 2]
    assert {heat.shape for heat in heats} == {(4, 6)} and len(heats) == 6
    np.testing.assert_allclose(heats[2], (heats[0] + heats[1]) / 2, rtol=1e-5)


def test_channel_maps_of_a_few_layers_and_the_temperatures_of_all(model, figures):
    draw_channel_attention(model, as_batch(image(16, 16), MEAN, STD), "x.png")
    layers = [f"blocks.{layer}.attn, head {head}" for layer in (0, 2, 3, 5) for head in (0, 1)]
    assert titles(figures[0]) == layers
    curves = next(axis for axis in figures[0].axes if axis.get_ylabel() == "temperature")
    assert [list(line.get_xdata()) for line in curves.lines] == [[0, 1, 2, 3, 4, 5]] * 2


def test_features_have_one_colour_a_patch(model, figures):
    picture = image(24, 16)
    draw_features(model, picture, as_batch(picture, MEAN, STD), "x.png", ["block_0", "patch_tokens"])
    assert titles(figures[0]) == ["image", "block_0", "patch_tokens"]
    assert [axis.images[0].get_array().shape for axis in figures[0].axes[1:]] == [(4, 6, 3)] * 2
    draw_features(model, picture, as_batch(picture, MEAN, STD), "x.png")
    assert titles(figures[1]) == ["image", "block_0", "block_2", "block_3", "block_5"]


def test_a_stage_without_patches_is_refused(model):
    picture = image(16, 16)
    with pytest.raises(ConfigError, match="cls_token of XCiT has not one feature a patch; try patch_tokens"):
        draw_features(model, picture, as_batch(picture, MEAN, STD), "x.png", ["cls_token"])


@pytest.mark.slow
def test_a_large_image_can_be_looked_at(model, tmp_path):
    picture = image(2048, 1536)
    batch = as_batch(picture, MEAN, STD)
    draw_class_attention(model, picture, batch, tmp_path / "class.png")
    draw_features(model, picture, batch, tmp_path / "features.png", ["block_5"])
    assert Image.open(tmp_path / "class.png").width > 800


def test_a_picture_that_cannot_be_written_is_named(model, tmp_path):
    with pytest.raises(ConfigError, match="--output .*x.nonsense"):
        draw_channel_attention(model, as_batch(image(16, 16), MEAN, STD), tmp_path / "x.nonsense")
