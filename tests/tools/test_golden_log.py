"""The run of PASSL's own page: its printed config, used as a file, evaluates and prints PASSL's lines.

golden/passl_seed_config.yaml is the dict that PASSL printed there, golden/passl_seed_log.txt the lines around it
(AI Studio, 2022-03-01; the dict itself shortened to `{...}`).
"""

import ast
import fcntl
import os
import pty
import re
import struct
import termios
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import start

from passl_xcit.engine import builder
from passl_xcit.modeling.checkpoint_formats import write_file
from passl_xcit.utils.config import load_config

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CONFIG = GOLDEN / "passl_seed_config.yaml"
SEED_LINES = (GOLDEN / "passl_seed_log.txt").read_text(encoding="utf-8").splitlines()
SEED_LINES = [line for line in SEED_LINES if not re.match(r"W\d{4} ", line)]  # two lines of the CUDA driver's

# What may differ from run to run; everything else of a line is compared to the letter.
VARIES = (
    r"\d\d/\d\d \d\d:\d\d:\d\d",
    r"(?<=Configs: )\{.*\}",
    r"(?<=paddle )\d+\.\d+\.\d+",
    r"\w*Place\(\w+\)",
    r"(?<=samples )\d+",
    r"█+",
    r"\d+/\d+ \[\d\d:\d\d<\d\d:\d\d, [ \d.]{5}(?:it/s|s/it)\]",
    r"(?<=acc[15] \()(?:[ \d]\d|100)\.\d{3}",
)
TOP5 = (417, 418, 419, 420, 421)  # the classes that the weights below always rank first, in this order
LABELS = (417, 417, 419, 12, 999)  # of the five images
ACC1, ACC5 = "40.000", "60.000"


def pattern_of(line):
    """The regular expression of all lines that differ from `line` in nothing but what `VARIES` names."""
    spans = [(match.span(), kind) for kind in VARIES for match in re.finditer(kind, line)]
    pattern, position = "", 0
    for (begin, end), kind in sorted(spans):
        pattern += re.escape(line[position:begin]) + kind
        position = end
    return pattern + re.escape(line[position:])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(folder with 1,000 classes and five images, weight file)"""
    folder = tmp_path_factory.mktemp("seed")
    names = [f"n{10_000_000 + 7 * label:08d}" for label in range(1000)]
    for name in names:
        (folder / "val" / name).mkdir(parents=True)
    for number, label in enumerate(LABELS):
        pixels = np.random.default_rng(number).integers(0, 256, (240 + 16 * number, 250, 3), dtype="uint8")
        Image.fromarray(pixels).save(folder / "val" / names[label] / f"ILSVRC2012_val_{number:08d}.JPEG")
    write_file(folder / "weights.pdparams", constant_weights())
    return folder


def constant_weights():
    """Weights of the config's model, random but for the classifier, whose logits are the same for any image."""
    model = builder.build_model(load_config(CONFIG))
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    weights["head.fc_cls.weight"] = np.zeros([128, 1000], "float32")
    weights["head.fc_cls.bias"] = np.zeros(1000, "float32")
    weights["head.fc_cls.bias"][list(TOP5)] = [5, 4, 3, 2, 1]
    return weights


def command(files):
    data = f"dataloader.val.dataset.dataroot={files}/val"
    return ["-c", CONFIG, "-o", data, "--load", files / "weights.pdparams", "--evaluate-only"]


def run_in_terminal(arguments, cwd):
    """(exit code, what stands on the screen in the end) of a run whose output is a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = start(*arguments, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    output = b""
    while chunk := read_or_nothing(ours):
        output += chunk
    os.close(ours)
    lines = output.decode().replace("\r\n", "\n").split("\n")
    return process.wait(), [line for line in map(on_screen, lines) if line]


def read_or_nothing(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux says so when the last writer is gone
        return b""


def on_screen(line):
    """`line` after its carriage returns: later text stands over earlier text."""
    shown = ""
    for text in line.split("\r"):
        shown = text + shown[len(text) :]
    return shown.rstrip()


@pytest.fixture(scope="module")
def terminal_run(files, tmp_path_factory):
    """(exit code, lines, what the run left in its working folder)"""
    cwd = tmp_path_factory.mktemp("cwd")
    code, lines = run_in_terminal(command(files), cwd)
    return code, lines, sorted(cwd.iterdir())


@pytest.mark.slow
def test_the_seeds_command_prints_the_seeds_lines(terminal_run):
    code, lines, _ = terminal_run
    assert code == 0
    lines = [line for line in lines if " WARNING: " not in line]  # no GPU here; 997 empty folders
    assert len(lines) == len(SEED_LINES)
    for line, seed_line in zip(lines, SEED_LINES):
        assert re.fullmatch(pattern_of(seed_line), line)


def test_the_patterns_hold_the_seeds_own_lines_and_no_slip_in_them():
    for line in SEED_LINES:
        assert re.fullmatch(pattern_of(line), line)
        assert not re.fullmatch(pattern_of(line), line.replace("passl", "pasl").replace("100%", "99%"))


@pytest.mark.slow
def test_the_printed_config_is_the_seeds(files, terminal_run):
    printed = ast.literal_eval(terminal_run[1][0].partition("Configs: ")[2])
    seed = ast.literal_eval(CONFIG.read_text())
    assert re.fullmatch(r"-\d{4}-\d\d-\d\d-\d\d-\d\d", printed["timestamp"])
    seed["timestamp"] = printed["timestamp"]
    seed["dataloader"]["val"]["dataset"]["dataroot"] = f"{files}/val"
    assert repr(printed) == repr(seed)  # the order of the keys, too


@pytest.mark.slow
def test_the_printed_numbers_are_those_of_the_run(terminal_run):
    text = "\n".join(terminal_run[1])
    assert "on Place(cpu) device" in text
    assert "Evaluate total samples 5\n" in text
    assert re.search(r"^100%\|█+\| 1/1 \[", text, re.MULTILINE)
    assert f"Validate Epoch [1] acc1 ({ACC1}), acc5 ({ACC5})" in text


@pytest.mark.slow
def test_an_evaluation_leaves_nothing_on_the_disk(terminal_run):
    assert terminal_run[2] == []


@pytest.mark.slow
def test_without_a_terminal_there_is_no_bar(files, tmp_path):
    process = start(*command(files), cwd=tmp_path)
    output, errors = process.communicate()
    assert process.returncode == 0
    assert "Validate Epoch [1]" in output and "█" not in output + errors and "\r" not in output + errors
    assert errors == ""
