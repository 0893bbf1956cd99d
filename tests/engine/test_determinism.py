"""The same seed gives the same run: again, with other workers, with other threads, in another process."""

import numpy as np
import pytest
from tiny_run import json_lines, start, tiny_file, tiny_run

from passl_xcit.datasets import dataloader
from passl_xcit.modeling.checkpoint_formats import read_file


def result(folder):
    """(weights and moments of the last checkpoint, what was logged of losses and accuracies)"""
    tree = read_file(folder / "latest.pdparams")
    return {**tree["state_dict"], **tree["optimizer"]}, json_lines(folder)


def assert_same(ours, theirs):
    assert ours[1] == theirs[1]
    for name, array in ours[0].items():
        np.testing.assert_array_equal(array, theirs[0][name])


@pytest.fixture
def first(tmp_path):
    tiny_run(tmp_path)
    return result(tmp_path / "out")


WORKERS = "dataloader.{}.num_workers={}"


@pytest.mark.parametrize("workers", [None, 1, 2])
def test_a_run_is_the_same_again_with_any_number_of_workers(first, workers, tmp_path, monkeypatch):
    monkeypatch.setattr(dataloader, "usable_cores", lambda: 2)
    overrides = [] if workers is None else [WORKERS.format(split, workers) for split in ("train", "val")]
    tiny_run(tmp_path, f"output_dir={tmp_path}/again", *overrides)
    assert_same(result(tmp_path / "again"), first)


def test_another_seed_is_another_run(first, tmp_path):
    tiny_run(tmp_path, f"output_dir={tmp_path}/other", "seed=6")
    weights, lines = result(tmp_path / "other")
    assert lines != first[1]
    assert all((weights[name] != array).any() for name, array in first[0].items() if name.endswith("weight"))


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_run_is_the_same_in_another_process_with_any_number_of_threads(first, threads, tmp_path, monkeypatch):
    """Of a model this small; a larger one may be summed in another order with other threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    process = start("-c", tiny_file(tmp_path), "-o", f"output_dir={tmp_path}/fresh")
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert_same(result(tmp_path / "fresh"), first)
