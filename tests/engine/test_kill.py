"""Runs that are killed again and again end with the bytes of a run that was not."""

import json
import random
import signal
import time

import pytest
from tiny_run import json_lines, tiny_dict, tiny_file

pytestmark = pytest.mark.slow

EVERY = "checkpoint={name: CheckpointHook, by_epoch: false, interval: 2, max_keep_ckpts: 3}"
TEACHER = {
    "name": "Classification",
    "backbone": {"name": "RegNet", "w_a": 0.0, "w_0": 16, "w_m": 2.0, "d": 2, "group_w": 8, "bot_mul": 1.0},
    "head": {"name": "ClasHead", "in_channels": 16, "num_classes": 3},
}
CASES = {  # what differs from the tiny config, which has mixup and dropout, and how often the run is killed
    "as it is": ([], 4),
    "with a moving average": (["custom_config=[{name: EvaluateHook}, {name: EMAHook, decay: 0.9}]"], 3),
    "with accumulated and clipped gradients": (
        ["accum_steps=3", "optimizer.grad_clip={name: global_norm, value: 0.1}"],
        3,
    ),
    "with a teacher": (["model={distillation}"], 3),
    "with a data worker": (["dataloader.train.loader={num_workers: 1}"], 2),
    "with two data workers": (["dataloader.train.loader={num_workers: 2}"], 3),
    "with repeated augmentation": (
        ["dataloader.train.sampler={name: DistributedRepeatedAugSampler, batch_size: 4, shuffle: true}"],
        2,
    ),
}


def overrides_of(case, folder):
    student = tiny_dict(folder)["model"]
    wrapper = {"name": "DistillationWrapper", "models": [{"Teacher": TEACHER}, {"Student": student}]}
    texts = ["epochs=5", EVERY, *CASES[case][0]]
    return [word for text in texts for word in ("-o", text.replace("{distillation}", json.dumps(wrapper)))]


@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_at_random_moments_ends_with_the_bytes_of_one_that_was_not(case, server, tmp_path):
    """Weights, moments, averages, schedule, counters and best accuracy; every second kill comes inside a save."""
    command = ["-c", tiny_file(tmp_path), *overrides_of(case, tmp_path)]
    whole = server.start(tmp_path, *command, "--output_dir", tmp_path / "whole")
    command += ["--output_dir", tmp_path / "killed", "--resume", "auto"]
    draw = random.Random(case)
    for number in range(CASES[case][1]):
        if number % 2:
            run = server.start(tmp_path, *command, killed_at_flush=draw.randint(1, 12))
            assert run.wait() == -signal.SIGKILL, run.output
        else:
            kill_at_some_moment(server.start(tmp_path, *command), tmp_path / "killed", draw)
    last = server.start(tmp_path, *command)
    assert (last.wait(), whole.wait()) == (0, 0), last.output + whole.output
    assert "Resume training from" in last.output
    names = sorted(path.name for path in (tmp_path / "whole").glob("*.pdparams"))
    assert "latest.pdparams" in names and "best.pdparams" in names
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not list((tmp_path / "killed").glob(".*.tmp"))
    assert last_lines(tmp_path / "killed") == last_lines(tmp_path / "whole")


def kill_at_some_moment(run, folder, draw):
    """kill -9 some time after the start or after up to two more checkpoints; the first time there is one at least."""
    checkpoints = draw.randint(0 if last_number(folder) else 1, 2)
    goal, delay = last_number(folder) + 2 * checkpoints, draw.uniform(0, 0.04 if checkpoints else 0.4)
    run.wait_until(lambda: last_number(folder) >= goal)
    time.sleep(delay)
    assert run.kill() == -signal.SIGKILL, run.output


def last_number(folder):
    return max((int(path.stem.partition("_")[2]) for path in folder.glob("iter_*.pdparams")), default=0)


def last_lines(folder):
    """{(mode, iteration): the last line that log.jsonl has of it}"""
    return {(line["mode"], line["iter"]): line for line in json_lines(folder)}
