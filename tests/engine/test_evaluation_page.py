"""The page: nothing in it runs or is loaded, whatever classes and files are called, and it fits narrow screens."""

import html.parser
import json
import re
import subprocess

import numpy as np
import pytest
from PIL import Image
from tiny_run import tiny_run, write_images

from passl_xcit.datasets.demo_fashion_mnist import FashionMNIST
from passl_xcit.datasets.random_images import RandomImages
from passl_xcit.engine.evaluation import EvaluationOptions
from passl_xcit.engine.evaluation_page import MATRIX_CLASSES, thumbnail
from passl_xcit.engine.evaluation_report import Evaluation, RealAccuracy, make_report, write_report
from passl_xcit.engine.recorder import Records

ATTACKS = ("<script>alert(1)</script>", "'\"><img src=x onerror=alert(1)>", "{{ 7 * 7 }}", "$x_1$ &amp; \u732b")


class Tags(html.parser.HTMLParser):
    """All tags with their attributes, and all texts, of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


def records_of(classes, samples, seed=0):
    """Records of a model that is right in about three of four cases, and otherwise says the next class."""
    rng = np.random.default_rng(seed)
    targets = np.arange(samples) % classes
    kept = min(5, classes)
    best = (targets[:, None] + np.arange(kept)) % classes
    wrong = rng.random(samples) < 0.25
    best[wrong, 0], best[wrong, 1] = best[wrong, 1], best[wrong, 0].copy()
    probabilities = -np.sort(-rng.dirichlet(np.ones(kept), size=samples), axis=1).astype("float32")
    ones = np.ones(samples, "float32")
    return Records(targets, best, probabilities, ones, ones / 2, np.ones(samples, bool))


ORIGIN = {
    "date": "2026-11-22T10:00:00+00:00",
    "command": "tools/validate.py",
    "weights": {"file": "w.pdparams", "bytes": 5, "sha256": "0" * 64},
    "class_list": None,
    "real_labels": None,
    "preprocessing": [{"name": "CenterCrop", "size": 224}],
    "data": {"where": "val", "samples": 1, "classes": 1, "sha256": "1" * 64},
    "device": {"name": "cpu", "processor": "a processor", "processes": 2},
    "batch_size": 8,
    "workers": 0,
    "versions": {"paddle": "3.3.1"},
    "config": {"file": "c.yaml", "content": "epochs: 1\n"},
}


def evaluation(classes, samples, names=None, real=None, **origin):
    records = records_of(classes, samples)
    metrics = {f"acc{k}": 100.0 * records.within(k).sum() / samples for k in (1, 5)}
    dataset = RandomImages(num_images=samples, image_size=90, model_classes=classes)
    model = {"name": "XCiT", "parameters": 1000, "classes": classes}
    return Evaluation(records, metrics, dataset, names, real, {**ORIGIN, "model": model, **origin}, 2.0)


def page_of(folder, *arguments, **options):
    """(text, Tags) of the page of an evaluation that `evaluation` describes."""
    write_report(folder, evaluation(*arguments, **options))
    text = (folder / "report.html").read_text(encoding="utf-8")
    return text, Tags(text)


def assert_harmless(tags):
    """No script, no handler, no address but pictures that are inside the page."""
    for tag, attributes in tags.tags:
        assert tag not in ("script", "iframe", "object", "embed", "link", "base", "form"), tag
        assert not [name for name in attributes if name.startswith("on") or name in ("href", "srcset")]
        assert attributes.get("src", "data:image/").startswith("data:image/")


@pytest.mark.parametrize("classes", [3, 10, 60, 1000])
def test_it_loads_and_runs_nothing(classes, tmp_path):
    text, tags = page_of(tmp_path, classes, 3 * classes)
    assert_harmless(tags)
    policies = [attributes["content"] for _, attributes in tags.tags if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert not re.search(r"url\(|@import", text)


@pytest.mark.parametrize("classes", [4, 30])
def test_names_are_texts_whatever_they_hold(classes, tmp_path):
    names = [*ATTACKS, *map(str, range(classes - 4))]
    origin = {"command": ATTACKS[0], "preprocessing": [{"name": ATTACKS[0], ATTACKS[1]: ATTACKS[1]}]}
    text, tags = page_of(tmp_path, classes, 4 * classes, names=names, **origin)
    assert_harmless(tags)
    assert "<script" not in text and "<img src=x" not in text
    for name in ATTACKS:
        assert name in [part.strip() for part in tags.texts]


@pytest.mark.slow
def test_a_folder_called_script_is_a_text_from_the_data_to_the_page(tmp_path):
    """Folders and files as a file system takes them: no slash."""
    names = ["<script>alert(1)<", "<img src=x onerror=alert(2)>", "c"]
    for split, count in (("train", 8), ("val", 5)):
        write_images(tmp_path / split, count)
        for label, name in enumerate(names):
            (tmp_path / split / f"class{label}").rename(tmp_path / split / name)
    (tmp_path / "val" / names[0] / "0.png").rename(tmp_path / "val" / names[0] / "'\"><script>alert(3)<.png")
    tiny_run(tmp_path, "epochs=1")
    folder = tmp_path / "report"
    tiny_run(
        tmp_path,
        load=str(tmp_path / "out" / "latest.pdparams"),
        evaluate_only=True,
        evaluation=EvaluationOptions(str(folder)),
    )
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text and "<img src=x" not in text
    tags = Tags(text)
    assert_harmless(tags)
    assert set(names) <= {part.strip() for part in tags.texts}


def test_a_file_name_of_bytes_that_are_no_text_is_shown(tmp_path):
    found = evaluation(3, 30)
    found.dataset.name = lambda index: f"caf\udce9 {index}.png"
    write_report(tmp_path, found)
    assert "caf\\udce9 " in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "caf\\udce9 0.png" in (tmp_path / "predictions.csv").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("classes", [2, MATRIX_CLASSES, MATRIX_CLASSES + 1, 1000])
def test_few_classes_have_a_matrix_with_their_names_and_many_a_picture(classes, tmp_path):
    text, tags = page_of(tmp_path, classes, 2 * classes, names=[f"name {number}" for number in range(classes)])
    is_table = any(attributes.get("class") == "matrix" for _, attributes in tags.tags)
    assert is_table == (classes <= MATRIX_CLASSES)
    assert text.count("data:image/svg+xml") == (1 if is_table else 2)
    assert f"name {classes - 1}" in text
    assert ("Blocks of 20 classes" in text) == (classes == 1000)


def test_the_numbers_are_those_of_the_report(tmp_path):
    found = evaluation(10, 400, real=RealAccuracy(np.ones(400), 380, 300, 370))
    write_report(tmp_path, found)
    report, texts = make_report(found), Tags((tmp_path / "report.html").read_text(encoding="utf-8")).texts
    for value in (report["accuracy"]["acc1"], report["real"]["acc1"]["value"], report["calibration"]["ece"]):
        assert f"{value:.2f} %" in texts
    assert "95 %: {:.2f} – {:.2f}".format(*report["accuracy"]["acc1_interval"]) in texts
    assert "200.0 /s" in texts and "0" * 64 in " ".join(texts)
    for row in report["classes"]:
        assert f"{row['accuracy']:.2f}" in texts


def test_a_model_without_errors_has_a_page(tmp_path):
    found = evaluation(3, 30)
    perfect = found.records._replace(best=(found.records.targets[:, None] + np.arange(3)) % 3)
    write_report(tmp_path, found._replace(records=perfect, metrics={"acc1": 100.0, "acc5": 100.0}))
    texts = Tags((tmp_path / "report.html").read_text(encoding="utf-8")).texts
    assert "Nothing is." in texts and "There is no error." in texts


def test_an_image_that_is_gone_leaves_its_place(tmp_path):
    from passl_xcit.datasets.imagenet import ImageNet

    write_images(tmp_path, 1)
    dataset = ImageNet(str(tmp_path))
    assert thumbnail(dataset, 1).startswith("data:image/png;base64,")
    dataset.path(1).unlink()
    assert thumbnail(dataset, 1) is None


def test_large_images_become_small_jpegs_and_small_ones_stay_as_they_are():
    import base64
    import io

    large = thumbnail(RandomImages(num_images=1, image_size=900), 0)
    assert large.startswith("data:image/jpeg") and len(large) < 60_000
    data = FashionMNIST("test")
    small = Image.open(io.BytesIO(base64.b64decode(thumbnail(data, 7).partition(",")[2])))
    assert (np.asarray(small) == data.images[7]).all()


def photographed(browser, page, width, height=3000):
    """uint8 [height, width, 3]: the page in a window of that size."""
    picture = page.with_suffix(".png")
    options = ["--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={page.parent / 'browser'}"]
    command = [browser, "--headless", *options, f"--window-size={width},{height}", f"--screenshot={picture}"]
    subprocess.run([*command, page.as_uri()], timeout=100, check=True, capture_output=True)
    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("classes", [10, 25, 1000])
def test_nothing_is_wider_than_the_window(classes, width, browser, tmp_path):
    """The margins at both sides are empty, and what is between them is not."""
    names = [f"a long name of a class, {number}" for number in range(classes)]
    page_of(tmp_path, classes, 2 * classes, names=names, command="--data_dir /" + "a" * 300)
    pixels = photographed(browser, tmp_path / "report.html", width).astype(int)
    background = pixels[1, 1]
    margin = 10
    for side in (pixels[:, :margin], pixels[:, -margin:]):
        assert (abs(side - background) <= 2).all()
    assert background.min() > 240, "light"
    assert (abs(pixels[:, margin:-margin] - background).max(axis=2) > 40).mean() > 0.02


@pytest.mark.slow
def test_a_script_in_a_name_does_not_run(browser, tmp_path):
    """The browser's own view of the page: were the script run, the title would say so."""
    names = ["<script>document.title = 'run'</script>", "<img src=x onerror=\"document.title='run'\">", "c"]
    page_of(tmp_path, 3, 30, names=names)
    options = ["--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=3000"]
    command = [browser, "--headless", *options, "--dump-dom", (tmp_path / "report.html").as_uri()]
    page = subprocess.run(command, timeout=100, check=True, capture_output=True).stdout.decode()
    assert "<title>Evaluation: " in page and "&lt;script&gt;document.title" in page
