"""What happens between backward and update: parts of a batch, the norm, clipping, and gradients that are not finite."""

import json
import math
import re

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import json_lines, tiny_run, tiny_trainer

from passl_xcit.engine import gradients
from passl_xcit.engine.gradients import NonFiniteGuard, global_norm, parts
from passl_xcit.hooks.hook import Hook
from passl_xcit.modeling.checkpoint_formats import read_file
from passl_xcit.utils.errors import CheckpointError, ConfigError, DataError, TrainingError

CROSSVIT = (  # no BatchNorm, whose statistics would be those of a part
    "model.architecture={name: CrossViT, img_size: [8, 8], patch_size: [4, 8], embed_dim: [8, 8], "
    "depth: [[1, 1, 0]], num_heads: [2, 2], mlp_ratio: [1.0, 1.0, 1.0]}"
)


class TestParts:
    @given(total=st.integers(1, 40), count=st.integers(1, 12))
    @settings(deadline=None, max_examples=60)
    def test_make_up_the_batch_and_their_shares_one(self, total, count):
        images, targets = np.arange(total), -np.arange(total)
        found = list(parts(images, targets, count))
        assert np.array_equal(np.concatenate([part[0] for part in found]), images)
        assert np.array_equal(np.concatenate([part[1] for part in found]), targets)
        assert sum(part[2] for part in found) == pytest.approx(1)
        assert [part[3] for part in found] == [False] * (len(found) - 1) + [True]
        assert len(found) <= count and max(len(part[0]) for part in found) == math.ceil(total / count)


class Gradients(Hook):
    """Keeps each step's gradients, which the optimizer is about to take, as float64."""

    def __init__(self, trainer):
        super().__init__(priority=1)
        self.seen, step = [], trainer.optimizer.step

        def watched():
            self.seen.append(
                [p.grad.numpy().astype("float64") for p in trainer.model.parameters() if p.grad is not None]
            )
            step()

        trainer.optimizer.step = watched


class TestAccumulation:
    def first_gradients(self, folder, *overrides):
        trainer = tiny_trainer(folder, "epochs=1", "dataloader.train.sampler.batch_size=8", *overrides)
        watch = Gradients(trainer)
        trainer.train()
        assert trainer.state.iter == len(watch.seen) == 3
        return watch.seen[0]

    @pytest.mark.parametrize("steps", [2, 3, 8])
    def test_gives_the_gradient_of_the_whole_batch(self, steps, tmp_path):
        """With 3 parts of a batch of 8 they are 3, 3 and 2 images."""
        options = (CROSSVIT, "model.head.in_channels=[8, 8]")
        whole = self.first_gradients(tmp_path, *options)
        split = self.first_gradients(tmp_path, *options, f"accum_steps={steps}")
        for one, other in zip(whole, split):
            assert np.abs(one - other).max() <= 1e-6

    def test_logs_the_mean_of_the_parts(self, tmp_path):
        options = (CROSSVIT, "model.head.in_channels=[8, 8]", "epochs=1", "dataloader.train.sampler.batch_size=8")
        tiny_run(tmp_path, *options, f"output_dir={tmp_path}/whole")
        tiny_run(tmp_path, *options, f"output_dir={tmp_path}/split", "accum_steps=4")
        whole, split = (
            [line for line in json_lines(tmp_path / name) if line["mode"] == "train"] for name in ("whole", "split")
        )
        for key in ("loss", "acc1", "grad_norm"):
            assert [line[key] for line in split] == pytest.approx([line[key] for line in whole], rel=1e-4)

    def test_into_more_parts_than_images_is_refused(self, tmp_path):
        with pytest.raises(DataError, match="accum_steps 5: a batch of 4 images has not as many parts"):
            tiny_trainer(tmp_path, "accum_steps=5")

    def test_into_no_parts_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="accum_steps: must be at least 1, not 0"):
            tiny_trainer(tmp_path, "accum_steps=0")


