"""Trainings on data as users have them: some images bad, all bad, too few, wrong lists."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import Stop, json_lines, start, tiny_config, tiny_dict, tiny_file, tiny_run, tiny_trainer, write_images

from passl_xcit.datasets import dataloader
from passl_xcit.engine.checkpoint import resume, save_checkpoint
from passl_xcit.modeling.checkpoint_formats import read_file
from passl_xcit.utils.errors import DataError

SKIP = ["dataloader.train.dataset.on_bad_image=skip", "dataloader.train.dataset.max_bad_share=0.21"]  # 5 of 24
PROGRAM = Path(__file__).with_name("worker_that_fails.py")
FIVE = ("class0/1.png", "class0/2.png", "class0/7.png", "class1/0.png", "class2/7.png")
FIVE_NUMBERS = [1, 2, 7, 8, 23]


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(dataloader, "usable_cores", lambda: 2)


def damage(folder, *names):
    for name in names:
        with open(folder / name, "r+b") as file:
            file.truncate(60)


@pytest.fixture
def five_bad(tmp_path):
    tiny_config(tmp_path)
    damage(tmp_path / "train", *FIVE)
    return tmp_path


def refusal(folder, *overrides):
    with pytest.raises(DataError) as caught:
        tiny_run(folder, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def weights(trainer):
    return {name: tensor.numpy() for name, tensor in trainer.model.state_dict().items()}


def assert_same_weights(ours, theirs):
    for name, array in weights(ours).items():
        np.testing.assert_array_equal(array, weights(theirs)[name])


# Five bad images of 24.


def test_a_training_ends_at_the_first_one(five_bad):
    assert "class" in refusal(five_bad) and not list((five_bad / "out").glob("*.pdparams"))


def test_where_the_config_bears_them_it_trains_and_says_so(five_bad, capsys):
    tiny_run(five_bad, *SKIP)
    output = capsys.readouterr().out
    assert output.count("; the next image that can be read takes its place") == 5
    assert output.count("5 of 24 images cannot be used so far") == 1
    assert [line["mode"] for line in json_lines(five_bad / "out")].count("val") == 2
    assert sorted(read_file(five_bad / "out" / "epoch_2.pdparams")["bad_images"]) == FIVE_NUMBERS


def test_more_than_the_config_bears_end_it(five_bad):
    message = refusal(five_bad, SKIP[0], "dataloader.train.dataset.max_bad_share=0.09")
    assert re.match(rf"{five_bad}/train: \d of 24 images cannot be used, and max_bad_share allows 2: ", message)


def test_workers_and_a_stop_in_mid_epoch_change_nothing(five_bad):
    alone = tiny_trainer(five_bad, *SKIP)
    alone.train()
    stopped = tiny_trainer(five_bad, *SKIP, "dataloader.train.num_workers=2", hooks=[Stop(3)])
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    save_checkpoint(five_bad / "middle.pdparams", stopped)
    resumed = tiny_trainer(five_bad, *SKIP)
    resume(five_bad / "middle.pdparams", resumed)
    assert list(resumed.train_loader.bad_images) == list(stopped.train_loader.bad_images)
    resumed.train()
    assert_same_weights(resumed, alone)
    assert list(resumed.train_loader.bad_images) == list(alone.train_loader.bad_images)


def test_a_run_that_was_stopped_ends_where_the_whole_one_ends(tmp_path):
    """The bound counts what the first part has met: one image in each of the batches 0, 2 and 4, and two may be bad."""
    options = [SKIP[0], "dataloader.train.dataset.max_bad_share=0.09"]
    whole = tiny_trainer(tmp_path, *options)
    dataset, order = whole.train_loader.dataset, whole.train_loader.batch_sampler.indices()
    damage(tmp_path, *[dataset.path(order[place]) for place in (0, 8, 16)])
    with pytest.raises(DataError, match="3 of 24 images cannot be used, and max_bad_share allows 2"):
        whole.train()
    stopped = tiny_trainer(tmp_path, *options, hooks=[Stop(3)])
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    save_checkpoint(tmp_path / "middle.pdparams", stopped)
    resumed = tiny_trainer(tmp_path, *options)
    resume(tmp_path / "middle.pdparams", resumed)
    with pytest.raises(DataError, match="3 of 24 images cannot be used, and max_bad_share allows 2"):
        resumed.train()
    assert resumed.state.iter == whole.state.iter == 4


def test_where_all_images_are_bad_it_ends_at_the_first_batch(tmp_path):
    tiny_config(tmp_path)
    damage(tmp_path / "train", *[f"class{label}/{number}.png" for label in range(3) for number in range(8)])
    message = refusal(tmp_path, SKIP[0], "dataloader.train.dataset.max_bad_share=0.9")
    assert message.startswith(f"{tmp_path}/train: 24 of 24 images cannot be used, and max_bad_share allows 21: ")
    assert "class" in refusal(tmp_path)


# Folders and lists.


def test_an_empty_class_is_told_and_trains(tmp_path, capsys):
    tiny_config(tmp_path)
    for path in (tmp_path / "train" / "class1").iterdir():
        path.unlink()
    tiny_run(tmp_path, "epochs=1")
    assert "1 of 3 class folders are empty, the first is class1" in capsys.readouterr().out


def test_a_single_class_trains(tmp_path):
    for split in ("train", "val"):
        write_images(tmp_path / split, 8, classes=1)
    mixup = "dataloader.train.dataset.batch_transforms=[{name: Mixup, mixup_alpha: 0.2}]"
    assert tiny_run(tmp_path, "epochs=1", "model.head.num_classes=1", mixup)["acc1"] == 100.0


def test_a_single_image_fills_no_batch(tmp_path):
    write_images(tmp_path / "train", 1, classes=1)
    write_images(tmp_path / "val", 1, classes=1)
    message = refusal(tmp_path, "model.head.num_classes=1")
    assert message == (
        f"{tmp_path}/train: 1 images do not fill one batch of 4: use a smaller batch_size, or drop_last: false"
    )


def test_folders_without_images_are_refused(tmp_path):
    write_images(tmp_path / "train", 0)
    assert refusal(tmp_path).startswith(f"{tmp_path}/train: 3 class folders, but no image in them")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("class0/0.png 3", "label 3 is out of range: the model has classes 0 to 2"),
        ("class0/0.png -1", "label -1 is out of range: the model has classes 0 to 2"),
        ("class0/0.png -100", "label -100 is out of range: the model has classes 0 to 2"),
        ("class0/0.png cat", "2: expected 'path label', found 'class0/0.png cat'"),
        ("class0/0.png nan", "2: expected 'path label', found 'class0/0.png nan'"),
        ("class0/9.png 0", "1 of 2 images cannot be used: class0/9.png: the image cannot be read: No such file"),
    ],
)
def test_a_list_with_a_wrong_line_is_refused(line, message, tmp_path):
    tiny_config(tmp_path)
    (tmp_path / "train" / "list.txt").write_text(f"class1/0.png 1\n{line}\n")
    assert message in refusal(tmp_path, "dataloader.train.dataset.list_file=list.txt")


def test_a_list_may_hold_paths_with_blanks(tmp_path):
    tiny_config(tmp_path)
    (tmp_path / "train" / "class0").rename(tmp_path / "train" / "a class")
    names = [f"{folder}/{number}.png" for folder in ("a class", "class1") for number in range(8)]
    (tmp_path / "train" / "list.txt").write_text("".join(f"{name} {name[0] == 'c':d}\n" for name in names))
    tiny_run(tmp_path, "epochs=1", "dataloader.train.dataset.list_file=list.txt")


# Data workers that fail.

FAILURES = {
    "raise": r"IMAGE: Traceback",
    "exit": r"error: data worker [01] ended with exit code 9 at IMAGE\n$",
    "kill": r"error: data worker [01] was killed by SIGKILL at IMAGE; the system may lack memory: try a smaller ",
    "segfault": r"error: data worker [01] was killed by SIGSEGV at IMAGE\n$",
    "hang": r"error: data worker [01] hangs at IMAGE: no batch in 2 s \(timeout\)\n$",
    "shape": r"error: images of different sizes in one batch \(\(3, 3, 3\) from IMAGE, \(3, 8, 8\) from .*\): add a ",
}


@pytest.mark.slow
@pytest.mark.parametrize("how", FAILURES)
def test_a_worker_that_fails_ends_the_program_in_time_with_the_image_and_no_process_left(how, tmp_path):
    transforms = [{"name": "Fail", "how": how}, *tiny_dict(tmp_path)["dataloader"]["train"]["dataset"]["transforms"]]
    overrides = [
        "dataloader.train.loader={num_workers: 2, timeout: 2}",
        f"dataloader.train.dataset.transforms={transforms}",
    ]
    image = tmp_path / "train" / "class1" / "3.png"
    Image.new("RGB", (8, 8)).save(image)
    options = [argument for override in overrides for argument in ("-o", override)]
    process = start("-c", tiny_file(tmp_path), *options, before=(PROGRAM,), start_new_session=True)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and re.search(FAILURES[how].replace("IMAGE", re.escape(str(image))), errors), errors
    assert how == "raise" or errors.count("\n") == 1
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert not list((tmp_path / "out").glob("*.pdparams"))
