"""The published weights of `zoo.yaml`: what each is called, where its files lie, and how well it does.

Nothing here needs Paddle.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Optional, Tuple, Union

from passl_xcit.utils.config import load_config

ZOO_FILE = Path(__file__).with_suffix(".yaml")
DIALECTS = ("official", "timm", "mmpretrain", "mindcv", "paddle")
FORMATS = ("torch", "safetensors", "mindspore", "paddle")


@dataclass(frozen=True)
class Pipeline:
    """How an image becomes a model's input: resize, take the centre, subtract `mean`, divide by `std` (of 0 to 255).

    `resize` is the length of the shorter side, or (height, width); `size` the side of the square that is left.
    """

    size: int
    resize: Union[int, Tuple[int, int]]
    crop_ratio: float
    interpolation: str
    mean: Tuple[float, ...]
    std: Tuple[float, ...]

    def __str__(self):
        fit = f"crop {self.crop_ratio:g}" if isinstance(self.resize, int) else "squashed"
        return f"{self.size} px, {fit}, {self.interpolation}"


@dataclass(frozen=True)
class WeightFile:
    """A file to download; `sha256` is how its digest begins, "" if that is not known."""

    url: str
    dialect: str
    format: str
    sha256: str = ""


@dataclass(frozen=True)
class Result:
    """Percentages on ImageNet-1k's validation images, as `by` published them (at `source`) for this `pipeline`."""

    by: str
    source: str
    pipeline: Pipeline
    acc1: float
    acc5: Optional[float] = None


@dataclass(frozen=True)
class OtherWeights:
    """A file that fits the backbone but is not known to hold the entry's numbers; `result` is the file's own."""

    by: str
    file: WeightFile
    result: Optional[Result]


@dataclass(frozen=True)
class ZooEntry:
    """One published weight; the first of `weights` is the one to take. `zoo.yaml` says what the fields mean."""

    name: str
    backbone: str
    aliases: Tuple[str, ...]
    params: int
    flops: int
    evaluation: Pipeline
    weights: Tuple[WeightFile, ...]
    results: Tuple[Result, ...]
    other_weights: Tuple[OtherWeights, ...]

    @property
    def names(self):
        return (self.name, *self.aliases)


def normal_form(name):
    """`name` in lower case with '_' for '-': names with the same normal form are the same name."""
    return name.lower().replace("-", "_")


def entries():
    """Every published weight as a ZooEntry, in the order of the file; read once."""
    return _zoo()[0]


def find(name):
    """The ZooEntry that is called `name` or has it as an alias; None if there is none."""
    return _zoo()[1].get(normal_form(name))


@cache
def _zoo():
    return read_zoo(ZOO_FILE)


def read_zoo(path):
    """Read a YAML file like `zoo.yaml` -> (entries as a tuple of ZooEntry, {normal form of a name: its ZooEntry}).

    Raises:
        ConfigError: if it is not a YAML file of plain values.
        ValueError: for an entry that cannot be right, or a name that two entries have.
    """
    reader = _Reader(load_config(path))
    found = tuple(reader.entry(node) for node in reader.config["entries"])
    by_name = {}
    for entry in found:
        for name in map(normal_form, entry.names):
            if name in by_name:
                raise ValueError(f"'{name}' is both {by_name[name].name} and {entry.name}")
            by_name[name] = entry
    return found, by_name


class _Reader:
    """Makes dataclasses of the file's nodes; `pipelines` and `publishers` are looked up by name."""

    def __init__(self, config):
        self.config, self.publishers = config, config["publishers"]
        common = {"mean": tuple(config["mean"]), "std": tuple(config["std"])}
        self.pipelines = {name: self._pipeline(node, common) for name, node in config["pipelines"].items()}

    def _pipeline(self, node, common):
        resize = node.pop("resize")
        return Pipeline(resize=tuple(resize) if isinstance(resize, list) else resize, **node, **common)

    def entry(self, node):
        try:
            return ZooEntry(
                aliases=tuple(node.pop("aliases")),
                evaluation=self.pipelines[node.pop("evaluation")],
                weights=tuple(self._file(item) for item in node.pop("weights")),
                results=tuple(self._result(item) for item in node.pop("results")),
                other_weights=tuple(self._other(item) for item in node.pop("other_weights", [])),
                **node,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{node.get('name')}: {error}") from error

    def _file(self, node):
        file = WeightFile(**node)
        if file.dialect not in DIALECTS or file.format not in FORMATS or file.sha256 not in file.url:
            raise ValueError(f"{file.url} has an unknown dialect or format, or a digest that is not in its name")
        return file

    def _result(self, node):
        node = {**node, "pipeline": self.pipelines[node["pipeline"]], "source": self.publishers[node["by"]]}
        return Result(**node)

    def _other(self, node):
        measured = {key: node.pop(key) for key in ("pipeline", "acc1", "acc5") if key in node}
        by = node.pop("by")
        return OtherWeights(by, self._file(node), self._result({"by": by, **measured}) if measured else None)
