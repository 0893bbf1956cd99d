"""The figures of docs/distillation.md and of the configs' headers are those of the logs beside the page."""

import re
import statistics
from pathlib import Path

import pytest

from passl_xcit.engine.curves import read_curves

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "docs" / "distillation_logs"
PAGE = (ROOT / "docs" / "distillation.md").read_text(encoding="utf-8")
ROWS = {"cifar10": "CIFAR-10 (JPEG copies)", "fashion_mnist": "Fashion-MNIST, the embedded part"}
CONFIGS = {
    "cifar10": "configs/cifar10/{}cifar10{}.yaml",
    "fashion_mnist": "configs/demo/{}fashion_mnist{}.yaml",
}


def last(path):
    """Top-1 accuracy after the last epoch."""
    accuracies = read_curves(path)["val", "acc1"]
    return accuracies[max(accuracies)]


def of_seeds(data, kind):
    return [last(LOGS / f"{data}_{kind}_{seed}.jsonl") for seed in range(3)]


def mean_and_spread(values):
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"


@pytest.mark.parametrize("data", ROWS)
def test_the_table_is_what_the_logs_say(data):
    alone, distilled = of_seeds(data, "alone"), of_seeds(data, "distilled")
    teacher = last(LOGS / f"{data}_teacher.jsonl")
    difference = statistics.fmean(distilled) - statistics.fmean(alone)
    spread = max(statistics.stdev(alone), statistics.stdev(distilled))
    cells = [ROWS[data], f"{teacher:.2f}", mean_and_spread(alone), mean_and_spread(distilled), f"{difference:+.2f}"]
    assert f"| {' | '.join(cells)} | {spread:.2f} |" in PAGE
    for values in (alone, distilled):
        assert ", ".join(f"{value:.2f}" for value in values) in re.sub(r"\s+", " ", PAGE)


@pytest.mark.parametrize("data", ROWS)
def test_the_headers_of_the_configs_are_what_the_logs_say(data):
    figures = {
        ("regnet_", ""): f"{last(LOGS / f'{data}_teacher.jsonl'):.2f}",
        ("xcit_mini_p4_", ""): mean_and_spread(of_seeds(data, "alone")),
        ("xcit_mini_p4_", "_dist"): mean_and_spread(of_seeds(data, "distilled")),
    }
    for parts, figure in figures.items():
        header = (ROOT / CONFIGS[data].format(*parts)).read_text(encoding="utf-8")
        assert f"{figure} %" in header and ("JPEG copies" in header) == (data == "cifar10")


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_other_losses_are_what_the_logs_say(kind):
    assert f"`{kind}` {mean_and_spread(of_seeds('fashion_mnist', kind))}" in re.sub(r"\s+", " ", PAGE)


def test_a_win_is_claimed_only_where_it_is_above_the_spread():
    found = {}
    for data in ROWS:
        alone, distilled = of_seeds(data, "alone"), of_seeds(data, "distilled")
        spread = max(statistics.stdev(alone), statistics.stdev(distilled))
        found[data] = statistics.fmean(distilled) - statistics.fmean(alone) > spread
    assert found == {"cifar10": True, "fashion_mnist": False}  # as the page says, in these words:
    assert "On Fashion-MNIST it does not win by more than the spread" in re.sub(r"\s+", " ", PAGE)
