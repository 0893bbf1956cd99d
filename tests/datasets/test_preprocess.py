"""One definition of preprocessing: the bytes of an evaluation, for any image, and a strict reader of its entry."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from photographs import FILES, photo, turned

from passl_xcit.datasets.dataset import BadImage
from passl_xcit.datasets.imagenet import ImageNet, images_in, open_image
from passl_xcit.datasets.preprocess import Preprocess, at_size
from passl_xcit.datasets.transforms import Resize
from passl_xcit.modeling.zoo import entries, find
from passl_xcit.utils.config import load_config
from passl_xcit.utils.errors import ConfigError, DataError
from passl_xcit.utils.registry import TRANSFORMS

ROOT = Path(__file__).resolve().parents[2]
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
NODES = [
    {"name": "Resize", "size": 24, "interpolation": "bicubic"},
    {"name": "CenterCrop", "size": 16},
    {"name": "Transpose"},
    {"name": "Normalize", "mean": MEAN, "std": STD},
]
AS_ARRAY = NODES[2:]
GREY = [{"name": "Transpose"}, {"name": "Normalize", "mean": [70], "std": [90]}]


@pytest.fixture(params=FILES)
def path(request, tmp_path):
    """The path of a photograph of some mode, in a folder that is a class."""
    (tmp_path / "class0").mkdir()
    image, options = FILES[request.param]
    image.save(tmp_path / "class0" / request.param, **options)
    return tmp_path / "class0" / request.param


def test_it_gives_the_bytes_of_an_evaluation(path):
    transforms = [TRANSFORMS.build(node) for node in NODES]
    expected, _ = ImageNet(str(path.parents[1]), transforms)[0, 0]
    assert expected.shape == (3, 16, 16) and expected.dtype == np.float32
    preprocess = Preprocess(NODES)
    for image in (open_image(path), Image.open(path)):
        assert preprocess(image).tobytes() == expected.tobytes()


def test_it_computes_what_is_written(tmp_path):
    """Against the formula in float64: a photograph that EXIF would turn is not turned, nothing is lost of 16 bits."""
    photo().save(tmp_path / "turned.png", exif=turned())
    found = Preprocess(AS_ARRAY)(Image.open(tmp_path / "turned.png"))
    expected = (np.asarray(photo(), "float64") - MEAN) / STD
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1e-6)
    photo("I;16").save(tmp_path / "16.png")
    found = Preprocess(GREY, channels=1)(Image.open(tmp_path / "16.png"))
    expected = (np.asarray(photo("I;16"), "float64") // 257 - 70) / 90
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


@given(value=st.integers(0, 255))
def test_a_grey_value_stays_what_it_is(value):
    found = Preprocess(GREY, channels=1)(Image.new("L", (2, 2), value))
    np.testing.assert_allclose(found, (value - 70) / 90, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("xcit/xcit_nano_12_p16_224", "xcit_nano_12_p16_224"),
        ("xcit/official/xcit_large_24_p8_384_dist", "xcit_large_24_p8_384_dist"),
        ("crossvit/crossvit_15_dagger_408", "crossvit_15_dagger_408"),
    ],
)
def test_a_pipeline_of_the_zoo_is_that_of_the_config(config, name):
    nodes = load_config(ROOT / "configs" / f"{config}.yaml")["dataloader"]["val"]["dataset"]["transforms"]
    pipeline = vars(find(name).evaluation)
    fields = {key: pipeline[key] for key in ("size", "resize", "interpolation", "mean", "std")}
    found = Preprocess.of_pipeline(**fields)
    assert found(photo(size=(500, 430))).tobytes() == Preprocess(nodes)(photo(size=(500, 430))).tobytes()
    assert found.size == [pipeline["size"]] * 2


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)
def test_the_summary_says_what_the_zoo_says(entry):
    pipeline = vars(entry.evaluation)
    made = Preprocess.of_pipeline(**{key: pipeline[key] for key in pipeline if key != "crop_ratio"})
    summary = made.summary()
    assert summary["crop_ratio"] == pytest.approx(pipeline["crop_ratio"], abs=0.005)
    assert summary["size"] == [pipeline["size"]] * 2 and summary["interpolation"] == pipeline["interpolation"]
    assert summary["mean"] == list(pipeline["mean"]) and summary["std"] == list(pipeline["std"])
    assert summary["mode"] == "RGB"


@settings(deadline=None, max_examples=30)
@given(
    resize=st.integers(1, 60) | st.tuples(st.integers(1, 60), st.integers(1, 60)).map(list),
    crop=st.integers(1, 60),
    std=st.lists(st.floats(0.01, 255), min_size=3, max_size=3),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic"]),
)
def test_its_dict_makes_the_same_again(resize, crop, std, interpolation):
    nodes = [
        {"name": "Resize", "size": resize, "interpolation": interpolation},
        {"name": "CenterCrop", "size": crop},
        {"name": "Transpose"},
        {"name": "Normalize", "mean": MEAN, "std": std},
    ]
    first = Preprocess(nodes)
    again = Preprocess.from_dict(first.to_dict())
    assert again.to_dict() == first.to_dict()
    assert again(photo()).tobytes() == first(photo()).tobytes()


def test_a_size_is_known_only_where_it_does_not_depend_on_the_image():
    assert Preprocess(NODES).size == [16, 16]
    assert Preprocess(AS_ARRAY).size is None
    assert Preprocess([NODES[0], *AS_ARRAY]).size is None
    assert Preprocess([{"name": "Resize", "size": [8, 12]}, *AS_ARRAY]).size == [8, 12]


def entry(**changes):
    return {**Preprocess(NODES).to_dict(), **changes}


def with_node(**node):
    return entry(transforms=[node, *AS_ARRAY])


def deep(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (None, "expected a mapping with 'transforms' and 'channels'"),
        ({"transforms": NODES}, "expected a mapping with"),
        (entry(transforms="Resize"), "transforms: expected a list of at most 16 transforms"),
        (entry(transforms=NODES * 9), "transforms: expected a list of at most 16"),
        (entry(transforms=["Resize"]), "transforms.0: a transform is a mapping with a 'name', not 'Resize'"),
        (entry(channels=4), "channels: images have 1 or 3 channels, not 4"),
        (entry(channels=[3]), r"channels: images have 1 or 3 channels, not \[3\]"),
        (entry(channels=1), "transforms: a blank image: Normalize has 3 mean values, but the image has 1"),
        (entry(transforms=[]), "transforms: leave an image of shape .*: add Transpose and Normalize"),
        (entry(transforms=NODES[::-1]), "Normalize takes an array"),
        (with_node(name="os.system"), "transforms.0.name: no transform 'os.system'"),
        (with_node(name="__import__"), "no transform '__import__'"),
        (with_node(name="a\nb"), r"transforms.0.name: expected a text in one line, not 'a\\nb'"),
        (with_node(name="x" * 999), "transforms.0.name: expected a text in one line"),
        (with_node(name="Resize", size=10**9), "transforms.0.size: 1000000000 is not a number up to 4,096"),
        (with_node(name="Resize", size=10**600), "transforms.0.size: 10+... is not a number"),
        (with_node(name="Resize", size=math.nan), "transforms.0.size: nan is not a number"),
        (with_node(name="Resize", size=-3), "transforms.0.size: size is -3, expected an int above 0"),
        (with_node(name="Resize", size=deep(999)), "more than 64 items"),
        (with_node(name="Resize", size=list(range(999))), "transforms.0.size: more than 64 items"),
        (with_node(name="Resize", size=b"8"), "transforms.0.size: a bytes is neither text nor a number"),
        (with_node(name="Resize", size=np.zeros(9)), "transforms.0.size: a ndarray is neither text"),
        (
            with_node(name="Resize", size=8, interpolation="magic"),
            "0.interpolation: interpolation is 'magic'",
        ),
        (with_node(name="Resize", size=8, colour=1), "transforms.0.colour: Resize takes no 'colour'"),
        (entry(transforms=[{"name": "Resize", 8: 8}]), "transforms.0: expected a text in one line, not 8"),
        (with_node(name="RandomHorizontalFlip"), "transforms.0: RandomHorizontalFlip draws at random"),
        (with_node(name="RandomCrop", size=8), "RandomCrop draws at random"),
        (with_node(name="RandomResizedCrop", size=8), "RandomResizedCrop draws at random"),
        (with_node(name="AutoAugment", config_str="rand-n999999999"), "AutoAugment draws at random"),
        (entry(transforms=[*AS_ARRAY, {"name": "RandomErasing"}]), "transforms.2: RandomErasing draws at random"),
    ],
)
def test_an_entry_that_cannot_be_right_is_refused_in_one_line(tree, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Preprocess.from_dict(tree)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@settings(deadline=None, max_examples=200)
@given(
    tree=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([*TRANSFORMS]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["name", "size", "mean", "std", "order"]) | st.text(), inner, max_size=4)
        ),
    )
)
def test_any_other_entry_is_refused_as_well(tree):
    try:
        Preprocess.from_dict({"transforms": [tree, *AS_ARRAY], "channels": 3})
    except ConfigError as error:
        assert "\n" not in str(error)


def test_a_strip_that_would_become_a_bomb_is_refused():
    with pytest.raises(DataError, match="of 100000 x 1 pixels would become one of 22400000 x 224; more"):
        Resize(224)(Image.new("RGB", (100_000, 1)), None)


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    photo().save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:900])
    with pytest.raises(BadImage, match="^number 3: the image cannot be read: "):
        Preprocess(NODES)(Image.open(tmp_path / "a.png"), "number 3")


def test_a_folder_gives_its_images_sorted_without_hidden_ones(tmp_path, monkeypatch):
    for name in ("b.png", "a/z.JPG", "a.png", "a/.hidden/x.png", ".y.png", "a/note.txt", "c/d/e.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    expected = ["a/z.JPG", "a.png", "b.png", "c/d/e.webp"]
    assert images_in(tmp_path) == [str(tmp_path / name) for name in expected]
    monkeypatch.chdir(tmp_path)
    assert images_in(".") == [f"./{name}" for name in expected]


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / ".a.png").touch()
    with pytest.raises(DataError, match=r"no image in this folder \(.jpg"):
        images_in(tmp_path)
    with pytest.raises(DataError, match="nowhere: the folder cannot be read: No such file"):
        images_in(tmp_path / "nowhere")


# Other sizes.


@pytest.mark.parametrize(
    ("before", "size", "after"),
    [
        ([("Resize", 256), ("CenterCrop", 224)], 448, [("Resize", 512), ("CenterCrop", 448)]),
        ([("Resize", 224), ("CenterCrop", 224)], 96, [("Resize", 96), ("CenterCrop", 96)]),
        (
            [("Resize", [274, 260]), ("CenterCrop", [240, 224])],
            112,
            [("Resize", [137, 130]), ("CenterCrop", [120, 112])],
        ),
        ([("Resize", [408, 408])], 240, [("Resize", [240, 240])]),
        ([("Resize", 224)], 1536, [("Resize", 1536)]),
        ([("CenterCrop", 28)], 56, [("CenterCrop", 56)]),
    ],
)
def test_another_size_shows_the_same_part(before, size, after):
    def nodes(sizes):
        return [*({"name": name, "size": value} for name, value in sizes), *AS_ARRAY]

    given = nodes(before)
    assert at_size(given, size) == nodes(after)
    assert given == nodes(before), "and the given list stays"


@given(st.integers(1, 2000))
def test_images_have_the_size_that_was_asked_for(size):
    nodes = at_size(NODES, size)
    assert nodes[1]["size"] == size and abs(nodes[0]["size"] - 1.5 * size) <= 0.5


def test_a_list_without_a_size_has_no_other():
    with pytest.raises(ConfigError, match="transforms: have no CenterCrop and no Resize whose size could be another"):
        at_size(AS_ARRAY, 64)
