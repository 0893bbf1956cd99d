"""The last lines of a training: its best and last accuracy, how long it took, and where its files are."""

import datetime

from passl_xcit.utils.logger import TRAINER, get_logger

logger = get_logger(TRAINER)

COUNTERS = ("epoch", "iter", "samples", "elapsed")
ACCURACIES = ("acc1", "acc5")
EVALUATIONS = {"val": ("", "best.pdparams"), "val_ema": ("EMA ", "best_ema.pdparams")}


def log_summary(trainer):
    """Print the lines of `summary`, from what `log.jsonl` holds: all starts of the run count, not this one alone."""
    for line in summary(entries_that_count(trainer.log.read()), trainer.output_dir, trainer.checkpoint_dir):
        logger.info(line)


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


def summary(entries, output_dir, checkpoint_dir):
    """The lines of text that sum up a run; there are none of what its entries do not tell."""
    for mode, (label, best_file) in EVALUATIONS.items():
        evaluations = [entry for entry in entries if entry["mode"] == mode]
        if evaluations:
            best = max(evaluations, key=lambda entry: entry["acc1"])  # the first of equal ones, as in the checkpoint
            yield _result(f"best {label}", best, checkpoint_dir / best_file)
            yield _result(f"last {label}", evaluations[-1], checkpoint_dir / "latest.pdparams")
    starts = _starts(entries)
    images = starts[-1][-1]["samples"] - starts[0][0]["samples"] if starts else 0
    seconds = sum(start[-1]["elapsed"] for start in starts)
    if images > 0 and seconds > 0:
        took = f"{datetime.timedelta(seconds=round(seconds))}, {images / seconds:.1f} images/s"
        yield f"trained on {images:,} images in {took} with evaluations and checkpoints"
    curves = output_dir / "visual_dl"
    shown = f"; curves: visualdl --logdir {curves}" if curves.is_dir() else ""
    yield f"log: {output_dir / 'log.txt'}, log.jsonl{shown}"


def _result(which, entry, path):
    file = f": {path}" if path.is_file() else ""
    return f"{which}acc1 {entry['acc1']:.3f}, acc5 {entry['acc5']:.3f} after epoch {entry['epoch']}{file}"


def _starts(entries):
    """[[the entries of a start of the run], ...]"""
    starts = []
    for entry in entries:
        if entry["mode"] == "begin":
            starts.append([])
        if starts:
            starts[-1].append(entry)
    return starts
