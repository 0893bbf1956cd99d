"""Folders, list files and images as users really have them."""

import os

import numpy as np
import pytest
from bad_images import KINDS, NOISE, encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from passl_xcit.datasets import imagenet
from passl_xcit.datasets.dataset import BadImage, check_labels
from passl_xcit.datasets.imagenet import EXTENSIONS, ImageNet, open_image, scan_folders
from passl_xcit.utils.errors import DataError


def samples(dataset):
    return [(str(dataset.path(i).relative_to(dataset.dataroot)), int(dataset.labels[i])) for i in range(len(dataset))]


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"some")


def refusal(action, *arguments, **options):
    with pytest.raises(DataError) as caught:
        action(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Folders.


def test_classes_are_numbered_in_the_order_of_their_folders_names(tmp_path):
    touch(tmp_path, "n02/b.jpg", "n02/a.jpg", "n01/z.jpg", "N03/c.jpg")
    dataset = ImageNet(str(tmp_path))
    assert dataset.class_names == ["N03", "n01", "n02"]
    assert samples(dataset) == [("N03/c.jpg", 0), ("n01/z.jpg", 1), ("n02/a.jpg", 2), ("n02/b.jpg", 2)]


def test_images_are_found_at_any_depth_and_by_their_extension_in_any_case(tmp_path):
    touch(tmp_path, "a/x/deep/1.JPEG", "a/x/2.Png", "a/3.webp", "a/notes.txt", "a/4.jpg.part", "a/jpg", "readme.jpg")
    assert samples(ImageNet(str(tmp_path))) == [("a/3.webp", 0), ("a/x/2.Png", 0), ("a/x/deep/1.JPEG", 0)]


def test_images_of_a_class_are_in_the_order_of_their_folders_and_names(tmp_path):
    names = [f"a/{folder}/{image}.jpg" for folder in "dbcafeg" for image in "312"]
    touch(tmp_path, *names)
    assert [name for name, _ in samples(ImageNet(str(tmp_path)))] == sorted(names)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_extension_of_passl_counts(tmp_path, extension):
    touch(tmp_path, f"a/1{extension}")
    assert len(ImageNet(str(tmp_path))) == 1


def test_folders_and_files_may_be_links_and_have_any_name(tmp_path):
    touch(tmp_path, "store/1.jpg", "data/plain/\u00fc \u4e2d\n.jpg")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "store")
    touch(tmp_path / "data" / "plain", os.fsdecode(b"\xff\xfe.jpg"))
    found = samples(ImageNet(str(tmp_path / "data")))
    assert found[0] == ("linked/1.jpg", 0)
    assert {name for name, _ in found[1:]} == {"plain/\u00fc \u4e2d\n.jpg", os.fsdecode(b"plain/\xff\xfe.jpg")}


