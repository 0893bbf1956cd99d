"""Draw how trainings went, or the learning rates that a config would train with.

python tools/draw_curves.py student=outputs/s0 student=outputs/s1 distilled=outputs/d0 --output curves.png
python tools/draw_curves.py --schedule CONFIG.yaml [-o KEY=VALUE] --output schedule.png

Runs of one name (seeds, say) are drawn as their mean, with a band of one standard deviation.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_xcit.utils.command_line import make_parser, not_empty  # noqa: E402
from passl_xcit.utils.errors import ConfigError, exit_with_one_line  # noqa: E402
from passl_xcit.utils.startup import prepare_paddle  # noqa: E402


def parse_args(argv):
    parser = make_parser(__doc__)
    parser.add_argument("runs", nargs="*", metavar="NAME=FOLDER", help="a training's output folder, or its log.jsonl")
    parser.add_argument("--schedule", action="append", default=[], metavar="CONFIG", help="a config; repeatable")
    parser.add_argument("-o", "--override", action="append", default=[], metavar="KEY=VALUE", help="as in train.py")
    parser.add_argument("--iters_per_epoch", type=int, default=100, help="steps an epoch of --schedule (default 100)")
    parser.add_argument("--processes", type=int, default=1, help="processes of --schedule (default 1)")
    parser.add_argument("--output", required=True, type=not_empty, metavar="PICTURE.png")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if bool(args.runs) == bool(args.schedule):
        raise ConfigError("give runs as NAME=FOLDER, or configs with --schedule; see --help")
    if min(args.iters_per_epoch, args.processes) < 1:
        raise ConfigError("--iters_per_epoch and --processes must be at least 1")
    prepare_paddle()
    from passl_xcit.engine.curves import draw_runs, draw_schedules, learning_rates, read_runs
    from passl_xcit.utils.config import load_config, parse_override

    if args.runs:
        draw_runs(read_runs(args.runs), args.output)
        return
    overrides = [parse_override(text) for text in args.override]
    configs = {Path(file).stem: load_config(file, overrides) for file in args.schedule}
    rates = {name: learning_rates(cfg, args.iters_per_epoch, args.processes) for name, cfg in configs.items()}
    draw_schedules(rates, args.output)


def console():
    """The command `passl-xcit-draw-curves`."""
    exit_with_one_line(main)


if __name__ == "__main__":
    console()
