"""What large images take: estimates against measured memory, and against a clock of the test's own; and who is told."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paddle import nn
from tiny_run import start, tiny_run, tiny_trainer

from passl_xcit.engine import cost
from passl_xcit.engine.cost import CostEstimate, CostWatch
from passl_xcit.engine.look_inside import draw_pages
from passl_xcit.modeling.factory import create_model
from passl_xcit.ops.library import library
from passl_xcit.utils.errors import DataError, DeviceError
from passl_xcit.utils.logger import setup_logger

MEASURE = Path(__file__).parent / "measure_cost.py"
SECONDS, SECONDS_A_PIXEL = 0.03, 2e-6


class Timed(nn.Layer):
    """A convolution and a linear layer whose forward pass takes a known time on a clock of its own."""

    def __init__(self, grows=True):
        super().__init__()
        self.backbone = SimpleNamespace(in_chans=3, TRACED_FOR_ANY_SIZE=grows, size_divisor=16)
        self.conv, self.fc, self.now, self.runs = nn.Conv2D(3, 5, 4, stride=4), nn.Linear(5, 2), 0.0, []

    def forward(self, images):
        count, _, height, width = images.shape
        self.runs.append((count, height, width))
        self.now += SECONDS + (SECONDS_A_PIXEL * count * height * width if self.backbone.TRACED_FOR_ANY_SIZE else 0)
        return self.fc(self.conv(images).mean(axis=[2, 3]))


@pytest.fixture
def timed(monkeypatch):
    """Make a Timed, whose clock is the one that costs are measured with."""

    def make(grows=True):
        model = Timed(grows)
        monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: model.now))
        return model

    return make


@pytest.fixture
def free(monkeypatch):
    """Let the machine have so many bytes of free memory."""

    def set_to(size):
        monkeypatch.setattr(cost.psutil, "virtual_memory", lambda: SimpleNamespace(available=size))

    return set_to


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells a process's peak on Linux")
@pytest.mark.parametrize(
    ("name", "pixels", "count"),
    [
        ("xcit_nano_12_p16", 768, 1),
        ("xcit_nano_12_p16", 1536, 1),
        ("xcit_nano_12_p16", 640, 4),
        ("xcit_nano_12_p8", 768, 1),
        ("crossvit_9_240", 1024, 1),
        ("crossvit_9_240", 2048, 2),
        ("regnety_040", 768, 1),
    ],
)
@pytest.mark.parametrize("native", ["off", "auto"])
def test_memory_is_estimated_within_a_factor_of_two(native, name, pixels, count, monkeypatch):
    if native == "auto" and not (name.startswith("xcit") and library()):
        pytest.skip("no native operators: as without them")
    monkeypatch.setenv("PASSL_XCIT_NATIVE", native)
    output, errors = start(name, pixels, count, before=[MEASURE]).communicate(timeout=300)
    found = json.loads(output or errors)
    assert 0.5 < found["measured"] / found["estimate"] < 2, found


@given(st.integers(1, 9), st.integers(32, 150), st.integers(32, 150))
def test_time_grows_with_the_pixels(count, rows, columns):
    model = Timed()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: model.now))
        estimate = CostEstimate(model, 16 * rows, 16 * columns)
    expected = SECONDS + SECONDS_A_PIXEL * count * 256 * rows * columns
    assert estimate.seconds(count, 16 * rows, 16 * columns) == pytest.approx(expected)


def test_what_is_measured_is_a_sixteenth_of_the_image(timed):
    model = timed()
    CostEstimate(model, 1536, 1000)
    assert set(model.runs) == {(1, 384, 224), (1, 32, 32)}


def test_memory_is_that_of_the_largest_layer():
    """The convolution of 3 x 800 x 480 pixels makes 5 x 200 x 120, from patches of 3 x 4 x 4."""
    places = 200 * 120
    image, output, patches = 3 * 800 * 480, 5 * places, 3 * 4 * 4 * places
    estimate = CostEstimate(Timed(), 800, 480)
    for count in (1, 7):
        expected = 4 * 1.5 * (count * (image + output) + patches + count * image)
        assert estimate.memory(count, 800, 480) == pytest.approx(expected, rel=1e-6)


def test_a_model_that_scales_its_images_takes_no_longer_for_larger_ones(timed):
    estimate = CostEstimate(timed(grows=False), 2048, 2048)
    assert estimate.seconds(3, 2048, 2048) == pytest.approx(3 * SECONDS)


@pytest.mark.slow
def test_of_a_model_that_scales_its_images_only_these_take_more_memory():
    crossvit = create_model("crossvit_9_240")
    crossvit.eval()
    estimate = CostEstimate(crossvit, 640, 640)
    images = 4 * 1.5 * 3 * (2048**2 - 1024**2)
    assert estimate.memory(1, 2048, 2048) - estimate.memory(1, 1024, 1024) == pytest.approx(images)


# Who is told.


def watched(model, *shapes, batches=None):
    watch = CostWatch(model)
    for shape in shapes:
        with watch.watched(shape, batches):
            model(paddle.zeros(shape))


def test_nothing_is_told_of_images_of_usual_size(timed, capfd):
    setup_logger()
    model = timed()
    watched(model, [64, 3, 512, 512], [1, 3, 224, 224])
    assert len(model.runs) == 2 and capfd.readouterr().out == ""


def test_the_largest_batch_so_far_is_told_of_before_and_after(timed, capfd):
    setup_logger()
    watched(timed(), [1, 3, 1024, 1536], [1, 3, 768, 768], [2, 3, 1024, 1024])
    lines = [line.partition("INFO: ")[2] for line in capfd.readouterr().out.splitlines()]
    before, after, *second = lines
    seconds = SECONDS + SECONDS_A_PIXEL * 1024 * 1536
    assert before == f"1 image of 1536 x 1024 pixels, 6,144 tokens each: about 0.08 GiB and {seconds:.2f} s on cpu"
    assert re.fullmatch(rf"1 image of 1536 x 1024 pixels took {seconds:.2f} s( and [\d.]+ GiB)?", after)
    assert [line.split(" of ")[0] for line in second] == ["2 images", "2 images"]


def test_the_time_of_all_batches_is_told_where_they_are_counted(timed, capfd):
    setup_logger()
    watched(timed(), [2, 3, 1024, 1024], batches=1200)
    seconds = SECONDS + SECONDS_A_PIXEL * 2 * 1024**2
    assert f"{seconds:.2f} s on cpu, {1200 * seconds / 60:.1f} min for 1,200 batches\n" in capfd.readouterr().out


def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(timed, free):
    model = timed()
    estimate = CostEstimate(model, 1024, 1024)
    memory = estimate.memory(8, 1024, 1024)
    free(0.6 * memory)
    with pytest.raises(DeviceError) as error:
        watched(model, [8, 3, 1024, 1024])
    assert re.match(
        r"8 images of 1024 x 1024 pixels need about 0.\d\d GiB of memory, and 0.\d\d GiB are", str(error.value)
    )
    count = int(re.search(r"free: take a batch size of (\d+)$", str(error.value))[1])
    assert 1 < count < 8 and estimate.memory(count, 1024, 1024) <= 0.6 * memory
    assert (8, 1024, 1024) not in model.runs


def test_an_image_that_does_not_fit_is_refused_with_a_size_that_does(timed, free):
    model = timed()
    estimate = CostEstimate(model, 2048, 1024)
    free(0.5 * estimate.memory(1, 2048, 1024))
    with pytest.raises(DeviceError) as error:
        watched(model, [4, 3, 2048, 1024])
    width, height = map(int, re.search(r"take images of at most (\d+) x (\d+) pixels", str(error.value)).groups())
    assert estimate.memory(1, height, width) <= 0.5 * estimate.memory(1, 2048, 1024)
    assert 0.6 < height / 2048 < 0.71 and 0.6 < width / 1024 < 0.71


def test_a_size_that_the_model_does_not_take_is_refused_before_anything_is_measured(timed):
    model = timed()
    with pytest.raises(DataError, match="images of 1000 x 1024 pixels do not divide into patches of 16"):
        watched(model, [1, 3, 1000, 1024])
    assert model.runs == []


@pytest.mark.parametrize("options", [{}, {"knn": "neck"}], ids=["classifier", "knn"])
def test_evaluations_tell(options, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(cost, "LARGE", 8 * 8 - 1)
    tiny_trainer(tmp_path)
    tiny_run(tmp_path, evaluate_only=True, **options)
    output = capfd.readouterr().out
    assert re.search(
        r"4 images of 8 x 8 pixels, 4 tokens each: about 0.00 GiB and [\d.]+ s on cpu, .* for 4 batches", output
    )
    assert re.search(r"4 images of 8 x 8 pixels took [\d.]+ s", output)


def test_pages_of_large_images_tell(tmp_path, capfd, monkeypatch, tiny_model, write_image):
    setup_logger()
    monkeypatch.setattr(cost, "LARGE", 8 * 8 - 1)
    preprocess = SimpleNamespace(mode="RGB", summary=lambda: {"mean": [110.0] * 3, "std": [50.0] * 3})
    draw_pages(tiny_model(), preprocess, write_image("a.png", 16, 12), tmp_path / "pages")
    assert "1 image of 16 x 12 pixels, 12 tokens each: about" in capfd.readouterr().out