def test_an_empty_class_folder_keeps_its_number_and_is_mentioned(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(imagenet.logger, "warning", warnings.append)
    touch(tmp_path, "a/1.jpg", "c/1.jpg")
    (tmp_path / "b").mkdir()
    assert samples(ImageNet(str(tmp_path))) == [("a/1.jpg", 0), ("c/1.jpg", 2)]
    assert warnings == [f"{tmp_path}: 1 of 3 class folders are empty, the first is b"]


def test_a_hidden_folder_is_no_class(tmp_path):
    touch(tmp_path, "a/1.jpg", ".ipynb_checkpoints/2.jpg")
    assert ImageNet(str(tmp_path)).class_names == ["a"]


def test_folders_without_classes_or_images_are_refused(tmp_path):
    touch(tmp_path, "flat/1.jpg", "texts/a/1.txt")
    missing, flat, texts = (str(tmp_path / name) for name in ("missing", "flat", "texts"))
    assert refusal(ImageNet, missing).startswith(f"{missing}: no such folder (dataroot)")
    assert refusal(ImageNet, f"{flat}/1.jpg").startswith(f"{flat}/1.jpg: no such folder (dataroot)")
    assert refusal(ImageNet, flat) == f"{flat}: holds no class folders; with images directly in it, give a list_file"
    assert refusal(ImageNet, texts).startswith(f"{texts}: 1 class folders, but no image in them (.jpg, .jpeg, ")


@pytest.mark.parametrize("locked", ["", "a", "a/deep"])
def test_a_folder_that_may_not_be_read_is_refused_and_not_taken_for_empty(tmp_path, monkeypatch, locked):
    touch(tmp_path, "a/deep/1.jpg", "b/1.jpg")
    scandir = os.scandir

    def guarded(folder):
        if os.fspath(folder) == str(tmp_path / locked):
            raise PermissionError(13, "Permission denied", os.fspath(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    assert refusal(scan_folders, tmp_path) == f"{tmp_path / locked}: the folder cannot be read: Permission denied"


names = st.text("abcXYZ019_- .", min_size=1, max_size=6).filter(lambda name: not name.startswith("."))


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(names, st.integers(0, 3), min_size=1, max_size=5).filter(lambda counts: any(counts.values())))
def test_every_image_is_found_once_with_the_rank_of_its_folder(tmp_path_factory, counts):
    root = tmp_path_factory.mktemp("classes")
    for name, count in counts.items():
        (root / name).mkdir()
        touch(root, *[f"{name}/{number}.png" for number in range(count)])
    paths, labels, found = scan_folders(root)
    assert found == sorted(counts)
    assert sorted(paths) == sorted(f"{name}/{number}.png" for name in counts for number in range(counts[name]))
    assert all(path.split("/")[0] == found[label] for path, label in zip(paths, labels))


# List files.


def from_list(folder, text, name="list.txt"):
    (folder / name).write_text(text, encoding="utf-8")
    return ImageNet(str(folder), list_file=name)


def test_a_list_file_gives_paths_and_labels_in_its_order(tmp_path):
    text = "val/b.jpg 7\nval/with blanks in it.jpg 0\r\n\n   \na.jpg\t3\n  c.jpg   65 \n"
    touch(tmp_path, "val/b.jpg", "val/with blanks in it.jpg", "a.jpg", "c.jpg")
    dataset = from_list(tmp_path, text)
    assert samples(dataset) == [("val/b.jpg", 7), ("val/with blanks in it.jpg", 0), ("a.jpg", 3), ("c.jpg", 65)]
    assert dataset.class_names is None and dataset.where == str(tmp_path / "list.txt")


def test_a_list_file_may_begin_with_a_mark_and_hold_names_that_break_lines_elsewhere(tmp_path):
    touch(tmp_path, "a\u2028\x0b.jpg")
    assert samples(from_list(tmp_path, "\ufeffa\u2028\x0b.jpg 1\r\n")) == [("a\u2028\x0b.jpg", 1)]


def test_a_list_file_may_lie_elsewhere(tmp_path):
    touch(tmp_path, "data/a.jpg")
    (tmp_path / "val.txt").write_text("a.jpg 1\n")
    dataset = ImageNet(str(tmp_path / "data"), list_file=str(tmp_path / "val.txt"))
    assert dataset.path(0) == tmp_path / "data" / "a.jpg"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 1\nb.jpg\n", ":2: expected 'path label', found 'b.jpg'"),
        ("a.jpg one\n", ":1: expected 'path label', found 'a.jpg one'"),
        ("a.jpg 1.0\n", ":1: expected 'path label', found 'a.jpg 1.0'"),
        ("a.jpg,1\n", ":1: expected 'path label', found 'a.jpg,1'"),
        ("\n\na.jpg 1 x\n", ":3: expected 'path label', found 'a.jpg 1 x'"),
        ("a\0.jpg 1\n", ":1: a\\x00.jpg: expected a path below dataroot"),
        ("/etc/passwd 1\n", ":1: /etc/passwd: expected a path below dataroot"),
        ("a.jpg 1\n../b.jpg 1\n", ":2: ../b.jpg: expected a path below dataroot"),
        ("a/../../b.jpg 1\n", ":1: a/../../b.jpg: expected a path below dataroot"),
        ("x" * 500 + "\n", f":1: expected 'path label', found '{'x' * 80}'"),
        ("", ": the list file is empty"),
        ("\n  \n", ": the list file is empty"),
    ],
)
def test_a_line_that_is_no_path_and_label_is_refused_by_its_number(tmp_path, text, message):
    assert refusal(from_list, tmp_path, text) == f"{tmp_path / 'list.txt'}{message}"


def test_a_list_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "binary.txt").write_bytes(b"\xff\xd8\xff\xe0")
    for name, reason in {"missing.txt": "No such file or directory", "binary.txt": "'utf-8' codec can't"}.items():
        message = refusal(ImageNet, str(tmp_path), list_file=name)
        assert message.startswith(f"{tmp_path / name}: the list file cannot be read: {reason}")


def test_a_data_set_without_labels_is_refused(tmp_path):
    touch(tmp_path, "a/1.jpg")
    with pytest.raises(ValueError, match="return_label must be true: training and evaluation need the labels"):
        ImageNet(str(tmp_path), return_label=False)


# Labels and the model.


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1], "abc", "where: 3 classes, but the model has 4: set model.head.num_classes to 3, or keep one folder"),
        ([0, 1], "abcde", "where: 5 classes, but the model has 4: set model.head.num_classes to 5, or keep one folder"),
        ([0, 4], None, "where: label 4 is out of range: the model has classes 0 to 3"),
        ([-1, 3], None, "where: label -1 is out of range: the model has classes 0 to 3"),
        ([-100, 9], None, "where: label -100 is out of range: the model has classes 0 to 3"),
        ([10**30], None, f"where: label {10**30} is out of range: the model has classes 0 to 3"),
    ],
)
def test_labels_that_do_not_fit_the_model_are_refused(labels, names, message):
    assert refusal(check_labels, np.array(labels), names, 4, "where").startswith(message)


