"""Rewrite a weight file for another program.

python tools/convert_weights.py xcit_nano_12_p16_224.pth xcit_nano_12_p16_224.pdparams --to paddle
python tools/convert_weights.py outputs/best.pdparams best.safetensors --to timm

SRC is a file of PASSL, facebookresearch, IBM, timm, mmpretrain or MindCV; which, is seen from its content. DST ends
in .pdparams for paddle, and in .pth or .safetensors for the others.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_xcit.utils.command_line import make_parser, not_empty  # noqa: E402
from passl_xcit.utils.errors import exit_with_one_line  # noqa: E402
from passl_xcit.utils.startup import prepare_paddle  # noqa: E402


def parse_args(argv):
    parser = make_parser(__doc__)
    parser.add_argument("source", type=not_empty, metavar="SRC", help="weight file or checkpoint")
    parser.add_argument("output", type=not_empty, metavar="DST", help="file to write")
    parser.add_argument(
        "--to", required=True, choices=("paddle", "official", "timm", "mmpretrain"), help="whose names and layout"
    )
    parser.add_argument("--ema", action="store_true", help="take the moving averages beside the weights")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    prepare_paddle()
    from passl_xcit.modeling.convert import convert_weights

    done = convert_weights(args.source, args.output, args.to, args.ema)
    print(f"{done.model}: {done.arrays} arrays, {done.dialect} -> {args.to}, written to {args.output}")


def console():
    """The command `passl-xcit-convert-weights`."""
    exit_with_one_line(main)


if __name__ == "__main__":
    console()
