"""Where the time of an evaluation goes before the model: stages of an image, loaders, and waiting for data."""

import statistics
import time

import paddle

from passl_xcit.engine import builder
from passl_xcit.ops.frozen import Frozen
from passl_xcit.utils.config import Override
from passl_xcit.utils.seed import SAMPLE, generator

PROFILED = 200  # images


@paddle.no_grad()
def measure_pipeline(cfg, workers, repeats, told=lambda text: None):
    """What the evaluation of a config spends before its model.

    Args:
        workers: numbers of worker processes to try.
        repeats: turns of each.

    Returns:
        {"images": of an epoch, "stages": {name: milliseconds of one core for an image, median},
        "loaders": {workers: [images/s of a turn, ...]}, "evaluations": {workers: [{"seconds", "waiting"} of a turn]}}.
        A loader alone is read as fast as it can; an evaluation runs the model, and "waiting" is how long it waited for
        batches.
    """
    builder.check_config(cfg, training=False)
    cfg = builder.with_classes_of_data(cfg, "val")
    model = builder.build_model(cfg, training=False)
    model.eval()
    loaders = {count: _loader(cfg, model, count) for count in workers}
    dataset = next(iter(loaders.values())).dataset
    frozen = Frozen(model)

    def predict(images):
        with frozen:
            return model(images).numpy()

    told("stages")
    found = {"images": len(dataset), "stages": profile_stages(dataset)}
    found["loaders"] = {str(count): [] for count in workers}
    found["evaluations"] = {str(count): [] for count in workers}
    for turn in range(repeats):
        for count, loader in loaders.items():
            told(f"turn {turn + 1} of {repeats}: {count} workers")
            seconds, _ = _time_epoch(loader, lambda images: None)
            found["loaders"][str(count)].append(len(dataset) / seconds)
            seconds, waiting = _time_epoch(loader, predict)
            found["evaluations"][str(count)].append({"seconds": seconds, "waiting": waiting})
    return found


def profile_stages(dataset):
    """{stage: milliseconds}: the median CPU time of an image in decoding ("load") and in each transform."""
    times = {}
    for index in range(min(PROFILED, len(dataset))):
        image, seconds = _cpu_timed(dataset.load, index)
        times.setdefault("load", []).append(seconds)
        rng = generator(dataset.seed, SAMPLE, 0, index)
        for transform in dataset.transforms:
            image, seconds = _cpu_timed(transform, image, rng)
            times.setdefault(type(transform).__name__, []).append(seconds)
    return {stage: 1e3 * statistics.median(seconds) for stage, seconds in times.items()}


def _cpu_timed(function, *arguments):
    began = time.process_time()
    return function(*arguments), time.process_time() - began


def _loader(cfg, model, workers):
    override = Override("dataloader.val.loader.num_workers", workers, "--num_workers")
    return builder.build_loader(cfg.overridden([override]), "val", model.num_classes)


def _time_epoch(loader, use):
    """(seconds of an epoch in which `use` gets each batch of images, seconds in which it had to wait for them)"""
    began = asked = time.perf_counter()
    waiting = 0.0
    for images, _ in loader:
        waiting += time.perf_counter() - asked
        use(images)
        asked = time.perf_counter()
    return time.perf_counter() - began, waiting


def pipeline_lines(found):
    """Markdown: stages and loaders of `measure_pipeline`."""
    total = sum(found["stages"].values())
    lines = ["| stage | ms of one core | share |", "| --- | --- | --- |"]
    lines += [f"| {stage} | {value:.2f} | {value / total:.0%} |" for stage, value in found["stages"].items()]
    lines += [f"| all | {total:.2f} | |", ""]
    lines += ["| workers | loader alone, images/s | evaluation, images/s | of its time waiting |"]
    lines += ["| --- | --- | --- | --- |"]
    for count, rates in found["loaders"].items():
        runs = found["evaluations"][count]
        speed = statistics.median(found["images"] / run["seconds"] for run in runs)
        waiting = statistics.median(run["waiting"] / run["seconds"] for run in runs)
        lines.append(f"| {count} | {statistics.median(rates):.0f} | {speed:.0f} | {waiting:.0%} |")
    return lines
