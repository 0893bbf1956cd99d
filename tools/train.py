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

from passl_xcit.utils.command_line import add_override_options, make_parser, not_empty, overrides_of  # noqa: E402
from passl_xcit.utils.errors import exit_with_one_line  # noqa: E402
from passl_xcit.utils.startup import prepare_paddle  # noqa: E402


def parse_args(argv):
    parser = make_parser(__doc__)
    parser.add_argument("-c", "--config-file", "--config", required=True, metavar="YAML", help="config file")
    add_override_options(parser)
    parser.add_argument(
        "--load",
        type=not_empty,
        metavar="FILE",
        help="weights to start with or to evaluate: a file of any known project and format, or its address; a "
        "training may have another number of classes, an evaluation must fit exactly",
    )
    parser.add_argument(
        "--resume", type=not_empty, metavar="FILE|auto", help="checkpoint to go on from; auto: the newest there is"
    )
    parser.add_argument("--evaluate-only", action="store_true", help="evaluate and stop; needs no training data")
    parser.add_argument(
        "--distribute",
        type=_true_or_false,
        metavar="True|False",
        help="insist on several processes, or on one (default: as launched)",
    )
    return parser.parse_args(argv)


def _true_or_false(text):
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected True or False, not '{text}'")
    return text.lower() == "true"


def main(argv=None):
    args = parse_args(argv)
    prepare_paddle()
    from passl_xcit.engine.launch import run

    overrides = overrides_of(args, args.config_file, splits=("val",) if args.evaluate_only else ("train", "val"))
    run(args.config_file, overrides, args.load, args.resume, args.evaluate_only, args.distribute)


def console():
    """The command `passl-xcit-train`."""
    exit_with_one_line(main)


if __name__ == "__main__":
    console()
