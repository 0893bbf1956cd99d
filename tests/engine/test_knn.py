"""The nearest training images vote: compared with a search through all of them in float64, and laws of such votes."""

import math
import re

import numpy as np
import paddle
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from test_distributed import launch
from tiny_run import ROOT, tiny_config, tiny_file, tiny_run

from passl_xcit.engine import builder, knn
from passl_xcit.engine.features import pooled_features
from passl_xcit.engine.knn import NearestNeighbours, votes
from passl_xcit.modeling.checkpoint_formats import read_file, write_file
from passl_xcit.utils.errors import ConfigError, DataError, exit_with_one_line
from passl_xcit.utils.logger import setup_logger
from passl_xcit.utils.registry import MODELS
from tools import validate

VALIDATE = ROOT / "tools" / "validate.py"


def unit(rows):
    rows = np.asarray(rows, "float32")
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def found(queries, features, labels, k, block=7):
    """(similarities, labels) of the k nearest, the training features given in blocks."""
    nearest = NearestNeighbours(paddle.to_tensor(queries), k)
    for start in range(0, len(features), block):
        rows = slice(start, start + block)
        nearest.add(paddle.to_tensor(features[rows]), paddle.to_tensor(labels[rows]))
    return nearest.result()


def votes_by_search(queries, features, labels, k, classes):
    """float64 [Q, K], by the definition: one query and one neighbour at a time."""
    scores = np.zeros([len(queries), classes])
    for row, query in enumerate(queries.astype("float64")):
        cosines = [float(query @ other) for other in features.astype("float64")]
        for neighbour in sorted(range(len(features)), key=lambda place: -cosines[place])[:k]:
            scores[row, labels[neighbour]] += math.exp(cosines[neighbour] / 0.07)
    return scores


