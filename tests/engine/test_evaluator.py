"""Every sample counts once, on any number of processes, and the printed numbers are the counts."""

import numpy as np
import paddle
import pytest
from PIL import Image
from tiny_run import tiny_config, write_images

from passl_xcit.engine import builder, evaluator
from passl_xcit.ops.library import library
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


@pytest.mark.skipif(library() is None, reason="no native operators")
def test_native_operators_pack_the_weights_once_an_evaluation(config, packings):
    evaluations = builder.build_evaluator(cfg := config("dataloader.val.sampler.batch_size=4"), moved(cfg))
    evaluations.evaluate()
    once = packings.total()
    evaluations.evaluate()
    assert packings.total() == 2 * once > 0


def test_an_evaluation_takes_the_weights_of_its_time(config, tmp_path):
    cfg = config()
    evaluations = builder.build_evaluator(cfg, moved(cfg))
    before = evaluations.evaluate()
    weight = evaluations.model.backbone.blocks[0].mlp.fc2.weight
    for seed in range(2, 9):
        paddle.seed(seed)
        weight.set_value(10 * paddle.randn(weight.shape))
        metrics, ranks = evaluations.evaluate(), ranks_of_the_labels(evaluations.model, tmp_path / "val")
        assert metrics == pytest.approx({"acc1": 100 * (ranks < 1).mean(), "acc5": 100 * (ranks < 5).mean()})
        if metrics != before:
            return
    raise AssertionError("the weights make no difference")


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


# Images that cannot be used.


def damage(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n")


BAD = ("class0/1.png", "class3/0.png", "class3/1.png", "class3/2.png", "class6/2.png")
BAD_NUMBERS = [1, 9, 10, 11, 20]
COUNTED = "dataloader.val.dataset.on_bad_image=count_as_wrong"


def test_five_bad_images_end_an_evaluation(config, tmp_path):
    cfg = config()
    damage(tmp_path / "val", *BAD)
    with pytest.raises(DataError, match="class0/1.png: the image cannot be read: "):
        builder.build_evaluator(cfg, builder.build_model(cfg)).evaluate()


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (4, 0), (4, 2), (50, 1)])
def test_where_they_count_as_wrong_the_accuracy_is_that_of_all_images(batch_size, workers, config, tmp_path, capsys):
    options = [f"dataloader.val.sampler.batch_size={batch_size}", f"dataloader.val.num_workers={workers}"]
    cfg = config(COUNTED, *options)
    model = moved(cfg)
    ranks = ranks_of_the_labels(model, tmp_path / "val")
    ranks[BAD_NUMBERS] = 99
    damage(tmp_path / "val", *BAD)
    setup_logger()
    whole = builder.build_evaluator(cfg, model)
    first = whole.evaluate()
    assert first == pytest.approx({"acc1": 100 * (ranks < 1).mean(), "acc5": 100 * (ranks < 5).mean(), "bad_images": 5})
    assert 0 < first["acc1"] < first["acc5"] < 100 * 16 / 21
    assert whole.evaluate() == first
    output = capsys.readouterr().out
    assert output.count(f"5 unreadable images counted as wrong, such as {tmp_path}/val/class0/1.png: the image") == 2
    assert output.count("Evaluate total samples 21") == 2


@pytest.mark.parametrize("processes", [2, 3, 25])
def test_processes_together_count_the_bad_images_of_one(processes, config, tmp_path, monkeypatch):
    cfg = config(COUNTED)
    model = moved(cfg)
    damage(tmp_path / "val", *BAD)
    alone = counts_of_each_process(1, cfg, model, monkeypatch)[0]
    shared = counts_of_each_process(processes, cfg, model, monkeypatch)
    assert (alone[0], alone[3]) == (21, 5)
    assert shared.sum(axis=0).tolist() == alone.tolist()


def test_without_bad_images_the_policy_changes_nothing(config, capsys):
    cfg = config()
    model = moved(cfg)
    strict = builder.build_evaluator(cfg, model).evaluate()
    setup_logger()
    cfg = config(COUNTED)
    assert builder.build_evaluator(cfg, model).evaluate() == {**strict, "bad_images": 0}
    assert "unreadable" not in capsys.readouterr().out


def test_where_all_images_are_bad_there_is_no_accuracy(config, tmp_path):
    cfg = config(COUNTED)
    damage(tmp_path / "val", *[f"class{label}/{number}.png" for label in range(7) for number in range(3)])
    with pytest.raises(DataError, match=f"{tmp_path}/val: none of its 21 images can be used"):
        builder.build_evaluator(cfg, builder.build_model(cfg)).evaluate()


class TestStopping:
    @pytest.mark.parametrize("bad", [0, 3])
    def test_is_asked_for_once_a_batch_also_of_batches_of_bad_images(self, bad, config, tmp_path):
        """Several processes answer together, so that all have to ask equally often."""
        for index in range(bad):
            (tmp_path / "val" / "class0" / f"{index}.png").write_bytes(b"")
        cfg = config(COUNTED, "dataloader.val.sampler.batch_size=3")
        asked = []
        builder.build_evaluator(cfg, moved(cfg)).evaluate(interrupted=lambda: asked.append(True))
        assert len(asked) == 7

    @pytest.mark.parametrize("number", [1, 7])
    def test_ends_the_evaluation_and_leaves_the_model_as_it_was(self, number, config):
        cfg = config("dataloader.val.sampler.batch_size=3")
        model, asked = moved(cfg), []
        model.train()
        with pytest.raises(evaluator.EvaluationStopped):
            builder.build_evaluator(cfg, model).evaluate(interrupted=lambda: asked.append(True) or len(asked) == number)
        assert len(asked) == number and model.training
