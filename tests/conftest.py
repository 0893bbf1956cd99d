"""What tests of several rooms need; and the CPU set up as the tools set it up, before anything imports Paddle."""

from passl_xcit.utils.cpu import prepare_cpu

prepare_cpu()

import paddle  # noqa: E402
import pytest  # noqa: E402

from passl_xcit.modeling.architectures import Classification  # noqa: E402
from passl_xcit.modeling.backbones.xcit import XCiT  # noqa: E402
from passl_xcit.modeling.heads import SwinTransformerClsHead  # noqa: E402


@pytest.fixture
def tiny_model():
    """Make a Classification of one block, 16 channels and patches of 4 pixels; `config` goes to its XCiT."""

    def make(num_classes=3, seed=0, **config):
        paddle.seed(seed)
        config = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "cls_attn_layers": 1, **config}
        head = SwinTransformerClsHead(config["embed_dim"], num_classes)
        return Classification(head, XCiT(**config))

    return make


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
