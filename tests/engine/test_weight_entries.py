"""Weight files say which model they are and how images are preprocessed; what strangers write there is checked."""

import numpy as np
import pytest
from tiny_run import tiny_config, tiny_dict, tiny_run
from weight_file_checks import bounds

from passl_xcit.datasets.preprocess import Preprocess
from passl_xcit.engine import builder
from passl_xcit.engine.weight_entries import describe, model_of_file, preprocess_of_file, warn_of_other_preprocess
from passl_xcit.modeling.checkpoint_formats import read_file, write_file
from passl_xcit.modeling.convert import convert_weights
from passl_xcit.modeling.state_dict import read_checkpoint
from passl_xcit.modeling.weights import extract_weights, load_weights, read_weights
from passl_xcit.utils.errors import CheckpointError
from passl_xcit.utils.logger import setup_logger

ENTRIES = ("model_config", "preprocess")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished tiny run, with its moving average."""
    folder = tmp_path_factory.mktemp("run")
    hooks = "custom_config=[{name: EvaluateHook}, {name: EMAHook, decay: 0.5}]"
    tiny_run(folder, "epochs=1", hooks)
    return folder


@pytest.fixture
def weights(run, tmp_path):
    """The path of weights taken out of its checkpoint."""
    extract_weights(run / "out" / "latest.pdparams", tmp_path / "weights.pdparams")
    return tmp_path / "weights.pdparams"


def changed(path, **entries):
    """`path`, in which these entries stand now."""
    write_file(path, {**read_file(path), **entries})
    return path


def logits(model):
    import paddle

    model.eval()
    images = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype("float32")
    return model(paddle.to_tensor(images)).numpy()


def test_every_file_of_a_training_has_the_entries(run):
    cfg = tiny_dict(run)
    for name in ("epoch_1", "latest", "best", "best_ema"):
        tree = read_file(run / "out" / f"{name}.pdparams")
        assert tree["model_config"] == cfg["model"]
        assert tree["preprocess"]["transforms"] == cfg["dataloader"]["val"]["dataset"]["transforms"]
        assert tree["preprocess"]["summary"]["mode"] == "RGB"


def test_what_is_extracted_or_converted_keeps_them(run, weights, tmp_path):
    whole = read_file(run / "out" / "latest.pdparams")
    convert_weights(run / "out" / "latest.pdparams", tmp_path / "converted.pdparams", "paddle")
    for path in (weights, tmp_path / "converted.pdparams"):
        assert {key: read_file(path)[key] for key in ENTRIES} == {key: whole[key] for key in ENTRIES}
        assert not [name for name in read_checkpoint(path) if name.startswith(ENTRIES)], "they are no arrays"


def test_a_part_of_a_model_does_not_say_that_it_is_the_whole(run, tmp_path):
    extract_weights(run / "out" / "latest.pdparams", tmp_path / "b.pdparams", "backbone", remove_prefix=True)
    tree = read_file(tmp_path / "b.pdparams")
    assert "model_config" not in tree and "preprocess" in tree


def test_the_file_alone_makes_the_model(run, weights):
    expected = builder.build_model(tiny_config(run), training=False)
    load_weights(expected, weights)
    found = model_of_file(read_weights(weights), weights)
    assert not found.training and found.class_names == ["class0", "class1", "class2"]
    assert logits(found).tobytes() == logits(expected).tobytes()
    assert preprocess_of_file(found.preprocess, weights).to_dict() == found.preprocess


def test_of_a_distillation_it_is_the_student(run):
    student = tiny_dict(run)["model"]
    teacher = {**student, "architecture": {**student["architecture"], "embed_dim": 16}}
    teacher["head"] = {**student["head"], "in_channels": 16}
    cfg = tiny_config(run).with_values(
        model={
            "name": "DistillationWrapper",
            "models": [{"Teacher": teacher}, {"Student": student}],
            "pretrained_list": [None, None],
            "freeze_params_list": [True, False],
        }
    )
    assert describe(cfg, builder.build_model(cfg))["model_config"] == student


def test_files_without_the_entries_still_load(weights, run):
    tree = {key: value for key, value in read_file(weights).items() if key not in ENTRIES}
    write_file(weights, tree)
    model = builder.build_model(tiny_config(run))
    load_weights(model, weights)
    assert model.preprocess is None
    tiny_run(run, load=weights, evaluate_only=True)
    with pytest.raises(CheckpointError, match="does not say which model it is and how images .*; give the config"):
        model_of_file(read_weights(weights), weights)


def test_random_transforms_are_no_preprocessing(run, capsys):
    setup_logger()
    cfg = tiny_config(run)
    nodes = [{"name": "RandomHorizontalFlip"}, *cfg["dataloader"]["val"]["dataset"]["transforms"]]
    loaders = cfg["dataloader"]
    loaders["val"]["dataset"]["transforms"] = nodes
    cfg = cfg.with_values(dataloader=loaders)
    assert describe(cfg, builder.build_model(cfg))["preprocess"] is None
    text = "will not say how images are preprocessed: transforms.0: RandomHorizontalFlip draws at random"
    assert text in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (None, None),
        ("dataloader.val.dataset.transforms.1.std.0=51", "transforms.1.std.0 is 51 in the config, but 50.0 in what"),
        ("dataloader.val.dataset.transforms.0.order=[2, 0, 1]", None),
        ("dataloader.val.dataset.transforms.1.std=[50, 50, 50]", None),
        ("dataloader.val.dataset.transforms.0.order=[2, 1, 0]", "transforms.0.order.1 is 1 in the config, but 0 in"),
    ],
)
def test_an_evaluation_names_the_argument_that_differs(override, line, run, weights, capsys):
    overrides = [override] if override else []
    tiny_run(run, *overrides, load=weights, evaluate_only=True)
    said = [text for text in capsys.readouterr().out.splitlines() if "WARNING: transforms" in text]
    assert len(said) == (line is not None)
    if line:
        assert line in said[0] and said[0].endswith(f"{weights} says of its own evaluation")


def test_a_difference_is_told_whatever_the_lengths_are(run, weights, capsys):
    setup_logger()
    cfg, model = tiny_config(run), builder.build_model(tiny_config(run))
    model.preprocess = Preprocess([{"name": "Resize", "size": 8}, *tiny_transforms(run)]).to_dict()
    warn_of_other_preprocess(cfg, model, "W")
    assert "transforms.0.name is Transpose in the config, but Resize in what W says" in capsys.readouterr().out


def tiny_transforms(run):
    return tiny_dict(run)["dataloader"]["val"]["dataset"]["transforms"]


def tiny_model(run, **changes):
    node = tiny_dict(run)["model"]
    return {**node, "architecture": {**node["architecture"], **changes}}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ([], "its model_config is no mapping"),
        (np.zeros(3), "its model_config is no mapping"),
        ({}, "its entry model_config: this model has no 'name'"),
        ({"name": "os.system", "command": "touch x"}, "its entry model_config: name: no model 'os.system'"),
        ({"name": "a\nb"}, r"its entry model_config: name: expected a text in one line, not 'a\\nb'"),
        ({"embed_dim": 10**9}, "architecture.embed_dim: 1000000000 is not a number up to 100,000"),
        ({"embed_dim": 16}, "the head is 8, but the backbone gives 16"),
        ({"embed_dim": "8"}, "architecture.embed_dim: XCiT expects int, not '8'"),
        ({"num_heads": 0}, "num_heads must be at least 1"),
        ({"num_heads": 4}, "is not the model of its arrays: ~ backbone.blocks.0.attn.temperature: file"),
        ({"depth": 100_000}, r"architecture.depth: asks for 100000 blocks, but there are \d+ arrays"),
        ({"depth": 2}, r"is not the model of its arrays: - backbone.blocks.1..* the file has not"),
        ({"colour": 1}, "XCiT takes no 'colour'"),
    ],
)
def test_a_model_that_cannot_be_is_refused_in_one_line(node, message, run, weights):
    if isinstance(node, dict) and node and "name" not in node:
        node = tiny_model(run, **node)
    with pytest.raises(CheckpointError, match=message) as caught:
        model_of_file(read_weights(changed(weights, model_config=node)), weights)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{weights}: ")


def test_a_model_too_large_for_the_memory_is_refused_before_it_is_built(run, weights):
    node = tiny_model(run, embed_dim=65536, num_heads=2)
    node["head"] = {**node["head"], "in_channels": 65536}
    found = read_weights(changed(weights, model_config=node))
    with bounds(seconds=10, size=500 * 2**20), pytest.raises(CheckpointError, match="is not the model of its arrays"):
        model_of_file(found, weights)


@pytest.mark.parametrize("read", [lambda run, path: tiny_run(run, load=path, evaluate_only=True)])
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("Resize", "its preprocess is no mapping"),
        (
            {"transforms": [{"name": "eval"}], "channels": 3},
            "its entry preprocess: transforms.0.name: no transform",
        ),
        ({"transforms": []}, "its entry preprocess: expected a mapping with 'transforms' and 'channels'"),
    ],
)
def test_an_evaluation_refuses_a_damaged_entry(entry, message, read, run, weights):
    with pytest.raises(CheckpointError, match=message):
        read(run, changed(weights, preprocess=entry))
