"""What the logs of several trainings say, and what a schedule would do, as numbers and as pictures."""

import statistics
from pathlib import Path

from passl_xcit.engine import builder
from passl_xcit.engine.pictures import new_figure, save_figure
from passl_xcit.utils.errors import ConfigError, DataError
from passl_xcit.utils.logger import JsonLog

PANELS = {("val", "acc1"): "validation accuracy, %", ("train", "loss"): "training loss"}
SIZE = (5.5, 3.6)  # inches of a panel


def read_curves(path):
    """{(mode, name): {epoch: value}} of a log.jsonl (docs/training.md), epochs counted from 1.

    `mode` is "train" or "val", `name` "loss", "acc1" and so on. An epoch's training values are averaged. Of two lines
    of an iteration, which a run that was killed and resumed may have, the later one counts.

    Raises:
        DataError: for a file that cannot be read.
    """
    try:
        entries = JsonLog(path).read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    newest = {(entry["mode"], entry["iter"]): entry for entry in entries if _is_line(entry)}
    values = {}
    for (mode, _), entry in newest.items():
        epoch = entry["epoch"] + (mode == "train")  # a training line counts finished epochs
        for name in [name for name, value in entry.items() if isinstance(value, (int, float))]:
            values.setdefault((mode, name), {}).setdefault(epoch, []).append(entry[name])
    return {key: {epoch: statistics.fmean(found) for epoch, found in by.items()} for key, by in values.items()}


def _is_line(entry):
    return entry.get("mode") in ("train", "val") and all(type(entry.get(key)) is int for key in ("epoch", "iter"))


def read_runs(texts):
    """{name: [curves of a run, ...]} of texts `NAME=FOLDER`, in their order; a name may have several folders.

    Raises:
        ConfigError: for another text.
        DataError: see `read_curves`; and for a run that never was evaluated.
    """
    runs = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise ConfigError(f"{text}: expected NAME=FOLDER, such as student=outputs/student_0")
        path = Path(folder) / "log.jsonl" if Path(folder).is_dir() else Path(folder)
        curves = read_curves(path)
        missing = [" ".join(key) for key in PANELS if key not in curves]
        if missing:
            raise DataError(f"{path}: no such log, or no {missing[0]} in it: is the training's first epoch over?")
        runs.setdefault(name, []).append(curves)
    return runs


def mean_and_spread(runs, key):
    """(epochs, means, spreads) of one curve over `runs`, a list of what `read_curves` returns.

    The spread is the sample standard deviation, 0 for one run. Epochs that only some of the runs have are left out.
    """
    epochs = sorted(set.intersection(*[set(run[key]) for run in runs]))
    values = [[run[key][epoch] for run in runs] for epoch in epochs]
    spreads = [statistics.stdev(of_epoch) if len(runs) > 1 else 0.0 for of_epoch in values]
    return epochs, [statistics.fmean(of_epoch) for of_epoch in values], spreads


def draw_runs(runs, output):
    """Draw validation accuracy and training loss of `read_runs` against epochs: the mean, and a band of the spread."""
    figure, (axes,) = new_figure(1, len(PANELS), *SIZE)
    for axis, (key, label) in zip(axes, PANELS.items()):
        for name, curves in runs.items():
            epochs, means, spreads = mean_and_spread(curves, key)
            (line,) = axis.plot(epochs, means, marker=".", label=_legend(name, curves))
            low, high = ([mean + sign * spread for mean, spread in zip(means, spreads)] for sign in (-1, 1))
            axis.fill_between(epochs, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(runs))
    save_figure(figure, output)


def _legend(name, curves):
    return f"{name} ({len(curves)} runs)" if len(curves) > 1 else name


def learning_rates(cfg, iters_per_epoch, processes=1):
    """(epochs, learning rates) of every step of a training with the config `cfg`, without model or data.

    Args:
        iters_per_epoch: steps an epoch, which only the data know.
        processes: by how many the batch size of the config is multiplied, where the schedule scales with it.
    """
    builder.check_config(cfg, training=True)
    batch_size = cfg["dataloader"]["train"]["sampler"].get("batch_size", 1)
    schedule = builder.schedule_of(cfg, iters_per_epoch, batch_size * processes)
    rates = []
    for _ in range(cfg["epochs"] * iters_per_epoch):
        rates.append(schedule())
        schedule.step()
    return [step / iters_per_epoch for step in range(len(rates))], rates


def draw_schedules(schedules, output):
    """Draw {name: (epochs, learning rates)} against epochs."""
    figure, ((axis,),) = new_figure(1, 1, *SIZE)
    for name, (epochs, rates) in schedules.items():
        axis.plot(epochs, rates, label=f"{name}: highest {max(rates):.3g}, last {rates[-1]:.3g}")
    axis.set_xlabel("epoch")
    axis.set_ylabel("learning rate")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside upper left", fontsize="small")
    save_figure(figure, output)
