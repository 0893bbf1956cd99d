"""Which model some weights belong to, seen from their names and shapes: for messages that name the right one."""

import re

from passl_xcit.modeling.backbones import crossvit, regnet, xcit


def looks_like(weights):
    """The preset that `weights` fit, such as "xcit_small_12_p16", else "an XCiT of ..."; None for other networks
    and where too much is missing.

    Args:
        weights: {name: array or tensor} under our names; only names and shapes are read.
    """
    shapes = {name.removeprefix("backbone."): tuple(value.shape) for name, value in weights.items()}
    for mark, family, numbers_of, presets in _FAMILIES:
        if any(name.startswith(mark) for name in shapes):
            numbers = numbers_of(shapes)
            if any(0 in _listed(value) for value in numbers.values()):
                return None
            fitting = [name for name, expected in presets.items() if expected == numbers]
            return fitting[0] if fitting else f"{family} of " + ", ".join(f"{k} {v}" for k, v in numbers.items())
    return None


def _listed(value):
    """The numbers in `value`; a bool is none."""
    return [] if isinstance(value, bool) else value if isinstance(value, list) else [value]


def _size(shapes, name, axis):
    """One number of a shape; 0 where there is no such tensor or axis."""
    return dict(enumerate(shapes.get(name, ()))).get(axis, 0)


def _count(shapes, pattern):
    """How many different numbers stand where `pattern` has its group."""
    return len({match[1] for match in map(re.compile(pattern).match, shapes) if match})


def _xcit_numbers(shapes):
    return {
        "patch_size": 2 ** _count(shapes, r"patch_embed\.proj\.(\d+)\.0\."),
        "embed_dim": _size(shapes, "cls_token", 2),
        "depth": _count(shapes, r"blocks\.(\d+)\."),
        "num_heads": _size(shapes, "blocks.0.attn.temperature", 0),
    }


def _crossvit_numbers(shapes):
    return {
        "tokens": [_size(shapes, f"pos_embed.{branch}", 1) for branch in (0, 1)],
        "embed_dim": [_size(shapes, f"pos_embed.{branch}", 2) for branch in (0, 1)],
        "depth": _count(shapes, r"blocks\.0\.blocks\.1\.(\d+)\."),
        "multi_conv": "patch_embed.0.proj.0.weight" in shapes,
    }


def _regnet_numbers(shapes):
    stages = (1, 2, 3, 4)
    return {
        "widths": [_size(shapes, f"s{stage}_b1.conv2._conv.weight", 0) for stage in stages],
        "depths": [_count(shapes, rf"s{stage}_b(\d+)\.") for stage in stages],
        "group_w": _size(shapes, "s1_b1.conv1._conv.weight", 1),
        "se_on": "s1_b1.se_block.squeeze.weight" in shapes,
    }


def _xcit_preset(preset):
    return {key: preset[key] for key in ("patch_size", "embed_dim", "depth", "num_heads")}


def _crossvit_preset(preset):
    sizes = zip(crossvit.branch_sizes(preset["img_size"], preset["patch_size"]), preset["patch_size"])
    return {
        "tokens": [(size // patch) ** 2 + 1 for size, patch in sizes],
        "embed_dim": list(preset["embed_dim"]),
        "depth": preset["depth"][0][1],
        "multi_conv": preset["multi_conv"],
    }


def _regnet_preset(preset):
    stages = regnet.stages_of(**{key: preset[key] for key in ("w_a", "w_0", "w_m", "d", "group_w", "bot_mul")}, q=8)
    return {
        "widths": [stage.width for stage in stages],
        "depths": [stage.depth for stage in stages],
        "group_w": stages[0].group_w,
        "se_on": preset["se_on"],
    }


_FAMILIES = tuple(
    (mark, family, numbers_of, {name: of_preset(preset) for name, preset in module.VARIANTS.items()})
    for mark, family, numbers_of, of_preset, module in (
        ("pos_embeder.", "an XCiT", _xcit_numbers, _xcit_preset, xcit),
        ("blocks.0.revert_projs.", "a CrossViT", _crossvit_numbers, _crossvit_preset, crossvit),
        ("s1_b1.", "a RegNet", _regnet_numbers, _regnet_preset, regnet),
    )
)
