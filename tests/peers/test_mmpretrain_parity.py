"""Random models of mmpretrain, moved over through files, compute the same here and come back bit for bit."""

import shutil

import pytest
from parity import Files, assert_round_trip_is_bit_exact, assert_same_logits, assert_same_training
from peer import needs

pytestmark = needs("mmpretrain")

NAMES = [
    f"xcit-{size}-p{patch}_3rdparty_in1k"
    for size in ("nano-12", "tiny-12", "tiny-24", "small-12", "small-24", "medium-24", "large-24")
    for patch in (16, 8)
]
SIDES = ["224x224", "160x192"]


@pytest.fixture(scope="module", params=NAMES)
def files(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mmpretrain")
    yield Files("mmpretrain", request.param, folder, SIDES, SIDES[1:])
    shutil.rmtree(folder)


def test_logits_are_mmpretrains(files):
    assert_same_logits(files, ".pth")


def test_training_logits_and_gradients_are_mmpretrains(files):
    assert_same_training(files, ".pth")


def test_weights_come_back_from_paddle_bit_for_bit(files):
    assert_round_trip_is_bit_exact(files, ".pth", "mmpretrain")
