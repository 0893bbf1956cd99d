"""How time and memory grow with the tokens of an image, and how speed grows with batches: tables and pictures."""

import statistics
from typing import Callable, NamedTuple

import numpy as np

from passl_xcit.engine.benchmark.cases import Case
from passl_xcit.engine.pictures import new_figure, save_figure
from passl_xcit.modeling import factory
from passl_xcit.utils.errors import DataError
from passl_xcit.utils.registry import BACKBONES

MANY = 1000  # tokens; memory of fewer is mostly what any step takes
WIDTH, HEIGHT = 5.6, 5.6  # inches of a panel


def tokens_of(case):
    """Tokens of an image; DataError for a model that has not one grid of patches."""
    patch = BACKBONES[factory.architecture_of(case.model)].defaults.get("patch_size")
    if not isinstance(patch, int):
        raise DataError(f"{case.model}: there are no curves along tokens for a model without patches of one size")
    return (case.image_size // patch) ** 2


class Quantity(NamedTuple):
    """What is drawn against the axis: how a case's result gives it, or None if it does not."""

    label: str
    of: Callable
    digits: int
    slopes: bool


class Curves(NamedTuple):
    """`varied` is the field of Case that makes the points of a line, `at` the place of a case on the axis."""

    title: str
    axis: str
    varied: str
    at: Callable
    quantities: tuple


def _milliseconds(case, result):
    return 1e3 * statistics.median(result["seconds"]) / case.batch_size


def _megabytes(case, result):
    if result["peak_memory"] is None:
        return None
    return max(result["peak_memory"] - result["built_memory"], 0) / 1e6 / case.batch_size or None


def _images(case, result):
    return case.processes * case.batch_size / statistics.median(result["seconds"])


CURVES = {
    "tokens": Curves(
        "Time and memory of an image against its tokens",
        "tokens of the image",
        "image_size",
        tokens_of,
        (
            Quantity("ms of an image", _milliseconds, 1, slopes=True),
            Quantity("MB of an image, beside the model", _megabytes, 1, slopes=True),
        ),
    ),
    "batches": Curves(
        "Speed against the size of batches",
        "images of a batch",
        "batch_size",
        lambda case: case.batch_size,
        (Quantity("images/s", _images, 1, slopes=False),),
    ),
}


def slope(points, least=0):
    """The exponent e of values ~ place ** e, by least squares on logarithms, of {place: value} from `least` on.

    None for fewer than two points.
    """
    fitted = [(place, value) for place, value in points.items() if place >= least]
    return float(np.polyfit(*np.log(list(zip(*fitted))), 1)[0]) if len(fitted) > 1 else None


def lines_of(record, curves, quantity):
    """{what a line is: {place: value}}; what all lines have in common is left out of their names."""
    found = {}
    for measurement in record["measurements"]:
        case = Case(**measurement["case"])
        for name, result in measurement["results"].items() if case.model else ():
            value = quantity.of(case, result) if result.get("seconds") else None
            if value is not None:
                line = {**case._asdict(), curves.varied: None, "crew": case.crew, "contender": name}
                what = tuple(line[part] for part in ("model", "mode", "precision", "contender", "crew"))
                sizes = (f"{line['image_size']} px", f"batch {line['batch_size']}")
                what += tuple(text for text in sizes if "None" not in text)
                found.setdefault(what, {})[curves.at(case)] = value
    return {name: dict(sorted(points.items())) for name, points in zip(short_names(found), found.values())}


def short_names(whats):
    """Tuples of words -> a name for each, without what all have in common."""
    whats = list(whats)
    differs = [len(set(words)) > 1 for words in zip(*whats)]
    return [", ".join(word for word, other in zip(what, differs) if other) or what[0] for what in whats]


def curve_lines(record, along):
    """Markdown: a table for each quantity of CURVES[along]."""
    curves, text = CURVES[along], []
    for quantity in curves.quantities:
        lines = lines_of(record, curves, quantity)
        places = sorted({place for points in lines.values() for place in points})
        head = [quantity.label, *(f"{place:,}" for place in places)]
        head += ["slope", f"slope from {MANY:,} on"] if quantity.slopes else []
        text += [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
        text += [_row(name, points, places, quantity) for name, points in lines.items()] + [""]
    return text[:-1]


def _row(name, points, places, quantity):
    cells = [f"{points[place]:,.{quantity.digits}f}" if place in points else "" for place in places]
    if quantity.slopes:
        found = slope(points), slope(points, MANY)
        cells += ["" if exponent is None else f"{exponent:.2f}" for exponent in found]
    return f"| {name} | {' | '.join(cells)} |"


def draw_curves(record, along, picture):
    """Draw CURVES[along] of a record into the file `picture`; ConfigError if that cannot be written."""
    curves = CURVES[along]
    figure, (axes,) = new_figure(1, len(curves.quantities), WIDTH, HEIGHT)
    for axis, quantity in zip(axes, curves.quantities):
        for number, (name, points) in enumerate(lines_of(record, curves, quantity).items()):
            told = slope(points) if quantity.slopes else None
            label = name if told is None else f"{name}: slope {told:.2f}"
            axis.plot(list(points), list(points.values()), "osD^v<>"[number % 7] + "-", ms=4, label=label)
        axis.set(xscale="log", yscale="log" if quantity.slopes else "linear", xlabel=curves.axis, ylabel=quantity.label)
        axis.set_xticks(_places(axis), [f"{place:,}" for place in _places(axis)], rotation=45)
        axis.minorticks_off()
        axis.set_ylim(bottom=None if quantity.slopes else 0)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    save_figure(figure, picture, "--write_page")


def _places(axis):
    return sorted({int(place) for line in axis.get_lines() for place in line.get_xdata()})
