"""Every sample counts once, on any number of processes, and the printed numbers are the counts."""

import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny_run import tiny_config, write_images

from passl_xcit.engine import builder, evaluator
from passl_xcit.utils.errors import DataError
from passl_xcit.utils.logger import setup_logger


@pytest.fixture
def config(tmp_path):
    """Make the tiny config, with overrides; its classifier has 7 classes for 7 folders, and 3 images in each."""
    setup_logger()
    for split in ("train", "val"):
        write_images(tmp_path / split, 3, classes=7)

    def make(*overrides):
        return tiny_config(tmp_path, "model.head.num_classes=7", *overrides)

    return make


def moved(cfg):
    """The config's model with weights that are far enough from the start to tell images apart."""
    model = builder.build_model(cfg)
    paddle.seed(1)
    for parameter in model.parameters():
        parameter.set_value(parameter + 0.3 * paddle.rand(parameter.shape))
    return model


def ranks_of_the_labels(model, folder):
    """For each image of `folder` the number of classes with larger logits than the right one: NumPy and PIL only."""
    model.eval()
    ranks = []
    for label, name in enumerate(sorted(path.name for path in folder.iterdir())):
        for path in sorted((folder / name).iterdir()):
            pixels = (np.asarray(Image.open(path), "float32") - 110.0) / 50.0
            logits = model(paddle.to_tensor(pixels.transpose(2, 0, 1)[None])).numpy()[0]
            ranks.append(int((logits > logits[label]).sum()))
    return np.array(ranks)


@pytest.mark.parametrize("batch_size", [1, 4, 21, 50])
def test_the_accuracy_is_that_of_an_independent_count(batch_size, config, tmp_path):
    cfg = config(f"dataloader.val.sampler.batch_size={batch_size}")
    model = moved(cfg)
    metrics = builder.build_evaluator(cfg, model).evaluate()
    ranks = ranks_of_the_labels(model, tmp_path / "val")
    assert metrics == pytest.approx({"acc1": 100 * (ranks < 1).mean(), "acc5": 100 * (ranks < 5).mean()})
    assert 0 < metrics["acc1"] < metrics["acc5"] < 100


def test_it_prints_passls_lines(config, capfd):
    """Numbers are three decimals in at least six places; without a terminal there is no bar."""
    cfg = config()
    model = builder.build_model(cfg)
    model.head.fc_cls.weight.set_value(paddle.zeros([8, 7]))
    model.head.fc_cls.bias.set_value(paddle.to_tensor([0.0, -1, -2, -3, -4, -5, -6]))
    setup_logger()
    builder.build_evaluator(cfg, model).evaluate(epoch=12)
    output, errors = capfd.readouterr()
    assert [line[17:] for line in output.splitlines()] == [
        "passl.engine.trainer INFO: start evaluate on epoch 12 ..",
        "passl.engine.trainer INFO: Evaluate total samples 21",
        "passl.engine.trainer INFO: Validate Epoch [12] acc1 (14.286), acc5 (71.429)",
    ]
    assert errors == ""


def test_few_classes_have_an_acc5_of_100_and_small_numbers_a_blank(capsys, tmp_path):
    setup_logger()
    cfg = tiny_config(tmp_path)
    model = builder.build_model(cfg)
    model.head.fc_cls.weight.set_value(paddle.zeros([8, 3]))
    for path in (tmp_path / "val" / "class0").iterdir():
        path.unlink()
    model.head.fc_cls.bias.set_value(paddle.to_tensor([1.0, 0, 0]))
    builder.build_evaluator(cfg, model).evaluate()
    assert "Validate Epoch [1] acc1 ( 0.000), acc5 (100.000)" in capsys.readouterr().out


def counts_of_each_process(processes, cfg, model, monkeypatch):
    """What each of so many processes, simulated one after the other, hands to the sum: [seen, top-1, top-5, bad]."""
    counts = []
    total = builder.build_evaluator(cfg, model).loader.batch_sampler.length
    monkeypatch.setattr(builder, "world_size", lambda: processes)
    monkeypatch.setattr(evaluator, "sum_over_processes", lambda own: counts.append(own) or [total, 0, 0, 0])
    for rank in range(processes):
        monkeypatch.setattr(builder, "rank", lambda: rank)  # noqa: B023
        builder.build_evaluator(cfg, model).evaluate()
    monkeypatch.undo()
    return np.array(counts)


@pytest.mark.parametrize("processes", [2, 3, 25])
def test_processes_together_count_what_one_counts(processes, config, monkeypatch):
    """21 samples do not divide by 2; of 25 processes some have none."""
    cfg = config()
    model = moved(cfg)
    alone = counts_of_each_process(1, cfg, model, monkeypatch)[0]
    shared = counts_of_each_process(processes, cfg, model, monkeypatch)
    assert alone[0] == 21 and 0 < alone[1] < alone[2] < 21
    assert shared.sum(axis=0).tolist() == alone.tolist()
    assert shared[:, 0].max() - shared[:, 0].min() <= 1


def test_a_sample_that_was_not_seen_is_an_error(config, monkeypatch, tmp_path):
    cfg = config()
    monkeypatch.setattr(evaluator, "sum_over_processes", lambda counts: [20, 1, 1, 0])
    with pytest.raises(DataError, match=f"{tmp_path}/val: 20 of 21 samples were evaluated"):
        builder.build_evaluator(cfg, builder.build_model(cfg)).evaluate()


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_the_mode_it_was_in_and_as_it_was(training, config):
    """XCiT normalises by batch: in training mode an evaluation would move its running statistics."""
    cfg = config()
    model = moved(cfg)
    model.train() if training else model.eval()
    before = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    builder.build_evaluator(cfg, model).evaluate()
    assert all(layer.training == training for layer in model.sublayers(include_self=True))
    assert all((tensor.numpy() == before[name]).all() for name, tensor in model.state_dict().items())


def test_an_evaluation_that_fails_leaves_the_mode_too(config, tmp_path):
    cfg = config()
    model = builder.build_model(cfg)
    (tmp_path / "val" / "class3" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match="class3/1.png: the image cannot be read"):
        builder.build_evaluator(cfg, model).evaluate()
    assert model.training


def test_drop_path_and_dropout_do_not_act(config):
    cfg = config("model.architecture.drop_path_rate=0.9", "model.architecture.drop_rate=0.9")
    model = moved(cfg)
    model.train()
    first = builder.build_evaluator(cfg, model).evaluate()
    assert builder.build_evaluator(cfg, model).evaluate() == first
    plain = config("model.architecture.drop_path_rate=0.0", "model.architecture.drop_rate=0.0")
    assert builder.build_evaluator(plain, moved(plain)).evaluate() == first
