"""Take the weights out of a training checkpoint, with PASSL's flags and --ema.

python tools/extract_weight.py outputs/epoch_400.pdparams --output model.pdparams
python tools/extract_weight.py outputs/epoch_400.pdparams --output b.pdparams --prefix backbone --remove_prefix
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_xcit.utils.command_line import make_parser, not_empty  # noqa: E402
from passl_xcit.utils.errors import exit_with_one_line  # noqa: E402
from passl_xcit.utils.startup import prepare_paddle  # noqa: E402


def parse_args(argv):
    parser = make_parser(__doc__)
    parser.add_argument("checkpoint", type=not_empty, metavar="CHECKPOINT", help="training checkpoint or weight file")
    parser.add_argument("--output", required=True, type=not_empty, metavar="FILE", help="a .pdparams file to write")
    parser.add_argument("--prefix", default="", help="take the weights below this name only, such as backbone")
    parser.add_argument("--remove_prefix", action="store_true", help="leave `PREFIX.` out of their names")
    parser.add_argument("--ema", action="store_true", help="take the moving averages (EMAHook) instead of the weights")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    prepare_paddle()
    from passl_xcit.modeling.weights import extract_weights

    count = extract_weights(args.checkpoint, args.output, args.prefix, args.remove_prefix, args.ema)
    print(f"{count} arrays written to {args.output}")


def console():
    """The command `passl-xcit-extract-weight`."""
    exit_with_one_line(main)


if __name__ == "__main__":
    console()
