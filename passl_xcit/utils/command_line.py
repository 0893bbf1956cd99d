"""What the command lines of the tools have in common."""

import argparse
import contextlib
import os
import re
import sys
from pathlib import Path

from passl_xcit.utils.config import Override, load_config, parse_override
from passl_xcit.utils.errors import ConfigError

COMMANDS = "passl-xcit-"  # how setup.py begins their names


def make_parser(description):
    """A parser that shows `description` as it is written and takes no shortened flags.

    Where a console command runs, the description names it in place of `tools/<tool>.py`.
    """
    form, command = argparse.RawDescriptionHelpFormatter, Path(sys.argv[0]).name
    if command.startswith(COMMANDS):
        tool = command[len(COMMANDS) :].replace("-", "_")
        description = re.sub(rf"(python )?tools/{tool}\.py", command, description)
    return argparse.ArgumentParser(description=description, formatter_class=form, allow_abbrev=False)


def not_empty(text):
    """A type for arguments: an unset variable of a shell script is an empty text."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, not an empty text")
    return text


def pixels(text):
    """A type for arguments: the side of an image."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of pixels above 0, not '{text}'")
    return int(text)


def add_override_options(parser):
    """`-o`, `--output_dir` and `--data_dir`, for `overrides_of`."""
    parser.add_argument(
        "-o",
        "--override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a value of the config, such as -o dataloader.val.sampler.batch_size=64; repeatable",
    )
    parser.add_argument(
        "--output_dir", type=not_empty, metavar="DIR", help="where checkpoints and logs go (config: outputs)"
    )
    parser.add_argument(
        "--data_dir",
        type=not_empty,
        metavar="DIR",
        help="folder with train/ and val/, or CIFAR-10's folder or archive, instead of the config's",
    )


def overrides_of(args, config_file, splits=("train", "val")):
    """The overrides of `-o`, and --output_dir and --data_dir (for these splits of `config_file`) as more of them."""
    overrides = [parse_override(text) for text in args.override]
    if args.output_dir:
        overrides.append(Override("output_dir", args.output_dir, "--output_dir"))
    if args.data_dir:
        cfg = load_config(config_file, overrides).to_dict()
        overrides += [_dataroot(cfg, split, args.data_dir) for split in splits]
    return overrides


def _dataroot(cfg, split, data_dir):
    """The override that --data_dir means: all of `data_dir` for a data set that has a `split`, else a folder in it."""
    node = cfg
    for key in ("dataloader", split, "dataset"):
        node = node.get(key) if isinstance(node, dict) else None
    whole = isinstance(node, dict) and "split" in node
    if not (Path(data_dir).exists() if whole else Path(data_dir).is_dir()):
        raise ConfigError(f"--data_dir {data_dir}: there is no such folder{' or archive' if whole else ''}")
    folder = data_dir if whole else str(Path(data_dir) / split)
    return Override(f"dataloader.{split}.dataset.dataroot", folder, "--data_dir")


@contextlib.contextmanager
def stdout_kept_clean():
    """Inside, what is printed goes to standard error, also what libraries print that are not Python's."""
    sys.stdout.flush()
    before = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(before, 1)
        os.close(before)
