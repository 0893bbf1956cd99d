"""PASSL's log lines, and meters that print as PASSL's do."""

import errno
import io
import logging
import os
import re
import shutil

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passl_xcit.utils.logger import TRAINER, AverageMeter, JsonLog, get_logger, log_to_folder, setup_logger

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


class TestJsonLog:
    @given(entries=st.lists(st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.booleans()))))
    def test_what_was_appended_is_read_in_its_order(self, entries, tmp_path_factory):
        log = JsonLog(tmp_path_factory.mktemp("run") / "log.jsonl")
        for entry in entries:
            log.append(entry)
        assert log.read() == entries

    @given(cut=st.integers(0, 93))
    def test_of_a_line_that_a_kill_cut_off_only_that_line_is_lost(self, cut, tmp_path_factory):
        log = JsonLog(tmp_path_factory.mktemp("run") / "log.jsonl")
        for number in range(3):
            log.append({"number": number, "é": "ü\n"})
        text = log.path.read_bytes()
        log.path.write_bytes(text[:cut])
        whole = sum(end <= cut for end, byte in enumerate(text, 1) if byte == ord("}"))
        JsonLog(log.path).append({"number": 9})
        assert [entry["number"] for entry in log.read()] == [*range(whole), 9]
        assert log.path.read_bytes().endswith(b'\n{"number": 9}\n' if cut else b'{"number": 9}\n')

    def test_a_file_that_is_not_there_has_no_entries(self, tmp_path):
        assert JsonLog(tmp_path / "log.jsonl").read() == []
        assert JsonLog(tmp_path).read() == []  # nor has a folder

    def test_lines_that_are_no_objects_are_left_out(self, tmp_path):
        (tmp_path / "log.jsonl").write_bytes(b'{"a": 1}\n\xff\xfe\n17\n\n{"b": NaN\n{"c": 3}')
        assert JsonLog(tmp_path / "log.jsonl").read() == [{"a": 1}, {"c": 3}]

    def test_a_number_that_is_not_finite_is_null(self, tmp_path):
        JsonLog(tmp_path / "log.jsonl").append({"a": float("nan"), "b": -float("inf"), "c": 1.5})
        assert (tmp_path / "log.jsonl").read_text() == '{"a": null, "b": null, "c": 1.5}\n'


class Interrupted(io.RawIOBase):
    """A terminal whose first line is being written when a signal comes, whose handler logs."""

    def __init__(self):
        self.text = ""

    def writable(self):
        return True

    def write(self, data):
        first, self.text = not self.text, self.text + bytes(data).decode()
        if first:
            get_logger().warning("stopping after this step")
        return len(data)


def test_a_signals_line_comes_after_the_one_that_is_being_written(capsys):
    terminal = Interrupted()
    setup_logger(stream=io.TextIOWrapper(io.BufferedWriter(terminal)))
    get_logger().info("a line")
    assert [line.split(": ", 1)[1] for line in terminal.text.splitlines()] == ["a line", "stopping after this step"]
    assert capsys.readouterr().err == ""


class FullDisk:
    """A file on a disk that has no space left, until it has."""

    def __init__(self, path):
        self.name, self.full, self.lines = str(path), True, []

    def write(self, text):
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.lines.append(text)

    def flush(self):
        pass

    close = flush


class TestALogThatCannotBeWritten:
    def test_says_so_once_and_goes_on_when_there_is_space_again(self, tmp_path, capsys):
        setup_logger()
        log_to_folder(tmp_path)
        handler = get_logger().handlers[-1]
        handler.stream.close()
        disk = handler.stream = FullDisk(tmp_path / "log.txt")
        for number in range(3):
            get_logger().info(f"line {number}")
        disk.full = False
        get_logger().info("line 3")
        output, errors = capsys.readouterr()
        assert errors == (
            f"warning: {tmp_path}/log.txt: No space left on device: lines of this log are lost, the run goes on\n"
        )
        assert output.count("INFO: line") == 4  # the screen has them all
        assert [line.split("INFO: ")[1] for line in disk.lines] == ["line 3\n"]

    def test_leaves_nothing_to_be_written_when_the_process_ends(self, capfd):
        """Python would try again then, complain and end with code 120."""
        with open("/dev/full", "w") as screen:
            setup_logger(stream=screen)
            get_logger().info("line 0")
            screen.flush()
        assert capfd.readouterr().err == (
            "warning: /dev/full: No space left on device: lines of this log are lost, the run goes on\n"
        )

    def test_may_be_a_stream_without_a_file(self, capsys):
        class Full(io.StringIO):
            def flush(self):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        setup_logger(stream=Full())
        get_logger().info("line 0")
        assert capsys.readouterr().err.count("lines of this log are lost") == 1

    def test_goes_on_in_a_new_file_when_its_folder_was_removed_and_is_made_again(self, tmp_path, capsys):
        setup_logger()
        (tmp_path / "out").mkdir()
        log_to_folder(tmp_path / "out")
        get_logger().info("line 0")
        shutil.rmtree(tmp_path / "out")
        for number in (1, 2):
            get_logger().info(f"line {number}")
        (tmp_path / "out").mkdir()
        for number in (3, 4):
            get_logger().info(f"line {number}")
        assert capsys.readouterr().err == (
            f"warning: {tmp_path}/out/log.txt: No such file or directory: lines of this log are lost, the run goes on\n"
        )
        lines = (tmp_path / "out" / "log.txt").read_text().splitlines()
        assert [line.split("INFO: ")[1] for line in lines] == ["line 3", "line 4"]

    def test_of_json_lines_neither_ends_anything(self, tmp_path, capsys):
        log = JsonLog(tmp_path / "gone" / "log.jsonl")
        log.append({"a": 1})
        log.append({"a": 2})
        (tmp_path / "gone").mkdir()
        log.append({"a": 3})
        output, errors = capsys.readouterr()
        assert errors.splitlines() == [
            f"warning: {log.path}: No such file or directory: lines of this log are lost, the run goes on"
        ]
        assert log.read() == [{"a": 3}]

    def test_a_mistake_in_a_call_still_shows_its_traceback(self, capsys):
        setup_logger()
        get_logger().info("%d", "no number")
        assert "--- Logging error ---" in capsys.readouterr().err
