"""The page of an evaluation: one HTML file that loads nothing and runs nothing.

Its template, evaluation_page.html, escapes whatever it is given, and its Content-Security-Policy forbids scripts and
addresses: names of classes and files come from other people. Pictures are data inside the page.
"""

import base64
import io

import jinja2
import numpy as np
from PIL import Image

from passl_xcit.engine.pictures import new_figure
from passl_xcit.utils.errors import DataError

MATRIX_CLASSES = 25  # so many classes fit into a table with their names
WORST = 15  # classes that stand above the table of all, where these are too many
SMALL, LARGE = 64, 224  # pixels: images up to the first are shown as they are, others scaled to the second
RIGHT, WRONG, INK = "#2c7a6b", "#c2571a", "#243142"


def render(report, thumbnails):
    """The page of `report`, see `evaluation_report.make_report`, as text.

    Args:
        thumbnails: for each of its confident errors the address of a picture, as `thumbnail` makes it.
    """
    loader = jinja2.PackageLoader(__package__.partition(".")[0], "engine")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(fixed=_fixed, grouped="{:,}".format, arguments=_arguments)
    classes, matrix = report["classes"], report["confusion"]["matrix"]
    known = [row for row in classes if row["accuracy"] is not None]
    worst = sorted(known, key=lambda row: (row["accuracy"], -row["samples"]))[:WORST]
    return environment.get_template("evaluation_page.html").render(
        report,
        names=[row["name"] for row in classes],
        worst=worst if len(classes) > MATRIX_CLASSES else None,
        matrix=_shaded(matrix) if len(classes) <= MATRIX_CLASSES else None,
        matrix_picture=None if len(classes) <= MATRIX_CLASSES else _draw_confusion(report["confusion"]),
        reliability_picture=_draw_reliability(report["calibration"]),
        thumbnails=thumbnails,
    )


def thumbnail(dataset, index):
    """An image of `dataset` as the address `data:image/...`; None if it cannot be read any more."""
    try:
        image = dataset.load(index)
    except DataError:
        return None
    is_small = max(image.size) <= SMALL
    image.thumbnail((LARGE, LARGE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG" if is_small else "JPEG", quality=85)
    return _data_address(file.getvalue(), "image/png" if is_small else "image/jpeg")


def _data_address(data, kind):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _fixed(number, decimals=2, unit=""):
    """A number as the page shows it; what is undefined is a dash."""
    return "–" if number is None else f"{number:.{decimals}f}{unit}"


def _arguments(node):
    """A transform's arguments as in a call: `size=28, interpolation=bicubic`."""
    return ", ".join(f"{key}={value}" for key, value in node.items() if key != "name")


def _shaded(matrix):
    """Rows of (samples, share of its row from 0 to 1) of a confusion matrix."""
    return [[(count, count / max(1, sum(row))) for count in row] for row in matrix]


def _svg(figure):
    """A figure as the address of a picture; its letters are outlines, so that it looks the same everywhere."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True)
    return _data_address(file.getvalue(), "image/svg+xml")


def _draw_reliability(found):
    """Accuracy against confidence, as in figure 1 of Guo et al. 2017, and below how many samples each bin has."""
    figure, axes = new_figure(2, 1, 4.6, 2.3)
    (above,), (below,) = axes
    counts = np.array(found["samples_in_bin"])
    bins = len(counts)
    edges, width = np.arange(bins) / bins * 100, 100 / bins
    accuracy, confidence = (
        np.array([np.nan if value is None else value for value in found[key]])
        for key in ("accuracy_in_bin", "confidence_in_bin")
    )
    style = {"width": width, "align": "edge", "linewidth": 0.6}
    above.bar(edges, accuracy, color=RIGHT, edgecolor="white", label="accuracy", **style)
    low, gap = np.minimum(accuracy, confidence), np.abs(accuracy - confidence)
    above.bar(
        edges, gap, bottom=low, color="none", edgecolor=WRONG, hatch="////", label="gap to the confidence", **style
    )
    above.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle="--", label="perfectly calibrated")
    above.set(xlim=(0, 100), ylim=(0, 100), ylabel="accuracy, %")
    above.legend(fontsize=8, loc="upper left", framealpha=0.9)
    right = np.nan_to_num(counts * accuracy / 100)
    below.bar(edges, right, color=RIGHT, edgecolor="white", label="right", **style)
    below.bar(edges, counts - right, bottom=right, color=WRONG, edgecolor="white", label="wrong", **style)
    below.set(xlim=(0, 100), xlabel="confidence (probability of the predicted class), %", ylabel="images")
    below.legend(fontsize=8, loc="upper left")
    return _svg(figure)


def _draw_confusion(confusion):
    """Blocks of classes that follow one another: which share of a row's images was taken for a column's classes."""
    from matplotlib.colors import LogNorm

    matrix, size = np.array(confusion["matrix"], "float64"), confusion["classes_per_block"]
    share = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, axes = new_figure(1, 1, 4.8, 4.1)
    axis, classes = axes[0][0], len(matrix) * size
    shown = np.ma.masked_equal(share, 0)
    lowest = min(1.0, shown.min() if shown.count() else 1.0)
    heat = axis.imshow(shown, cmap="viridis_r", norm=LogNorm(lowest, 100), extent=(0, classes, classes, 0))
    axis.set(xlabel="predicted class", ylabel="right class")
    figure.colorbar(heat, ax=axis, shrink=0.9, format="{x:g}", label="share of the row's images, % (white: none)")
    return _svg(figure)
