"""Measure and draw what XCiT and a plain ViT take at growing image sizes: time and memory against tokens.

python tools/draw_costs.py --measure costs.json                          half an hour on a CPU core
python tools/draw_costs.py costs.json --output costs.png

Each point is one image in a process of its own with one thread, after a small one: the CPU time of its forward pass,
and by how much the process's largest resident memory lies above what it had before. Medians of several processes, of
which those of different models take turns. Both models compute with Paddle's operators, none with native ones.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_xcit.utils.command_line import make_parser, not_empty  # noqa: E402
from passl_xcit.utils.errors import ConfigError, exit_with_one_line  # noqa: E402
from passl_xcit.utils.startup import prepare_paddle  # noqa: E402

WIDTH, DEPTH, HEADS = 128, 12, 4  # XCiT nano's
WARM_UP = 64  # pixels
SIZES = {  # model: pixels of the images' sides
    "xcit_nano_12_p16": (224, 384, 512, 768, 1024, 1536, 2048),
    "vit_nano_12_p16": (224, 384, 512, 768, 1024, 1536),
    "xcit_nano_12_p8": (224, 384, 512, 768, 1024),
}
LABELS = {
    "xcit_nano_12_p16": "XCiT-N12/16",
    "vit_nano_12_p16": "ViT, patch 16, same width, depth, heads",
    "xcit_nano_12_p8": "XCiT-N12/8",
}
FITTED_FROM = (
    1000  # tokens; with fewer, what no token takes is a large part, and memory comes from what is free already
)
COLOURS = {"xcit_nano_12_p16": "#0969da", "vit_nano_12_p16": "#cf222e", "xcit_nano_12_p8": "#1a7f37"}


def parse_args(argv):
    parser = make_parser(__doc__)
    parser.add_argument("measured", nargs="?", type=not_empty, metavar="FILE.json", help="what --measure wrote")
    parser.add_argument("--output", type=not_empty, metavar="PICTURE.png")
    parser.add_argument("--measure", type=not_empty, metavar="FILE.json", help="measure, and write here")
    parser.add_argument("--runs", type=int, default=5, help="processes of each point (default 5)")
    parser.add_argument("--point", nargs=2, metavar=("MODEL", "PIXELS"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def plain_vit(patch_size, tokens):
    """A vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) of XCiT nano's width, depth and heads.

    Paddle's own layers: every token attends to every other, and a head's matrix of all pairs is in memory.
    """
    from paddle import concat, nn

    class ViT(nn.Layer):
        def __init__(self):
            super().__init__()
            self.patch_embed = nn.Conv2D(3, WIDTH, patch_size, patch_size)
            self.cls_token = self.create_parameter([1, 1, WIDTH])
            self.pos_embed = self.create_parameter([1, 1 + tokens, WIDTH])
            block = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", normalize_before=True)
            self.blocks = nn.TransformerEncoder(block, DEPTH, nn.LayerNorm(WIDTH))
            self.head = nn.Linear(WIDTH, 1000)

        def forward(self, images):
            patches = self.patch_embed(images).flatten(2).transpose([0, 2, 1])  # [B, N, C]
            cls_token = self.cls_token.expand([len(patches), -1, -1])
            return self.head(self.blocks(concat([cls_token, patches], axis=1) + self.pos_embed)[:, 0])

    return ViT()


def patch_of(model):
    return int(model.rpartition("_p")[2])


def measure_point(model, pixels):
    """{"tokens", "seconds", "bytes"} of one image in this process."""
    import paddle
    import psutil

    from passl_xcit.modeling.factory import create_model
    from passl_xcit.utils.device import peak_memory

    def build(side):
        tokens = (side // patch_of(model)) ** 2
        net = plain_vit(patch_of(model), tokens) if model.startswith("vit") else create_model(model)
        net.eval()
        return net, paddle.randn([1, 3, side, side]), tokens

    with paddle.no_grad():
        net, image, _ = build(WARM_UP)
        net(image).numpy()
        net, image, tokens = build(pixels)
        before = psutil.Process().memory_info().rss
        begun = time.process_time()
        net(image).numpy()
        seconds = time.process_time() - begun
    return {"tokens": tokens, "seconds": seconds, "bytes": peak_memory() - before}


def measure(runs):
    """{"paddle", "points": [{"model", "pixels", "tokens", "seconds": [...], "bytes": [...]}]}"""
    points = {}
    todo = sorted((pixels, model) for model, sizes in SIZES.items() for pixels in sizes)
    for run in range(runs):
        for pixels, model in todo:
            print(f"{run + 1} of {runs}: {model} at {pixels} pixels", file=sys.stderr)
            found = in_process(model, pixels)
            point = {"model": model, "pixels": pixels, "tokens": found["tokens"], "seconds": [], "bytes": []}
            point = points.setdefault((model, pixels), point)
            for key, digits in (("seconds", 4), ("bytes", 0)):
                point[key].append(round(found[key], digits))
    return {"paddle": sys.modules["paddle"].__version__, "points": list(points.values())}


def in_process(model, pixels):
    command = [sys.executable, __file__, "--point", model, str(pixels)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PASSL_XCIT_NATIVE": "off"}
    return json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)


def medians(points, model, key):
    """(tokens, medians) of a model's points, as lists."""
    own = [point for point in points if point["model"] == model]
    return [point["tokens"] for point in own], [statistics.median(point[key]) for point in own]


def large(tokens, values):
    """Both lists without the points of fewer than FITTED_FROM tokens."""
    return tuple(zip(*(point for point in zip(tokens, values) if point[0] >= FITTED_FROM)))


def slope(tokens, values):
    """The exponent e of values ~ tokens ** e, by least squares on logarithms, of the points from FITTED_FROM on."""
    import numpy as np

    return float(np.polyfit(*np.log(large(tokens, values)), 1)[0])


def draw(points, output):
    """Draw the picture, and print the slopes in it."""
    from passl_xcit.engine.pictures import new_figure, save_figure

    figure, (axes,) = new_figure(1, 2, 5.6, 5.2)
    panels = (
        ("seconds", 1.0, "CPU time of one image, one thread [s]"),
        ("bytes", 1e6, "peak memory of one image [MB]"),
    )
    for axis, (key, unit, label) in zip(axes, panels):
        for model, name in LABELS.items():
            tokens, values = medians(points, model, key)
            exponent = slope(tokens, values)
            print(f"{name}: {key} ~ tokens ^ {exponent:.2f}")
            tokens, values = (tokens, values) if key == "seconds" else large(tokens, values)
            values = [value / unit for value in values]
            axis.loglog(tokens, values, "o-", ms=4, color=COLOURS[model], label=f"{name}: slope {exponent:.2f}")
        axis.set_xlabel("tokens of the image")
        axis.set_ylabel(label)
        axis.grid(which="both", alpha=0.25)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    figure.suptitle(f"One image, 224 to 2,048 pixels a side; slopes from {FITTED_FROM:,} tokens on", fontsize=10)
    save_figure(figure, output)


def main(argv=None):
    args = parse_args(argv)
    if not args.point and bool(args.measure) == bool(args.measured and args.output):
        raise ConfigError("give --measure FILE.json, or FILE.json and --output PICTURE.png; see --help")
    prepare_paddle()
    if args.point:
        print(json.dumps(measure_point(args.point[0], int(args.point[1]))))
    elif args.measure:
        Path(args.measure).write_text(json.dumps(measure(args.runs), indent=1) + "\n")
    else:
        draw(json.loads(Path(args.measured).read_text())["points"], args.output)


if __name__ == "__main__":
    exit_with_one_line(main)
