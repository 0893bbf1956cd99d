"""The commands of all pages and notebooks: the tools take them, configs bear them, and the project's files are there.

Those that need nothing but the checkout are run by test_documented_runs.py.
"""

import importlib
import re

import pytest
from documented import PAGES, ROOT, Command, command_of, commands_of, shell_lines, text_of

from passl_xcit.engine import builder
from passl_xcit.utils.command_line import overrides_of
from passl_xcit.utils.config import load_config

OURS = ("configs", "docs", "notebooks", "passl_xcit", "tests", "tools", "weights")  # folders whose files are committed
# {beginning of a line: why it is not run by a test of the pages}
EXPLAINED = {
    "make demo": "CI's own first step is `make test`, which makes the same environment; the demo's command is run here",
    "make test": "it is what runs this test",
    "make check": "the same without the slow tests",
    ".venv/bin/ruff": "for contributors; `make test` runs both checks",
    "pip install .": "tests/test_installed.py",
    'pip install ".[export]"': "the extra; the tests' own environment has what it names",
    "pip install ./passl_xcit": "tests/test_installed.py, under another name",
    "pip install -e .": "what `make` does",
    "python -m passl_xcit.ops.build": "tests/ops",
    "pip install paddle": "Ascend's plugin, from an index of Paddle's",
    "docker run": "Paddle's image for Ascend",
    'python -c "import paddle': "Paddle's own, and for Ascend",
    "python3 -m venv ~/mindcv": "MindCV's environment; tests/peers/README.md",
    "export PASSL_XCIT_MINDCV_PYTHON": "the same",
    ".venv/bin/python -m pytest tests/peers": "the same",
    "export PADDLE_XCCL_BACKEND=npu": "a device with Paddle 3.0",
    "export LD_PRELOAD": "Ascend on Arm",
    "python train.py": "MindCV's, beside ours",
    "python validate.py": "the same",
    "visualdl --logdir": "tests/hooks/test_visual_hook.py",
    ".venv/bin/python tests/run_notebooks.py": "tests/test_notebooks.py runs what it runs",
}


def parsed(command):
    """What the tool makes of its arguments, None of `--help`; fails the test where it does not take them."""
    try:
        return importlib.import_module(f"tools.{command.tool}").parse_args(command.arguments)
    except SystemExit as error:
        assert error.code in (0, None), command.line


def paths_in(text):
    """What looks like a file of the project: in a command, between backticks or behind a link."""
    return sorted(set(re.findall(rf"(?<![\w/.-])(?:{'|'.join(OURS)})/[\w./-]*\w\.(?:py|yaml|md|png|pdparams)\b", text)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tools_take_the_arguments_of_the_documented_commands(page):
    for command in commands_of(text_of(page)):
        parsed(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_is_one_of_ours_or_it_is_known_why_it_is_not_run(page):
    others = [line for line in shell_lines(text_of(page)) if command_of(line) is None]
    assert [line for line in others if not line.startswith(tuple(EXPLAINED))] == []


def test_what_is_explained_stands_on_a_page():
    lines = [line for page in PAGES for line in shell_lines(text_of(page))]
    assert [beginning for beginning in EXPLAINED if not any(line.startswith(beginning) for line in lines)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_configs_bear_the_overrides_of_the_documented_commands(page, tmp_path, monkeypatch):
    for command in commands_of(text_of(page)):
        args = parsed(command)
        config = getattr(args, "config_file", None) or getattr(args, "c", None) or getattr(args, "config", None)
        if config and (ROOT / config).is_file() and hasattr(args, "override") and hasattr(args, "data_dir"):
            args.data_dir = None  # it is not here
            builder.check_config(load_config(ROOT / config, overrides_of(args, config)), training=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_a_page_names_exist(page):
    text = text_of(page)
    assert [path for path in paths_in(text) if not (ROOT / path).exists()] == []
    relative = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", text)
    assert [link for link in relative if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_headings_that_a_page_links_to_exist(page):
    for path, heading in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", text_of(page)):
        headings = re.findall(r"^#+ (.*)$", text_of(page.parent / path if path else page), re.MULTILINE)
        anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert heading in anchors, f"{path}#{heading}"


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (
            "    .venv/bin/python tools/train.py -c a.yaml \\\n        --distribute True|False    # so",
            "train -c a.yaml ",
        ),
        (
            "    python -m paddle.distributed.launch --devices 0,1 \\\n    tools/validate.py a.yaml b",
            "validate a.yaml b",
        ),
        ("    find . -name '*.jpg' | python tools/predict.py - --weights W", "predict - --weights W"),
        ("    passl-xcit-convert-weights a b --to timm", "convert_weights a b --to timm"),
        ("see `tools/doctor.py --data photos`, and `tools/train.py`", "doctor --data photos"),
    ],
)
def test_commands_are_found(line, command):
    (found,) = commands_of(f"run\n\n{line}\n\nsee outputs/x.png")
    tool, *arguments = command.split()
    assert found.tool == tool and found.arguments[: len(arguments)] == arguments


def test_other_programs_are_found():
    text = "    python other.py\n\n    Epoch [1/2]\n\n`make x`, `names` and `configs/a.yaml`\n\n    pip install x  # so"
    assert shell_lines(text) == ["python other.py", "pip install x", "make x"]
    assert command_of("python other.py") is None and isinstance(command_of("tools/a.py b"), Command)
    assert paths_in("run\n    python tools/a.py\nsee `configs/x.yaml`, outputs/x.png") == [
        "configs/x.yaml",
        "tools/a.py",
    ]
    assert sum(len(commands_of(text_of(page))) for page in PAGES) > 60
