"""The command line of tools/doctor.py: its page, its JSON, its exit codes."""

import json
import re

import pytest
import yaml
from tiny_run import tiny_dict

from passl_xcit.engine import preflight, system_check
from passl_xcit.utils.device import available_kinds
from passl_xcit.utils.errors import UserError, exit_with_one_line
from tools import doctor

without_npu = pytest.mark.skipif("npu" in available_kinds(), reason="needs a Paddle without NPU")


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run `tools/doctor.py <arguments>` in an empty folder: (exit code, stdout, stderr)."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")

    def call(*arguments):
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit:
            exit_with_one_line(doctor.main, list(map(str, arguments)))
        output, errors = capfd.readouterr()
        assert not list((tmp_path / "empty").iterdir())
        return exit.value.code or 0, output, errors

    return call


@pytest.fixture
def config(tmp_path):
    """The tiny config, with images of 8 pixels whatever the data."""
    tree = tiny_dict(tmp_path)
    for split in ("train", "val"):
        tree["dataloader"][split]["dataset"]["transforms"].insert(0, {"name": "CenterCrop", "size": 8})
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def without_operators(monkeypatch):
    """Leave out what takes a second or two."""
    monkeypatch.setattr("passl_xcit.engine.operator_check.preflight", lambda cfg, device: [])


def findings(output):
    """{section: {name: finding}} of the JSON document that `output` is."""
    sections = json.loads(output)["sections"]
    return {name: {found["name"]: found for found in section["findings"]} for name, section in sections.items()}


def rows_of(page):
    """[(verdict, name)] of the page's findings."""
    return re.findall(r"^  (ok|warning|error) +(\S.*?)  ", page[: page.rindex("\n\n")], re.MULTILINE)


def test_without_arguments_it_looks_at_the_machine(run):
    code, output, errors = run()
    assert (code, errors) == (0, "")
    titles = [line for line in output.splitlines() if re.match(r"\w", line)]
    assert titles[:3] == ["installation", "machine", "device"] and titles[3].startswith("no errors, ")


@without_npu
def test_a_missing_plugin_is_an_error_with_what_to_install(run):
    code, output, errors = run("--device", "npu")
    assert (code, errors) == (1, "")
    assert re.search(r"\n  error    device +npu: cannot be used\n", output)
    summary = " ".join(output[output.rindex("\n\n") :].split())
    assert summary.startswith("1 error, ") and "install paddle-custom-npu" in summary


@without_npu
@pytest.mark.parametrize("arguments", [("--device", "npu:0"), ("-o", "device=npu:0")])
@pytest.mark.usefixtures("without_operators")
def test_the_device_may_be_the_configs_or_replace_it(arguments, run, config):
    code, output, _ = run("-c", config, "--json", *arguments)
    assert code == 1 and findings(output)["device"]["device"]["verdict"] == "error"


def test_a_full_dev_shm_is_found(run, monkeypatch):
    full = system_check.os.statvfs_result((4096, 4096, 16384, 0, 0, 0, 0, 0, 0, 255))
    there = system_check.os.statvfs
    monkeypatch.setattr(system_check.os, "statvfs", lambda path: full if path == "/dev/shm" else there(path))
    code, output, _ = run()
    assert code == 0 and "warning  /dev/shm: full (0 bytes of 64.0 MiB free)" in output


def test_a_damaged_image_is_an_error_that_names_it(run, config, tmp_path):
    damaged = tmp_path / "val" / "class1" / "2.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    code, output, _ = run("--data", tmp_path)
    assert code == 1 and re.search(r"\n  val/class1/2.png  image file is truncated\n", output)
    code, output, _ = run("--data", tmp_path, "--json")
    (bad,) = json.loads(output)["sections"]["data"]["splits"]["val"]["bad"]
    assert code == 1 and bad == {"image": str(damaged), "reason": "the image cannot be read: image file is truncated"}


@pytest.mark.slow
def test_json_is_one_document_with_the_verdicts_of_the_page(run, config, tmp_path):
    (tmp_path / "train" / "class0" / "0.png").write_bytes(b"")
    arguments = ("-c", config, "--data", tmp_path, "--compare", "cpu")
    code, page, _ = run(*arguments)
    json_code, output, errors = run(*arguments, "--json")
    tree = json.loads(output)
    assert code == json_code == 1 and errors == "" and tree["verdict"] == "error"
    assert list(tree["sections"])[-2:] == ["data", "comparison"]
    rows = [(found["verdict"], found["name"]) for section in findings(output).values() for found in section.values()]
    assert rows_of(page) == rows


