"""The last lines of a training: its best and last accuracy, how long it took, and where its files are."""

import datetime

from passl_xcit.hooks.checkpoint_hook import BEST, BEST_EMA, LATEST
from passl_xcit.utils.logger import TRAINER, get_logger

logger = get_logger(TRAINER)

COUNTERS = ("epoch", "iter", "samples", "elapsed")
ACCURACIES = ("acc1", "acc5")
EVALUATIONS = ("val", "val_ema")


def log_summary(trainer):
    """Print the lines of `summary`."""
    for line in summary(trainer):
        logger.info(line)


def summary(trainer):
    """The lines of text that sum up the run in the folder of `trainer`, over all its starts.

    The best evaluations are those of the checkpoint, the rest stands in `log.jsonl`; nothing is said of what that lost.
    """
    entries = entries_that_count(trainer.log.read())
    if not entries or entries[-1]["iter"] != trainer.state.iter:  # the disk was full, or the log is another run's
        entries = []
    yield from _results("", trainer.state.best, _of_mode("val", entries), trainer.checkpoint_dir, BEST)
    averages = _of_mode("val_ema", entries)
    yield from _results("EMA ", trainer.state.best_ema, averages, trainer.checkpoint_dir, BEST_EMA)
    starts = _starts(entries)
    images = starts[-1][-1]["samples"] - starts[0][0]["samples"] if starts else 0
    seconds = sum(start[-1]["elapsed"] for start in starts)
    if images > 0 and seconds > 0:
        took = f"{datetime.timedelta(seconds=round(seconds))}, {images / seconds:.1f} images/s"
        yield f"trained on {images:,} images in {took} with evaluations and checkpoints"
    curves = trainer.output_dir / "visual_dl"
    shown = f"; curves: visualdl --logdir {curves}" if curves.is_dir() else ""
    yield f"log: {trainer.output_dir / 'log.txt'}, log.jsonl{shown}"


def entries_that_count(entries):
    """The entries of a `log.jsonl` without those of iterations that a later start has taken back."""
    kept = []
    for entry in filter(_is_whole, entries):
        if entry["mode"] == "begin":
            kept = [earlier for earlier in kept if earlier["iter"] <= entry["iter"]]
        kept.append(entry)
    return kept


def _is_whole(entry):
    """Whether `entry` has what is looked at below: others may have written to the file, such as version 0.1."""
    needed = (*COUNTERS, *(ACCURACIES if entry.get("mode") in EVALUATIONS else ()))
    return "mode" in entry and all(isinstance(entry.get(key), (int, float)) for key in needed)


def _of_mode(mode, entries):
    return [entry for entry in entries if entry["mode"] == mode]


def _results(label, best, evaluations, folder, best_file):
    """The lines of the best evaluation and of the last one, as far as they are known."""
    for which, found, name in (("best", best, best_file), ("last", (evaluations or [{}])[-1], LATEST)):
        if all(key in found for key in (*ACCURACIES, "epoch")):
            file = f": {folder / name}" if (folder / name).is_file() else ""
            accuracies = f"acc1 {found['acc1']:.3f}, acc5 {found['acc5']:.3f}"
            yield f"{which} {label}{accuracies} after epoch {found['epoch']}{file}"


def _starts(entries):
    """[[the entries of a start of the run], ...]"""
    starts = []
    for entry in entries:
        if entry["mode"] == "begin":
            starts.append([])
        if starts:
            starts[-1].append(entry)
    return starts
