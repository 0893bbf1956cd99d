"""What `tools/predict.py` does: predictions of files, folders and lists of paths, as a table, CSV or JSON."""

import csv
import io
import itertools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from passl_xcit.datasets.dataset import first_of, shown
from passl_xcit.datasets.imagenet import images_in
from passl_xcit.engine.features import STAGE
from passl_xcit.engine.predictor import Predictor
from passl_xcit.utils.errors import ConfigError, DataError
from passl_xcit.utils.logger import setup_logger
from passl_xcit.utils.new_file import replace_file

STDIN = "-"
MAX_NAME = 40  # characters of a class name in a table
DECIMALS = 6


def run(images, weights, form="table", output=None, class_names=None, **options):
    """Predict `images` and write what is said of them to stdout or, all or nothing, to the file `output`.

    Progress, speed and what went wrong go to stderr.

    Args:
        images: paths of images and folders; "-" stands for the paths in the lines of stdin.
        weights, options: see Predictor.
        form: one of FORMS.
        class_names: path of a file with the name of a class a line.

    Returns:
        The exit code: 0, or 1 where some images could not be used.

    Raises:
        UserError: nothing could be predicted at all.
    """
    setup_logger(stream=sys.stderr)
    _check_output(output)
    names = None if class_names is None else read_names(class_names)
    paths, total = _paths_of(images)
    predictor = Predictor(weights, class_names=names, **options)
    counted = _Counted(predictor.predict(paths), total, bar=output is not None or not sys.stdout.isatty())
    _write(FORMS[form](counted, predictor), output)
    return counted.tell()


def write_features(images, weights, output, stage=STAGE, **options):
    """Write the features of `images` to a file of NumPy arrays: `features` float32 [N, C], and `images`, their paths.

    Those that cannot be used are left out, and told on stderr.

    Args:
        images, weights, options: see `run`.
        output: a .npz file, which is written when all is done.
        stage: see `Predictor.features`.

    Returns:
        The exit code: 0, or 1 where some images could not be used.

    Raises:
        UserError: nothing could be written at all.
    """
    setup_logger(stream=sys.stderr)
    _check_output(output, "--features")
    if Path(output).suffix != ".npz":
        raise ConfigError(f"--features {output}: expected a file that ends in .npz")
    paths, total = _paths_of(images)
    predictor = Predictor(weights, **options)
    counted = _Counted(predictor.features(paths, stage), total, bar=True)
    found = [(image, features) for image, features, error in counted if not error]
    code = counted.tell()
    if not found:
        raise DataError(f"none of {counted.count:,} images can be used: {output} is not written")
    names, rows = zip(*found)
    arrays = {"features": np.stack(rows), "images": np.array(names)}
    replace_file(output, lambda file: np.savez(file, **arrays))
    print(f"{output}: features {list(arrays['features'].shape)}", file=sys.stderr)
    return code


def _paths_of(images):
    """(paths of images, an iterator; their number, or None where standard input names them)."""
    paths = list(itertools.chain.from_iterable(map(_expanded, images)))
    total = None if STDIN in paths else len(paths)
    return itertools.chain.from_iterable(_lines_of_stdin() if path == STDIN else [path] for path in paths), total


def read_names(path):
    """The lines of a text file, which are the names of classes; ConfigError if it cannot be read."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"--class_names {path}: cannot be read: {reason}") from error
    return [line.strip() for line in lines if line.strip()]


def _check_output(output, option="-o"):
    """Raise ConfigError for a file that cannot be written: known before the weights are read."""
    folder = os.path.dirname(output or "") or "."
    if output and not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
        raise ConfigError(f"{option} {output}: there is no folder {folder} that can be written to")
    if output and os.path.exists(output) and not os.path.isfile(output):
        raise ConfigError(f"{option} {output}: is not a file")


def _expanded(path):
    return images_in(path) if path != STDIN and os.path.isdir(path) else [path]


def _lines_of_stdin():
    for line in sys.stdin.buffer:
        path = os.fsdecode(line.rstrip(b"\r\n"))
        if path:
            yield path


class _Counted:
    """Passes predictions on, with a progress bar, and remembers how many there were and what was wrong."""

    def __init__(self, predictions, total, bar):
        self.predictions, self.total = predictions, total
        self.hide = None if bar else True  # None: shown where stderr is a terminal
        self.count, self.bad, self.begun = 0, [], time.perf_counter()

    def __iter__(self):
        for prediction in tqdm(self.predictions, total=self.total, unit="image", disable=self.hide):
            self.count += 1
            if prediction.error:
                self.bad.append(f"{shown(prediction.image)}: {prediction.error}")
            yield prediction
        if not self.count:  # here, so that no file is written
            raise DataError("standard input names no image")

    def tell(self):
        """Say on stderr how it went, and return the exit code."""
        seconds = time.perf_counter() - self.begun
        images = f"{self.count:,} {'image' if self.count == 1 else 'images'}"
        print(f"{images} in {seconds:.2f} s, {self.count / seconds:.1f} images/s", file=sys.stderr)
        if self.bad:
            print(f"{len(self.bad):,} of {images} could not be used: {first_of(self.bad)}", file=sys.stderr)
        return 1 if self.bad else 0


def _write(texts, output):
    if output:
        replace_file(output, lambda file: file.writelines(map(_encoded, texts)))
        return
    for text in texts:
        sys.stdout.buffer.write(_encoded(text))
        sys.stdout.buffer.flush()


def _encoded(text):
    """UTF-8; bytes in a path that are none become `\\udcXX`, which JSON knows."""
    return text.encode("utf-8", "backslashreplace")


# Formats: texts of a stream of predictions.


def _table(predictions, predictor):
    names = predictor.class_names or map(str, range(predictor.model.num_classes))
    width = min(MAX_NAME, max(map(len, map(shown, names))))
    headers = [f"{f'top-{place}':<{width}}       %" for place in range(1, predictor.topk + 1)]
    yield "  ".join([*headers, "image"]) + "\n"
    all_columns = len("  ".join(headers))
    for image, top, error in predictions:
        cells = [f"{_label(guess)[:width]:<{width}}  {100 * guess.probability:6.2f}" for guess in top]
        yield "  ".join([*cells, shown(image)] if not error else [f"{error:<{all_columns}}", shown(image)]) + "\n"


def _label(guess):
    return str(guess.index) if guess.name is None else shown(guess.name)


def _csv(predictions, predictor):
    places = range(1, predictor.topk + 1)
    columns = [f"{column}{place}" for place in places for column in ("class", "name", "probability")]
    yield _csv_line(["image", "error", *columns])
    for image, top, error in predictions:
        cells = [cell for guess in top for cell in (guess.index, guess.name, round(guess.probability, DECIMALS))]
        yield _csv_line([image, error, *(cells or [None] * len(columns))])


def _csv_line(cells):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _jsonl(predictions, predictor):
    return (_json_object(prediction) + "\n" for prediction in predictions)


def _json(predictions, predictor):
    before = "[\n"
    for prediction in predictions:
        yield before + _json_object(prediction)
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def _json_object(prediction):
    if prediction.error:
        return json.dumps({"image": prediction.image, "error": prediction.error}, ensure_ascii=False)
    top = [{**guess._asdict(), "probability": round(guess.probability, DECIMALS)} for guess in prediction.top]
    return json.dumps({"image": prediction.image, "top": top}, ensure_ascii=False)


FORMS = {"table": _table, "csv": _csv, "json": _json, "jsonl": _jsonl}
