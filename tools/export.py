"""Write a model as a program for Paddle Inference or ONNX Runtime, compared with the model before it is kept.

python tools/export.py WEIGHTS --output_dir DIR                                     a file of a training here, or a name
python tools/export.py WEIGHTS -c CONFIG.yaml --output_dir DIR --format paddle,onnx --softmax

python tools/export.py WEIGHTS --output_dir DIR --format paddle,onnx --precision bfloat16   tried in that, too

DIR gets model.json and model.pdiparams, or model.onnx, and export.json: how images are prepared, what the classes are
called, how far each engine is from the model, and the digests of the files. XCiT and RegNet take images of any size
then, CrossViT of one. tools/predict.py --weights DIR runs it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_xcit.utils.command_line import make_parser, not_empty  # noqa: E402
from passl_xcit.utils.errors import ConfigError, exit_with_one_line  # noqa: E402
from passl_xcit.utils.startup import prepare_paddle  # noqa: E402


def parse_args(argv):
    parser = make_parser(__doc__)
    parser.add_argument(
        "weights", type=not_empty, metavar="WEIGHTS", help="file, address, or name of published weights"
    )
    parser.add_argument(
        "-c", "--config", "--config-file", type=not_empty, help="for weights that do not say their model"
    )
    parser.add_argument("--output_dir", required=True, type=not_empty, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--format", default="paddle", help="paddle, onnx, or both with a comma between (default paddle)"
    )
    parser.add_argument("--softmax", action="store_true", help="give probabilities instead of logits")
    parser.add_argument(
        "--precision",
        default="float32",
        help="bfloat16: compare the engines in it as well (default float32); what is written is the same",
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    prepare_paddle()
    from passl_xcit.engine.export import FORMATS, export_model
    from passl_xcit.engine.predictor import Predictor
    from passl_xcit.engine.runtimes import EAGER, check_engine, is_right

    check_engine(EAGER, args.precision)
    formats = args.format.split(",")
    if not set(formats) <= set(FORMATS):
        raise ConfigError(f"--format {args.format}: expected {', '.join(FORMATS)}, or both with a comma between")
    predictor = Predictor(args.weights, args.config, device="cpu", engine=EAGER)
    if predictor.preprocess.size is None:
        raise ConfigError("the preprocessing gives images of many sizes: let CenterCrop or Resize end with one")
    sidecar = export_model(
        predictor.model,
        args.output_dir,
        predictor.preprocess.size,
        args.softmax,
        formats,
        predictor.preprocess.to_dict(),
        args.precision,
    )
    for engine, difference in sidecar.difference.items():
        if difference is None:
            print(f"{engine}: cannot run this model")
        else:
            wrong = "" if is_right(difference, engine.partition(" ")[2] or "float32") else ": is wrong, do not use it"
            print(f"{engine}: differs from the model by {difference:.1e} of its largest output{wrong}")
    print(f"written to {args.output_dir}")


def console():
    """The command `passl-xcit-export`."""
    exit_with_one_line(main)


if __name__ == "__main__":
    console()
