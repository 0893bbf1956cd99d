"""Draw the README's picture: test images with what the demo model says, and how its training went.

python tools/draw_demo.py -c CONFIG --load WEIGHTS --log LOG.jsonl --output PICTURE.png
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_xcit.utils.errors import exit_with_one_line  # noqa: E402
from passl_xcit.utils.startup import prepare_paddle  # noqa: E402

ROWS, COLUMNS = 4, 8
RIGHT, WRONG = "#1a7f37", "#cf222e"


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config-file", required=True)
    parser.add_argument("--load", required=True)
    parser.add_argument("--log", required=True, help="log.jsonl of the training")
    parser.add_argument("--output", required=True)
    return parser.parse_args(argv)


def predict_first(config_file, weights, count):
    """(images, true labels, predicted labels, class names) of every 31st test image, `count` of them."""
    import paddle

    from passl_xcit.engine import builder
    from passl_xcit.modeling.weights import load_weights
    from passl_xcit.utils.config import load_config

    cfg = load_config(config_file)
    builder.check_config(cfg, training=False)
    model = builder.build_model(cfg)
    load_weights(model, weights)
    model.eval()
    dataset = builder.build_loader(cfg, "val", model.num_classes).dataset
    chosen = [31 * place for place in range(count)]
    with paddle.no_grad():
        batch = paddle.to_tensor([dataset[0, index][0] for index in chosen])
        predicted = model(batch).argmax(axis=1).tolist()
    return [dataset.load(i) for i in chosen], dataset.labels[chosen].tolist(), predicted, dataset.class_names


def draw(images, labels, predicted, names, curves, output):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(13, 5.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.7, 1))
    for axis, image, label, guess in zip(left.subplots(ROWS, COLUMNS).flat, images, labels, predicted):
        axis.imshow(image, cmap="gray_r")
        axis.axis("off")
        title = names[guess] if guess == label else f"{names[guess]}?\n{names[label]}!"
        axis.set_title(title, fontsize=7, color=RIGHT if guess == label else WRONG)
    top, bottom = right.subplots(2, 1, sharex=True)
    accuracies, losses = curves["val", "acc1"], curves["train", "loss"]
    top.plot(accuracies.keys(), accuracies.values(), color=RIGHT)
    top.set_ylabel("test accuracy, %")
    best, last = max(accuracies.values()), accuracies[max(accuracies)]
    top.set_title(f"best {best:.2f}, last {last:.2f}", fontsize=9)
    bottom.plot(losses.keys(), losses.values(), color="#0969da")
    bottom.set_ylabel("training loss")
    bottom.set_xlabel("epoch")
    figure.savefig(output, dpi=110)


def main(argv=None):
    args = parse_args(argv)
    prepare_paddle()
    from passl_xcit.engine.curves import read_curves

    draw(*predict_first(args.config_file, args.load, ROWS * COLUMNS), read_curves(args.log), args.output)


if __name__ == "__main__":
    exit_with_one_line(main)
