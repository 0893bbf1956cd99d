"""PASSL's log lines, and meters that print as PASSL's do."""

import logging
import re

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passl_xcit.utils.logger import TRAINER, AverageMeter, get_logger, log_to_folder, setup_logger

TIME = r"\[\d\d/\d\d \d\d:\d\d:\d\d\]"


@pytest.fixture(autouse=True)
def logger_put_back():
    """Leave the logger of the process as it was."""
    root = get_logger()
    before = list(root.handlers), root.level, root.propagate
    root.handlers = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level, root.propagate = before


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_a_line_is_passls(capsys):
    setup_logger()
    get_logger(TRAINER).info("Number of Parameters is 3.05M.")
    get_logger().warning("careful")
    trainer, root = capsys.readouterr().out.splitlines()
    assert re.fullmatch(TIME + r" passl\.engine\.trainer INFO: Number of Parameters is 3\.05M\.", trainer)
    assert re.fullmatch(TIME + r" passl WARNING: careful", root)


def test_a_module_logs_under_passls_name():
    assert get_logger("passl_xcit.utils.device").name == "passl.utils.device"
    assert get_logger().name == "passl"


def test_debugging_lines_are_left_out(capsys):
    setup_logger()
    get_logger().debug("detail")
    assert capsys.readouterr().out == ""


def test_the_file_has_what_was_logged_before_its_folder_was_known(tmp_path, capsys):
    setup_logger()
    get_logger().info("Configs: {}")
    log_to_folder(tmp_path)
    get_logger().info("Epoch [1/2]")
    lines = lines_of(tmp_path / "log.txt")
    assert [line.split("INFO: ")[1] for line in lines] == ["Configs: {}", "Epoch [1/2]"]
    assert lines == capsys.readouterr().out.splitlines()


def test_a_resumed_run_appends(tmp_path):
    for text in ("first", "second"):
        setup_logger()
        log_to_folder(tmp_path)
        get_logger().info(text)
    assert [line.split("INFO: ")[1] for line in lines_of(tmp_path / "log.txt")] == ["first", "second"]


def test_setting_up_twice_prints_once(capsys):
    setup_logger()
    setup_logger()
    get_logger().info("once")
    assert capsys.readouterr().out.count("once") == 1


def test_other_ranks_are_silent_and_write_their_own_file(tmp_path, capsys):
    setup_logger(rank=1)
    get_logger().info("of rank 1")
    log_to_folder(tmp_path, rank=1)
    assert capsys.readouterr().out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt.rank1"]
    assert len(lines_of(tmp_path / "log.txt.rank1")) == 1


def test_other_libraries_do_not_repeat_the_lines(capsys):
    setup_logger()
    above = logging.StreamHandler()
    logging.getLogger().addHandler(above)
    try:
        get_logger().info("once")
    finally:
        logging.getLogger().removeHandler(above)
    captured = capsys.readouterr()
    assert "once" in captured.out and captured.err == ""


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("loss", [7.0, 6.5], "loss 6.5000e+00 (6.7500e+00)"),
        ("dml_loss", [0.25], "dml_loss 2.5000e-01 (2.5000e-01)"),
        ("acc1", [0.0, 12.5], "acc1 12.500 ( 6.250)"),
        ("acc5", [], "acc5  0.000 ( 0.000)"),
    ],
)
def test_a_meter_prints_current_and_average(name, values, text):
    meter = AverageMeter(name)
    for value in values:
        meter.update(value)
    assert str(meter) == text


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_a_meter_averages_numbers_since_the_last_clear(values):
    meter = AverageMeter("loss")
    meter.update(1e9)
    meter.clear()
    for value in values:
        meter.update(value)
    assert (meter.value, meter.count) == (values[-1], len(values))
    assert meter.average == pytest.approx(np.mean(values), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("tensor", [paddle.to_tensor(2.0), paddle.to_tensor([2.0]), np.float32(2)])
def test_a_meter_takes_tensors_of_one_element(tensor):
    meter = AverageMeter("loss")
    meter.update(tensor)
    meter.update(tensor)
    assert (meter.value, meter.average) == (2.0, 2.0)
    assert type(meter.value) is type(meter.average) is float
