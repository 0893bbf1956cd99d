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
STEPS = {"name": "MultiStepDecay", "learning_rate": 1.0, "milestones": [2, 3]}
ITERS = 1251  # of an ImageNet epoch with batches of 1024


def build(node, iters_per_epoch=ITERS, global_batch_size=1024):
    return LR_SCHEDULERS.build(
        node, "lr_scheduler", iters_per_epoch=iters_per_epoch, global_batch_size=global_batch_size
    )


def walk(schedule, steps):
    """The learning rates of the first `steps` iterations."""
    rates = []
    for _ in range(steps):
        rates.append(schedule())
        schedule.step()
    return rates


def at_epoch(schedule, epoch, iters_per_epoch=ITERS):
    """The learning rate of the first iteration of `epoch`."""
    schedule.step(epoch * iters_per_epoch)
    return schedule()


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
    assert walk(build({**STEPS, "gamma": 0.5}, 2), 8) == pytest.approx([1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25])


def test_a_warm_up_to_a_constant():
    node = {"name": "LinearWarmup", "learning_rate": 0.3, "warmup_steps": 2, "start_lr": 0.0, "end_lr": 0.4}
    assert walk(build(node, 2), 6) == pytest.approx([0, 0.1, 0.2, 0.3, 0.3, 0.3])


def test_building_twice_gives_the_same_schedule_and_leaves_the_config_alone():
    node = copy.deepcopy(PASSL)
    first, second = build(node), build(node)
    assert node == PASSL
    assert walk(first, 30) == walk(second, 30)


OFFICIAL = {
    "name": "TimmCosine",
    "learning_rate": 5e-4,
    "base_batch_size": 512,
    "T_max": 400,
    "eta_min": 1e-5,
    "warmup_epoch": 5,
    "warmup_start_lr": 1e-6,
    "epoch_late": True,
}
# timm 1.0.31's CosineLRScheduler, stepped as facebookresearch/xcit's main.py does, with its 1e-3 for 1,024 images.
OFFICIAL_RATES = {
    0: 1e-6,
    1: 1e-6,
    2: 2.008e-4,
    5: 8.002e-4,
    6: 0.000999618372939158,
    7: 0.0009994504881061753,
    200: 0.0005088876809399121,
    399: 1.006106692157801e-05,
}


@pytest.mark.parametrize("epoch", OFFICIAL_RATES)
def test_the_official_schedule_has_timms_numbers_one_epoch_late(epoch):
    assert at_epoch(build(OFFICIAL), epoch) == pytest.approx(OFFICIAL_RATES[epoch], rel=1e-12)


@pytest.mark.parametrize("epoch", [0, 1, 4, 5, 6, 399])
def test_without_that_delay_each_epoch_has_the_rate_of_the_one_after_it(epoch):
    on_time = at_epoch(build({**OFFICIAL, "epoch_late": False}), epoch)
    assert on_time == at_epoch(build(OFFICIAL), epoch + 1)


def test_a_minimum_as_high_as_the_learning_rate_makes_a_constant():
    node = {"name": "TimmCosine", "learning_rate": 0.1, "eta_min": 0.1, "T_max": 3}
    assert walk(build(node, 2), 8) == pytest.approx([0.1] * 8)


@pytest.mark.parametrize(("iteration", "epoch"), [(0, 0), (ITERS - 1, 0), (ITERS, 1), (6 * ITERS - 1, 5)])
def test_the_official_schedule_changes_between_epochs_only(iteration, epoch):
    schedule = build(OFFICIAL)
    schedule.step(iteration)
    assert schedule() == pytest.approx(OFFICIAL_RATES[epoch])


@settings(max_examples=40, deadline=None)
@given(
    iters=st.integers(1, 5),
    warmup=st.integers(0, 4),
    epochs=st.integers(1, 6),
    late=st.booleans(),
    unit=st.sampled_from(["epoch", "step"]),
    rates=st.tuples(st.floats(0, 1e-4), st.floats(1e-3, 1.0), st.floats(0, 1e-4)),
)
def test_timms_cosine_is_not_shifted_by_its_warm_up(iters, warmup, epochs, late, unit, rates):
    start, high, low = rates

    def expected(step):
        time = step // iters if unit == "epoch" else step / iters
        time = max(0, time - 1) if late else time
        if time < warmup:
            return start + (high - start) * time / warmup
        return half_cosine(min(time, epochs), epochs, high, low)

    node = {"name": "TimmCosine", "learning_rate": high, "T_max": epochs, "eta_min": low, "warmup_epoch": warmup}
    schedule = build({**node, "warmup_start_lr": start, "decay_unit": unit, "epoch_late": late}, iters)
    steps = (epochs + 3) * iters
    assert walk(schedule, steps) == pytest.approx([expected(step) for step in range(steps)], rel=1e-9, abs=1e-15)


