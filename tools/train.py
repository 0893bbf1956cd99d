"""Train or evaluate.

python tools/train.py -c CONFIG.yaml                                      train
python tools/train.py -c CONFIG.yaml --load W.pdparams --evaluate-only    evaluate
python tools/train.py -c CONFIG.yaml --resume auto                        go on after a stop
python -m paddle.distributed.launch --devices 0,1,2,3 tools/train.py -c CONFIG.yaml
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_xcit.utils.config import Override, parse_override  # noqa: E402
from passl_xcit.utils.cpu import prepare_cpu  # noqa: E402
from passl_xcit.utils.errors import ConfigError, exit_with_one_line  # noqa: E402


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("-c", "--config-file", "--config", required=True, metavar="YAML", help="config file")
    parser.add_argument(
        "-o",
        "--override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a value of the config, such as -o dataloader.train.sampler.batch_size=64; repeatable",
    )
    parser.add_argument(
        "--output_dir", type=_text, metavar="DIR", help="where checkpoints and logs go (config: outputs)"
    )
    parser.add_argument(
        "--data_dir", type=_text, metavar="DIR", help="folder with train/ and val/, instead of the config's"
    )
    parser.add_argument(
        "--load", type=_text, metavar="FILE", help="weights to start with or to evaluate; they must fit exactly"
    )
    parser.add_argument(
        "--resume", type=_text, metavar="FILE|auto", help="checkpoint to go on from; auto: the newest there is"
    )
    parser.add_argument("--evaluate-only", action="store_true", help="evaluate and stop; needs no training data")
    parser.add_argument(
        "--distribute",
        type=_true_or_false,
        metavar="True|False",
        help="insist on several processes, or on one (default: as launched)",
    )
    return parser.parse_args(argv)


def _text(text):
    if not text:  # an unset variable of a shell script
        raise argparse.ArgumentTypeError("expected a path, not an empty text")
    return text


def _true_or_false(text):
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected True or False, not '{text}'")
    return text.lower() == "true"


def overrides_of(args):
    """The overrides of `-o`, and --output_dir and --data_dir as more of them."""
    overrides = [parse_override(text) for text in args.override]
    if args.output_dir:
        overrides.append(Override("output_dir", args.output_dir, "--output_dir"))
    if args.data_dir:
        if not Path(args.data_dir).is_dir():
            raise ConfigError(f"--data_dir {args.data_dir}: there is no such folder")
        for split in ("val",) if args.evaluate_only else ("train", "val"):
            folder = str(Path(args.data_dir) / split)
            overrides.append(Override(f"dataloader.{split}.dataset.dataroot", folder, "--data_dir"))
    return overrides


def main(argv=None):
    args = parse_args(argv)
    prepare_cpu()
    from passl_xcit.engine.launch import run

    run(args.config_file, overrides_of(args), args.load, args.resume, args.evaluate_only, args.distribute)


def console():
    """The command `passl-xcit-train`."""
    exit_with_one_line(main)


if __name__ == "__main__":
    console()