def test_what_libraries_print_is_not_in_the_json(run, monkeypatch):
    def chatty():
        print("from Python")
        system_check.os.write(1, b"from C++\n")
        return system_check.Section("installation", [])

    monkeypatch.setattr("passl_xcit.engine.doctor.installation", chatty)
    code, output, errors = run("--json")
    assert json.loads(output) and errors == "from C++\nfrom Python\n" or errors == "from Python\nfrom C++\n"


@pytest.mark.usefixtures("without_operators")
def test_a_config_is_checked_and_its_data_looked_for(run, config, tmp_path):
    code, output, _ = run("-c", config, "--json")
    found = findings(output)["config"]
    assert code == 0 and found["model"]["value"] == "XCiT, 2.97K parameters, 3 classes"
    assert [found[f"{split} data"]["verdict"] for split in ("train", "val")] == ["ok", "ok"]
    code, output, _ = run("-c", config, "--json", "-o", f"dataloader.val.dataset.dataroot={tmp_path}/no")
    found = findings(output)["config"]["val data"]
    assert (
        code == 0 and found["verdict"] == "warning" and found["advice"].startswith(f"{tmp_path}/no is not there: give")
    )


@pytest.mark.usefixtures("without_operators")
def test_a_model_of_as_many_classes_as_the_data_has_fits_any_data(run, config, tmp_path):
    code, output, _ = run("-c", config, "--data", tmp_path, "-o", "model.head.num_classes=auto", "--json")
    model = findings(output)["config"]["model"]["value"]
    assert code == 0 and model.endswith("parameters, as many classes as the data set")


@pytest.mark.usefixtures("without_operators")
def test_a_data_set_of_other_classes_than_the_configs_model_is_an_error(run, config, tmp_path):
    code, output, _ = run("-c", config, "--data", tmp_path, "-o", "model.head.num_classes=5", "--json")
    assert code == 1 and findings(output)["data"]["val model"]["verdict"] == "error"


@without_npu
def test_the_operators_of_a_config_for_ascend_are_looked_up_without_the_plugin(run, config):
    code, output, _ = run("-c", config, "--device", "npu", "--json")
    operators = json.loads(output)["sections"]["operators"]
    found = {finding["name"]: finding for finding in operators["findings"]}
    assert found["kernels"]["value"] == "Ascend's, by the table of this project"
    assert (found["missing"]["value"], found["missing"]["verdict"]) == ("0", "ok")
    row = {"operator": "gelu", "dtype": "float32", "parts": ["training", "evaluation", "export"], "verdict": "native"}
    assert row in operators["rows"] and len(operators["rows"]) == int(found["native"]["value"]) > 50


def test_a_kernel_that_is_missing_is_an_error_and_one_that_the_cpu_has_a_warning(run, config, monkeypatch):
    kernels = preflight.kernels_for("cpu")
    device = {name: types for name, types in kernels.device.items() if name not in ("gelu", "gelu_grad", "topk")}
    cpu = {name: types for name, types in kernels.cpu.items() if name != "topk"}
    monkeypatch.setattr(preflight, "kernels_for", lambda name: preflight.Kernels(device, cpu))
    code, page, _ = run("-c", config)
    assert code == 1 and "operator  " not in page
    monkeypatch.setattr("passl_xcit.engine.operator_check.kernels_for", preflight.kernels_for)
    monkeypatch.setattr(system_check, "check_device", lambda name: None)
    monkeypatch.setattr(system_check, "PROBE", "")
    code, page, _ = run("-c", config, "--device", "npu")
    assert code == 1
    assert re.search(r"\n  topk +float32 +training, evaluation +missing\n  gelu +float32 +.*falls back to CPU\n", page)
    summary = " ".join(page[page.rindex("\n\n") :].split())
    assert "error missing: topk (float32): no kernel of this type, neither there nor on the CPU" in summary
    assert "warning falls back to CPU: gelu (float32), gelu_grad (float32): run on the CPU, with copies" in summary


def test_a_paddle_that_does_not_tell_its_kernels_is_a_warning(run, config, monkeypatch):
    def refuse(cfg, device):
        raise UserError("this Paddle logs no kernels")

    monkeypatch.setattr("passl_xcit.engine.operator_check.preflight", refuse)
    code, output, _ = run("-c", config, "--json")
    found = findings(output)["operators"]["cpu"]
    assert code == 0 and (found["verdict"], found["advice"]) == ("warning", "this Paddle logs no kernels")


NANO = ("--model", "xcit_nano_12_p16")


