"""Damaged, missing and hostile images: a verdict for each, and what `on_bad_image` makes of them."""

import errno
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from bad_images import FILES, KINDS, NOISE, chunk, deflated_zeros, gif, pixels, png
from batches import arrays, assert_same_batches
from PIL import Image
from tiny_run import ROOT

from passl_xcit.datasets import dataloader, dataset, imagenet
from passl_xcit.datasets.dataloader import ImageLoader
from passl_xcit.datasets.dataset import BadImage
from passl_xcit.datasets.imagenet import ImageNet, bad_files, image_verdict, open_image
from passl_xcit.datasets.sampler import DistributedBatchSampler
from passl_xcit.datasets.transforms import RandomCrop, RandomHorizontalFlip, Transpose
from passl_xcit.utils.errors import DataError

WORKERS = [(0, True), (1, True), (2, True), (2, False)]  # num_workers, use_shared_memory


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    """Two workers are two also on a machine of one core."""
    monkeypatch.setattr(dataloader, "usable_cores", lambda: 2)


def refusal(action, *arguments, kind=DataError, **options):
    with pytest.raises(kind) as caught:
        action(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# One file, one verdict.


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_its_listed_verdict(tmp_path, name):
    content, expected = FILES[name]
    path = tmp_path / "n01_1.jpg"
    path.write_bytes(content)
    start, verdict = time.monotonic(), image_verdict(path)
    assert time.monotonic() - start < 1
    assert verdict == "ok" if expected == "ok" else verdict.startswith(expected)
    if expected == "ok":
        assert (open_image(path).mode, open_image(path).size) == ("RGB", (20, 24))
    else:
        assert refusal(open_image, path, kind=BadImage) == f"{path}: {verdict}"


@pytest.mark.parametrize("name", ["animated png", "animated webp", "tiff of three pages", "tiff that never ends"])
def test_the_first_frame_is_the_image(tmp_path, name):
    path = tmp_path / "many.png"
    path.write_bytes(FILES[name][0])
    np.testing.assert_array_equal(np.asarray(open_image(path)), np.asarray(NOISE))


@pytest.mark.filterwarnings("error")
def test_what_pillow_warns_of_is_not_passed_on(tmp_path):
    """Damaged EXIF, which ImageNet has too, is of no use here and would be told again for each image."""
    path = tmp_path / "x.tiff"
    path.write_bytes(FILES["half a tiff of lzw"][0])
    with pytest.warns(UserWarning, match="Corrupt EXIF data"), pytest.raises(OSError):
        Image.open(path).load()
    assert image_verdict(path).startswith("the image cannot be read")


def lay_pipe(path):
    os.mkfifo(path)


def lay_socket(path):
    socket.socket(socket.AF_UNIX).bind(path)


def lay_loop(path):
    os.symlink(os.path.basename(path), path)


def lay_device(path):
    os.symlink("/dev/zero", path)


def lay_link_to_nowhere(path):
    os.symlink("nowhere", path)


def lay_locked(path):
    Path(path).write_bytes(KINDS["jpeg"])
    os.chmod(path, 0)


def lay_nothing(path):
    pass


def lay_image(path):
    Path(path).write_bytes(KINDS["png"])


def lay_empty(path):
    Path(path).touch()


PLACES = {
    "pipe": (lay_pipe, "a.jpg", "not a file"),
    "socket": (lay_socket, "a.jpg", "not a file"),
    "folder": (os.mkdir, "a.jpg", "not a file"),
    "device": (lay_device, "a.jpg", "not a file"),
    "empty": (lay_empty, "a.jpg", "the file is empty"),
    "locked": (lay_locked, "a.jpg", "no permission to read it"),
    "link to nowhere": (lay_link_to_nowhere, "a.jpg", "the image cannot be read: No such file or directory"),
    "link to itself": (lay_loop, "a.jpg", "the image cannot be read: Too many levels of symbolic links"),
    "missing": (lay_nothing, "a.jpg", "the image cannot be read: No such file or directory"),
    "name of 300 characters": (lay_nothing, "a" * 296 + ".jpg", "the image cannot be read: File name too long"),
    "name of 255 bytes": (lay_image, "a" * 251 + ".jpg", "ok"),
    "name that is no text": (lay_image, os.fsdecode(b"\xff\xfe\x80.jpg"), "ok"),
    "name with blanks, quotes and a line's end": (lay_image, " a 'b' \"c\"\n\u4e2d.jpg", "ok"),
    "upper-case extension": (lay_image, "A.JPEG", "ok"),
    ".jpg that is a PNG": (lay_image, "a.jpg", "ok"),
    "link to an image": (lambda path: (lay_image(path + "x"), os.symlink(path + "x", path)), "a.jpg", "ok"),
}


@pytest.fixture
def not_root(monkeypatch):
    """Root may read what nobody may; others may not."""
    monkeypatch.setattr(os, "access", lambda path, mode: bool(os.stat(path).st_mode & 0o444))


@pytest.mark.parametrize("place", PLACES)
def test_what_stands_where_an_image_should_has_its_listed_verdict(tmp_path, monkeypatch, not_root, place):
    lay, name, expected = PLACES[place]
    monkeypatch.chdir(tmp_path)  # a socket's name may have 108 bytes only
    lay(name)
    path = tmp_path / name
    start, verdict = time.monotonic(), image_verdict(path)
    assert time.monotonic() - start < 1 and verdict == expected
    told = [] if expected == "ok" else [f"{dataset.shown(name)}: {verdict}"]
    assert bad_files(tmp_path, [name]) == told


def test_a_message_holds_no_character_that_a_log_cannot_take(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff\n.jpg")
    path.write_bytes(b"text")
    message = refusal(open_image, path)
    assert message == f"{tmp_path}/\\udcff\\n.jpg: the image cannot be read: not an image of a known format"
    message.encode("utf-8")


# Memory.

MEASURE = """
import resource, sys
from passl_xcit.datasets.imagenet import image_verdict
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
for path in sys.argv[1:]:
    print(image_verdict(path))
    print(peak() - before)
"""
BOMBS = {
    "10k x 9k": (lambda: png(10_000, 9_000, pixels(b"")), "10000 x 9000 pixels; more than 64 million are refused"),
    "20k x 20k": (lambda: png(20_000, 20_000, pixels(b"")), "the image cannot be read: Image size (400000000 pixels)"),
    "2**31": (lambda: png(2**31 - 1, 2**31 - 1, pixels(b"")), "the image cannot be read: Image size (46116860141324"),
    "200 MB of text": (
        lambda: png(9, 9, chunk(b"zTXt", b"k\0\0" + deflated_zeros(200 << 20)), pixels(b"")),
        "the image cannot be read: Decompressed data too large",
    ),
    "200 MB behind the last row": (lambda: png(9, 9, chunk(b"IDAT", deflated_zeros(200 << 20))), "ok"),
    "a GIF of 100,000 frames": (lambda: gif(100_000), "the image cannot be read: not an image of a known format"),
}


@pytest.mark.slow
def test_no_bomb_needs_100_mb(tmp_path):
    """On top of what the imports take, which with Paddle is nearly 300 MB."""
    for number, (make, _) in enumerate(BOMBS.values()):
        (tmp_path / f"{number}.png").write_bytes(make())
    arguments = [sys.executable, "-c", MEASURE, *sorted(map(str, tmp_path.iterdir()))]
    options = {"capture_output": True, "text": True, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    lines = subprocess.run(arguments, timeout=60, **options).stdout.splitlines()
    for (_, expected), verdict, megabytes in zip(BOMBS.values(), lines[::2], lines[1::2]):
        assert verdict.startswith(expected) and int(megabytes) < 100
    assert len(lines) == 2 * len(BOMBS)


# What is found at the start.


@pytest.fixture
def folder(write_image, tmp_path):
    """100 images of two classes, `a/00.png` to `b/49.png`, in an order that is theirs."""
    for number in range(50):
        for name in "ab":
            write_image(f"{name}/{number:02}.png")
    return tmp_path


def damage(folder, *names):
    """Files that look well from outside, and end in the middle."""
    for name in names:
        with open(folder / name, "r+b") as file:
            file.truncate(60)


FIVE = ("a/03.png", "a/04.png", "a/49.png", "b/00.png", "b/49.png")
FIVE_NUMBERS = [3, 4, 49, 50, 99]


def test_what_cannot_be_images_is_listed_when_the_data_set_is_made(folder):
    for number in range(7):
        (folder / f"a/{number:02}.png").write_bytes(b"")
    os.remove(folder / "b/49.png")
    os.mkfifo(folder / "b/49.png")
    empty = "; ".join(f"a/0{number}.png: the file is empty" for number in range(5))
    assert refusal(ImageNet, str(folder)) == f"{folder}: 8 of 100 images cannot be used: {empty}; and 3 more"


def test_a_list_is_looked_through_too(folder):
    (folder / "list.txt").write_text("a/00.png 0\na/nowhere.png 1\n")
    message = refusal(ImageNet, str(folder), list_file="list.txt")
    reason = "a/nowhere.png: the image cannot be read: No such file or directory"
    assert message == f"{folder}/list.txt: 1 of 2 images cannot be used: {reason}"


@pytest.mark.parametrize("policy", [{"on_bad_image": "skip"}, {"on_bad_image": "count_as_wrong"}])
def test_a_policy_that_bears_them_makes_it_a_warning(folder, monkeypatch, policy):
    warnings = []
    monkeypatch.setattr(imagenet.logger, "warning", warnings.append)
    (folder / "a/07.png").write_bytes(b"")
    assert len(ImageNet(str(folder), **policy)) == 100
    assert warnings == [f"{folder}: 1 of 100 images cannot be used: a/07.png: the file is empty"]


def test_too_many_of_them_are_refused_at_the_start(folder):
    for number in range(2):
        (folder / f"a/{number:02}.png").write_bytes(b"")
    bad = "; ".join(f"a/0{number}.png: the file is empty" for number in range(2))
    expected = f"{folder}: 2 of 100 images cannot be used, and max_bad_share allows 1: {bad}"
    assert refusal(ImageNet, str(folder), on_bad_image="skip") == expected


def test_files_are_looked_up_and_not_opened(folder, monkeypatch):
    monkeypatch.setattr("builtins.open", None)
    monkeypatch.setattr(os, "open", None)
    assert len(ImageNet(str(folder))) == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_bad_image": "ignore"}, "on_bad_image must be one of raise, skip, count_as_wrong, not 'ignore'"),
        ({"max_bad_share": 0.1}, "max_bad_share goes with on_bad_image: skip"),
        ({"on_bad_image": "count_as_wrong", "max_bad_share": 0.1}, "max_bad_share goes with on_bad_image: skip"),
        ({"on_bad_image": "skip", "max_bad_share": 0.0}, "max_bad_share must lie between 0 and 1, not 0.0"),
        ({"on_bad_image": "skip", "max_bad_share": 1.0}, "max_bad_share must lie between 0 and 1, not 1.0"),
        ({"on_bad_image": "skip", "max_bad_share": float("nan")}, "max_bad_share must lie between 0 and 1, not nan"),
    ],
)
def test_settings_that_mean_nothing_are_refused(folder, options, message):
    assert refusal(ImageNet, str(folder), kind=ValueError, **options) == message


@pytest.mark.parametrize(("share", "most"), [(None, 1), (0.001, 1), (0.019, 1), (0.02, 2), (0.5, 50), (0.999, 99)])
def test_the_share_allows_at_least_one_and_never_all(folder, share, most):
    assert ImageNet(str(folder), on_bad_image="skip", max_bad_share=share).max_bad == most


# Training: another image takes the place.


class Record:
    """A transform that leaves the image's first pixel and a draw."""

    def __call__(self, image, rng):
        values = [*np.asarray(image)[0, 0], rng.random()]
        return np.array(values, "float32").reshape(4, 1, 1)


def loader_of(dataset, workers=(0, True), position=(0, 0), batch_size=10, shuffle=True):
    sampler = DistributedBatchSampler(batch_size, shuffle, length=len(dataset), seed=dataset.seed)
    sampler.set_position(*position)
    return ImageLoader(dataset, sampler, num_workers=workers[0], use_shared_memory=workers[1])


def skipping(folder, transforms=None, share=0.05, seed=0):
    return ImageNet(str(folder), transforms or [Record()], on_bad_image="skip", max_bad_share=share, seed=seed)


def test_the_next_image_that_can_be_read_takes_the_place_with_its_label(folder):
    whole = np.concatenate([images for images, _ in arrays(loader_of(skipping(folder), shuffle=False))])
    damage(folder, *FIVE)
    batches = arrays(loader_of(skipping(folder), shuffle=False))
    order = np.arange(100)
    order[[3, 4, 49, 50, 99]] = [5, 5, 51, 51, 0]
    np.testing.assert_array_equal(np.concatenate([images for images, _ in batches]), whole[order])
    np.testing.assert_array_equal(np.concatenate([targets for _, targets in batches]), order >= 50)


@pytest.mark.parametrize("workers", WORKERS[1:])
def test_batches_and_notes_are_the_same_for_any_number_of_workers(folder, workers):
    damage(folder, *FIVE)
    transforms = [RandomCrop(6, padding=2), RandomHorizontalFlip(), Transpose()]
    alone, shared = (loader_of(skipping(folder, transforms), each) for each in ((0, True), workers))
    assert_same_batches(arrays(shared), arrays(alone))
    assert list(shared.bad_images.items()) == list(alone.bad_images.items())
    assert sorted(alone.bad_images) == FIVE_NUMBERS


@pytest.mark.parametrize("workers", [(0, True), (2, True)])
def test_starting_in_mid_epoch_gives_the_rest_of_the_same_epoch(folder, workers):
    damage(folder, *FIVE)
    whole = arrays(loader_of(skipping(folder), workers, position=(3, 0)))
    assert_same_batches(arrays(loader_of(skipping(folder), workers, position=(3, 4))), whole[4:])


@pytest.mark.parametrize("workers", WORKERS)
def test_exceeding_the_bound_ends_the_run_at_the_same_batch_with_the_same_words(folder, workers):
    """Workers read ahead; what counts is the batches that were taken."""
    damage(folder, *FIVE)
    loader, seen = loader_of(skipping(folder, share=0.04), workers, shuffle=False), []
    with pytest.raises(DataError) as caught:
        for images, _ in loader:
            seen.append(len(images))
    named = "; ".join(f"{folder}/{name}: the image cannot be read: image file is truncated" for name in FIVE)
    message = str(caught.value).replace(" (0 bytes not processed)", "")
    assert message == f"{folder}: 5 of 100 images cannot be used, and max_bad_share allows 4: {named}"
    assert seen == [10] * 9


def test_a_run_that_goes_on_elsewhere_ends_at_the_same_batch(folder):
    """What the first part has met is handed on, as a checkpoint does."""
    damage(folder, *FIVE)
    first = loader_of(skipping(folder, share=0.04), shuffle=False)
    batches = iter(first)
    for _ in range(6):
        next(batches)
    second = loader_of(skipping(folder, share=0.04), position=(0, 6), shuffle=False)
    second.remember_bad_images(list(first.bad_images))
    rest, seen = iter(second), 0
    with pytest.raises(DataError, match="5 of 100 images cannot be used, and max_bad_share allows 4") as caught:
        for _ in rest:
            seen += 1
    assert seen == 3 and str(caught.value).count(".png") == 5


@pytest.mark.parametrize("workers", WORKERS)
def test_where_all_are_bad_it_ends_at_once(folder, workers):
    damage(folder, *[f"{name}/{number:02}.png" for name in "ab" for number in range(50)])
    loader = loader_of(skipping(folder, share=0.99), workers)
    assert refusal(list, loader).startswith(f"{folder}: 100 of 100 images cannot be used, and max_bad_share allows 99")


def test_a_single_image_that_is_bad_ends_it(write_image, tmp_path):
    write_image("a/1.png")
    damage(tmp_path, "a/1.png")
    loader = loader_of(skipping(tmp_path, share=None))
    assert refusal(list, loader).startswith(f"{tmp_path}: 1 of 1 images cannot be used, and max_bad_share allows 0")


def test_the_first_ones_are_named_once_and_all_are_counted(folder, monkeypatch):
    warnings = []
    monkeypatch.setattr(dataloader.logger, "warning", warnings.append)
    damage(folder, *FIVE, "b/07.png", "b/08.png")
    loader = loader_of(skipping(folder, share=0.1), (2, True), shuffle=False)
    arrays(loader)
    arrays(loader)
    named = [line for line in warnings if line.endswith("; the next image that can be read takes its place")]
    expected = [f"{folder}/{name}: " for name in ("a/03.png", "a/04.png", "a/49.png", "b/00.png", "b/07.png")]
    assert [line.split("the image")[0] for line in named] == expected
    (line,) = set(warnings) - set(named)
    assert line == (f"{folder}: 7 of 100 images cannot be used so far; the next ones take their places; 10 may be bad")
    assert len(warnings) == 6


def test_an_image_that_a_transform_refuses_is_not_replaced(folder, write_image):
    """Another crop may be too large for every image: that is a mistake in the config."""
    loader = loader_of(skipping(folder, [RandomCrop(7), Transpose()]), shuffle=False)
    assert refusal(list, loader).startswith(f"{folder}/a/00.png: RandomCrop of 7x7 from an image")


@pytest.mark.parametrize("policy", ["raise", "skip", "count_as_wrong"])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ENOMEM, errno.ESTALE])
def test_no_policy_passes_over_an_error_of_the_machine(folder, monkeypatch, policy, number):
    """It would come at another image the next time."""
    loader = loader_of(ImageNet(str(folder), [Transpose()], on_bad_image=policy), shuffle=False)

    def fail(path, formats):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Image, "open", fail)
    expected = f"{folder}/a/00.png: the image cannot be read: {os.strerror(number)}"
    assert refusal(list, loader) == expected


@pytest.mark.parametrize("workers", WORKERS)
def test_without_a_policy_the_first_one_ends_it(folder, workers):
    damage(folder, *FIVE)
    loader = loader_of(ImageNet(str(folder), [Transpose()]), workers, shuffle=False)
    assert refusal(list, loader).startswith(f"{folder}/a/03.png: the image cannot be read: image file is truncated")
    assert loader.bad_images == {}


# Evaluation: nothing takes the place.


@pytest.mark.parametrize("workers", WORKERS)
def test_an_image_that_counts_as_wrong_is_in_no_batch(folder, workers):
    damage(folder, *FIVE)
    whole = ImageNet(str(folder), [Transpose()], on_bad_image="count_as_wrong")
    loader = loader_of(whole, workers, shuffle=False, batch_size=1)
    labels = np.concatenate([targets for _, targets in arrays(loader)])
    assert labels.tolist() == [0] * 47 + [1] * 48
    assert sorted(loader.bad_images) == FIVE_NUMBERS
