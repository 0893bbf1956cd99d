"""Which cases a benchmark has, and how many bytes one moves at least."""

import pytest

from passl_xcit.engine.benchmark import cases
from passl_xcit.engine.benchmark.cases import Case, bytes_of, cases_of

NANO = Case("xcit_nano_12_p16", "inference", 1, 224, "float32", 1)
PARAMETERS = 3_053_224  # of the model zoo
STREAM = 128 * (12 * 196 + 2 * 197)  # what the blocks' inputs and outputs have each
IMAGE = 3 * 224 * 224


def test_every_number_of_threads_and_processes_is_a_case_with_the_limits_of_as_many_cores(monkeypatch):
    monkeypatch.setattr(cases, "usable_cores", lambda: 4)
    found = cases_of([NANO.model], ["inference"], [1], [32], ["float32"], [1, 2], [1, 2, 4])
    crews = [(case.threads, case.processes) for case in found if case.model]
    assert crews == [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2)]  # two threads in each of four processes are too many
    assert [str(case) for case in found if not case.model] == [
        f"{mode} float32, {threads}"
        for threads in ("1 thread", "2 threads", "4 threads")
        for mode in ("matmul", "copy")
    ]
    assert str(found[-1]) == "xcit_nano_12_p16 inference float32, 32 px, batch 1, 2 processes of 2 threads"


def test_more_threads_than_cores_are_measured_where_they_are_asked_for(monkeypatch):
    monkeypatch.setattr(cases, "usable_cores", lambda: 1)
    assert cases_of([NANO.model], ["inference"], [1], [32], ["float32"], [3], [1])[-1].threads == 3


@pytest.mark.parametrize("batch_size", [1, 16])
def test_inference_moves_parameters_images_logits_and_what_blocks_hand_on(batch_size):
    moved = 4 * (PARAMETERS + batch_size * (IMAGE + 2 * STREAM + 1000))
    assert bytes_of(NANO._replace(batch_size=batch_size)) == moved


@pytest.mark.parametrize("batch_size", [1, 16])
def test_training_moves_gradients_and_what_adamw_keeps_besides(batch_size):
    # Parameters: read by the forward and backward pass; gradients written and read; parameters and two means of AdamW
    # read and written. Blocks: inputs read twice and their gradients written, outputs written and their gradients read.
    passes, blocks = 2 + 2 + 3 * 2, (2 + 1) + (1 + 1)
    moved = 4 * (passes * PARAMETERS + batch_size * (2 * IMAGE + blocks * STREAM + 2 * 1000))
    assert bytes_of(NANO._replace(mode="train", batch_size=batch_size)) == moved
