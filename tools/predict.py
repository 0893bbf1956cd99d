"""Say what is on images.

python tools/predict.py photo.jpg folder --weights outputs/best.pdparams
python tools/predict.py folder --weights xcit_nano_12_p16_224 --format csv -o predictions.csv
find . -name '*.jpg' | python tools/predict.py - --weights W.pdparams --format jsonl
python tools/predict.py photo.jpg --weights W.pth -c CONFIG.yaml
python tools/predict.py folder --weights W.pdparams --features features.npz --stage patch_tokens --size 448
python tools/predict.py folder --weights EXPORTED --engine onednn --precision bfloat16

Weights of a training here say which model they are, how images are preprocessed and what the classes are called; for
others give the config that they are evaluated with. Exit code: 0; 1 when some images could not be used (they are told
on stderr, and stand in the output with the reason) or the weights cannot; 2 for a wrong command line or config.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_xcit.utils.command_line import make_parser, not_empty, pixels  # noqa: E402
from passl_xcit.utils.errors import exit_with_one_line  # noqa: E402
from passl_xcit.utils.startup import prepare_paddle  # noqa: E402


def parse_args(argv):
    parser = make_parser(__doc__)
    parser.add_argument(
        "images",
        nargs="+",
        type=not_empty,
        metavar="IMAGE",
        help="a file, a folder (all images below it), or - for paths in the lines of standard input",
    )
    parser.add_argument(
        "--weights",
        "--load",
        required=True,
        type=not_empty,
        metavar="FILE",
        help="weight file or checkpoint, its address, the name of published weights, which are downloaded, or the "
        "folder of an export",
    )
    parser.add_argument("-c", "--config", "--config-file", type=not_empty, metavar="YAML", help="config of the model")
    parser.add_argument("--topk", type=int, metavar="K", help="classes to tell of each image (default 5)")
    parser.add_argument(
        "--format", choices=("table", "csv", "json", "jsonl"), default="table", help="of the output (default: table)"
    )
    parser.add_argument("-o", "--output", type=not_empty, metavar="FILE", help="write here instead of to stdout")
    parser.add_argument("--class_names", type=not_empty, metavar="FILE", help="the name of a class a line")
    parser.add_argument("--batch_size", type=int, default=32, help="images at a time (default 32)")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read images (default 0)")
    parser.add_argument("--device", type=not_empty, help="such as cpu, gpu:0 or npu:0 (default: config, or Paddle)")
    parser.add_argument(
        "--engine",
        type=not_empty,
        help="for weights paddle; for an export onednn, paddle_inference, onnxruntime or openvino (default: the first "
        "that has its files)",
    )
    parser.add_argument("--precision", default="float32", help="float32 (default) or bfloat16")
    parser.add_argument(
        "--size",
        type=pixels,
        help="pixels of the images, instead of the weights'; they show the same part of a picture",
    )
    parser.add_argument(
        "--features", type=not_empty, metavar="FILE.npz", help="write the images' features here instead of predicting"
    )
    parser.add_argument(
        "--stage", type=not_empty, help="of the model, for --features (default: what the classifier gets)"
    )
    args = parser.parse_args(argv)
    if args.stage and not args.features:
        parser.error("--stage goes with --features")
    if args.features and (args.output or args.class_names or args.topk is not None or args.format != "table"):
        parser.error("-o, --format, --topk and --class_names are for predictions, and do not go with --features")
    return args


def main(argv=None):
    args = parse_args(argv)
    prepare_paddle()
    from passl_xcit.engine.features import STAGE
    from passl_xcit.engine.predict import run, write_features

    options = {
        "config": args.config,
        "device": args.device,
        "batch_size": args.batch_size,
        "num_workers": args.num_workers,
        "engine": args.engine,
        "precision": args.precision,
        "size": args.size,
    }
    if args.features:
        return write_features(args.images, args.weights, args.features, args.stage or STAGE, **options)
    return run(
        args.images,
        args.weights,
        form=args.format,
        output=args.output,
        class_names=args.class_names,
        topk=args.topk,
        **options,
    )


def console():
    """The command `passl-xcit-predict`."""
    exit_with_one_line(main)


if __name__ == "__main__":
    console()
