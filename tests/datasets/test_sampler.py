"""Which samples a process sees, as laws."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from passl_xcit.datasets.sampler import DistributedBatchSampler, DistributedRepeatedAugSampler
from passl_xcit.utils.errors import ConfigError
from passl_xcit.utils.registry import SAMPLERS

lengths, worlds, batch_sizes = st.integers(0, 60), st.integers(1, 5), st.integers(1, 9)
seeds, epochs = st.integers(0, 2**32), st.integers(0, 3)


def sampler_of(length, batch_size=4, epoch=0, batch=0, **options):
    sampler = DistributedBatchSampler(batch_size, length=length, **options)
    sampler.set_position(epoch, batch)
    return sampler


def indices_of(sampler):
    return [index for batch in sampler for _, index in batch]


def all_processes(length, world_size, **options):
    """The indices that each process sees."""
    return [indices_of(sampler_of(length, rank=rank, world_size=world_size, **options)) for rank in range(world_size)]


@given(lengths, worlds, batch_sizes, st.booleans(), seeds, epochs)
def test_an_evaluation_sees_every_sample_exactly_once(length, world_size, batch_size, shuffle, seed, epoch):
    options = {"batch_size": batch_size, "shuffle": shuffle, "seed": seed, "epoch": epoch}
    seen = all_processes(length, world_size, pad=False, **options)
    assert sorted(sum(seen, [])) == list(range(length))


@given(lengths, worlds, batch_sizes)
def test_common_batches_are_those_that_every_process_of_an_evaluation_has(length, world_size, batch_size):
    options = {"batch_size": batch_size, "world_size": world_size, "pad": False}
    samplers = [sampler_of(length, rank=rank, **options) for rank in range(world_size)]
    assert {sampler.common_batches() for sampler in samplers} == {min(len(list(sampler)) for sampler in samplers)}


@given(lengths, worlds, batch_sizes, st.booleans(), st.booleans(), seeds, epochs)
def test_in_training_all_processes_make_equally_many_equally_large_steps(
    length, world_size, batch_size, shuffle, drop_last, seed, epoch
):
    options = {"batch_size": batch_size, "shuffle": shuffle, "drop_last": drop_last, "seed": seed, "epoch": epoch}
    samplers = [sampler_of(length, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    steps = [[len(batch) for batch in sampler] for sampler in samplers]
    assert all(sizes == steps[0] for sizes in steps)
    assert len(steps[0]) == len(samplers[0])


@given(lengths, worlds, batch_sizes, st.booleans(), seeds)
def test_padding_leaves_no_sample_out_and_repeats_fewer_than_there_are_processes(
    length, world_size, batch_size, shuffle, seed
):
    seen = sum(all_processes(length, world_size, batch_size=batch_size, shuffle=shuffle, seed=seed), [])
    assert set(seen) == set(range(length))
    assert len(seen) - length < world_size


@given(lengths, worlds, batch_sizes, seeds)
def test_drop_last_repeats_no_sample_and_makes_full_batches_only(length, world_size, batch_size, seed):
    options = {"batch_size": batch_size, "shuffle": True, "drop_last": True, "seed": seed}
    seen = all_processes(length, world_size, **options)
    assert len(set(sum(seen, []))) == len(sum(seen, []))
    assert {len(indices) for indices in seen} == {length // world_size // batch_size * batch_size}


@given(lengths, worlds, batch_sizes, st.booleans(), st.booleans(), st.booleans())
def test_its_length_is_the_number_of_batches_of_a_whole_epoch(length, world_size, batch_size, drop_last, pad, shuffle):
    options = {"drop_last": drop_last, "pad": pad, "shuffle": shuffle}
    for rank in range(world_size):
        sampler = sampler_of(length, batch_size, rank=rank, world_size=world_size, **options)
        assert len(sampler) == len(list(sampler))
        sampler.set_position(1, 2)
        assert len(sampler) == len(list(sampler_of(length, batch_size, 1, rank=rank, world_size=world_size, **options)))


@given(lengths, batch_sizes, st.booleans(), seeds, epochs, st.integers(0, 70))
def test_starting_in_mid_epoch_gives_the_rest_of_the_same_epoch(length, batch_size, drop_last, seed, epoch, start):
    options = {"shuffle": True, "drop_last": drop_last, "seed": seed, "epoch": epoch}
    whole = list(sampler_of(length, batch_size, **options))
    assert list(sampler_of(length, batch_size, batch=start, **options)) == whole[start:]


@given(lengths, worlds, seeds, epochs)
def test_processes_share_one_order(length, world_size, seed, epoch):
    options = {"shuffle": True, "seed": seed, "epoch": epoch, "pad": False}
    order = indices_of(sampler_of(length, **options))
    assert all_processes(length, world_size, **options) == [order[rank::world_size] for rank in range(world_size)]


def test_without_shuffling_the_order_is_that_of_the_data_set():
    for epoch in (0, 1):
        assert indices_of(sampler_of(10, epoch=epoch)) == list(range(10))


def test_epochs_and_seeds_have_different_orders_and_the_same_ones_again():
    orders = {(epoch, seed): indices_of(sampler_of(100, epoch=epoch, seed=seed, shuffle=True)) for epoch in (0, 1, 2)
              for seed in (0, 1)}  # fmt: skip
    assert len({tuple(order) for order in orders.values()}) == 6
    assert indices_of(sampler_of(100, epoch=1, seed=1, shuffle=True)) == orders[1, 1]


def test_shuffling_is_uniform():
    """Each of 5 samples is first in a fifth of 4,000 epochs, to five standard deviations."""
    firsts = np.bincount([sampler_of(5, epoch=epoch, shuffle=True).indices()[0] for epoch in range(4000)], minlength=5)
    assert np.abs(firsts - 800).max() < 5 * math.sqrt(4000 * 0.2 * 0.8)


def test_keys_carry_the_epoch():
    assert list(sampler_of(3, 2, epoch=7)) == [[(7, 0), (7, 1)], [(7, 2)]]


def test_imagenet_makes_passls_iterations():
    sampler = sampler_of(1281167, batch_size=128, drop_last=True, world_size=8)
    assert len(sampler) == 1251


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_holds_at_least_one_sample(batch_size):
    with pytest.raises(ConfigError, match=f"here.batch_size: batch_size must be at least 1, not {batch_size}"):
        SAMPLERS.build({"batch_size": batch_size}, "here", length=4)


def test_passls_name_and_no_name_are_the_same_sampler():
    named = SAMPLERS.build({"name": "DistributedBatchSampler", "batch_size": 2}, length=4)
    assert list(named) == list(SAMPLERS.build({"batch_size": 2}, length=4))


# Repeated augmentation.

images = st.integers(0, 1100)


def repeated(length, batch_size=4, epoch=0, batch=0, **options):
    sampler = DistributedRepeatedAugSampler(batch_size, length=length, **options)
    sampler.set_position(epoch, batch)
    return sampler


def official_indices(order, rank, world_size):
    """DeiT's and facebookresearch/xcit's samplers.py: repeat, pad, deal to the processes, cut."""
    samples = math.ceil(len(order) * 3.0 / world_size)
    indices = [index for index in order for _ in range(3)]
    indices += indices[: samples * world_size - len(indices)]
    return indices[rank : samples * world_size : world_size][: math.floor(len(order) // 256 * 256 / world_size)]


@given(st.integers(256, 1100), worlds, seeds, epochs)
@example(256, 3, 0, 0)
@example(511, 5, 0, 0)
def test_repeated_images_are_those_of_the_official_sampler(length, world_size, seed, epoch):
    """The order that it repeats is the plain sampler's."""
    options = {"shuffle": True, "seed": seed, "epoch": epoch}
    order = indices_of(sampler_of(length, **options))
    for rank in range(world_size):
        keys = sum(repeated(length, rank=rank, world_size=world_size, **options), [])
        assert [index for _, index, _ in keys] == official_indices(order, rank, world_size)