MINDCV_XCIT = {
    "name": "CosineDecay",
    "learning_rate": 5e-4,
    "min_lr": 1e-5,
    "warmup_epochs": 40,
    "decay_epochs": 460,
}
MINDCV_CROSSVIT_15 = {
    "name": "CosineDecay",
    "learning_rate": 9e-4,
    "min_lr": 1e-5,
    "warmup_epochs": 30,
    "decay_epochs": 270,
    "num_cycles": 2,
    "lr_epoch_stair": True,
}


@pytest.mark.parametrize(
    ("node", "iteration", "rate"),  # 3 iterations an epoch
    [
        (MINDCV_XCIT, 0, 0.0),
        (MINDCV_XCIT, 1, 4.166666666666667e-06),
        (MINDCV_XCIT, 60, 0.00025),
        (MINDCV_XCIT, 119, 0.0004958333333333333),
        (MINDCV_XCIT, 120, 0.0005),
        (MINDCV_XCIT, 121, 0.0004999993651407178),
        (MINDCV_XCIT, 810, 0.000255),
        (MINDCV_XCIT, 1499, 1.0000634859282177e-05),
        (MINDCV_CROSSVIT_15, 2, 0.0),
        (MINDCV_CROSSVIT_15, 3, 2.9999999999999997e-05),
        (MINDCV_CROSSVIT_15, 89, 0.00087),
        (MINDCV_CROSSVIT_15, 90, 0.0009),
        (MINDCV_CROSSVIT_15, 495, 0.000455),
        (MINDCV_CROSSVIT_15, 899, 1.003012293832582e-05),
        (MINDCV_CROSSVIT_15, 900, 0.0009),
        (MINDCV_CROSSVIT_15, 1709, 1.003012293832582e-05),
        (MINDCV_CROSSVIT_15, 1710, 1e-05),
        (MINDCV_CROSSVIT_15, 1799, 1e-05),
    ],
)
def test_mindcvs_schedules_have_the_numbers_that_mindcv_makes(node, iteration, rate):
    """From create_scheduler of MindCV 0.3.0."""
    schedule = build(node, 3)
    schedule.step(iteration)
    assert schedule() == pytest.approx(rate, rel=1e-12, abs=1e-18)


def test_mindcvs_cycles_lose_height():
    """From create_scheduler of MindCV 0.3.0, 2 iterations an epoch, 12 epochs."""
    node = {"name": "CosineDecay", "learning_rate": 1.0, "min_lr": 0.1, "warmup_epochs": 2, "warmup_factor": 0.25}
    first = [1.0, 0.96574578963, 0.868198051534, 0.722207544564, 0.55, 0.377792455436, 0.231801948466, 0.13425421037]
    second = [0.5, 0.484775906502, 0.441421356237, 0.376536686473, 0.3, 0.223463313527, 0.158578643763, 0.115224093498]
    rates = walk(build({**node, "decay_epochs": 4, "num_cycles": 2, "cycle_decay": 0.5}, 2), 24)
    assert rates == pytest.approx([0.25, 0.4375, 0.625, 0.8125, *first, *second, *[0.1] * 4], rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    iters=st.integers(1, 4),
    warmup=st.integers(0, 3),
    decay=st.integers(1, 4),
    cycles=st.integers(1, 3),
    stair=st.booleans(),
)
def test_a_cosine_decay_is_a_line_then_cosines_then_the_minimum(iters, warmup, decay, cycles, stair):
    def expected(step):
        time = step // iters if stair else step / iters
        if time < warmup:
            return 0.5 * time / warmup
        since = time - warmup
        return half_cosine(since % decay, decay, 0.5, 0.01) if since < cycles * decay else 0.01

    node = {"name": "CosineDecay", "learning_rate": 0.5, "min_lr": 0.01, "warmup_epochs": warmup, "decay_epochs": decay}
    schedule, steps = build({**node, "num_cycles": cycles, "lr_epoch_stair": stair}, iters), 18 * iters
    assert walk(schedule, steps) == pytest.approx([expected(step) for step in range(steps)], rel=1e-9, abs=1e-15)