@pytest.mark.parametrize("model", [("-c", "CONFIG"), pytest.param(NANO, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("without_operators")
def test_a_device_compared_with_itself_differs_in_nothing(model, run, config):
    code, output, _ = run(*(config if word == "CONFIG" else word for word in model), "--compare", "cpu", "--json")
    comparison = json.loads(output)["sections"]["comparison"]
    assert code == 0 and {row["absolute"] for row in comparison["rows"]} == {0.0}
    assert comparison["image_size"] == ([8, 8] if "-c" in model else [224, 224]) and len(comparison["rows"]) > 50


@pytest.mark.usefixtures("without_operators")
def test_a_layer_that_differs_is_named_and_the_worst_rows_are_shown(run, config, monkeypatch):
    from passl_xcit.engine import doctor as engine

    built = []

    def build(cfg):
        built.append(original(cfg))
        if len(built) == 3:  # the config's own, the reference's, the device's
            layer = built[-1].backbone.blocks[0].attn
            layer.register_forward_post_hook(lambda layer, inputs, output: output * 1.01)
        return built[-1]

    original = engine._build
    monkeypatch.setattr(engine, "_build", build)
    code, page, _ = run("-c", config, "--compare", "cpu")
    assert code == 1
    assert "the first is the output of backbone.blocks.0.attn, 1.0e-02 off" in " ".join(page.split())
    shown = [float(number) for number in re.findall(r"^  (?:output|gradient) +\S.* (\S+)$", page, re.MULTILINE)]
    assert shown == sorted(shown, reverse=True) and len(shown) == 20 and shown[0] >= 0.01
    built.clear()
    _, output, _ = run("-c", config, "--compare", "cpu", "--json")
    comparison = json.loads(output)["sections"]["comparison"]
    beyond = [row["name"] for row in comparison["rows"] if row["beyond"]]
    assert beyond[0] == "backbone.blocks.0.attn" and len(beyond) > 10 and comparison["tolerance"] == 5e-4
    built.clear()
    assert run("-c", config, "--compare", "cpu", "--tolerance", "10")[0] == 0


@without_npu
@pytest.mark.usefixtures("without_operators")
def test_a_device_that_is_not_there_is_not_compared(run, config):
    code, output, _ = run("-c", config, "--compare", "cpu", "--device", "npu", "--json")
    found = findings(output)
    assert code == 1 and found["comparison"]["npu, cpu"]["value"] == "not compared"
    code, output, _ = run("-c", config, "--compare", "cpu", "--device", "tpu", "--json")
    assert code == 1 and findings(output)["operators"]["tpu"]["value"] == "not looked up"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-c", "no.yaml"), "error: no.yaml: the config cannot be read: No such file or directory"),
        (("-c", "CONFIG", "-o", "epoch=1"), "error: -o epoch=1: epoch: the config takes no 'epoch'; did you mean"),
        (("-c", "CONFIG", "-o", "model.head.in_channels=9"), "in_channels of the head is 9"),
        (("-c", "CONFIG", "--data_dir", "no"), "error: --data_dir no: there is no such folder"),
        (("--data", "no"), "error: --data no: there is no such folder or archive"),
        (("--device", "npu:first"), "error: device: 'npu:first': expected a device such as cpu, gpu"),
        (("--compare", "cpu"), "error: --compare needs one model: give -c CONFIG or --model NAME"),
        (("--compare", "cpu", "-c", "CONFIG", *NANO), "error: --compare needs one model"),
        (("--compare", "tpu", *NANO), "error: device: no device 'tpu'; this Paddle has: cpu"),
        (("--compare", "cpu", "--model", "xcit_nan_12_p16"), "error: no model 'xcit_nan_12_p16'; did you mean"),
        (("-o", "epochs=1"), "-o, --data_dir and --output_dir change a config: give it with -c"),
        (("--data", "x", "--data_limit", "0"), "--data_limit must be at least 1"),
        (NANO, "--model goes with --compare"),
        (("--tolerance", "nan"), "--tolerance must be 0 or more, and finite"),
        (("--tolerance", "inf"), "--tolerance must be 0 or more, and finite"),
    ],
)
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_what_is_wrong_with_the_command_is_said_in_one_line_and_no_more(form, arguments, message, run, config):
    code, output, errors = run(*(config if word == "CONFIG" else word for word in arguments), *form)
    assert (code, output) == (2, "")
    assert message in errors.splitlines()[-1]


@pytest.mark.usefixtures("without_operators")
@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("model.head.num_classes=7", "3 classes, but the model has 7"),
        ("dataloader.train.sampler.batch_size=0", "batch_size"),
        ("dataloader.train.sampler={batch_size: 1000, drop_last: true}", "images do not fill one batch"),
        (
            "lr_scheduler={name: CosineDecay, learning_rate: 0.001, base_batch_size: 4096, min_lr: 1.0e-5, "
            "decay_epochs: 1}",
            "min_lr",
        ),
    ],
)
def test_what_a_training_would_refuse_of_data_and_schedule_is_an_error(run, config, override, text):
    code, output, _ = run("-c", config, "-o", override, "--json")
    found = findings(output)["config"]["train data"]
    assert code == 1 and found["verdict"] == "error" and text in found["advice"]
