"""Schedules: PASSL's numbers, and the published formulas."""

import copy
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import passl_xcit.solver.lr_scheduler  # noqa: F401 (registers)
from passl_xcit.utils.errors import ConfigError
from passl_xcit.utils.registry import LR_SCHEDULERS

COSINE = {"name": "CosineAnnealingDecay", "learning_rate": 0.0005, "T_max": 400, "eta_min": 1e-05}
PASSL = {"name": "LinearWarmup", "learning_rate": COSINE, "warmup_steps": 5, "start_lr": 1e-06, "end_lr": 0.0005}
ITERS = 1251  # of an ImageNet epoch with batches of 1024


def build(node, iters_per_epoch=ITERS):
    return LR_SCHEDULERS.build(node, "lr_scheduler", iters_per_epoch=iters_per_epoch)


def walk(schedule, steps):
    """The learning rates of the first `steps` iterations."""
    rates = []
    for _ in range(steps):
        rates.append(schedule())
        schedule.step()
    return rates


def half_cosine(step, total, high, low):
    return low + (high - low) * (1 + math.cos(math.pi * step / total)) / 2


@pytest.mark.parametrize(
    ("step", "printed"),
    [
        (0, "1.00000e-06"),
        (1, "1.07978e-06"),
        (6254, "4.99920e-04"),
        (6255, "5.00000e-04"),
        (250200, "2.646187e-04"),
        (400 * ITERS - 1, "1.018895e-05"),
    ],
)
def test_passls_schedule_has_passls_numbers(step, printed):
    schedule = build(PASSL)
    schedule.step(step)
    digits = len(printed.split(".")[1].split("e")[0])
    assert f"{schedule():.{digits}e}" == printed


@pytest.mark.slow
def test_half_a_million_steps_one_by_one_end_where_a_jump_ends():
    rates, jumped = walk(build(PASSL), 400 * ITERS), build(PASSL)
    for step in (0, 6254, 6255, 250200, 400 * ITERS - 1):
        jumped.step(step)
        assert rates[step] == jumped()


@settings(max_examples=30, deadline=None)
@given(
    iters=st.integers(1, 5),
    warmup=st.integers(1, 4),
    epochs=st.integers(1, 6),
    rates=st.tuples(st.floats(0, 1e-4), st.floats(1e-3, 1.0), st.floats(1e-4, 1.0), st.floats(0, 1e-4)),
)
def test_a_warm_up_and_a_half_cosine(iters, warmup, epochs, rates):
    start, end, high, low = rates
    cosine = {"name": "CosineAnnealingDecay", "learning_rate": high, "T_max": epochs, "eta_min": low}
    node = {"name": "LinearWarmup", "learning_rate": cosine, "warmup_steps": warmup, "start_lr": start, "end_lr": end}
    rising = [start + (end - start) * step / (warmup * iters) for step in range(warmup * iters)]
    falling = [half_cosine(step, epochs * iters, high, low) for step in range(epochs * iters)]
    assert walk(build(node, iters), (warmup + epochs) * iters) == pytest.approx(rising + falling, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("iters", [1, 7])
def test_a_half_cosine_alone(iters):
    expected = [half_cosine(step, 10 * iters, 0.5, 0.01) for step in range(10 * iters + 1)]
    rates = walk(build({**COSINE, "T_max": 10, "learning_rate": 0.5, "eta_min": 0.01}, iters), 10 * iters + 1)
    assert rates == pytest.approx(expected, rel=1e-9)


def test_steps_at_milestones():
    node = {"name": "MultiStepDecay", "learning_rate": 1.0, "milestones": [2, 3], "gamma": 0.5}
    assert walk(build(node, 2), 8) == pytest.approx([1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25])


def test_a_warm_up_to_a_constant():
    node = {"name": "LinearWarmup", "learning_rate": 0.3, "warmup_steps": 2, "start_lr": 0.0, "end_lr": 0.4}
    assert walk(build(node, 2), 6) == pytest.approx([0, 0.1, 0.2, 0.3, 0.3, 0.3])


def test_building_twice_gives_the_same_schedule_and_leaves_the_config_alone():
    node = copy.deepcopy(PASSL)
    first, second = build(node), build(node)
    assert node == PASSL
    assert walk(first, 30) == walk(second, 30)


@pytest.mark.parametrize(
    "node", [PASSL, COSINE, {"name": "MultiStepDecay", "learning_rate": 1.0, "milestones": [1, 2, 9]}]
)
@pytest.mark.parametrize("done", [0, 1, 14, 15, 16, 40])
def test_a_schedule_continues_from_its_state(node, done):
    whole = build(node, 3)
    walk(whole, done)
    resumed = build(node, 3)
    resumed.set_state_dict(whole.state_dict())
    assert resumed() == whole()
    assert walk(resumed, 30) == walk(whole, 30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_steps": 0}, "lr_scheduler.warmup_steps: warmup_steps must be at least 1, not 0"),
        ({"start_lr": 0.1}, "lr_scheduler.start_lr: start_lr 0.1 must be below end_lr 0.0005"),
        ({"start_lr": 0.0005}, "lr_scheduler.start_lr: start_lr 0.0005 must be below end_lr 0.0005"),
        ({"start_lr": -0.1}, "lr_scheduler: Invalid learning rate: -0.1"),
        (
            {"learning_rate": {**COSINE, "T_max": 0}},
            "lr_scheduler.learning_rate.T_max: T_max must be at least 1, not 0",
        ),
        ({"learning_rate": {**COSINE, "learning_rate": -1}}, "lr_scheduler.learning_rate: Invalid learning rate: -1"),
        (
            {"learning_rate": {"name": "MultiStepDecay", "learning_rate": 1, "milestones": [3, 2]}},
            "lr_scheduler.learning_rate.milestones: The elements of milestones must be incremented",
        ),
        (
            {"learning_rate": {"name": "MultiStepDecay", "learning_rate": 1, "milestones": [3], "gamma": 1.5}},
            "lr_scheduler.learning_rate.gamma: gamma should be < 1.0",
        ),
    ],
)
def test_numbers_out_of_range_are_refused_with_their_path(change, message):
    LR_SCHEDULERS.check({**PASSL, **change}, "lr_scheduler")  # the types are right
    with pytest.raises(ConfigError) as caught:
        build({**PASSL, **change})
    assert str(caught.value).startswith(message)