@pytest.mark.parametrize(("labels", "names"), [([0, 3], "abcd"), ([2], "abcd"), ([3, 1], None)])
def test_labels_that_fit_the_model_pass(labels, names):
    check_labels(np.array(labels), names, 4, "where")


# Images.


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_a_file_with_wrong_bytes_is_an_rgb_image_or_a_data_error(tmp_path_factory, kind, data):
    content = bytearray(KINDS[kind])
    start = data.draw(st.sampled_from([16, 64, len(content)]))
    for place in data.draw(st.lists(st.integers(0, start - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "x.jpg"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        assert open_image(path).mode == "RGB"
    except DataError as error:
        assert str(error).startswith(f"{path}: ")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("jpeg", "progressive", "palette")])
def test_lossless_images_come_pixel_by_pixel(tmp_path, kind):
    path = tmp_path / "mine.JPEG"  # the content counts, not the name
    path.write_bytes(KINDS[kind])
    np.testing.assert_array_equal(np.asarray(open_image(path)), np.asarray(NOISE))


RED, GREY = (200, 30, 60), (77, 77, 77)
MODES = {
    "grey": (encoded(Image.new("L", (4, 3), 77), "PNG"), GREY),
    "grey jpeg": (encoded(Image.new("L", (4, 3), 77), "JPEG"), GREY),
    "grey with alpha": (encoded(Image.new("LA", (4, 3), (77, 0)), "PNG"), GREY),
    "black and white": (encoded(Image.new("1", (4, 3), 1), "PNG"), (255, 255, 255)),
    "palette": (encoded(Image.new("RGB", (4, 3), RED).convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), RED),
    "palette with alpha": (encoded(Image.new("RGBA", (4, 3), (*RED, 255)).quantize(4), "PNG", transparency=0), RED),
    "transparent": (encoded(Image.new("RGBA", (4, 3), (*RED, 0)), "PNG"), RED),
    "cmyk": (encoded(Image.new("RGB", (4, 3), RED).convert("CMYK"), "JPEG", quality=100), RED),
    "ycbcr": (encoded(Image.new("RGB", (4, 3), RED), "JPEG", quality=100), RED),
    "16 bit grey": (encoded(Image.fromarray(np.full((3, 4), 77 * 257, "uint16")), "PNG"), GREY),
    "16 bit grey tiff": (encoded(Image.fromarray(np.full((3, 4), 77 * 257, "uint16")), "TIFF"), GREY),
}


@pytest.mark.parametrize("mode", MODES)
def test_an_image_of_any_mode_comes_as_rgb(tmp_path, mode):
    data, colour = MODES[mode]
    path = tmp_path / "image.png"
    path.write_bytes(data)
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (4, 3))
    assert np.abs(np.asarray(image, int) - colour).max() <= (2 if mode in ("cmyk", "ycbcr") else 0)


def test_sixteen_bits_of_grey_are_scaled_and_not_clipped(tmp_path):
    values = np.array([[0, 256, 257, 32768, 65534, 65535]], "uint16")
    Image.fromarray(values).save(tmp_path / "deep.png")
    pixels = np.asarray(open_image(tmp_path / "deep.png"))
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 0, 1, 127, 254, 255])


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_pixels_of_32_bits_are_refused(tmp_path, dtype):
    Image.fromarray(np.full([4, 4], 200, dtype)).save(tmp_path / "wide.tiff")
    with pytest.raises(BadImage, match="wide.tiff: pixels of 32 bits, whose range nobody tells: save it with 8 or 16"):
        open_image(tmp_path / "wide.tiff")


def test_an_orientation_that_the_camera_noted_is_left_alone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    NOISE.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == NOISE.size


# Samples.


class Record:
    """A transform that returns what it was given and drawn."""

    def __call__(self, image, rng):
        return np.asarray(image), int(rng.integers(2**31))


def test_a_sample_is_a_transformed_image_and_its_label(write_image, tmp_path):
    path = write_image("b/1.png")
    write_image("a/1.png")
    (pixels, _), label = ImageNet(str(tmp_path), transforms=[Record()])[(0, 1)]
    assert label == 1
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(path)))


def test_the_draws_of_a_sample_depend_on_seed_epoch_and_index_only(write_image, tmp_path):
    for name in ("a/1.png", "a/2.png"):
        write_image(name)

    def draw(epoch, index, seed=0):
        return ImageNet(str(tmp_path), transforms=[Record()], seed=seed)[(epoch, index)][0][1]

    assert draw(3, 1) == draw(3, 1)
    assert len({draw(0, 0), draw(1, 0), draw(0, 1), draw(1, 1), draw(0, 0, seed=1)}) == 5


def test_an_image_that_a_transform_refuses_is_named(write_image, tmp_path):
    class Refuse:
        def __call__(self, image, rng):
            raise DataError("too small")

    path = write_image("a/1.png")
    dataset = ImageNet(str(tmp_path), transforms=[Refuse()])
    assert refusal(dataset.__getitem__, (0, 0)) == f"{path}: too small"
