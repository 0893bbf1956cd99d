"""Measure how fast models are, beside others: contenders take turns in one run, after their outputs were compared.

python tools/benchmark.py --models xcit_nano_12_p16 --output outputs/nano.json
python tools/benchmark.py --models xcit_nano_12_p16,xcit_nano_12_p8 --modes inference,train --batch_sizes 1,16 \\
    --engines eager,onednn,onnxruntime --vs textbook,timm-eager,timm-compile --peer_python PYTHON --output peers.json
python tools/benchmark.py --pipeline CONFIG.yaml --data_dir DIR --num_workers 0,1,2 --output outputs/pipeline.json
python tools/benchmark.py --operators xcit_nano_12_p16,crossvit_9 --output outputs/operators.json
python tools/benchmark.py --startup --output outputs/startup.json
python tools/benchmark.py --models xcit_nano_12_p16 --image_sizes 224,512,1024 --batch_sizes 1 --threads 1,2 \\
    --output outputs/tokens.json
python tools/benchmark.py --write_page docs/benchmarks.md    fills the blocks of a page from their files, with pictures

A measurement that was stopped goes on when it is started again. Only ratios say something: the speed of the first
contender is 1. Lists have commas between. What each contender is, and what was measured here: docs/benchmarks.md.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_xcit.utils.command_line import make_parser, not_empty, overrides_of  # noqa: E402
from passl_xcit.utils.config import load_config  # noqa: E402
from passl_xcit.utils.errors import ConfigError, exit_with_one_line  # noqa: E402
from passl_xcit.utils.startup import prepare_paddle, usable_cores  # noqa: E402


def words(text):
    """A comma between: "a,b" -> ["a", "b"]"""
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found:
        raise argparse.ArgumentTypeError("expected names with commas between")
    return found


def numbers(text, least=1):
    """A comma between: "1,16" -> [1, 16]"""
    found = words(text)
    if not all(word.isdecimal() and least <= int(word) < 10**6 for word in found):
        raise argparse.ArgumentTypeError(f"expected whole numbers from {least} on with commas between, not {text!r}")
    return [int(word) for word in found]


def counts(text):
    """Numbers that may be 0."""
    return numbers(text, least=0)


def number(text):
    """At least 1."""
    return numbers(text)[0]


def parse_args(argv):
    parser = make_parser(__doc__)
    parser.add_argument("--models", type=words, default=[], metavar="NAMES", help="see passl_xcit.list_models()")
    parser.add_argument("--modes", type=words, default=["inference"], help="inference, train (default inference)")
    parser.add_argument("--batch_sizes", type=numbers, default=[16], help="images of a step (default 16)")
    parser.add_argument("--image_sizes", type=numbers, default=[224], help="pixels of a side (default 224)")
    parser.add_argument("--precisions", type=words, default=["float32"], help="float32, bfloat16 (default float32)")
    parser.add_argument("--engines", type=words, default=["eager"], help="ours: see docs/benchmarks.md (default eager)")
    parser.add_argument("--vs", type=words, default=[], help="others: textbook, timm-eager, timm-compile")
    parser.add_argument("--peer_python", type=not_empty, metavar="PYTHON", help="the Python that has timm and torch")
    parser.add_argument("--pipeline", type=not_empty, metavar="CONFIG", help="where an evaluation's time goes")
    parser.add_argument("--data_dir", type=not_empty, metavar="DIR", help="as in train.py, for --pipeline")
    parser.add_argument("-o", "--override", action="append", default=[], metavar="KEY=VALUE", help="as in train.py")
    parser.add_argument("--num_workers", type=counts, default=[0, 1, 2], help="for --pipeline (default 0,1,2)")
    parser.add_argument("--operators", type=words, default=[], metavar="MODELS", help="the native operators of models")
    parser.add_argument("--startup", action="store_true", help="how long commands take before they do anything")
    parser.add_argument("--repeats", type=number, default=7, help="turns of each (default 7)")
    parser.add_argument("--threads", type=numbers, default=[usable_cores()], help="of each (default one a core)")
    parser.add_argument("--processes", type=numbers, default=[1], help="of each, side by side (default 1)")
    parser.add_argument("--output", type=not_empty, metavar="FILE.json", help="where the measurements go")
    parser.add_argument("--write_page", type=not_empty, metavar="PAGE.md", help="fill and draw, measure nothing")
    parser.set_defaults(output_dir=None)  # what `overrides_of` asks for besides
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    measures = args.models or args.pipeline or args.startup or args.operators
    if args.write_page and (measures or args.output):
        raise ConfigError("--write_page measures nothing: give it alone")
    if not args.write_page and Path(args.output or "").suffix != ".json":
        raise ConfigError(f"--output {args.output or 'is missing'}: expected a name that ends in .json")
    if not (measures or args.write_page):
        raise ConfigError("give what to measure: --models, --operators, --pipeline or --startup; see --help")
    prepare_paddle()
    from passl_xcit.engine.benchmark.cases import cases_of
    from passl_xcit.engine.benchmark.contenders import contenders_of
    from passl_xcit.engine.benchmark.operators import measure_operators
    from passl_xcit.engine.benchmark.pages import page_of, write_page
    from passl_xcit.engine.benchmark.pipeline import measure_pipeline
    from passl_xcit.engine.benchmark.record import Record
    from passl_xcit.engine.benchmark.startup import measure_startup

    if args.write_page:
        return write_page(args.write_page)
    contenders = contenders_of([*args.engines, *args.vs], args.peer_python)
    sizes = args.batch_sizes, args.image_sizes, args.precisions, args.threads, args.processes
    cases = cases_of(args.models, args.modes, *sizes)
    record = Record(args.output, contenders, args.repeats, _tell)
    record.measure_cases(cases)
    if args.pipeline:
        cfg = load_config(args.pipeline, overrides_of(args, args.pipeline, splits=("val",)))
        of = {"config": args.pipeline, "override": args.override, "num_workers": args.num_workers}
        record.measure_section("pipeline", of, lambda *how: measure_pipeline(cfg, args.num_workers, *how))
    if args.operators:
        size = args.batch_sizes[0], args.image_sizes[0]
        of = {"models": args.operators, "batch_size": size[0], "image_size": size[1]}
        record.measure_section("operators", of, lambda *how: measure_operators(args.operators, *size, *how))
    if args.startup:
        record.measure_section("startup", {}, measure_startup)
    print("\n".join(page_of(record.data)))


def _tell(text):
    print(text, file=sys.stderr, flush=True)


def console():
    """The command `passl-xcit-benchmark`."""
    exit_with_one_line(main)


if __name__ == "__main__":
    console()
