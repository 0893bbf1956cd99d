"""A training that no longer gets better ends, with all that the last epoch brings."""

import pytest
from tiny_run import tiny_run, tiny_trainer

from passl_xcit.engine.evaluator import Evaluator
from passl_xcit.hooks.early_stop_hook import EarlyStopHook

STOP = "custom_config=[{name: EvaluateHook}, {name: EarlyStopHook, patience: 2}]"


def scores(monkeypatch, accuracies):
    """Let the evaluations of trainers give these accuracies."""
    answers = iter(accuracies)
    monkeypatch.setattr(Evaluator, "evaluate", lambda *_: {"acc1": next(answers), "acc5": 100.0})


def test_it_ends_after_so_many_epochs_without_a_better_one(tmp_path, monkeypatch, capsys):
    scores(monkeypatch, [10.0, 30.0, 20.0, 30.0, 99.0])
    trainer = tiny_trainer(tmp_path, STOP, "epochs=9", "checkpoint.interval=100")
    trainer.train()
    assert trainer.state.epoch == 4
    assert "no better acc1 since epoch 2, 2 epochs ago: the training ends here" in capsys.readouterr().out
    assert (tmp_path / "out" / "epoch_4.pdparams").exists()


def test_it_does_not_end_while_it_gets_better(tmp_path, monkeypatch):
    scores(monkeypatch, [10.0, 9.0, 20.0, 19.0, 30.0])
    trainer = tiny_trainer(tmp_path, STOP, "epochs=5")
    trainer.train()
    assert trainer.state.epoch == 5 and not trainer.state.finished


def test_it_does_not_count_epochs_that_were_not_evaluated(tmp_path, monkeypatch):
    """Evaluated after epochs 3, 6 and 9: with a patience of 1 the second one ends it, which does not get better."""
    scores(monkeypatch, [30.0, 20.0])
    every_third = "custom_config=[{name: EvaluateHook, interval: 3}, {name: EarlyStopHook, patience: 1}]"
    trainer = tiny_trainer(tmp_path, every_third, "epochs=9", "dataloader.train.sampler.batch_size=24")
    trainer.train()
    assert trainer.state.epoch == 6


def test_a_run_that_was_ended_stays_ended_when_it_is_resumed(tmp_path, monkeypatch):
    scores(monkeypatch, [30.0, 20.0, 10.0])
    tiny_run(tmp_path, STOP, "epochs=9")
    before = (tmp_path / "out" / "latest.pdparams").stat().st_mtime_ns
    tiny_run(tmp_path, STOP, "epochs=9", resume_from="auto")  # a fourth evaluation would have no answer
    assert (tmp_path / "out" / "latest.pdparams").stat().st_mtime_ns == before


def test_a_patience_of_no_epoch_is_refused():
    with pytest.raises(ValueError, match="patience must be at least 1, not 0"):
        EarlyStopHook(patience=0)