class TestBaseBatchSize:
    """Facts of facebookresearch/xcit's main.py: lr * images / 512; warm-up start and minimum as they are."""

    SCALED = {**PASSL, "learning_rate": {**COSINE, "base_batch_size": 512}, "base_batch_size": 512}

    @pytest.mark.parametrize(("images", "peak"), [(256, 2.5e-4), (512, 5e-4), (1024, 1e-3), (4096, 4e-3)])
    def test_the_official_peak_grows_with_the_images_a_step(self, images, peak):
        schedule = build({**OFFICIAL, "warmup_epoch": 0}, 1, images)
        assert schedule() == pytest.approx(peak)

    @pytest.mark.parametrize("images", [256, 1024, 4096])
    def test_what_the_official_schedule_starts_and_ends_with_does_not_grow(self, images):
        assert at_epoch(build(OFFICIAL, 1, images), 0, 1) == 1e-6
        assert at_epoch(build(OFFICIAL, 1, images), 401, 1) == pytest.approx(1e-5)

    @pytest.mark.parametrize("images", [256, 1024])
    def test_a_warm_up_and_the_schedule_in_it_grow_alike(self, images):
        plain = {
            **PASSL,
            "end_lr": 5e-4 * images / 512,
            "learning_rate": {**COSINE, "learning_rate": 5e-4 * images / 512},
        }
        assert walk(build(self.SCALED, 1, images), 400) == pytest.approx(walk(build(plain, 1), 400))

    @pytest.mark.parametrize(
        "node",
        [
            {"name": "LinearWarmup", "learning_rate": 0.2, "warmup_steps": 1, "start_lr": 0.0, "end_lr": 0.2},
            {"name": "MultiStepDecay", "learning_rate": 0.2, "milestones": [9]},
            {"name": "CosineAnnealingDecay", "learning_rate": 0.2, "T_max": 10},
            {"name": "TimmCosine", "learning_rate": 0.2, "T_max": 10},
            {"name": "CosineDecay", "learning_rate": 0.2, "decay_epochs": 10},
        ],
    )
    def test_every_schedule_takes_it(self, node):
        fixed, scaled = build(node, 1, 64), build({**node, "base_batch_size": 16}, 1, 64)
        assert walk(scaled, 9) == pytest.approx([4 * rate for rate in walk(fixed, 9)])

    @pytest.mark.parametrize("node", [OFFICIAL, SCALED])
    def test_a_learning_rate_that_becomes_too_small_is_refused_with_its_value(self, node):
        scaled = r"0.0005, scaled to the images a step\)"
        with pytest.raises(ConfigError, match=rf"(eta_min 1e-05 must not be above|must be below end_lr) .*{scaled}"):
            build(node, 1, 1)

    def test_no_images_are_no_base(self):
        with pytest.raises(
            ConfigError, match="lr_scheduler.base_batch_size: base_batch_size must be at least 1, not 0"
        ):
            build({**OFFICIAL, "base_batch_size": 0})


