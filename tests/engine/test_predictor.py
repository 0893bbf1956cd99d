"""The Predictor says what an evaluation would say, of any kind of input, and bears images that cannot be used."""

import os
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from photographs import FILES, photo
from tiny_run import ROOT, tiny_config, tiny_file, tiny_run

import passl_xcit
from passl_xcit.datasets.demo_fashion_mnist import FashionMNIST
from passl_xcit.engine import builder
from passl_xcit.engine.predictor import Predictor
from passl_xcit.modeling import factory
from passl_xcit.modeling.checkpoint_formats import read_file, write_file
from passl_xcit.modeling.weights import load_weights
from passl_xcit.ops.library import library, portable
from passl_xcit.utils.config import load_config
from passl_xcit.utils.errors import CheckpointError, ConfigError, DataError
from passl_xcit.utils.logger import setup_logger

DEMO = ROOT / "configs" / "demo" / "xcit_demo_p4_fashion_mnist.yaml"
DEMO_WEIGHTS = ROOT / "weights" / "xcit_demo_p4_fashion_mnist.pdparams"
RESIZED = (
    "dataloader.val.dataset.transforms=[{name: Resize, size: 20}, {name: CenterCrop, size: 16}, {name: Transpose}, "
    "{name: Normalize, mean: [110, 100, 90], std: [50, 60, 70]}]"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, checkpoint, what its evaluation measured) of a tiny run."""
    folder = tmp_path_factory.mktemp("trained")
    best = tiny_run(folder, "epochs=6", "seed=3")
    return folder, folder / "out" / "latest.pdparams", best


@pytest.fixture
def predictor(trained):
    return Predictor(trained[1], batch_size=4)


@pytest.fixture
def images(trained):
    """Paths of the validation images."""
    return sorted(str(path) for path in (trained[0] / "val").rglob("*.png"))


def fed_to(model):
    """A list that gets the bytes of each image that `model` is given from now on."""
    fed = []
    model.register_forward_pre_hook(lambda layer, inputs: fed.extend(image.tobytes() for image in inputs[0].numpy()))
    return fed


def test_training_evaluation_and_prediction_feed_the_same_bytes(tmp_path):
    """For photographs of every mode, from the same files."""
    for split in ("train", "val"):
        for name, (image, options) in FILES.items():
            for label in range(3):
                (tmp_path / split / f"class{label}").mkdir(parents=True, exist_ok=True)
                image.save(tmp_path / split / f"class{label}" / name, **options)
    crop = "dataloader.train.dataset.transforms.0={name: RandomResizedCrop, size: 16}"
    tiny_run(tmp_path, "epochs=1", RESIZED, crop)
    weights = tmp_path / "out" / "latest.pdparams"
    cfg = tiny_config(tmp_path, RESIZED)
    model = builder.build_model(cfg, training=False)
    evaluated = fed_to(model)
    builder.build_evaluator(cfg, model).evaluate()
    predictor = Predictor(weights)
    predicted = fed_to(predictor.model)
    found = predictor(tmp_path / "val")
    assert [Path(prediction.image).name for prediction in found] == [*sorted(FILES)] * 3
    assert len(evaluated) == 3 * len(FILES) and predicted == evaluated
    assert len(set(predicted)) > 4, "the photographs differ"


def test_its_logits_on_the_demo_are_the_evaluators():
    cfg = load_config(DEMO)
    model = builder.build_model(cfg, training=False)
    load_weights(model, DEMO_WEIGHTS)
    model.eval()
    loader = builder.build_evaluator(cfg, model).loader
    predictor = Predictor(DEMO_WEIGHTS)
    images, _ = next(iter(loader))
    with paddle.no_grad():
        expected = model(images).numpy()
    loaded = [loader.dataset.load(index) for index in range(len(images))]
    found = predictor.logits(np.stack([predictor.preprocess(image) for image in loaded]))
    assert found.shape == (100, 10) and found.dtype == np.float32
    assert found.tobytes() == expected.tobytes()


@pytest.mark.slow
def test_the_accuracy_of_its_predictions_on_the_demo_is_the_published_one():
    dataset = FashionMNIST("test")
    predictor = Predictor(DEMO_WEIGHTS, batch_size=100)
    found = predictor.predict(dataset.load(index) for index in range(len(dataset)))
    right = [prediction.top[0].index == label for prediction, label in zip(found, dataset.labels)]
    assert len(right) == 2000 and sum(right) == 1807  # 90.35 %


def test_the_accuracy_of_its_predictions_is_that_of_the_evaluation(trained, predictor, images):
    measured = tiny_run(trained[0], load=trained[1], evaluate_only=True)
    right = [prediction.top[0].name == Path(prediction.image).parent.name for prediction in predictor(images)]
    assert 100 * np.mean(right) == pytest.approx(measured["acc1"])
    assert len({prediction.top[0].index for prediction in predictor(images)}) > 1


def test_probabilities_are_the_softmax_of_the_logits(predictor, images):
    (found,) = predictor(images[0])
    logits = predictor.logits(predictor.preprocess(Image.open(images[0]))[None]).astype("float64")[0]
    expected = np.exp(logits) / np.exp(logits).sum()
    assert [guess.index for guess in found.top] == np.argsort(-expected).tolist()
    assert [guess.name for guess in found.top] == [f"class{guess.index}" for guess in found.top]
    np.testing.assert_allclose([guess.probability for guess in found.top], np.sort(expected)[::-1], rtol=1e-6)


def test_weights_that_are_loaded_into_its_model_count(predictor, images):
    """By native operators, too, which keep packed weights while they predict."""
    x = predictor.preprocess(Image.open(images[0]))[None]
    before = predictor.logits(x)
    predictor.model.set_state_dict({name: value * 1.1 for name, value in predictor.model.state_dict().items()})
    found = predictor.logits(x)
    with portable():
        np.testing.assert_allclose(found, predictor.logits(x), rtol=1e-4, atol=1e-5)
    assert np.abs(found - before).max() > 1e-3


@pytest.mark.skipif(library() is None, reason="no native operators")
def test_native_operators_pack_its_weights_once_where_there_are_several_batches(predictor, images, packings):
    predictor(images[:4])
    assert not +packings
    predictor(images[:8])
    once = packings.total()
    predictor(images)
    assert packings.total() == 2 * once > 0


def test_changes_between_two_predictions_count(predictor, images):
    """Of some values of a tensor, too, and of what a layer does."""
    before = predictor(images)
    block = predictor.model.backbone.blocks[0]
    weight = block.mlp.fc1.weight.numpy()
    weight[1:3] += 1
    block.mlp.fc1.weight.set_value(weight)
    loaded = predictor(images)
    forward = block.mlp.forward
    block.mlp.forward = lambda x: 2 * forward(x)
    doubled = predictor(images)
    assert before != loaded != doubled
    with portable():
        for ours, expected in zip(doubled, predictor(images)):
            assert ours.top[0].probability == pytest.approx(expected.top[0].probability, rel=1e-4)


def test_every_kind_of_input_gives_the_same(trained, predictor, images):
    expected = [prediction.top for prediction in predictor(images)]
    opened = [Image.open(path) for path in images]
    arrays = [np.asarray(image) for image in opened]
    inputs = {
        "paths": list(map(Path, images)),
        "folder": trained[0] / "val",
        "folders": [str(trained[0] / "val" / f"class{label}") for label in range(3)],
        "images": opened,
        "arrays": arrays,
        "one array": np.stack(arrays),
        "stream": iter(images),
        "mixed": [images[0], opened[1], arrays[2], Path(images[3]), *images[4:]],
    }
    for name, given in inputs.items():
        assert [prediction.top for prediction in predictor(given)] == expected, name
    for one in (images[0], opened[0], arrays[0]):
        (found,) = predictor(one)
        np.testing.assert_allclose([*found.top[0][::2]], [*expected[0][0][::2]], rtol=1e-5)
    names = [prediction.image for prediction in predictor(inputs["mixed"])]
    assert names == [images[0], "image 1", "image 2", *images[3:]]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_neither_order_nor_results(workers, trained, images, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    mixed = [*images[:5], str(tmp_path / "broken.png"), Image.open(images[0]), *images[5:]] * 2
    alone = Predictor(trained[1], batch_size=3)(iter(mixed))
    assert Predictor(trained[1], batch_size=3, num_workers=workers)(iter(mixed)) == alone
    assert [prediction.image for prediction in alone][:6] == mixed[:6]


def test_images_that_cannot_be_used_stop_nothing(predictor, images, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    photo(size=(9, 8)).save(tmp_path / "nine.png")
    Image.new("RGB", (100_000, 1)).save(tmp_path / "strip.png")
    half = Path(images[0]).read_bytes()[:90]
    (tmp_path / "half.png").write_bytes(half)
    bad = {
        str(tmp_path / "text.png"): "the image cannot be read: not an image of a known format",
        str(tmp_path / "empty.png"): "the file is empty",
        str(tmp_path / "half.png"): "the image cannot be read: ",
        str(tmp_path / "gone.png"): "the image cannot be read: No such file or directory",
        "a\0b": "the image cannot be read: embedded null byte",
        str(tmp_path / "nine.png"): "images of 8 x 9 pixels do not divide into patches of 4",
        str(tmp_path / "strip.png"): "images of 1 x 100000 pixels do not divide into patches",
    }
    found = predictor([path for name in bad for path in (name, images[0])])
    for (name, reason), prediction in zip(bad.items(), found[::2]):
        assert prediction.image == name and prediction.top == () and prediction.error.startswith(reason)
    expected = predictor(images[0])[0]
    assert all(prediction.error is None for prediction in found[1::2])
    np.testing.assert_allclose([p.top[0].probability for p in found[1::2]], expected.top[0].probability, rtol=1e-5)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros([8, 8, 3]), r"an array float64 \[8, 8, 3\], expected uint8 \[H, W, 3\]"),
        (np.zeros([8, 8, 4], "uint8"), r"an array uint8 \[8, 8, 4\], expected"),
        (np.zeros([0, 8, 3], "uint8"), r"an array uint8 \[0, 8, 3\], expected"),
        (np.zeros([8], "uint8"), r"an array uint8 \[8\], expected"),
    ],
)
def test_arrays_that_are_no_images_get_their_reason(image, reason, predictor):
    import re

    first, second = predictor([image, np.zeros([8, 8, 3], "uint8")])
    assert re.match(reason, first.error) and second.top


@pytest.mark.parametrize("images", [5, None, [5], [["a.png"]]])
def test_what_is_no_image_at_all_is_refused(images, predictor):
    with pytest.raises(ConfigError, match="expected the path of an image or a folder, a PIL image or a uint8"):
        predictor(images)


def test_a_folder_without_images_is_refused(predictor, tmp_path):
    with pytest.raises(DataError, match="no image in this folder"):
        predictor(tmp_path)
    assert predictor([]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"topk": 0}, "topk must lie between 1 and 3, the model's number of classes, not 0"),
        ({"topk": 4}, "topk must lie between 1 and 3"),
        ({"topk": 1.5}, "topk must lie between 1 and 3"),
        ({"batch_size": 0}, "batch_size must be a whole number, at least 1, not 0"),
        ({"num_workers": -1}, "num_workers must be a whole number, at least 0, not -1"),
        ({"class_names": ["a", "b"]}, "2 class names, but the model has 3 classes"),
        ({"class_names": "abc"}, "class_names must be a list of texts, not 'abc'"),
        ({"class_names": 5}, "class_names must be a list of texts, not 5"),
        ({"config": {}}, "config must be a path, not {}"),
        ({"device": "tpu"}, "no device 'tpu'"),
        ({"weights": ""}, "weights must be a path, an address or a name, not ''"),
        ({"weights": None}, "weights must be a path, an address or a name, not None"),
        ({"config": "nowhere.yaml"}, "nowhere.yaml: the config cannot be read"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, trained):
    with pytest.raises(ConfigError, match=message):
        Predictor(**{"weights": trained[1], **arguments})


def test_a_size_that_the_model_does_not_take_is_refused_before_any_image_is_read():
    message = "size 30: images of 30 x 30 pixels do not divide into patches of 4"
    with pytest.raises(ConfigError, match=message):
        Predictor(DEMO_WEIGHTS, size=30)


def test_class_names_may_be_given(trained, images):
    found = Predictor(trained[1], class_names=["x", "y", "z"], topk=1)(images[0])
    assert found[0].top == (found[0].top[0],) and found[0].top[0].name in "xyz"


def without(entries, source, path):
    write_file(path, {key: value for key, value in read_file(source).items() if key not in entries})
    return path


def test_weights_that_do_not_say_what_they_are_need_the_config(trained, predictor, images, tmp_path):
    bare = without(("model_config", "preprocess", "class_names"), trained[1], tmp_path / "bare.pdparams")
    with pytest.raises(CheckpointError, match="bare.pdparams: does not say which model it is .*; give the config"):
        Predictor(bare)
    found = Predictor(bare, config=tiny_file(trained[0]), batch_size=4)(images)
    assert [[guess[::2] for guess in prediction.top] for prediction in found] == [
        [guess[::2] for guess in prediction.top] for prediction in predictor(images)
    ]
    assert found[0].top[0].name is None
    half = without(("preprocess",), trained[1], tmp_path / "half.pdparams")
    with pytest.raises(CheckpointError, match="half.pdparams: does not say how images are preprocessed"):
        Predictor(half)


def test_the_config_decides_and_a_difference_is_told(trained, capsys, tmp_path):
    text = tiny_file(trained[0]).read_text().replace("50.0", "25.0").replace("num_classes: 3", "num_classes: auto")
    (tmp_path / "other.yaml").write_text(text)
    setup_logger()
    found = Predictor(trained[1], config=tmp_path / "other.yaml")
    assert found.preprocess.summary()["std"] == [25.0] * 3 and found.model.num_classes == 3
    assert "transforms.1.std.0 is 25.0 in the config, but 50.0 in what" in capsys.readouterr().out


def test_weights_that_do_not_fit_the_config_are_refused(trained):
    with pytest.raises(CheckpointError, match="does not fit the model"):
        Predictor(trained[1], config=DEMO)


def test_a_file_that_is_not_there_names_one_that_is(trained):
    with pytest.raises(CheckpointError, match="there is no such file; did you mean 'latest.pdparams'"):
        Predictor(trained[1].with_name("latestt.pdparams"))


def test_a_name_that_there_is_not_is_told_the_nearest():
    message = "xcit_nano_12_p16_225: there is no such file, and no weights of that name; did you mean 'xcit_nano_12_p"
    with pytest.raises(CheckpointError, match=message):
        Predictor("xcit_nano_12_p16_225")


@pytest.mark.slow
def test_a_name_takes_published_weights_with_their_pipeline(monkeypatch, tmp_path):
    model = factory.create_model("crossvit_9_240")
    file = tmp_path / "weights" / "github.com/IBM/CrossViT/releases/download/weights-0.1/crossvit_9_224.pth"
    file.parent.mkdir(parents=True)
    write_file(file, {name: tensor.numpy() for name, tensor in model.state_dict().items()})
    monkeypatch.setenv("PASSL_XCIT_HOME", str(tmp_path))
    predictor = Predictor("crossvit_9", topk=2)
    nodes = load_config(ROOT / "configs/crossvit/crossvit_9_240.yaml")["dataloader"]["val"]["dataset"]["transforms"]
    assert predictor.preprocess.nodes[0] == nodes[0] and predictor.preprocess.size == [240, 240]
    (found,) = predictor(photo(size=(400, 300)))
    model.eval()
    with paddle.no_grad():
        logits = model(paddle.to_tensor(predictor.preprocess(photo(size=(400, 300)))[None])).numpy()
    assert [guess.index for guess in found.top] == np.argsort(-logits[0])[:2].tolist()
    assert found.top[0].name is None


def test_it_is_a_public_name():
    assert passl_xcit.Predictor is Predictor and "Predictor" in passl_xcit.__all__
    assert os.path.exists(DEMO_WEIGHTS)
