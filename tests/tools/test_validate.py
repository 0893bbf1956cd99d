"""The command line of tools/validate.py, in the forms of mmpretrain's and MindCV's pages."""

import functools
import http.server
import json
import re
import threading

import pytest
from tiny_run import tiny_file, tiny_run

from passl_xcit.utils.errors import exit_with_one_line
from tools import validate


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(config, checkpoint, data folder) of a tiny run, and the accuracy that its own evaluation printed."""
    folder = tmp_path_factory.mktemp("trained")
    best = tiny_run(folder, "epochs=1", f"output_dir={folder}/out")
    return tiny_file(folder), folder / "out" / "latest.pdparams", folder, best


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """(exit code, stdout, stderr) of `tools/validate.py <arguments>`, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PASSL_XCIT_HOME", str(tmp_path / "cache"))

    def call(*arguments):
        with pytest.raises(SystemExit) as exit:
            exit_with_one_line(validate.main, [str(argument) for argument in arguments])
        output, errors = capsys.readouterr()
        return exit.value.code or 0, output, errors

    return call


def accuracy(output):
    return re.search(r"Validate Epoch \[1\] acc1 \((.*?)\)", output).group(1)


@pytest.mark.parametrize(
    "form",
    [
        lambda config, checkpoint, data: (config, checkpoint),
        lambda config, checkpoint, data: ("-c", config, "--data_dir", data, "--ckpt_path", checkpoint),
        lambda config, checkpoint, data: ("--config", config, "--data_dir", data, "--load", checkpoint),
        lambda config, checkpoint, data: (config, "--ckpt_path", checkpoint),
        lambda config, checkpoint, data: ("-c", config, checkpoint),
        lambda config, checkpoint, data: ("--data_dir", data, config, checkpoint, "-o", "seed=3"),
    ],
)
def test_every_form_evaluates(form, run, trained, tmp_path):
    config, checkpoint, data, _ = trained
    code, output, errors = run(*form(config, checkpoint, data))
    assert code == 0, errors
    assert accuracy(output) == accuracy(run(config, checkpoint)[1])
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_may_be_an_address(run, trained, tmp_path):
    config, checkpoint, _, _ = trained
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(checkpoint.parent))
    handler.log_message = lambda *arguments: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/{checkpoint.name}"
    try:
        first = run(config, address)
    finally:
        server.shutdown()
    assert first[0] == 0, first[2]
    assert accuracy(first[1]) == accuracy(run(config, checkpoint)[1])
    assert accuracy(run(config, address)[1]) == accuracy(first[1]), "the second time it is there"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give the config once: there is none; see --help"),
        (("CONFIG",), "give the checkpoint once: there is none; see --help"),
        (("-c", "CONFIG"), "give the checkpoint once: there is none; see --help"),
        (("CONFIG", "CHECKPOINT", "--ckpt_path", "CHECKPOINT"), "give the checkpoint once: it was given twice"),
        (("CONFIG", "CHECKPOINT", "-c", "CONFIG"), "give the config once: it was given twice"),
        (("CONFIG", "nothing.pth"), "nothing.pth: there is no such file"),
        (("CONFIG", "CHECKPOINT", "--data_dir", "nowhere"), "--data_dir nowhere: there is no such folder"),
        (("CONFIG", "CHECKPOINT", "--report", "CONFIG"), "--report .*yaml: .*yaml is no folder that can be written to"),
        (("CONFIG", "CHECKPOINT", "--class_list", "no.txt"), "--class_list no.txt: cannot be read: No such file"),
        (("CONFIG", "CHECKPOINT", "--real_labels", "no.json"), "--real_labels no.json: cannot be read: No such file"),
        (("CONFIG", "CHECKPOINT", "--real_labels", "CONFIG"), "--real_labels .*yaml: cannot be read: it is not JSON"),
        (
            ("CONFIG", "CHECKPOINT", "-o", "model.head.num_classes=4"),
            r"left as it was \(it has 3 classes, the model 4: set num_classes; a training replaces the head",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, message, run, trained):
    names = {"CONFIG": trained[0], "CHECKPOINT": trained[1]}
    code, _, errors = run(*(names.get(argument, argument) for argument in arguments))
    assert code != 0
    assert re.match(r"error: ", errors) and re.search(message, errors), errors


def test_a_report_is_written_on_top_of_the_same_accuracy(run, trained, tmp_path):
    config, checkpoint, _, _ = trained
    code, output, errors = run(config, checkpoint, "--report", "new/report")
    assert code == 0, errors
    assert accuracy(output) == accuracy(run(config, checkpoint)[1]) and "INFO: report: new/report\n" in output
    written = sorted(path.name for path in (tmp_path / "new" / "report").iterdir())
    assert written == ["predictions.csv", "report.html", "report.json"]


@pytest.mark.parametrize("option", [("--report", "r"), ("--real_labels", "real.json"), ("--class_list", "a.txt")])
def test_neighbours_have_no_report(option, capsys):
    with pytest.raises(SystemExit) as exit:
        validate.parse_args(["CONFIG", "CHECKPOINT", "--knn", *option])
    assert exit.value.code == 2 and "do not go with --knn" in capsys.readouterr().err


def test_a_report_says_the_size_that_was_asked_for(run, trained, tmp_path):
    config, checkpoint, _, _ = trained
    nodes = (
        "[{name: CenterCrop, size: 8}, {name: Transpose}, {name: Normalize, mean: [110, 110, 110], std: [50, 50, 50]}]"
    )
    options = ("-o", f"dataloader.val.dataset.transforms={nodes}", "--size", "4", "--report", "small")
    code, _, errors = run(config, checkpoint, *options)
    assert code == 0, errors
    origin = json.loads((tmp_path / "small" / "report.json").read_text())["origin"]
    assert origin["preprocessing"][0] == {"name": "CenterCrop", "size": 4}


def test_weights_of_another_number_of_classes_are_refused(run, trained, tmp_path):
    from passl_xcit.modeling.checkpoint_formats import read_file, write_file

    tree = read_file(trained[1])["state_dict"]
    tree = {name: array[..., :2] if name.startswith("head.") else array for name, array in tree.items()}
    write_file(tmp_path / "two.pdparams", tree)
    code, _, errors = run(trained[0], tmp_path / "two.pdparams")
    assert code == 1 and "two.pdparams does not fit the model" in errors and "head.fc_cls.weight: file [" in errors


def test_images_may_have_another_size(run, trained):
    config, checkpoint, _, _ = trained
    scale = "dataloader.val.dataset.transforms=[{name: Resize, size: SIDE}, {name: Transpose}, NORMALIZE]".replace(
        "NORMALIZE", "{name: Normalize, mean: [110, 110, 110], std: [50, 50, 50]}"
    )
    code, output, errors = run(config, checkpoint, "-o", scale.replace("SIDE", "8"), "--size", "16")
    assert code == 0, errors
    assert accuracy(output) == accuracy(run(config, checkpoint, "-o", scale.replace("SIDE", "16"))[1])
    assert "'name': 'Resize', 'size': 16" in output


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("0", "argument --size: expected a number of pixels above 0, not '0'"),
        ("1e3", "argument --size: expected a number of pixels above 0, not '1e3'"),
        ("16", "have no CenterCrop and no Resize whose size could be another: --size 16"),
    ],
)
def test_a_size_that_cannot_be_had_is_refused(size, message, run, trained):
    code, _, errors = run(trained[0], trained[1], "--size", size)
    assert code == 2 and message in errors