class TestNorm:
    def test_is_that_of_all_gradients_in_float64(self, tmp_path):
        trainer = tiny_trainer(tmp_path, "epochs=1")
        watch = Gradients(trainer)
        trainer.train()
        expected = [math.sqrt(sum((g**2).sum() for g in gradients)) for gradients in watch.seen]
        logged = [line["grad_norm"] for line in json_lines(tmp_path / "out") if line["mode"] == "train"]
        assert logged == pytest.approx(expected, rel=1e-6)

    def test_without_gradients_is_0(self):
        assert global_norm([paddle.zeros([2])]).item() == 0

    def test_is_logged_before_clipping_and_the_update_is_that_of_the_clipped_gradient(self, tmp_path):
        """After one step AdamW's first moment is (1 - beta1) times the gradient that it was given."""
        one_step = ("epochs=1", "dataloader.train.sampler.batch_size=24")
        moments = {}
        for clip in (None, 0.05):
            override = [f"optimizer.grad_clip={{name: global_norm, value: {clip}}}"] if clip else []
            tiny_run(tmp_path, *one_step, *override, f"output_dir={tmp_path}/{clip}")
            tree = read_file(tmp_path / str(clip) / "latest.pdparams")
            moments[clip] = {k: v.astype("float64") for k, v in tree["optimizer"].items() if k.endswith("/moment1")}
        (norm,) = (line["grad_norm"] for line in json_lines(tmp_path / "0.05") if line["mode"] == "train")
        assert norm > 0.05
        assert norm == pytest.approx(math.sqrt(sum((m**2).sum() for m in moments[None].values())) / 0.1, rel=1e-5)
        for name, moment in moments[0.05].items():
            np.testing.assert_allclose(moment, moments[None][name] * 0.05 / norm, rtol=1e-4, atol=1e-9)


class Poison(Hook):
    """Makes the images of some iterations, counted from 1, not a number; a batch is what the trainer is given."""

    def __init__(self, trainer, iterations):
        super().__init__()
        step = trainer.train_step
        bad = paddle.full([4, 3, 8, 8], float("nan"))
        trainer.train_step = lambda images, targets: step(
            bad if trainer.state.iter + 1 in iterations else images, targets
        )


class Overflow(Hook):
    """Makes a weight infinite when so many iterations are finished."""

    def __init__(self, iterations):
        super().__init__()
        self.iterations = iterations

    def train_iter_end(self, trainer):
        if trainer.state.iter == self.iterations:
            trainer.model.head.fc_cls.bias.set_value(paddle.to_tensor([float("inf"), 0.0, 0.0]))


def poisoned(folder, iterations, *overrides):
    trainer = tiny_trainer(folder, *overrides)
    Poison(trainer, iterations)
    return trainer


