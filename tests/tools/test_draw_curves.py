"""tools/draw_curves.py: what the logs say, drawn; and a schedule, drawn without a training."""

import json
import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_run import ROOT, start, tiny_config, tiny_file, tiny_run

from passl_xcit.engine.curves import learning_rates, mean_and_spread, read_curves, read_runs
from passl_xcit.utils.config import load_config, parse_override
from passl_xcit.utils.errors import ConfigError, DataError
from tools.draw_curves import main

TOOL = ROOT / "tools" / "draw_curves.py"
ACC, LOSS = ("val", "acc1"), ("train", "loss")


def write_log(folder, accuracies, losses=(2.0, 1.0)):
    """A log whose every epoch has two lines of training, with these losses, and one of validation."""
    folder.mkdir()
    lines = []
    for epoch, accuracy in enumerate(accuracies):
        for place, loss in enumerate(losses, 1):
            lines.append({"mode": "train", "epoch": epoch, "iter": 2 * epoch + place, "loss": loss})
        lines.append({"mode": "val", "epoch": epoch + 1, "iter": 2 * epoch + 2, "acc1": accuracy, "acc5": 100.0})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def colours(path):
    """The number of colours of a picture: an empty one has a handful of greys."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    return len({tuple(pixel) for pixel in pixels[::7].tolist() if max(pixel) - min(pixel) > 40})


def test_a_training_s_own_log_is_read(tmp_path):
    tiny_run(tmp_path)
    curves = read_curves(tmp_path / "out" / "log.jsonl")
    assert list(curves[ACC]) == list(curves[LOSS]) == [1, 2]
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    first = [line["loss"] for line in lines if line["mode"] == "train" and line["epoch"] == 0]
    assert len(first) == 6 and curves[LOSS][1] == pytest.approx(sum(first) / 6)
    assert curves[ACC][2] == [line["acc1"] for line in lines if line["mode"] == "val"][-1]


def test_what_a_killed_run_did_again_counts_once(tmp_path):
    path = write_log(tmp_path / "run", [10.0, 20.0]) / "log.jsonl"
    again = [
        {"mode": "train", "epoch": 1, "iter": 3, "loss": 0.5},
        {"mode": "val", "epoch": 2, "iter": 4, "acc1": 21.5},
    ]
    others = ['{"mode": "va', '{"mode": "val"}', '{"mode": "val", "epoch": [], "iter": {}}', "3"]
    path.write_text("\n".join([path.read_text(), *others, *map(json.dumps, again)]))
    curves = read_curves(path)
    assert curves[ACC] == {1: 10.0, 2: 21.5}
    assert curves[LOSS] == {1: 1.5, 2: 0.75}  # 2.0 became 0.5


def test_runs_of_one_name_are_gathered(tmp_path):
    folders = [write_log(tmp_path / name, [accuracy]) for name, accuracy in (("a", 1.0), ("b", 2.0), ("c", 6.0))]
    runs = read_runs([f"one={folders[0]}", f"two={folders[1]}/log.jsonl", f"one={folders[2]}"])
    assert list(runs) == ["one", "two"]
    assert mean_and_spread(runs["one"], ACC) == ([1], [3.5], [statistics.stdev([1.0, 6.0])])
    assert mean_and_spread(runs["two"], ACC) == ([1], [2.0], [0.0])


@given(values=st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_the_spread_is_the_sample_standard_deviation(values):
    (epochs, (mean,), (spread,)) = mean_and_spread([{ACC: {3: value}} for value in values], ACC)
    assert epochs == [3] and mean == pytest.approx(np.mean(values))
    assert spread == pytest.approx(np.std(values, ddof=1) if len(values) > 1 else 0.0, abs=1e-9)


def test_an_epoch_that_only_some_runs_have_is_left_out():
    assert mean_and_spread([{ACC: {1: 5.0, 2: 7.0}}, {ACC: {1: 6.0}}], ACC)[0] == [1]


def test_runs_become_a_picture(tmp_path):
    runs = [f"run {name}={write_log(tmp_path / name, [10.0, 30.0 + 9 * len(name)])}" for name in ("a", "b", "cc")]
    output = tmp_path / "curves.png"
    main([*runs, "--output", str(output)])
    assert Image.open(output).size == (1100, 360) and colours(output) > 3


@pytest.mark.slow
def test_a_mistake_is_one_line_and_an_exit_code(tmp_path):
    process = start("a=nowhere", "--output", tmp_path / "x.png", before=(TOOL,))
    assert process.communicate()[1].splitlines()[-1].startswith("error: nowhere: no such log")
    assert process.returncode == 1


def test_a_schedule_becomes_a_picture_without_data_or_model(tmp_path):
    output = tmp_path / "schedule.png"
    config = ROOT / "configs/xcit/xcit_nano_12_p16_224.yaml"
    main(["--schedule", str(config), "--output", str(output)])
    assert colours(output) > 3


def test_the_schedule_is_the_one_that_a_training_has(tmp_path):
    tiny_run(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    epochs, rates = learning_rates(tiny_config(tmp_path), iters_per_epoch=6)
    assert rates == pytest.approx([line["lr"] for line in lines if line["mode"] == "train"])
    assert epochs == pytest.approx([step / 6 for step in range(12)])


def test_a_schedule_scales_with_the_images_a_step(tmp_path):
    cosine = "lr_scheduler={name: CosineAnnealingDecay, learning_rate: 0.1, T_max: 2, base_batch_size: 8}"
    cfg = load_config(tiny_file(tmp_path), [parse_override(cosine)])  # 4 images a step and process
    rates = learning_rates(cfg, iters_per_epoch=5, processes=4)[1]
    assert rates == pytest.approx([0.2 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([], ConfigError, "give runs as NAME=FOLDER, or configs with --schedule"),
        (["a=RUN", "--schedule", "CONFIG"], ConfigError, "give runs as NAME=FOLDER, or configs"),
        (["RUN"], ConfigError, "expected NAME=FOLDER, such as student=outputs/student_0"),
        (["=RUN"], ConfigError, "expected NAME=FOLDER"),
        (["a=nowhere"], DataError, "nowhere: no such log, or no val acc1 in it"),
        (["a=EMPTY"], DataError, "log.jsonl: no such log, or no val acc1 in it: is the training's first epoch over?"),
        (["--schedule", "CONFIG", "--iters_per_epoch", "0"], ConfigError, "must be at least 1"),
        (["--schedule", "CONFIG", "-o", "lr_scheduler.T_maxx=1"], ConfigError, "tiny.yaml|T_maxx"),
        (["--schedule", "CONFIG", "-o", "epochs=null"], ConfigError, "'epochs' is needed to train"),
        (["a=RUN", "--output", "FOLDER/none/x.png"], ConfigError, "--output .*No such file"),
        (["a=RUN", "--output", "FOLDER/x.tiger"], ConfigError, "--output .*tiger"),
    ],
)
def test_mistakes_are_named(tmp_path, arguments, error, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "log.jsonl").write_text("")
    places = {
        "RUN": write_log(tmp_path / "run", [10.0]),
        "EMPTY": tmp_path / "empty",
        "CONFIG": tiny_file(tmp_path),
        "FOLDER": tmp_path,
    }
    for word, place in places.items():
        arguments = [argument.replace(word, str(place)) for argument in arguments]
    arguments = arguments if "--output" in arguments else [*arguments, "--output", str(tmp_path / "x.png")]
    with pytest.raises(error, match=message):
        main(arguments)
    assert not list(tmp_path.glob("x.*"))
