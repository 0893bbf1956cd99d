"""Random models of MindCV, moved over through MindSpore checkpoints, compute the same here, in MindCV's maths."""

import shutil

import pytest
from parity import Files, assert_same_logits, assert_same_training
from peer import needs

pytestmark = needs("mindcv")

CASES = {
    "xcit_tiny_12_p16_224": ["224x224", "160x192"],
    "crossvit_9": ["240x240", "224x224"],
    "crossvit_15": ["240x240", "224x224"],
    "crossvit_18": ["240x240", "224x224"],
}


@pytest.fixture(scope="module", params=CASES)
def files(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mindcv")
    yield Files("mindcv", request.param, folder, CASES[request.param], CASES[request.param])
    shutil.rmtree(folder)


def test_logits_are_mindcvs(files):
    assert_same_logits(files, ".ckpt")


def test_training_logits_and_gradients_are_mindcvs(files):
    assert_same_training(files, ".ckpt")
