"""Random models of timm, moved over through files, compute the same here and come back bit for bit."""

import shutil

import pytest
from parity import (
    Files,
    assert_round_trip_is_bit_exact,
    assert_same_logits,
    assert_same_training,
    assert_same_weights,
)
from peer import needs

pytestmark = needs("timm")

XCIT = [
    f"xcit_{size}_p{patch}_224"
    for size in ("nano_12", "tiny_12", "tiny_24", "small_12", "small_24", "medium_24", "large_24")
    for patch in (16, 8)
]
CROSSVIT = [f"crossvit_{size}_240" for size in ("tiny", "small", "base", "9", "15", "18")]
DAGGER_240 = [f"crossvit_{size}_dagger_240" for size in ("9", "15", "18")]
DAGGER_408 = [f"crossvit_{size}_dagger_408" for size in ("15", "18")]
REGNET = ["regnety_160", "regnety_032", "regnetx_002"]
SIDES = ["224x224", "160x192"]
SIDES_240, SIDES_408 = ["240x240", "224x224", "200x264"], ["408x408", "224x224"]
CASES = {
    **{name: {"sizes": SIDES, "train_sizes": SIDES} for name in XCIT},
    **{name: {"sizes": SIDES_240, "train_sizes": SIDES_240[:2]} for name in CROSSVIT},
    **{name: {"sizes": SIDES_240, "train_sizes": SIDES_240[:2], "double": True} for name in DAGGER_240},
    **{name: {"sizes": SIDES_408, "train_sizes": SIDES_408, "double": True} for name in DAGGER_408},
    **{name: {"sizes": SIDES, "train_sizes": SIDES, "double": True} for name in REGNET},
}
OTHER_IMAGE_SIZES = {"crossvit_9_240": 120, "crossvit_18_dagger_408": 204}


@pytest.fixture(scope="module", params=CASES)
def files(request, tmp_path_factory):
    """A run of timm; its files, up to some GB, go when the next architecture comes."""
    folder = tmp_path_factory.mktemp(request.param)
    yield Files("timm", request.param, folder, **CASES[request.param])
    shutil.rmtree(folder)


def test_logits_are_timms(files):
    assert_same_logits(files, ".safetensors")


def test_training_logits_and_gradients_are_timms(files):
    assert_same_training(files, ".safetensors")


@pytest.mark.parametrize("suffix", [".pth", ".official.pth"])
def test_torch_files_of_timms_and_of_the_authors_names_hold_the_same_weights(files, suffix):
    assert_same_weights(files, ".safetensors", suffix)


@pytest.mark.parametrize("suffix, dialect", [(".safetensors", "timm"), (".pth", "timm"), (".official.pth", "official")])
def test_weights_come_back_from_paddle_bit_for_bit(files, suffix, dialect):
    assert_round_trip_is_bit_exact(files, suffix, dialect)


@pytest.mark.parametrize("name", OTHER_IMAGE_SIZES)
def test_logits_of_a_crossvit_built_for_another_image_size_are_timms(name, tmp_path):
    side = OTHER_IMAGE_SIZES[name]
    files = Files("timm", name, tmp_path, [f"{side}x{side}", "224x224"], [], options={"img_size": side})
    assert_same_logits(files, ".safetensors")