@given(images, worlds, batch_sizes, st.integers(1, 4), st.booleans(), seeds, epochs)
def test_every_image_comes_with_each_of_its_repeats_once(
    length, world_size, batch_size, num_repeats, drop_last, seed, epoch
):
    """Over all processes; the last image of an epoch may lack some. The repeats stand side by side."""
    options = {"num_repeats": num_repeats, "shuffle": True, "drop_last": drop_last, "seed": seed, "epoch": epoch}
    dealt = [
        sum(repeated(length, batch_size, rank=rank, world_size=world_size, **options), []) for rank in range(world_size)
    ]
    assert len({len(keys) for keys in dealt}) == 1
    keys = [key for step in zip(*dealt) for key in step]
    assert len(set(keys)) == len(keys)
    assert [(key[0], key[2]) for key in keys] == [(epoch, place % num_repeats) for place in range(len(keys))]
    assert all(keys[place][1] == keys[place - place % num_repeats][1] for place in range(len(keys)))


@given(images, worlds, batch_sizes, st.booleans())
def test_a_repeated_epoch_holds_as_many_samples_as_images_rounded_down(length, world_size, batch_size, drop_last):
    rounded = length - length % 256 if length >= 256 else length
    for rank in range(world_size):
        sampler = repeated(length, batch_size, rank=rank, world_size=world_size, drop_last=drop_last)
        sizes = [len(batch) for batch in sampler]
        samples = rounded // world_size
        assert sum(sizes) == (samples - samples % batch_size if drop_last else samples)
        assert len(sampler) == len(sizes)
        assert all(size == batch_size for size in sizes[:-1])


