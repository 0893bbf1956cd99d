"""Look at a machine, a config, a data set and a device, before a run does.

python tools/doctor.py                                     versions, memory, disks, devices, plugins
python tools/doctor.py --device npu                        and whether an NPU can be used
python tools/doctor.py -c CONFIG.yaml --data_dir DIR       and whether the config can run
python tools/doctor.py --data DIR                          and every image of a data set
python tools/doctor.py -c CONFIG.yaml --compare cpu        and whether the device computes what the CPU does

Every line has a verdict: ok, warning or error. The exit code is 1 where there is an error, 2 for a config or a command
line that cannot be right, else 0.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_xcit.utils.command_line import (  # noqa: E402
    add_override_options,
    make_parser,
    not_empty,
    overrides_of,
    stdout_kept_clean,
)
from passl_xcit.utils.errors import UserError, exit_with_one_line  # noqa: E402
from passl_xcit.utils.startup import prepare_paddle  # noqa: E402


def parse_args(argv):
    parser = make_parser(__doc__)
    parser.add_argument("-c", "--config-file", "--config", type=not_empty, metavar="YAML", help="config file")
    add_override_options(parser)
    parser.add_argument("--device", type=not_empty, help="device to look at, such as npu:0, instead of the config's")
    parser.add_argument("--data", type=not_empty, metavar="DIR", help="data set of which to read every image")
    parser.add_argument("--data_limit", type=int, metavar="N", help="read N images of each split only")
    parser.add_argument(
        "--compare", type=not_empty, metavar="cpu", help="compare a training step with this device's, layer by layer"
    )
    parser.add_argument("--model", type=not_empty, metavar="NAME", help="model for --compare instead of a config's")
    parser.add_argument(
        "--tolerance", type=float, default=5e-4, help="relative difference that --compare bears (default: 5e-4)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a page")
    args = parser.parse_args(argv)
    if not args.config_file and (args.override or args.data_dir or args.output_dir):
        parser.error("-o, --data_dir and --output_dir change a config: give it with -c")
    if args.data_limit is not None and args.data_limit < 1:
        parser.error("--data_limit must be at least 1")
    if not 0 <= args.tolerance < float("inf"):
        parser.error("--tolerance must be 0 or more, and finite")
    if args.model and not args.compare:
        parser.error("--model goes with --compare")
    return args


def main(argv=None):
    args = parse_args(argv)
    with stdout_kept_clean():
        try:
            prepare_paddle()
            from passl_xcit.engine.doctor import examine
            from passl_xcit.engine.report import as_json, as_page, verdict_of
        except ModuleNotFoundError as error:
            raise UserError(
                f"the package {error.name} is not installed; install this project again: pip install -e ."
            ) from error
        overrides = overrides_of(args, args.config_file) if args.config_file else ()
        sections = examine(
            args.config_file,
            overrides,
            args.device,
            args.data,
            args.data_limit,
            args.compare,
            args.model,
            args.tolerance,
        )
    print(json.dumps(as_json(sections), allow_nan=False) if args.json else "\n".join(as_page(sections)))
    return int(verdict_of(sections) == "error")


def console():
    """The command `passl-xcit-doctor`."""
    exit_with_one_line(main)


if __name__ == "__main__":
    console()
