"""Batches: the same ones for any number of workers, and errors that a user can read from any process."""

import gc
import os
import re
import signal
import time

import numpy as np
import pytest
from batches import arrays, assert_same_batches
from PIL import Image

from passl_xcit.datasets import dataloader
from passl_xcit.datasets.batch_transforms import Mixup
from passl_xcit.datasets.dataloader import Collate, ImageLoader
from passl_xcit.datasets.demo_fashion_mnist import FashionMNIST
from passl_xcit.datasets.imagenet import ImageNet
from passl_xcit.datasets.sampler import DistributedBatchSampler, DistributedRepeatedAugSampler
from passl_xcit.datasets.transforms import Normalize, RandomCrop, RandomErasing, RandomHorizontalFlip, Transpose
from passl_xcit.utils.device import current_place
from passl_xcit.utils.errors import ConfigError, DataError

WORKERS = [(0, True), (1, True), (2, True), (2, False)]  # num_workers, use_shared_memory


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    """Two workers are two also on a machine of one core."""
    monkeypatch.setattr(dataloader, "usable_cores", lambda: 2)


@pytest.fixture
def folder(write_image, tmp_path):
    """Two classes of seven images."""
    for number in range(7):
        for name in "ab":
            write_image(f"{name}/{number}.png")
    return str(tmp_path)


def loader_of(dataset, workers=(0, True), position=(0, 0), batch_size=4, shuffle=True, **options):
    sampler = DistributedBatchSampler(batch_size, shuffle, length=len(dataset), seed=dataset.seed)
    sampler.set_position(*position)
    return ImageLoader(dataset, sampler, num_workers=workers[0], use_shared_memory=workers[1], **options)


def random_dataset(folder, seed=0):
    """Transforms and a batch transform that all draw."""
    transforms = [RandomCrop(6, padding=2), RandomHorizontalFlip(), Transpose(), Normalize([9] * 3, [3] * 3)]
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, mode="elem", num_classes=2)
    return ImageNet(folder, [*transforms, RandomErasing(0.5, mode="pixel")], [mixup], seed=seed)


def refusal(loader, kind=DataError):
    with pytest.raises(kind) as caught:
        for _ in loader:
            pass
    return str(caught.value)


# What a batch is.


def test_batches_are_float_images_and_class_numbers():
    dataset = FashionMNIST("test", [Transpose()])
    (images, targets), *_, (last_images, last_targets) = loader_of(dataset, batch_size=150, shuffle=False)
    assert (images.shape, targets.shape) == ([150, 1, 28, 28], [150])
    assert (last_images.shape, last_targets.shape) == ([50, 1, 28, 28], [50])
    assert (str(images.dtype), str(targets.dtype)) == ("paddle.float32", "paddle.int64")
    np.testing.assert_array_equal(images.numpy()[:, 0], dataset.images[:150])
    np.testing.assert_array_equal(targets.numpy(), dataset.labels[:150])


@pytest.mark.parametrize("workers", WORKERS)
def test_batches_are_on_the_current_device_and_outlive_the_next(folder, workers):
    expected = arrays(loader_of(random_dataset(folder)))
    batches = list(loader_of(random_dataset(folder), workers))
    assert_same_batches([(images.numpy(), targets.numpy()) for images, targets in batches], expected)
    assert all(str(tensor.place) == str(current_place()) and tensor.stop_gradient for tensor in batches[0])


def test_batch_transforms_make_soft_targets(folder):
    (_, targets), *_ = loader_of(random_dataset(folder))
    assert targets.shape == [4, 2] and str(targets.dtype) == "paddle.float32"
    np.testing.assert_allclose(targets.numpy().sum(axis=1), 1, atol=1e-6)


def test_its_length_is_that_of_the_epoch(folder):
    loader = loader_of(random_dataset(folder), position=(0, 3))
    assert (len(loader), len(list(loader))) == (4, 1)


# Determinism.


@pytest.mark.parametrize("workers", WORKERS[1:])
def test_batches_are_the_same_to_the_last_bit_for_any_number_of_workers(folder, workers):
    expected = arrays(loader_of(random_dataset(folder)))
    assert_same_batches(arrays(loader_of(random_dataset(folder), workers)), expected)


@pytest.mark.parametrize("workers", [(0, True), (2, True)])
def test_starting_in_mid_epoch_gives_the_rest_of_the_same_epoch(folder, workers):
    whole = arrays(loader_of(random_dataset(folder), position=(3, 0)))
    assert_same_batches(arrays(loader_of(random_dataset(folder), workers, position=(3, 2))), whole[2:])


def repeated_loader(dataset, workers=(0, True), position=(0, 0)):
    sampler = DistributedRepeatedAugSampler(3, shuffle=True, length=len(dataset), seed=dataset.seed)
    sampler.set_position(*position)
    return ImageLoader(dataset, sampler, num_workers=workers[0], use_shared_memory=workers[1])