@given(images, batch_sizes, seeds, epochs, st.integers(0, 70))
def test_a_repeated_epoch_can_be_started_in_its_middle(length, batch_size, seed, epoch, start):
    options = {"shuffle": True, "seed": seed, "epoch": epoch}
    whole = list(repeated(length, batch_size, **options))
    assert list(repeated(length, batch_size, batch=start, **options)) == whole[start:]


@given(images, worlds, st.integers(1, 4), seeds)
def test_a_step_takes_the_same_repeats_however_many_processes_share_it(length, world_size, share, seed):
    options = {"shuffle": True, "drop_last": True, "seed": seed}
    alone = list(repeated(length, share * world_size, **options))
    shared = zip(*(repeated(length, share, rank=rank, world_size=world_size, **options) for rank in range(world_size)))
    assert [sorted(sum(step, [])) for step in shared] == [sorted(step) for step in alone]


def test_repeated_imagenet_makes_the_official_iterations():
    options = {"batch_size": 128, "drop_last": True, "world_size": 8}
    assert [len(repeated(1281167, rank=rank, **options)) for rank in range(8)] == [1251] * 8
    seen = repeated(1281167, shuffle=True).indices()
    assert len(seen) == 1281024
    assert len(np.unique(seen)) == 1281024 // 3


@pytest.mark.parametrize(
    ("node", "pad", "message"),
    [
        ({"batch_size": 2, "num_repeats": 0}, True, "here.num_repeats: num_repeats must be at least 1, not 0"),
        ({"batch_size": 0}, True, "here.batch_size: batch_size must be at least 1, not 0"),
        (
            {"batch_size": 2},
            False,
            "here: an evaluation repeats no images: DistributedRepeatedAugSampler is for training",
        ),
    ],
)
def test_repeats_that_make_no_sense_are_refused(node, pad, message):
    with pytest.raises(ConfigError, match=message):
        SAMPLERS.build({"name": "DistributedRepeatedAugSampler", **node}, "here", length=4, pad=pad)