@pytest.mark.parametrize(
    "node",
    [
        PASSL,
        COSINE,
        {"name": "MultiStepDecay", "learning_rate": 1.0, "milestones": [1, 2, 9]},
        OFFICIAL,
        {**OFFICIAL, "decay_unit": "step"},
        MINDCV_XCIT,
        MINDCV_CROSSVIT_15,
    ],
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
    ("node", "message"),
    [
        ({**OFFICIAL, "T_max": 0}, "lr_scheduler.T_max: T_max must be at least 1, not 0"),
        ({**OFFICIAL, "warmup_epoch": -1}, "lr_scheduler.warmup_epoch: warmup_epoch must be at least 0, not -1"),
        ({**OFFICIAL, "eta_min": -1e-6}, "lr_scheduler.eta_min: eta_min must be at least 0, not -1e-06"),
        ({**OFFICIAL, "decay_unit": "iter"}, "lr_scheduler.decay_unit: decay_unit must be epoch or step, not 'iter'"),
        (
            {**OFFICIAL, "warmup_start_lr": 0.1},
            "lr_scheduler.warmup_start_lr: warmup_start_lr 0.1 must not be above learning_rate 0.001 (0.0005, scaled",
        ),
        (
            {"name": "TimmCosine", "learning_rate": 1e-5, "eta_min": 1e-4, "T_max": 3},
            "lr_scheduler.eta_min: eta_min 0.0001 must not be above learning_rate 1e-05",
        ),
        ({**OFFICIAL, "learning_rate": -1}, "lr_scheduler.learning_rate: learning_rate must be at least 0, not -1"),
        ({**MINDCV_XCIT, "learning_rate": -1}, "lr_scheduler.learning_rate: learning_rate must be at least 0, not -1"),
        ({**STEPS, "learning_rate": -1}, "lr_scheduler.learning_rate: learning_rate must be at least 0, not -1"),
        ({**STEPS, "gamma": 1.5}, "lr_scheduler.gamma: gamma must lie between 0 and 1, not 1.5"),
        ({**STEPS, "gamma": -0.5}, "lr_scheduler.gamma: gamma must lie between 0 and 1, not -0.5"),
        ({**STEPS, "milestones": [-3, 2]}, "lr_scheduler.milestones: milestones must be epochs from 1 on, each later"),
        ({**STEPS, "milestones": [0]}, "lr_scheduler.milestones: milestones must be epochs from 1 on, each later"),
        ({**STEPS, "milestones": [2, 2]}, "lr_scheduler.milestones: milestones must be epochs from 1 on, each later"),
        ({**MINDCV_XCIT, "decay_epochs": 0}, "lr_scheduler.decay_epochs: decay_epochs must be at least 1, not 0"),
        ({**MINDCV_XCIT, "num_cycles": 0}, "lr_scheduler.num_cycles: num_cycles must be at least 1, not 0"),
        ({**MINDCV_XCIT, "cycle_decay": -1}, "lr_scheduler.cycle_decay: cycle_decay must be at least 0, not -1"),
        ({**MINDCV_XCIT, "min_lr": 0.1}, "lr_scheduler.min_lr: min_lr 0.1 must not be above learning_rate 0.0005"),
    ],
)
def test_numbers_that_make_no_schedule_are_refused_with_their_path(node, message):
    LR_SCHEDULERS.check(node, "lr_scheduler")  # the types are right
    with pytest.raises(ConfigError) as caught:
        build(node)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_steps": 0}, "lr_scheduler.warmup_steps: warmup_steps must be at least 1, not 0"),
        ({"start_lr": 0.1}, "lr_scheduler.start_lr: start_lr 0.1 must be below end_lr 0.0005"),
        ({"start_lr": 0.0005}, "lr_scheduler.start_lr: start_lr 0.0005 must be below end_lr 0.0005"),
        ({"start_lr": -0.1}, "lr_scheduler.start_lr: start_lr must be at least 0, not -0.1"),
        ({"end_lr": -0.1}, "lr_scheduler.end_lr: end_lr must be at least 0, not -0.1"),
        ({"learning_rate": -0.1}, "lr_scheduler.learning_rate: learning_rate must be at least 0, not -0.1"),
        (
            {"learning_rate": {**COSINE, "T_max": 0}},
            "lr_scheduler.learning_rate.T_max: T_max must be at least 1, not 0",
        ),
        (
            {"learning_rate": {**COSINE, "learning_rate": -1}},
            "lr_scheduler.learning_rate.learning_rate: learning_rate must be at least 0, not -1",
        ),
        (
            {"learning_rate": {**COSINE, "eta_min": 0.1}},
            "lr_scheduler.learning_rate.eta_min: eta_min 0.1 must not be above learning_rate 0.0005",
        ),
        (
            {"learning_rate": {**COSINE, "eta_min": -1e-5}},
            "lr_scheduler.learning_rate.eta_min: eta_min must be at least 0, not -1e-05",
        ),
        (
            {"learning_rate": {**STEPS, "milestones": [3, 2]}},
            "lr_scheduler.learning_rate.milestones: milestones must be epochs from 1 on, each later than the one "
            "before, not [3, 2]",
        ),
    ],
)
def test_numbers_out_of_range_are_refused_with_their_path(change, message):
    LR_SCHEDULERS.check({**PASSL, **change}, "lr_scheduler")  # the types are right
    with pytest.raises(ConfigError) as caught:
        build({**PASSL, **change})
    assert str(caught.value).startswith(message)
