"""XCiT and CrossViT on PaddlePaddle, with PASSL's conventions.

The public names are here; each is imported when it is first used, so that `import passl_xcit` needs no Paddle, and
that the processor can be prepared for Paddle (`utils/startup.py`) before that is imported.
"""

import importlib
import sys

__version__ = "0.2.0"

_WHERE = {
    "create_model": "modeling.factory",
    "get_model": "modeling.factory",
    "list_models": "modeling.factory",
    "get_config": "modeling.factory",
    "Predictor": "engine.predictor",
    "train": "engine.launch",
    "evaluate": "engine.launch",
    "draw_pages": "engine.look_inside",
    "whole_image": "engine.look_inside",
    "class_maps": "modeling.attention",
    "channel_maps": "modeling.attention",
    "FashionMNIST": "datasets.demo_fashion_mnist",
    "read_checkpoint": "modeling.state_dict",
    "load_weights": "modeling.weights",
    "convert_weights": "modeling.convert",
    "CheckpointError": "utils.errors",
    "ConfigError": "utils.errors",
    "DataError": "utils.errors",
    "UserError": "utils.errors",
}
_WITHOUT_PADDLE = ("modeling.state_dict", "utils.errors")
__all__ = sorted(_WHERE)


def __getattr__(name):
    if name not in _WHERE:
        raise AttributeError(f"module 'passl_xcit' has no attribute '{name}'")
    if _WHERE[name] not in _WITHOUT_PADDLE and "paddle" not in sys.modules:
        importlib.import_module("passl_xcit.utils.startup").prepare_paddle(own_process=False)
    return getattr(importlib.import_module(f"passl_xcit.{_WHERE[name]}"), name)


def __dir__():
    return [*globals(), *__all__]