@st.composite
def problems(draw):
    """(queries [Q, C], features [N, C], labels [N], k): random directions, rows of length 1."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, channels, classes = draw(st.integers(1, 40)), draw(st.integers(2, 9)), draw(st.integers(1, 6))
    queries, features = (unit(rng.standard_normal([rows, channels])) for rows in (draw(st.integers(1, 12)), count))
    return queries, features, rng.integers(0, classes, count), draw(st.integers(1, count))


def no_ties(queries, features):
    cosines = np.sort(queries.astype("float64") @ features.T.astype("float64"), axis=1)
    return np.diff(cosines, axis=1).min(initial=1.0) > 1e-5


@given(problems(), st.integers(1, 50))
def test_votes_are_those_of_a_search_in_float64(problem, block):
    queries, features, labels, k = problem
    assume(no_ties(queries, features))
    expected = votes_by_search(queries, features, labels, k, 6)
    np.testing.assert_allclose(votes(*found(queries, features, labels, k, block), 6), expected, rtol=1e-4, atol=1e-30)


@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_the_training_images_does_not_matter(problem, random):
    queries, features, labels, k = problem
    assume(no_ties(queries, features))
    order = random.sample(range(len(features)), len(features))
    one, other = found(queries, features, labels, k), found(queries, features[order], labels[order], k)
    np.testing.assert_array_equal(one[1], other[1])
    np.testing.assert_allclose(one[0], other[0], atol=1e-6)


@given(problems())
def test_each_training_image_is_its_own_nearest_neighbour(problem):
    _, features, labels, _ = problem
    assume(no_ties(features, features))
    similarities, nearest = found(features, features, labels, 1)
    np.testing.assert_array_equal(nearest[:, 0], labels)
    np.testing.assert_allclose(similarities, 1, atol=1e-6)


def test_queries_are_taken_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    queries, features = (unit(rng.standard_normal([rows, 4])) for rows in (11, 30))
    labels = np.arange(30) % 3
    whole = found(queries, features, labels, 5)
    monkeypatch.setattr(knn, "QUERIES", 4)
    for one, other in zip(whole, found(queries, features, labels, 5)):
        np.testing.assert_allclose(one, other, atol=1e-6)


# With a model and images.


@pytest.fixture
def weights(tmp_path):
    """Weights of the tiny config without their classifier, far enough from the start to tell images apart."""
    setup_logger()
    model = builder.build_model(tiny_config(tmp_path))
    paddle.seed(1)
    arrays = {name: value.numpy() for name, value in model.state_dict().items() if not name.startswith("head.")}
    arrays = {name: value + 0.3 * paddle.rand(value.shape).numpy() for name, value in arrays.items()}
    write_file(tmp_path / "features.pdparams", arrays)
    return tmp_path / "features.pdparams"


def features_by_hand(model, dataset, transforms):
    """(float32 [N, C] of length 1, labels) of the images of a data set, one at a time."""
    rows = []
    for index in range(len(dataset)):
        image = dataset.load(index)
        for transform in transforms:
            image = transform(image, None)
        rows.append(model.extract_feat(paddle.to_tensor(image[None]), "cls_token").numpy()[0])
    return unit(rows), dataset.labels


@pytest.mark.parametrize("queries_at_a_time", [4, 1024])
def test_accuracies_are_those_of_a_search_through_the_images(queries_at_a_time, tmp_path, weights, capfd, monkeypatch):
    monkeypatch.setattr(knn, "QUERIES", queries_at_a_time)
    accuracies = tiny_run(tmp_path, load=weights, evaluate_only=True, knn="cls_token")
    assert list(accuracies) == [10, 20], "24 training images"
    output = capfd.readouterr().out
    assert f"kNN: 15 images among 24 of {tmp_path}/train, stage cls_token\n" in output

    cfg = tiny_config(tmp_path)
    model = builder.build_model(cfg)
    model.set_state_dict({name: paddle.to_tensor(value) for name, value in read_file(weights).items()})
    model.eval()
    train, val = (builder.build_loader(cfg, split, 3).dataset for split in ("train", "val"))
    (features, labels), (queries, targets) = (features_by_hand(model, part, val.transforms) for part in (train, val))
    for k, metrics in accuracies.items():
        right = votes_by_search(queries, features, labels, k, 3).argmax(axis=1) == targets
        assert metrics == {"acc1": pytest.approx(100 * right.mean()), "acc5": 100.0}
        assert f"kNN k={k} acc1 ({metrics['acc1']:6.3f}), acc5 (100.000)\n" in output


def test_fewer_images_than_ten_all_vote(tmp_path, weights):
    for label in range(3):
        for image in sorted((tmp_path / "train" / f"class{label}").iterdir())[2:]:
            image.unlink()
    assert list(tiny_run(tmp_path, load=weights, evaluate_only=True, knn="pre_logits")) == [6]


def test_an_image_that_cannot_be_used_counts_as_wrong_or_does_not_vote(tmp_path, weights):
    for split, gone in (("train", 6), ("val", 5)):
        for image in sorted((tmp_path / split / "class0").iterdir())[:gone]:
            image.write_text("no image")
    bear = "dataloader.val.dataset.on_bad_image=count_as_wrong"
    accuracies = tiny_run(tmp_path, bear, load=weights, evaluate_only=True, knn="neck")
    assert [metrics["acc5"] for metrics in accuracies.values()] == pytest.approx([100 * 10 / 15] * 2)
    with pytest.raises(DataError, match="class0/0.png: the image cannot be read"):
        tiny_run(tmp_path, load=weights, evaluate_only=True, knn="neck")


def test_a_split_without_a_usable_image_is_refused(tmp_path, weights):
    bear = "dataloader.val.dataset.on_bad_image=count_as_wrong"
    for split in ("train", "val"):
        for image in (tmp_path / split).rglob("*.png"):
            image.write_text("no image")
        with pytest.raises(DataError, match=f"{split}: none of its images that process 0 has can be used"):
            tiny_run(tmp_path, bear, load=weights, evaluate_only=True, knn="neck")


def test_other_classes_in_the_other_split_are_refused(tmp_path, weights):
    (tmp_path / "train" / "class1").rename(tmp_path / "train" / "class7")
    with pytest.raises(DataError, match="its classes are not those of .*train: 'class1' instead of 'class2'"):
        tiny_run(tmp_path, load=weights, evaluate_only=True, knn="neck")


def test_an_unknown_stage_is_refused_with_those_that_there_are(tmp_path, weights):
    with pytest.raises(ConfigError, match="XCiT has no stage 'block_1'; known: cls_token, patch_tokens, feature_map"):
        tiny_run(tmp_path, load=weights, evaluate_only=True, knn="block_1")


def test_a_config_without_training_images_is_refused(tmp_path, weights):
    with pytest.raises(ConfigError, match="'dataloader.train' is needed: its images are compared with"):
        tiny_run(tmp_path, "dataloader.train=null", load=weights, evaluate_only=True, knn="neck")


@pytest.mark.parametrize("stage", ["cls_token", "patch_tokens", "feature_map", "block_0", "backbone", "neck"])
def test_features_of_every_stage_become_one_vector_an_image(stage, tiny_model):
    model = tiny_model()
    model.eval()
    images = paddle.randn([3, 3, 8, 12])
    vectors = pooled_features(model, images, stage)
    assert vectors.shape == [3, 16]
    whole = model.extract_feat(images, stage)
    whole = whole[0] if isinstance(whole, tuple) else whole
    places = tuple(range(2, whole.ndim)) if stage == "feature_map" else tuple(range(1, whole.ndim - 1))
    np.testing.assert_allclose(vectors.numpy(), whole.numpy().mean(axis=places), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", ["pre_logits", "patch_tokens", "feature_map", "block_0"])
def test_features_of_two_branches_stand_side_by_side(stage):
    backbone = {"name": "CrossViT", "img_size": [24, 24], "patch_size": [4, 8], "embed_dim": [8, 16]}
    head = {"name": "SwinTransformerClsHead", "in_channels": [8, 16], "num_classes": 3}
    backbone.update(depth=[[1, 1]], num_heads=[2, 2])
    model = MODELS.build({"name": "Classification", "backbone": backbone, "head": head}, "model")
    model.eval()
    images = paddle.randn([2, 3, 30, 20])
    vectors = pooled_features(model, images, stage).numpy()
    assert vectors.shape == (2, 24)
    places = {2: (), 3: (1,), 4: (2, 3)}
    for part, found in zip(model.extract_feat(images, stage), (vectors[:, :8], vectors[:, 8:])):
        np.testing.assert_allclose(found, part.numpy().mean(axis=places[part.ndim]), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path, weights):
    """Of the 15 images one process has 8, the other 7."""
    arguments = [VALIDATE, tiny_file(tmp_path), weights, "--knn"]
    code, output, _ = launch(tmp_path, *arguments)
    assert code == 0, output
    expected = tiny_run(tmp_path, load=weights, evaluate_only=True, knn="pre_logits")
    lines = re.findall(r"kNN k=(\d+) acc1 \( *([\d.]+)\)", output)
    assert lines == [(str(k), f"{metrics['acc1']:.3f}") for k, metrics in expected.items()]


# The command line.


def test_the_command_needs_no_classifier(tmp_path, weights, capfd):
    with pytest.raises(SystemExit) as exit:
        exit_with_one_line(validate.main, [str(tiny_file(tmp_path)), str(weights), "--knn", "--stage", "block_0"])
    output, errors = capfd.readouterr()
    assert not exit.value.code, errors
    assert output.count("kNN k=") == 2 and "stage block_0" in output


def test_a_stage_goes_with_knn(tmp_path, weights, capsys):
    with pytest.raises(SystemExit):
        validate.main([str(tiny_file(tmp_path)), str(weights), "--stage", "block_0"])
    assert "--stage goes with --knn" in capsys.readouterr().err
