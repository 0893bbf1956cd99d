"""Contenders take turns, after it was seen that they compute the same."""

import math
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passl_xcit.engine.benchmark.cases import Case
from passl_xcit.engine.benchmark.contenders import OF_LIMITS, Contender
from passl_xcit.engine.benchmark.measure import measure, ratios
from passl_xcit.engine.benchmark.protocol import Crew

COPY = Case("", "copy", 0, 0, "float32", 1)  # needs no model, and fakes do what they like
FAKE = Path(__file__).with_name("fake_worker.py")


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """`fakes(name=(behaviour, output, seconds), ...)` -> contenders, which note their turns in tmp_path / order."""

    def make(**settings):
        monkeypatch.setattr("passl_xcit.engine.benchmark.measure.OF_LIMITS", tuple(settings))
        return [
            Contender(name, FAKE, sys.executable, "", tuple(environment(name, *setting).items()))
            for name, setting in settings.items()
        ]

    def environment(name, behaviour="works", output=2.0, seconds=0.1):
        order = str(tmp_path / "order")
        values = {"FAKE": behaviour, "FAKE_NAME": name, "FAKE_ORDER": order}
        return {**values, "FAKE_OUTPUT": str(output), "FAKE_SECONDS": str(seconds)}

    return make


@pytest.fixture
def log(tmp_path):
    with (tmp_path / "log").open("w+") as file:
        yield file


def test_contenders_take_turns_and_nobody_always_comes_after_the_same_one(fakes, log, tmp_path):
    measure(COPY, fakes(a=(), b=()), 4, log)
    turns = (tmp_path / "order").read_text()
    assert (
        turns == "a" + "b" + "aabb" + "aa" + "bb" + "bb" + "aa" + "aa" + "bb" + "bb" + "aa"
    )  # 2 steps make a turn of 0.2 s


def test_a_result_has_a_time_for_each_turn_the_first_step_and_the_memory(fakes, log):
    result = measure(COPY, fakes(a=("works", 2.0, 0.1)), 3, log)["a"]
    assert len(result["seconds"]) == 3
    assert all(0.1 <= seconds < 0.5 for seconds in result["seconds"])
    assert result["difference"] == 0
    assert result["first_step_seconds"] > 0
    assert 10e6 < result["built_memory"] <= result["peak_memory"] < 500e6


def test_processes_side_by_side_take_as_long_as_the_slowest_and_all_their_memory(fakes, log, tmp_path):
    one, two = (measure(COPY._replace(processes=n), fakes(a=()), 2, log)["a"] for n in (1, 2))
    assert (tmp_path / "order").read_text() == "a" * 3 * (1 + 1 + 1 + 2 * 2)
    assert len(two["seconds"]) == 2
    assert all(0.1 <= seconds < 0.5 for seconds in two["seconds"])
    assert two["peak_memory"] == pytest.approx(2 * one["peak_memory"], rel=0.2)
    assert two["built_memory"] == pytest.approx(2 * one["built_memory"], rel=0.2)


def test_a_turn_of_processes_side_by_side_is_that_of_the_slowest():
    crew = Crew.__new__(Crew)
    answers = ({"seconds": 0.1}, {"seconds": 0.3}, {"seconds": 0.2})
    crew.workers = [SimpleNamespace(ask=lambda question: None, answer=lambda a=a: a) for a in answers]
    assert crew.run(1) == 0.3


def test_of_processes_side_by_side_one_that_cannot_ends_all(fakes, log):
    results = measure(COPY._replace(processes=2), fakes(a=("refuses",), b=()), 1, log)
    assert results["a"] == {"error": "ValueError: no kernel for this"}
    assert len(results["b"]["seconds"]) == 1


def test_one_that_computes_something_else_gets_no_time(fakes, log):
    results = measure(COPY, fakes(a=(), b=("works", 2.1), c=("works", 2.001)), 2, log)
    assert results["b"] == {"error": "computes something else than a: differs by 0.05"}
    assert results["c"]["difference"] == pytest.approx(0.0005)
    assert len(results["a"]["seconds"]) == len(results["c"]["seconds"]) == 2


@pytest.mark.parametrize("output", [math.nan, math.inf])
def test_one_that_computes_no_number_gets_no_time(fakes, log, output):
    results = measure(COPY, fakes(a=(), b=("works", output)), 1, log)
    assert "computes something else than a" in results["b"]["error"]


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("refuses", "ValueError: no kernel for this"),
        ("dies", "the process ended without an answer (exit code 3): see LOG"),
    ],
)
def test_one_that_cannot_is_told_with_its_reason_and_the_others_are_measured(fakes, log, behaviour, reason):
    results = measure(COPY, fakes(a=(behaviour,), b=()), 2, log)
    said = results["a"]["error"].replace("libraries print what they like; ", "")
    assert said == reason.replace("LOG", log.name)
    assert len(results["b"]["seconds"]) == 2


def test_one_that_fails_in_its_turn_is_told_and_the_others_are_measured(fakes, log):
    results = measure(COPY, fakes(a=("fails later",), b=()), 3, log)
    assert results["a"] == {
        "error": f"the process ended without an answer (exit code 1): out of memory; see {log.name}"
    }
    assert len(results["b"]["seconds"]) == 3


def test_what_workers_print_goes_to_the_log(fakes, log):
    measure(COPY, fakes(a=()), 1, log)
    log.seek(0)
    assert {"libraries print what they like", "also while they run"} <= set(log.read().splitlines())


def test_of_the_machines_limits_only_those_are_asked_who_can_tell_them(log):
    others = [Contender("onednn", FAKE, sys.executable, ""), Contender("timm-compile", FAKE, sys.executable, "")]
    assert not {contender.name for contender in others} & set(OF_LIMITS)
    assert measure(COPY, others, 1, log) == {}


TIMES = st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=9)


@given(TIMES, st.floats(0.1, 10))
def test_a_contender_that_is_always_so_many_times_as_fast_has_that_ratio(seconds, factor):
    assert ratios(seconds, [factor * value for value in seconds]) == pytest.approx((factor,) * 3)


@given(TIMES)
def test_a_drift_of_the_machine_changes_no_ratio(drift):
    own, other = ([value * seconds for value in drift] for seconds in (2.0, 3.0))
    assert statistics.median(ratios(own, other)) == pytest.approx(1.5)