def test_the_repeats_of_an_image_are_augmented_differently(folder):
    """Each batch of three holds one image three times."""
    dataset = ImageNet(folder, [RandomCrop(6, padding=2), Transpose(), Normalize([9] * 3, [3] * 3)])
    for images, targets in arrays(repeated_loader(dataset))[:4]:
        assert len(np.unique(targets)) == 1
        assert len(np.unique(images.reshape(3, -1), axis=0)) == 3


@pytest.mark.parametrize("workers", WORKERS[1:])
def test_repeats_are_the_same_for_any_number_of_workers_and_from_the_middle(folder, workers):
    whole = arrays(repeated_loader(random_dataset(folder), position=(3, 0)))
    assert_same_batches(arrays(repeated_loader(random_dataset(folder), workers, position=(3, 2))), whole[2:])


def test_the_draws_of_a_plain_sample_are_those_of_seed_epoch_and_index():
    """NumPy's own words for them: a change would silently change every training."""
    draws = []
    dataset = FashionMNIST("test", [lambda image, rng: draws.append(rng.random())], seed=7)
    dataset[3, 5], dataset[3, 5, 0], dataset[3, 5, 1]
    expected = [
        np.random.default_rng(np.random.SeedSequence([7, 1, *key])).random() for key in ((3, 5), (3, 5, 0), (3, 5, 1))
    ]
    assert draws == expected
    assert len(set(draws)) == 3


def test_one_loader_moved_from_epoch_to_epoch_gives_what_fresh_ones_give(folder):
    loader = loader_of(random_dataset(folder))
    for epoch in (1, 0, 1):
        loader.set_position(epoch, 0)
        assert_same_batches(arrays(loader), arrays(loader_of(random_dataset(folder), position=(epoch, 0))))


