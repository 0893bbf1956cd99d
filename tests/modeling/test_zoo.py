"""The list of published weights: complete, consistent with itself, and found under every name that people use."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from passl_xcit.modeling.zoo import ZOO_FILE, entries, find, normal_form, read_zoo

ROOT = Path(__file__).resolve().parents[2]
NAMES = [name for entry in entries() for name in entry.names]
ids = [entry.name for entry in entries()]
each_entry = pytest.mark.parametrize("entry", entries(), ids=ids)


# What the list holds.


def test_every_published_weight_is_there():
    sizes = ("nano_12", "tiny_12", "tiny_24", "small_12", "small_24", "medium_24", "large_24")
    xcit = {
        f"xcit_{size}_p{patch}_{end}" for size in sizes for patch in (8, 16) for end in ("224", "224_dist", "384_dist")
    }
    crossvit = {f"crossvit_{size}_240" for size in ("tiny", "small", "base", "9", "15", "18")}
    crossvit |= {f"crossvit_{size}_dagger_240" for size in (9, 15, 18)}
    crossvit |= {f"crossvit_{size}_dagger_408" for size in (15, 18)}
    assert (len(xcit), len(crossvit)) == (42, 11)
    assert {entry.name for entry in entries()} == xcit | crossvit | {"regnety_160"}
    assert len(entries()) == 54


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("xcit-nano-12-p16_3rdparty_in1k", "xcit_nano_12_p16_224"),
        ("xcit-large-24-p8_3rdparty-dist_in1k-384px", "xcit_large_24_p8_384_dist"),
        ("xcit_nano_12_p16_384.fb_dist_in1k", "xcit_nano_12_p16_384_dist"),
        ("xcit_small_24_p8_224.fb_in1k", "xcit_small_24_p8_224"),
        ("xcit_medium_24_p16_384", "xcit_medium_24_p16_384_dist"),  # timm's default tag
        ("XCiT-Tiny_12_p8_224_dist", "xcit_tiny_12_p8_224_dist"),
        ("crossvit_15_dagger_384", "crossvit_15_dagger_408"),
        ("crossvit_tiny_224", "crossvit_tiny_240"),
        ("crossvit_9_240.in1k", "crossvit_9_240"),
        ("cross_vit_base_224", "crossvit_base_240"),
        ("crossvit_18", "crossvit_18_240"),
        ("regnety_160.deit_in1k", "regnety_160"),
        ("RegNetY_160", "regnety_160"),
    ],
)
def test_a_weight_is_found_by_the_name_that_other_projects_give_it(called, name):
    assert find(called).name == name


@pytest.mark.parametrize("called", ["xcit_nano_12_p16", "xcit_nano_12_p16_384_dist_", "", "crossvit_9_dagger_408"])
def test_what_is_no_weight_is_not_found(called):
    assert find(called) is None


@given(st.sampled_from(NAMES), st.data())
def test_case_and_hyphens_do_not_matter(name, data):
    def disguised(letter):
        return data.draw(st.sampled_from([letter.lower(), letter.upper()] + ["-", "_"] * (letter in "-_")))

    assert find("".join(map(disguised, name))) is find(name) is not None


@given(st.text())
def test_a_normal_form_is_its_own(name):
    assert normal_form(normal_form(name)) == normal_form(name)


@each_entry
def test_mmpretrain_s_name_belongs_to_the_file_that_bears_it(entry):
    called = [alias for alias in entry.aliases if "3rdparty" in alias]
    files = [Path(file.url).name for file in entry.weights if file.dialect == "mmpretrain"]
    assert len(called) == len(files) == entry.name.startswith("xcit")
    for alias, file in zip(called, files):
        assert re.fullmatch(rf"{alias}_2023021[34]-[0-9a-f]{{8}}\.pth", file)


@each_entry
def test_a_file_with_a_known_digest_comes_first(entry):
    known = [bool(file.sha256) for file in entry.weights]
    assert known == sorted(known, reverse=True)
    for file in entry.weights + tuple(other.file for other in entry.other_weights):
        in_name = re.search(r"-([0-9a-f]{8})[-.]", file.url.rsplit("/", 1)[1])
        assert file.sha256 == (in_name.group(1) if in_name else "")


def test_addresses_are_complete_and_none_is_there_twice():
    urls = [file.url for entry in entries() for file in entry.weights]
    urls += [other.file.url for entry in entries() for other in entry.other_weights]
    assert len(urls) == len(set(urls)) == 42 * 3 + 11 * 2 + 2 + 14 + 1 + 2 + 4 + 1
    assert all(re.fullmatch(r"https://[\w.-]+/[\w./-]+\.(pth|safetensors|pdparams|ckpt)", url) for url in urls)


# Accuracies and their pipelines.


@each_entry
def test_publishers_that_used_the_same_pipeline_agree(entry):
    """Weights of neighbouring rows differ by more, so that this finds a number in a wrong row."""
    by_pipeline = {}
    for result in entry.results:
        by_pipeline.setdefault(result.pipeline, []).append(result.acc1)
    for values in by_pipeline.values():
        assert max(values) - min(values) < 0.25


@each_entry
def test_another_pipeline_changes_little(entry):
    values = [result.acc1 for result in entry.results]
    assert max(values) - min(values) < 0.75
    assert all(result.acc5 is None or result.acc1 < result.acc5 < 100 for result in entry.results)


def test_each_publisher_has_its_own_pipeline():
    used = {}
    for entry in entries():
        for result in entry.results:
            used.setdefault((entry.name.split("_")[0], result.by), set()).add(str(result.pipeline))
    assert used == {
        ("xcit", "facebookresearch"): {"224 px, crop 1, bicubic", "384 px, crop 1, bicubic"},
        ("xcit", "timm"): {"224 px, crop 1, bicubic", "384 px, crop 1, bicubic"},
        ("xcit", "mmpretrain"): {"224 px, crop 0.875, bicubic", "384 px, squashed, bicubic"},
        ("xcit", "PaddleViT"): {"224 px, crop 1, bicubic", "384 px, crop 1, bicubic"},
        ("crossvit", "timm"): {"240 px, crop 0.875, bicubic", "408 px, crop 1, bicubic"},
        ("crossvit", "PaddleViT"): {"224 px, crop 0.875, bicubic", "384 px, crop 1, bicubic"},
        ("regnety", "timm"): {"224 px, crop 0.95, bicubic", "288 px, crop 1, bicubic"},
    }


@each_entry
def test_the_pipeline_to_evaluate_with_is_one_with_a_known_result(entry):
    assert entry.evaluation in [result.pipeline for result in entry.results if result.by == "timm"]
    assert str(entry.evaluation.size) in entry.name or entry.name == "regnety_160"


def test_the_shorter_side_is_the_size_divided_by_the_crop_ratio():
    pipelines = {result.pipeline for entry in entries() for result in entry.results}
    for pipeline in pipelines:
        whole = (pipeline.size, pipeline.size)
        assert pipeline.resize == (whole if "squashed" in str(pipeline) else int(pipeline.size / pipeline.crop_ratio))
        assert [round(value / 255, 3) for value in pipeline.mean + pipeline.std] == [
            0.485,
            0.456,
            0.406,
            0.229,
            0.224,
            0.225,
        ]


@pytest.mark.parametrize(
    ("name", "by", "acc1", "acc5"),
    [  # read off the publishers' own pages
        ("xcit_nano_12_p16_224", "mmpretrain", 70.35, 89.98),
        ("xcit_nano_12_p16_384_dist", "facebookresearch", 75.4, None),
        ("xcit_large_24_p8_384_dist", "mmpretrain", 86.13, 97.75),
        ("xcit_tiny_24_p8_224_dist", "facebookresearch", 82.6, None),
        ("xcit_small_12_p8_384_dist", "timm", 85.068, 97.264),
        ("crossvit_18_dagger_408", "timm", 84.198, 96.834),
        ("crossvit_9_dagger_240", "PaddleViT", 76.92, 93.61),
    ],
)
def test_accuracies_as_published(name, by, acc1, acc5):
    assert [(result.acc1, result.acc5) for result in find(name).results if result.by == by] == [(acc1, acc5)]


@pytest.mark.parametrize(
    ("name", "by", "acc1"),
    [("xcit_nano_12_p8_224_dist", "PASSL", [77.28]), ("crossvit_9_240", "MindCV", [73.56, 73.38])],
)
def test_what_others_trained_is_listed_apart(name, by, acc1):
    entry = find(name)
    assert [other.result.acc1 for other in entry.other_weights if other.by == by] == acc1
    assert by not in [result.by for result in entry.results]


# Reading the file.


def test_reading_needs_no_paddle():
    code = "import sys; from passl_xcit.modeling.zoo import entries; print(len(entries()), 'paddle' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "54 False\n"


def test_entries_are_read_once_and_cannot_be_changed():
    assert entries() is entries()
    with pytest.raises(AttributeError):
        entries()[0].params = 1


@pytest.fixture
def spoiled(tmp_path):
    """Write zoo.yaml with its first two entries, changed by a function; returns the path."""

    def write(change):
        data = yaml.safe_load(ZOO_FILE.read_text("utf-8"))
        data["entries"] = data["entries"][:2]
        change(data["entries"][0])
        path = tmp_path / "zoo.yaml"
        path.write_text(yaml.safe_dump(data), "utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda entry: entry.update(evaluation="225_full"), "xcit_nano_12_p16_224: '225_full'"),
        (lambda entry: entry["results"][0].update(by="nobody"), "xcit_nano_12_p16_224: 'nobody'"),
        (lambda entry: entry["weights"][1].update(dialect="jax"), "xcit_nano_12_p16_224.pth has an unknown dialect"),
        (lambda entry: entry["weights"][0].update(sha256="ed776c39"), "or a digest that is not in its name"),
        (lambda entry: entry.update(accuracy=70.0), "unexpected keyword argument 'accuracy'"),
        (lambda entry: entry.pop("params"), "missing 1 required positional argument: 'params'"),
        (
            lambda entry: entry["aliases"].append("XCiT_nano_12_p16_224-dist"),
            "'xcit_nano_12_p16_224_dist' is both xcit_nano_12_p16_224 and xcit_nano_12_p16_224_dist",
        ),
        (
            lambda entry: entry["aliases"].append("xcit-nano_12_p16_224"),
            "is both xcit_nano_12_p16_224 and xcit_nano_12",
        ),
    ],
)
def test_an_entry_that_cannot_be_right_is_refused_by_name(spoiled, change, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        read_zoo(spoiled(change))
