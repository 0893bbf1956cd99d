"""What is measured of an evaluation's data, and of starting."""

import time

import pytest
from tiny_run import tiny_file

from passl_xcit.engine.benchmark.pipeline import _time_epoch, measure_pipeline, pipeline_lines
from passl_xcit.engine.benchmark.startup import measure_startup, startup_lines
from passl_xcit.utils.config import load_config


def test_an_evaluation_waits_as_long_as_its_loader_takes_and_not_while_the_model_runs():
    def batches():
        for _ in range(4):
            time.sleep(0.05)
            yield "images", "targets"

    seconds, waiting = _time_epoch(batches(), lambda images: time.sleep(0.1))
    assert waiting == pytest.approx(0.2, abs=0.08)
    assert seconds == pytest.approx(0.6, abs=0.2)


@pytest.mark.slow
def test_stages_loaders_and_evaluations_of_a_config_are_measured(tmp_path):
    found = measure_pipeline(load_config(tiny_file(tmp_path)), [0, 1], 2)
    assert list(found["stages"])[0] == "load" and "Normalize" in found["stages"]
    assert all(0 < milliseconds < 100 for milliseconds in found["stages"].values())
    for count in ("0", "1"):
        assert len(found["loaders"][count]) == len(found["evaluations"][count]) == 2
        assert all(0 < run["waiting"] < run["seconds"] for run in found["evaluations"][count])
    assert pipeline_lines(found)[0] == "| stage | ms of one core | share |"


def test_the_table_tells_medians_and_shares():
    evaluations = {"2": [{"seconds": 2.0, "waiting": 0.5}, {"seconds": 1.0, "waiting": 0.1}] * 2}
    stages = {"load": 3.0, "Resize": 1.0}
    lines = pipeline_lines({"images": 10, "stages": stages, "loaders": {"2": [50, 70]}, "evaluations": evaluations})
    assert "| load | 3.00 | 75% |" in lines
    assert lines[-1] == "| 2 | 60 | 8 | 18% |"  # medians of 5 and 10 images/s, of 25 % and 10 %


@pytest.mark.slow
def test_starting_is_measured_in_turns_without_the_first():
    found = measure_startup(1)
    assert {len(seconds) for seconds in found.values()} == {1}
    assert found["python"][0] < found["import paddle"][0]
    assert startup_lines({"python": [0.1, 0.3, 0.2]})[-1] == "| `python` | 0.20 | 0.10 to 0.30 |"
