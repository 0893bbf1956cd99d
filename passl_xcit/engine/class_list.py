"""Evaluating among some of a model's classes, as ImageNet-A and ImageNet-R ask for (timm's `--valid-labels`).

Those data sets have 200 of ImageNet's classes. Their class number i is the i-th line of a list, and a model's logits of
classes that the list does not name are ignored: probabilities, accuracies and the five best are those among the listed
classes alone.
"""

from pathlib import Path
from typing import NamedTuple, Optional, Tuple

import paddle
from paddle import nn

from passl_xcit.utils.errors import ConfigError, DataError
from passl_xcit.utils.logger import get_logger
from passl_xcit.utils.refusals import short

logger = get_logger(__name__)

OPTION = "--class_list"
WNIDS = Path(__file__).parent / "imagenet_wnids.txt"  # ILSVRC2012's WordNet numbers, in the order of the classes


class ClassList(NamedTuple):
    """Some classes of a model.

    Attributes:
        path: of the file.
        indices: their numbers in the model, in the file's order.
        names: what they are called, where that is known.
        lines: the line of each in the file, from 1.
    """

    path: str
    indices: Tuple[int, ...]
    names: Optional[Tuple[str, ...]]
    lines: Tuple[int, ...]

    def check_data(self, dataset):
        """Raise DataError unless `dataset` has exactly these classes, in this order as far as names tell.

        Where no name is in both, the two may only speak of the same classes in other words, which a line says.
        """
        count, names = len(self.indices), dataset.class_names
        found = len(names) if names is not None else int(dataset.labels.max()) + 1
        if found > count or (names is not None and found != count):
            raise DataError(
                f"{dataset.where}: {found} classes, but {OPTION} {self.path} lists {count}: expected a folder for each "
                "listed class, and none else"
            )
        if names is None or self.names is None:
            return
        if not set(names) & set(self.names):
            logger.warning(
                f"{dataset.where}: none of its classes is called as {OPTION} {self.path} has it: the folder "
                f"'{names[0]}' is taken to be '{self.names[0]}', and so on in this order"
            )
            return
        for line, given, listed in zip(self.lines, names, self.names):
            if given != listed:
                raise DataError(
                    f"{OPTION} {self.path}, line {line}: lists '{listed}' where {dataset.where} has '{given}': "
                    "expected the classes of the folders, in their order, which is that of their names"
                )


def read_class_list(path, num_classes, class_names=None):
    """The ClassList of a text file with a class a line: its number in the model (digits are
    always one), or its name.

    Args:
        num_classes: of the model.
        class_names: of the model; None stands for ImageNet's WordNet numbers, such as n01440764, in a model that has
            1,000 classes.

    Raises:
        ConfigError: the file cannot be read or lists no class, or a line is no class of the model, or one twice.
    """
    known = _names_of_model(num_classes, class_names)
    numbers = {name: index for index, name in enumerate(known or ())}
    indices, lines = [], []
    for line, text in enumerate(_read(path).splitlines(), 1):
        if text.strip():
            indices.append(_class_of(text.strip(), num_classes, numbers, f"{OPTION} {path}, line {line}"))
            lines.append(line)
    _check_indices(indices, lines, path)
    return ClassList(str(path), tuple(indices), known and tuple(known[index] for index in indices), tuple(lines))


def _read(path):
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(f"{OPTION} {path}: cannot be read: {reason}") from error


def _names_of_model(num_classes, class_names):
    if class_names is not None:
        return class_names
    wnids = WNIDS.read_text(encoding="utf-8").split()
    return wnids if num_classes == len(wnids) else None


def _class_of(text, num_classes, numbers, where):
    if text.isascii() and text.isdigit() and len(text) < 10 and int(text) < num_classes:
        return int(text)
    if text in numbers:
        return numbers[text]
    names = f", or a class's name such as {next(iter(numbers))}" if numbers else ""
    raise ConfigError(f"{where}: {short(text)}: expected a number from 0 to {num_classes - 1}{names}")


def _check_indices(indices, lines, path):
    if not indices:
        raise ConfigError(f"{OPTION} {path}: lists no class: expected a number or a name a line")
    seen = {}
    for index, line in zip(indices, lines):
        if index in seen:
            raise ConfigError(f"{OPTION} {path}, line {line}: class {index} is there already, in line {seen[index]}")
        seen[index] = line


class SomeClasses(nn.Layer):
    """A model that knows the classes of a list only: images -> logits [B, len(list)], in the list's order.

    Args:
        model: a Classification.
        class_list: a ClassList of it.
    """

    def __init__(self, model, class_list):
        super().__init__()
        self.model, self.class_list, self.preprocess = model, class_list, model.preprocess
        self.num_classes = len(class_list.indices)
        self.class_names = class_list.names and list(class_list.names)
        self.register_buffer("columns", paddle.to_tensor(class_list.indices, dtype="int64"), persistable=False)

    def forward(self, images):
        return self.model(images).index_select(self.columns, axis=1)
