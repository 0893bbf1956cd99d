"""Draw what a model does with an image: where its class token looks, which channels it mixes, its features.

python tools/visualize.py IMAGE --weights WEIGHTS --output_dir DIR

DIR gets IMAGE_class_attention.png, IMAGE_channel_attention.png (XCiT) and IMAGE_features.png. The image keeps its size,
but for the few pixels that make whole patches of it; CrossViT scales it itself.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_xcit.utils.command_line import make_parser, not_empty  # noqa: E402
from passl_xcit.utils.errors import ConfigError, exit_with_one_line  # noqa: E402
from passl_xcit.utils.startup import prepare_paddle  # noqa: E402


def parse_args(argv):
    parser = make_parser(__doc__)
    parser.add_argument("images", nargs="+", type=not_empty, metavar="IMAGE")
    parser.add_argument("--weights", required=True, type=not_empty, help="file, address, or name of published weights")
    parser.add_argument(
        "-c", "--config", "--config-file", type=not_empty, help="for weights that do not say their model"
    )
    parser.add_argument("--output_dir", required=True, type=not_empty, metavar="DIR")
    parser.add_argument("--short_side", type=int, metavar="PIXELS", help="scale the image to this shorter side first")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if args.short_side is not None and args.short_side < 1:
        raise ConfigError(f"--short_side {args.short_side}: expected a number of pixels above 0")
    prepare_paddle()
    from passl_xcit.engine.look_inside import check_stems, draw_pages
    from passl_xcit.engine.predictor import Predictor
    from passl_xcit.utils.logger import setup_logger

    setup_logger(stream=sys.stderr)
    check_stems(args.images)
    predictor = Predictor(args.weights, args.config, engine="paddle")
    for image in args.images:
        for page in draw_pages(predictor.model, predictor.preprocess, image, args.output_dir, args.short_side):
            print(page)


def console():
    """The command `passl-xcit-visualize`."""
    exit_with_one_line(main)


if __name__ == "__main__":
    console()