def test_epochs_and_seeds_have_different_batches(folder):
    first = [
        loader_of(random_dataset(folder, seed), position=(epoch, 0)) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    assert len({arrays(loader)[0][0].tobytes() for loader in first}) == 4


def test_the_draws_of_a_batch_do_not_repeat_those_of_another(folder):
    class Draw:
        def __call__(self, images, targets, rng):
            return images, np.full(len(images), rng.random())

    dataset = ImageNet(folder, [Transpose()], [Draw()])
    draws = {targets[0] for epoch in (0, 1) for _, targets in arrays(loader_of(dataset, position=(epoch, 0)))}
    assert len(draws) == 8


# Errors.


@pytest.mark.parametrize("workers", WORKERS)
def test_a_damaged_image_is_named_and_never_replaced(folder, workers):
    path = os.path.join(folder, "b", "3.png")
    with open(path, "r+b") as file:
        file.truncate(60)
    dataset = ImageNet(folder, [Transpose()])
    seen = []
    with pytest.raises(DataError) as caught:
        for images, _ in loader_of(dataset, workers, batch_size=3, shuffle=False):
            seen.append(len(images))
    assert str(caught.value).startswith(f"{path}: the image cannot be read: ")
    assert seen == [3, 3, 3]  # image 10 is in the fourth batch


def test_an_image_that_vanished_after_the_folders_were_read_is_named(folder):
    dataset = ImageNet(folder, [Transpose()])
    os.remove(os.path.join(folder, "a", "0.png"))
    assert refusal(loader_of(dataset)) == f"{folder}/a/0.png: the image cannot be read: No such file or directory"


@pytest.mark.parametrize("workers", [(0, True), (2, True)])
def test_images_of_different_sizes_give_the_advice(folder, write_image, workers):
    write_image("a/9.png", width=9)
    message = refusal(loader_of(ImageNet(folder, [Transpose()]), workers, batch_size=15))
    shapes = rf"\(3, 6, 8\) from {folder}/./.\.png, \(3, 6, 9\) from {folder}/a/9\.png"
    assert re.fullmatch(
        rf"images of different sizes in one batch \({shapes}\): add a CenterCrop to transforms", message
    )


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_images_that_nothing_made_arrays_give_the_advice(folder, mode):
    dataset = ImageNet(folder, [lambda image, rng: image.convert(mode)])
    message = "the transforms leave no [C, H, W] array: add Transpose and Normalize"
    assert refusal(loader_of(dataset)) == message


def test_an_image_that_a_transform_refuses_is_named(folder):
    dataset = ImageNet(folder, [RandomCrop(7), Transpose()])
    assert refusal(loader_of(dataset, shuffle=False)).startswith(f"{folder}/a/0.png: RandomCrop of 7x7 from an image")


@pytest.mark.parametrize("workers", [(0, True), (2, True)])
def test_transforms_in_the_wrong_order_are_refused(folder, workers):
    dataset = ImageNet(folder, [Transpose(), RandomHorizontalFlip()])
    message = "RandomHorizontalFlip takes a PIL image: put it before Transpose"
    assert refusal(loader_of(dataset, workers), ConfigError) == message


@pytest.mark.parametrize("workers", [(0, True), (2, True)])
def test_what_a_batch_transform_refuses_arrives(folder, workers):
    dataset = ImageNet(folder, [Transpose()], [Mixup(num_classes=1)])
    assert refusal(loader_of(dataset, workers)) == "target 1 is none of the model's 1 classes (0 to 0)"


@pytest.mark.parametrize("workers", [(1, True), (1, False)])
def test_an_image_at_which_a_worker_dies_is_named(folder, workers):
    def kill(image, rng):
        os.kill(os.getpid(), signal.SIGKILL)

    message = refusal(loader_of(ImageNet(folder, [kill]), workers, shuffle=False))
    assert message == (
        f"data worker 0 was killed by SIGKILL at {folder}/a/0.png; "
        "the system may lack memory: try a smaller num_workers or prefetch_factor"
    )


def test_an_image_at_which_a_worker_hangs_is_named(folder):
    dataset = ImageNet(folder, [lambda image, rng: time.sleep(60)])
    message = refusal(loader_of(dataset, (1, True), shuffle=False, timeout=0.3))
    assert message == f"data worker 0 hangs at {folder}/a/0.png: no batch in 0.3 s (timeout)"


def test_a_worker_that_dies_in_a_batch_transform_blames_no_image(folder):
    dataset = ImageNet(folder, [Transpose()], [lambda images, targets, rng: os._exit(1)])
    assert refusal(loader_of(dataset, (1, True))) == "data worker 0 ended with exit code 1 between two samples"


@pytest.mark.parametrize("workers", WORKERS)
def test_a_bug_in_a_transform_or_a_batch_transform_stays_a_traceback(folder, workers):
    def buggy_transform(*arguments):
        raise ZeroDivisionError("a bug")

    for transforms in ([buggy_transform],), ([Transpose()], [buggy_transform]):
        with pytest.raises(RuntimeError, match=r"(?s)Traceback.*in buggy_transform.*ZeroDivisionError: a bug"):
            list(loader_of(ImageNet(folder, *transforms), workers))


@pytest.mark.parametrize("options", [{"workers": (-1, True)}, {"prefetch_factor": 0}])
def test_numbers_out_of_range_are_refused(folder, options):
    with pytest.raises(ValueError, match="expected >= 0 and >= 1"):
        loader_of(ImageNet(folder), **options)


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_that_is_no_time_is_refused(folder, timeout):
    with pytest.raises(ValueError, match=f"timeout must be 0 or more seconds, not {timeout}"):
        loader_of(ImageNet(folder), timeout=timeout)


def test_a_timeout_of_zero_waits(folder):
    assert len(list(loader_of(random_dataset(folder), (2, True), timeout=0))) == 4


def test_a_system_without_fork_reads_in_the_main_process_and_says_so(folder, monkeypatch, caplog):
    monkeypatch.setattr(dataloader, "can_fork", lambda: False)
    loader = loader_of(random_dataset(folder), (2, True))
    assert_same_batches(arrays(loader), arrays(loader_of(random_dataset(folder))))
    assert loader.num_workers == 0 and "cannot fork" in caplog.text and len(caplog.records) == 1


def test_no_more_workers_start_than_the_machine_has_cores(folder):
    class Worker:
        def __call__(self, image, rng):
            return np.full((1, 1, 1), os.getpid(), "float64")

    dataset = ImageNet(folder, [Worker()])
    workers = {int(images[0, 0, 0, 0]) for images, _ in arrays(loader_of(dataset, (8, True), batch_size=1))}
    assert len(workers) == 2 and os.getpid() not in workers


def test_collating_writes_to_no_sample():
    samples = [((0, index), np.full((1, 2, 2), index, "float32"), index) for index in range(4)]
    Collate([Mixup(num_classes=4)], seed=0)(samples)
    assert [image.max() for _, image, _ in samples] == [0, 1, 2, 3]


def test_a_loader_reads_what_pillow_reads(folder):
    dataset = ImageNet(folder, [Transpose()])
    (images, _), *_ = arrays(loader_of(dataset, (2, True), batch_size=2, shuffle=False))
    expected = np.asarray(Image.open(dataset.path(1))).transpose(2, 0, 1)
    np.testing.assert_array_equal(images[1], expected)


class Trap:
    """Garbage that writes down which process collects it."""

    def __init__(self, path):
        self.path, self.me = path, self

    def __del__(self):
        with open(self.path, "a") as file:
            file.write(f"{os.getpid()}\n")


@pytest.fixture
def collected_after_forks():
    """Every process that this one forks collects its garbage at once."""
    on = [True]
    os.register_at_fork(after_in_child=lambda: on and gc.collect())
    yield
    on.clear()


def test_workers_destroy_nothing_that_they_inherit(folder, tmp_path, collected_after_forks):
    loader = loader_of(random_dataset(folder), workers=(2, True))
    gc.disable()
    try:
        Trap(tmp_path / "collected")
        arrays(loader)
    finally:
        gc.enable()
    gc.collect()
    assert (tmp_path / "collected").read_text() == f"{os.getpid()}\n"
    assert gc.get_freeze_count() == 0
