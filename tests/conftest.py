"""What tests of several rooms need; and the CPU set up as the tools set it up, before anything imports Paddle."""

from passl_xcit.utils.startup import prepare_paddle

prepare_paddle()

import os  # noqa: E402
import shutil  # noqa: E402
import zlib  # noqa: E402
from collections import Counter  # noqa: E402

import numpy as np  # noqa: E402
import paddle  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from PIL import Image  # noqa: E402

from passl_xcit.modeling.architectures import Classification  # noqa: E402
from passl_xcit.modeling.backbones.xcit import XCiT  # noqa: E402
from passl_xcit.modeling.heads import SwinTransformerClsHead  # noqa: E402
from passl_xcit.ops.library import Library  # noqa: E402
from passl_xcit.utils.logger import get_logger  # noqa: E402

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

os.environ.pop("PYTHONUNBUFFERED", None)  # with it, what a process could not write is forgotten at once


@pytest.fixture(autouse=True)
def no_log_outlives_its_test():
    """Its handlers hold a standard output that pytest closes, and files of the test's folder."""
    yield
    root = get_logger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()


@pytest.fixture
def packings(monkeypatch):
    """How often each native operator has packed the weights of a frozen model."""
    counts, run = Counter(), Library.run

    def counted(self, name, *args, **kwargs):
        counts[name] += name.endswith("_packed")
        return run(self, name, *args, **kwargs)

    monkeypatch.setattr(Library, "run", counted)
    return counts


@pytest.fixture
def tiny_model():
    """Make a Classification of one block, 16 channels and patches of 4 pixels; `config` goes to its XCiT."""

    def make(num_classes=3, seed=0, **config):
        paddle.seed(seed)
        config = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "cls_attn_layers": 1, **config}
        head = SwinTransformerClsHead(config["embed_dim"], num_classes)
        return Classification(head, XCiT(**config))

    return make


@pytest.fixture
def write_image(tmp_path):
    """Write an RGB image, whose noise depends on its name, to a file of the test's folder; returns its path."""

    def write(name, width=8, height=6):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (height, width, 3), dtype="uint8")
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture(scope="session")
def browser():
    """Path of a headless browser."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.skip(f"needs a headless browser: {', '.join(BROWSERS)} (Debian: apt install chromium-headless-shell)")
    return found


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
