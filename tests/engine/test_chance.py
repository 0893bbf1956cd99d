"""A chance-level accuracy is told apart, and what speaks for each of its usual causes is said."""

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_run import tiny_config

from passl_xcit import create_model
from passl_xcit.engine import builder
from passl_xcit.engine.chance import Tally, is_chance
from passl_xcit.utils.logger import setup_logger

CLASSES = 4


@pytest.mark.parametrize(
    ("correct", "total", "classes", "expected"),
    [
        (50, 50_000, 1000, True),
        (70, 50_000, 1000, True),
        (100, 50_000, 1000, False),
        (38_000, 50_000, 1000, False),
        (5_000, 50_000, 10, True),
        (5_300, 50_000, 10, False),
        (0, 10, 1000, False),
        (0, 20, 1000, True),
        (20, 20, 1, False),
    ],
)
def test_what_guessing_would_often_reach_is_chance(correct, total, classes, expected):
    assert is_chance(correct, total, classes) is expected


@given(st.integers(20, 10**6), st.integers(2, 2000), st.integers(0, 2**31))
def test_guessing_is_hardly_ever_taken_for_knowledge(total, classes, seed):
    correct = np.random.RandomState(seed).binomial(total, 1 / classes, 300)
    assert np.mean([is_chance(count, total, classes) for count in correct]) > 0.95


class Oracle(paddle.nn.Layer):
    """A model that knows each image's class, which its brightness tells, and calls it by another number."""

    num_classes = CLASSES

    def __init__(self, answer):
        super().__init__()
        self.answer = answer
        self.fc_cls = paddle.nn.Linear(1, CLASSES)

    def forward(self, images):
        true = ((images.mean(axis=[1, 2, 3]) + 1.5).round()).astype("int64").clip(0, CLASSES - 1)
        return paddle.nn.functional.one_hot(paddle.to_tensor(self.answer)[true], CLASSES)


@pytest.fixture
def evaluate(tmp_path, capsys):
    """Evaluate a model on 10 images of each of 4 classes of growing brightness; returns the log lines after acc1."""
    for label in range(CLASSES):
        (tmp_path / "val" / f"c{label}").mkdir(parents=True)
        for index in range(10):
            pixels = np.full((8, 8, 3), 35 + 50 * label + index % 5, "uint8")
            Image.fromarray(pixels).save(tmp_path / "val" / f"c{label}" / f"{index}.png")

    def run(model, *overrides):
        setup_logger()
        cfg = tiny_config(tmp_path, f"model.head.num_classes={CLASSES}", *overrides)
        builder.build_evaluator(cfg, model, explain_chance=True).evaluate()
        lines = capsys.readouterr().out.splitlines()
        return [line.partition("WARNING: ")[2] for line in lines if "WARNING" in line]

    return run


def test_good_weights_get_no_warning(evaluate):
    assert evaluate(Oracle([0, 1, 2, 3])) == []


def test_another_label_order_is_found(evaluate):
    lines = evaluate(Oracle([1, 2, 3, 0]))
    assert lines[0].startswith("acc1 0.000 is what guessing among 4 classes gives; the usual causes are wrong weights,")
    assert lines[3] == (
        "labels: 100% of the images agree with the others of their class, on another label: the label order of the "
        "data is not that of the weights ('c0', number 0 here, is called 1)"
    )
    assert lines[2] == "predictions: spread over the classes (the most frequent has 25.0%)"


def test_one_answer_for_everything_is_found(evaluate):
    lines = evaluate(Oracle([2, 2, 2, 2]))
    assert lines[2].startswith("predictions: 100% of the images are given one and the same class, as with wrong w")
    assert lines[3].startswith("labels: no other order would help much (best possible agreement 100%)")


def test_a_head_that_was_never_trained_is_found(evaluate):
    assert "weights: the head's bias is all zero, as in a new model: the head looks untrained" in evaluate(
        Oracle([2] * 4)
    )


def test_heads_of_several_branches_that_were_never_trained_are_found():
    model = create_model("crossvit_tiny_240", num_classes=CLASSES)
    tally = Tally(CLASSES)
    tally.add(paddle.randn([8, 3, 4, 4]), paddle.rand([8, CLASSES]), paddle.zeros([8], "int64"))
    assert tally.findings(model)[0].startswith("weights: the head's bias is all zero")


def test_batchnorms_that_were_never_trained_are_found(evaluate):
    model = Oracle([2] * 4)
    model.norm = paddle.nn.BatchNorm2D(3)
    assert "weights: every BatchNorm still has the statistics of a new model: these weights look untrained" in evaluate(
        model
    )


def test_trained_weights_are_not_suspected(evaluate):
    model = Oracle([2] * 4)
    model.fc_cls.bias.set_value(paddle.ones([CLASSES]))
    assert "weights: all were loaded, are finite, and do not look untrained" in evaluate(model)


def test_images_that_are_not_normalised_are_found():
    tally = Tally(CLASSES)
    images, logits = paddle.full([8, 3, 4, 4], 120.0), paddle.rand([8, CLASSES])
    tally.add(images, logits, paddle.zeros([8], "int64"))
    line = tally.findings(Oracle([0] * 4))[3]
    assert line.startswith("images: channels of the first batch have mean 120.00 120.00 120.00 and deviation 0.00")
    assert line.endswith("where normalised images have about 0 and 1: check NormalizeImage")


def test_normalised_images_are_not_suspected():
    tally = Tally(CLASSES)
    tally.add(paddle.randn([8, 3, 16, 16]), paddle.rand([8, CLASSES]), paddle.zeros([8], "int64"))
    assert tally.findings(Oracle([0] * 4))[3].endswith("as normalised images have")


def test_label_order_is_not_judged_by_few_images_of_a_class():
    tally = Tally(1000)
    tally.add(paddle.randn([8, 3, 4, 4]), paddle.rand([8, 1000]), paddle.arange(8))
    assert tally.findings(Oracle([0] * 4))[2] == (
        "labels: not checked, there are too many classes or too few images of each"
    )


def test_more_classes_than_a_matrix_can_hold_are_counted_without_it():
    tally = Tally(100_000)
    tally.add(paddle.randn([8, 3, 4, 4]), paddle.rand([8, 100_000]), paddle.arange(8) + 90_000)
    lines = tally.findings(Oracle([0] * 4))
    assert tally.confusion.shape == (1, 100_000) and lines[2].startswith("labels: not checked")
