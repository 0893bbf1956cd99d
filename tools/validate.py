"""Evaluate weights.

python tools/validate.py CONFIG.yaml CHECKPOINT                                    as mmpretrain's tools/test.py
python tools/validate.py -c CONFIG.yaml --data_dir DIR --ckpt_path CHECKPOINT      as MindCV's validate.py
python tools/validate.py CONFIG.yaml CHECKPOINT --knn                              features, by nearest neighbours

CHECKPOINT is a file of PASSL, facebookresearch, IBM, timm, mmpretrain or MindCV, in any of their formats, or its
address. DIR holds val/ (with --knn: and train/) with a folder of images a class. Without a checkpoint nothing is
evaluated.

With --report FOLDER, that gets a page that can be shown to others (report.html), the same numbers (report.json), and
what was said of each image (predictions.csv): docs/evaluation.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_xcit.utils.command_line import add_override_options, make_parser, not_empty, overrides_of, pixels  # noqa: E402
from passl_xcit.utils.errors import ConfigError, exit_with_one_line  # noqa: E402
from passl_xcit.utils.startup import prepare_paddle  # noqa: E402


def parse_args(argv):
    parser = make_parser(__doc__)
    parser.add_argument("config", nargs="?", type=not_empty, metavar="CONFIG", help="config file")
    parser.add_argument("checkpoint", nargs="?", type=not_empty, metavar="CHECKPOINT", help="weights to evaluate")
    parser.add_argument("-c", "--config", "--config-file", dest="c", type=not_empty, metavar="CONFIG", help="the same")
    parser.add_argument(
        "--ckpt_path", "--load", dest="ckpt_path", type=not_empty, metavar="CHECKPOINT", help="the same"
    )
    parser.add_argument(
        "--report", type=not_empty, metavar="DIR", help="write report.html, report.json and predictions.csv there"
    )
    parser.add_argument("--real_labels", type=not_empty, metavar="FILE", help="real.json: count by ReaL labels, too")
    parser.add_argument(
        "--class_list",
        type=not_empty,
        metavar="FILE",
        help="a class (number or name) a line: the data has these classes, and the model's other logits are ignored",
    )
    add_override_options(parser)
    parser.add_argument(
        "--size",
        type=pixels,
        help="pixels of the images, instead of the config's; they show the same part of a picture",
    )
    parser.add_argument(
        "--knn", action="store_true", help="let the nearest of the config's training images vote, not the classifier"
    )
    parser.add_argument(
        "--stage",
        type=not_empty,
        help="whose features --knn compares, such as patch_tokens or block_5 (default: what the classifier gets)",
    )
    args = parser.parse_args(argv)
    if args.stage and not args.knn:
        parser.error("--stage goes with --knn")
    if args.knn and (args.report or args.real_labels or args.class_list):
        parser.error("--report, --real_labels and --class_list tell of a classifier, and do not go with --knn")
    return args


def one_of(positional, flag, name):
    """The value that was given, as an argument or with a flag; ConfigError for none or both."""
    if (positional is None) == (flag is None):
        raise ConfigError(f"give the {name} once: {'it was given twice' if flag else 'there is none; see --help'}")
    return positional or flag


def main(argv=None):
    args = parse_args(argv)
    if args.c and args.config and args.checkpoint is None:  # -c CONFIG CHECKPOINT
        args.config, args.checkpoint = None, args.config
    config = one_of(args.config, args.c, "config")
    checkpoint = one_of(args.checkpoint, args.ckpt_path, "checkpoint")
    prepare_paddle()
    from passl_xcit.engine.evaluation import EvaluationOptions
    from passl_xcit.engine.features import STAGE
    from passl_xcit.engine.launch import run

    evaluation = EvaluationOptions(args.report, args.real_labels, args.class_list)
    overrides = overrides_of(args, config, splits=("train", "val") if args.knn else ("val",))
    stage = (args.stage or STAGE) if args.knn else None
    run(config, overrides, checkpoint, evaluate_only=True, knn=stage, size=args.size, evaluation=evaluation)


def console():
    """The command `passl-xcit-validate`."""
    exit_with_one_line(main)


if __name__ == "__main__":
    console()