class TestNonFinite:
    def test_gradient_leaves_weights_moments_and_statistics_as_they_were(self, tmp_path):
        trainer = poisoned(tmp_path, {3})
        kept = {}

        class Keep(Hook):
            def train_iter_end(self, trainer):
                kept[trainer.state.iter] = [t.numpy() for t in trainer.model.state_dict().values()] + [
                    t.numpy() for t in trainer.optimizer.state_dict().values() if isinstance(t, paddle.Tensor)
                ]

        trainer.hooks.append(Keep())
        trainer.train()
        assert all(np.array_equal(a, b) for a, b in zip(kept[2], kept[3]))
        assert not all(np.array_equal(a, b) for a, b in zip(kept[3], kept[4]))
        assert (trainer.state.skipped, trainer.state.skipped_in_row, trainer.state.iter) == (1, 0, 12)

    def test_gradients_are_told_with_their_number(self, tmp_path, capsys):
        poisoned(tmp_path, {2, 3}, "epochs=1").train()
        output = capsys.readouterr().out
        assert "iteration 2: the gradient is not finite (loss nan, lr " in output
        assert "no update; 2 in a row, 2 in all" in output

    @pytest.mark.parametrize("model", ["xcit", "crossvit"])
    @pytest.mark.parametrize("value", [0.0, 1e-30, 1e4])
    def test_gradients_do_not_come_of_images_of_one_colour(self, value, model, tmp_path):
        """BatchNorm makes nothing of them, and XCiT divides by the length of what is left."""
        options = [CROSSVIT, "model.head.in_channels=[8, 8]"] if model == "crossvit" else []
        trainer = tiny_trainer(tmp_path, *options)
        step = trainer.train_step
        trainer.train_step = lambda images, targets: step(paddle.full_like(images, value), targets)
        trainer.train()
        assert trainer.state.skipped == 0 and 0 < trainer.state.outputs["grad_norm"].item() < 100

    @pytest.mark.parametrize("rate", [1e3, 1e6, 1e30])
    def test_gradients_come_at_the_same_iterations_each_time(self, rate, tmp_path, capsys):
        schedule = f"lr_scheduler={{name: CosineAnnealingDecay, learning_rate: {rate}, T_max: 100}}"
        told = []
        for name in ("first", "second"):
            with pytest.raises(TrainingError, match="was not finite in 6 iterations in a row"):
                tiny_run(tmp_path, schedule, "epochs=5", f"output_dir={tmp_path}/{name}")
            told.append(re.findall(r"iteration \d+: the gradient is not finite .*", capsys.readouterr().out))
            for path in (tmp_path / name).glob("*.pdparams"):
                assert all(np.isfinite(array).all() for array in read_file(path)["state_dict"].values())
        assert told[0] == told[1] and len(told[0]) >= 6

    @pytest.mark.parametrize("skips", [0, 2])
    def test_gradients_in_a_row_end_the_training(self, skips, tmp_path):
        trainer = poisoned(tmp_path, range(4, 20), f"non_finite={{max_skips: {skips}}}")
        with pytest.raises(TrainingError, match=rf"was not finite in {skips + 1} iterations in a row, .* see .*json"):
            trainer.train()
        assert trainer.state.iter == 3 + skips

    def test_gradients_with_good_ones_between_do_not(self, tmp_path):
        trainer = poisoned(tmp_path, {2, 4, 6, 8, 10}, "non_finite={max_skips: 1}")
        trainer.train()
        assert trainer.state.skipped == 5

    def test_gradients_are_explained_in_a_file(self, tmp_path):
        trainer = poisoned(tmp_path, {5}, "non_finite={max_skips: 0}")
        with pytest.raises(TrainingError):
            trainer.train()
        report = json.loads((tmp_path / "out" / "non_finite.json").read_text())
        assert (report["iteration"], report["epoch"], report["loss"]) == (5, 1, "nan")
        assert report["image_values"] == {"min": "nan", "max": "nan", "not_finite": 4 * 3 * 8 * 8}
        parameters = len(list(trainer.model.parameters()))
        assert report["weights_not_finite"] == {"count": 0, "first": []}
        assert parameters - 10 < report["gradients_not_finite"]["count"] <= parameters
        assert report["gradients_not_finite"]["first"][0] == "backbone.cls_token"
        assert len(report["images"]) == 4 and all(name.endswith(".png") for name in report["images"])
        trainer.train_loader.set_position(0, 4)
        keys = next(iter(trainer.train_loader.batch_sampler))
        assert report["images"] == [trainer.train_loader.dataset.describe(key[1]) for key in keys]

    def test_a_diagnosis_of_an_earlier_start_gets_a_name_that_says_so(self, tmp_path):
        (tmp_path / "out").mkdir()
        for name in ("non_finite", "non_finite.rank1", "mine"):
            (tmp_path / "out" / f"{name}.json").write_text(name)
        tiny_run(tmp_path, "epochs=1")
        texts = {path.name: path.read_text() for path in (tmp_path / "out").glob("*.json") if path.name != "run.json"}
        assert texts == {
            "earlier_non_finite.json": "non_finite",
            "earlier_non_finite.rank1.json": "non_finite.rank1",
            "mine.json": "mine",
        }

    def test_training_that_is_to_go_back_takes_the_weights_of_the_newest_checkpoint(self, tmp_path, capsys):
        trainer = poisoned(tmp_path, {9, 10}, "non_finite={max_skips: 1, then: go_back}")
        seen = {}

        class Keep(Hook):
            def train_iter_end(self, trainer):
                seen[trainer.state.iter] = [t.numpy() for t in trainer.model.state_dict().values()]

        trainer.hooks.append(Keep())
        trainer.train()
        assert all(np.array_equal(a, b) for a, b in zip(seen[6], seen[10]))
        assert not all(np.array_equal(a, b) for a, b in zip(seen[6], seen[9]))
        assert (trainer.state.iter, trainer.state.returns) == (12, 1)
        assert "going on with the weights of" in capsys.readouterr().out

    def test_training_goes_back_only_so_often(self, tmp_path):
        trainer = poisoned(tmp_path, range(7, 13), "non_finite={max_skips: 0, then: go_back, max_returns: 2}")
        with pytest.raises(TrainingError, match="was not finite in 1 iterations in a row"):
            trainer.train()
        assert (trainer.state.iter, trainer.state.returns) == (8, 2)

    def test_training_without_a_checkpoint_cannot_go_back(self, tmp_path):
        trainer = poisoned(tmp_path, {3}, "non_finite={max_skips: 0, then: go_back}")
        with pytest.raises(TrainingError, match="was not finite"):
            trainer.train()

    def test_a_streak_writes_no_checkpoint_but_the_last(self, tmp_path, capsys):
        trainer = poisoned(tmp_path, {6, 12})
        trainer.train()
        assert sorted(path.name for path in (tmp_path / "out").glob("epoch_*")) == ["epoch_2.pdparams"]
        assert "no checkpoint at 1 epochs: the last update was left out" in capsys.readouterr().out

    def test_the_best_is_one_that_is_saved(self, tmp_path):
        trainer = poisoned(tmp_path, {6})
        answers = iter([90.0, 10.0])
        trainer.evaluator.evaluate = lambda *_: {"acc1": next(answers), "acc5": 100.0}
        trainer.train()
        assert read_file(tmp_path / "out" / "best.pdparams")["best"]["acc1"] == 10.0

    def test_weights_are_not_saved_and_the_training_goes_back(self, tmp_path, capsys):
        """An update with a finite gradient can overflow, as with a learning rate of 1e30."""
        every = "checkpoint={name: CheckpointHook, by_epoch: false, interval: 3}"
        trainer = tiny_trainer(tmp_path, every, "non_finite={max_skips: 0, then: go_back}", hooks=[Overflow(9)])
        trainer.train()
        assert sorted(path.name for path in (tmp_path / "out").glob("iter_*")) == [
            f"iter_{number}.pdparams" for number in (12, 3, 6)
        ]
        output = capsys.readouterr().out
        assert "1 weights are no longer finite, the first is head.fc_cls.bias: they are not saved" in output
        assert f"going on with the weights of {tmp_path}/out/iter_6.pdparams" in output
        assert (trainer.state.skipped, trainer.state.returns) == (1, 1)

    def test_statistics_that_overflow_end_the_training_though_its_gradients_are_finite(self, tmp_path):
        trainer = tiny_trainer(tmp_path, "epochs=5", "non_finite={max_skips: 0, then: go_back}")
        step = trainer.train_step
        trainer.train_step = lambda images, targets: step(images * 1e20, targets)
        with pytest.raises(TrainingError, match=r"the first is backbone.patch_embed.proj.0.1._variance: they are not"):
            trainer.train()
        assert (trainer.state.epoch, trainer.state.skipped) == (2, 0)

    def test_a_diagnosis_that_cannot_be_written_keeps_no_run_from_going_back(self, tmp_path, monkeypatch, capsys):
        def full(path, *_):
            raise CheckpointError(f"{path}: cannot be written: No space left on device")

        monkeypatch.setattr(gradients, "write_diagnosis", full)
        trainer = poisoned(tmp_path, {9}, "non_finite={max_skips: 0, then: go_back}")
        trainer.train()
        assert trainer.state.returns == 1
        assert "non_finite.json: cannot be written: No space left on device" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "arguments, text",
        [
            ({"max_skips": -1}, "max_skips -1, max_returns 3: expected 0 or more"),
            ({"max_returns": -2}, "max_skips 5, max_returns -2: expected 0 or more"),
            ({"then": "wait"}, "then must be stop or go_back, not 'wait'"),
        ],
    )
    def test_rules_that_cannot_be_are_refused(self, arguments, text):
        with pytest.raises(ValueError, match=text):
            NonFiniteGuard(**arguments)
