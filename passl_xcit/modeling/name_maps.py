"""Parameter names and layouts of other projects' weight files, both ways.

Ours are PASSL's: `backbone.*` and `head.fc_cls.*`, Linear weights as [in, out], BatchNorm's buffers `_mean` and
`_variance`. torch, timm, mmpretrain and MindSpore keep Linear weights as [out, in]; what is transposed is chosen by
the file as a whole and never by a tensor's own shape, for many of these matrices are square.

Names were read from facebookresearch/xcit, IBM/CrossViT, timm, mmpretrain, MindCV, PASSL, PaddleViT and
XCiT-PaddlePaddle, and are tested with the lists that the first five's programs gave (tests/golden/peer_names.json).
"""

import re
from typing import NamedTuple

import numpy as np

from passl_xcit.utils.errors import CheckpointError

# In patterns `*` is a number; a name that begins with the left side gets the right side there, and back when written.
_MMPRETRAIN_MLP = tuple(
    (f"{theirs}.*.ffn.layers.{layer}.", f"{ours}.*.mlp.fc{number}.")
    for theirs, ours in (("xca_layers", "blocks"), ("ca_layers", "cls_attn_blocks"))
    for layer, number in (("0.0", 1), ("1", 2))
)
_MMPRETRAIN_STEM = tuple(
    (f"patch_embed.proj.{conv}.{theirs}.", f"patch_embed.proj.{2 * conv}.{ours}.")
    for conv in range(8)
    for theirs, ours in (("conv", 0), ("bn", 1))
)
_REGNET_CONVS = tuple(
    (f"s*.b*.{theirs}.{part}.", f"s*_b*.{ours}.{our_part}.")
    for theirs, ours in (("conv1", "conv0"), ("conv2", "conv1"), ("conv3", "conv2"), ("downsample", "short"))
    for part, our_part in (("conv", "_conv"), ("bn", "_batch_norm"))
)
_TIMM_REGNET = (
    ("stem.conv.", "conv._conv."),
    ("stem.bn.", "conv._batch_norm."),
    ("s*.b*.se.fc1.", "s*_b*.se_block.squeeze."),
    ("s*.b*.se.fc2.", "s*_b*.se_block.excitation."),
    ("head.fc.", "head.fc_cls."),
    *_REGNET_CONVS,
)
_MINDCV_STAGES = tuple(
    (f"{theirs}{part}.", f"blocks.{ours}.{part.replace('.*.0', '.*')}.")
    for theirs, ours in (("0.blocks.0.*.", "*"), ("0.", "0"), ("blocks.*.", "*"))
    for part in ("blocks", "projs", "fusion.*.0", "revert_projs")
)
RENAMES = {
    "xcit": {
        "official": (("head.", "head.fc_cls."),),
        "timm": (("head.", "head.fc_cls."), ("pos_embed.", "pos_embeder.")),
        "mmpretrain": (
            ("head.fc.", "head.fc_cls."),
            ("pos_embed.token_projection.conv.", "pos_embeder.token_projection."),
            *_MMPRETRAIN_STEM,
            ("xca_layers.*.local_mp.conv1.conv.", "blocks.*.local_mp.conv1."),
            ("xca_layers.*.local_mp.conv1.bn.", "blocks.*.local_mp.bn."),
            ("xca_layers.*.local_mp.conv2.conv.", "blocks.*.local_mp.conv2."),
            *_MMPRETRAIN_MLP,
            ("xca_layers.*.", "blocks.*."),
            ("ca_layers.*.", "cls_attn_blocks.*."),
        ),
        "mindcv": (("head.", "head.fc_cls."),),
        "paddle": (("head.weight", "head.fc_cls.weight"), ("head.bias", "head.fc_cls.bias")),  # PaddleViT's
    },
    "crossvit": {
        "official": (("head.*.", "head.fc_cls.*."),),
        "timm": (("head.*.", "head.fc_cls.*."), ("cls_token_*", "cls_token.*"), ("pos_embed_*", "pos_embed.*")),
        "mindcv": (("head.*.", "head.fc_cls.*."), *_MINDCV_STAGES),
        "paddle": (
            ("head.*.", "head.fc_cls.*."),
            ("blocks.*.blocks.*.*.attn.out.", "blocks.*.blocks.*.*.attn.proj."),  # PaddleViT's
        ),
    },
    "regnet": {
        "official": _TIMM_REGNET,  # DeiT's teacher is a file of timm's
        "timm": _TIMM_REGNET,
        "paddle": (("out.", "head.fc_cls."),),  # XCiT-PaddlePaddle's; PASSL's names are ours
    },
}
# A part of a name that only files of this family have, and the dialect of torch files that have it.
_MARKS = (
    ("xca_layers.0.", "xcit", "mmpretrain"),
    ("pos_embed.token_projection.", "xcit", "timm"),
    ("pos_embeder.token_projection.", "xcit", "official"),
    ("cls_token_0", "crossvit", "timm"),
    ("revert_projs.", "crossvit", "official"),
    ("stem.conv.", "regnet", "timm"),
    ("s1_b1.conv0._conv.", "regnet", "paddle"),
)
_FEATURES = "backbone."
_WRAPPERS = ("module.", "_layers.", "model.", "Student.", "Teacher.")  # of DataParallel, and of what holds the model
_LEAVES = {"running_mean": "_mean", "running_var": "_variance"}
_MINDSPORE_LEAVES = {"moving_mean": "_mean", "moving_variance": "_variance", "gamma": "weight", "beta": "bias"}
_COUNTER = ".num_batches_tracked"
_SPLIT_QKV = re.compile(r"(cls_attn_blocks\.\d+\.attn\.)([qkv])\.(weight|bias)")


class Recognised(NamedTuple):
    """A file's weights under our names and in our layout, and what else is known of the file.

    `family` is xcit, crossvit or regnet; `dialect` whose names the file has: official, timm, mmpretrain, mindcv or
    paddle. `counters` are torch's `num_batches_tracked` under our names: nothing needs them, but they are part of
    torch's files.
    """

    family: str
    dialect: str
    weights: dict
    counters: dict


def recognise(arrays):
    """`arrays`, {name in a file: ndarray}, as Recognised; None for names of no model that is known here.

    Raises:
        CheckpointError: if two names of the file mean the same parameter.
    """
    arrays = _unwrapped(arrays)
    found = next(((mark, *known) for mark, *known in _MARKS if any(mark in name for name in arrays)), None)
    if found is None:
        return None
    _, family, dialect = found
    torch_layout = _is_torch_layout(arrays)
    if any(_leaf(name) in _MINDSPORE_LEAVES for name in arrays):
        dialect = "mindcv"
    elif not torch_layout:
        dialect = "paddle"
    renames = RENAMES[family][dialect]
    named = _distinct({_our_leaf(_renamed(name, renames)): array for name, array in arrays.items()}, arrays)
    counters = {name: named.pop(name) for name in list(named) if name.endswith(_COUNTER)}
    if torch_layout:
        named = {name: _transposed(name, array) for name, array in _with_joined_qkv(named).items()}
    else:
        named = _without_conv_biases(named)
    return Recognised(family, dialect, _prefixed(named), _prefixed(counters))


def written_as(recognised, dialect):
    """The weights of a Recognised under the names and in the layout of `dialect`: official, timm or mmpretrain.

    Raises:
        CheckpointError: if that project has no such model.
    """
    known = RENAMES[recognised.family]
    if dialect not in known or dialect in ("mindcv", "paddle"):
        targets = [name for name in known if name not in ("mindcv", "paddle")]
        raise CheckpointError(f"{dialect} has no {recognised.family}; it can be written as {' or '.join(targets)}")
    ours = _unprefixed({name: _transposed_back(name, array) for name, array in recognised.weights.items()})
    if recognised.family == "xcit" and dialect != "official":
        ours = _with_split_qkv(ours)
    ours.update(_all_counters(recognised))
    backwards = tuple((mine, theirs) for theirs, mine in known[dialect])
    named = {_renamed(_torch_leaf(name), backwards): array for name, array in ours.items()}
    if dialect == "mmpretrain":
        return {name if name.startswith("head.") else _FEATURES + name: array for name, array in named.items()}
    return named


def _unwrapped(arrays):
    """Without the prefixes that wrappers give to all names; of a distillation's two models the student."""
    while prefix := next((prefix for prefix in _WRAPPERS if _all_begin_with(prefix, arrays)), None):
        arrays = {name[len(prefix) :]: array for name, array in arrays.items()}
    if any(name.startswith("Student.") for name in arrays):
        return _unwrapped({name: array for name, array in arrays.items() if name.startswith("Student.")})
    return _unprefixed(arrays)


def _all_begin_with(prefix, arrays):
    return bool(arrays) and all(name.startswith(prefix) for name in arrays)


def _unprefixed(arrays):
    return _distinct({name.removeprefix(_FEATURES): array for name, array in arrays.items()}, arrays)


def _distinct(renamed, arrays):
    if len(renamed) < len(arrays):
        raise CheckpointError("two of its names mean the same parameter; it seems to hold more than one model")
    return renamed


def _prefixed(arrays):
    return {name if name.startswith("head.") else _FEATURES + name: array for name, array in arrays.items()}


def _is_torch_layout(arrays):
    """Whether Linear weights are [out, in]: a qkv projection is three times as long one way; RegNet has none."""
    qkv = next((array for name, array in arrays.items() if name.endswith("attn.qkv.weight")), None)
    if qkv is None or qkv.ndim != 2:
        return not any(name.endswith("._mean") for name in arrays)
    return qkv.shape[0] == 3 * qkv.shape[1]


def _renamed(name, renames):
    for old, new in renames:
        pattern = re.escape(old).replace(r"\*", r"(\d+)")
        if match := re.match(pattern, name):
            numbers = iter(match.groups())
            return re.sub(r"\*", lambda _: next(numbers), new) + name[match.end() :]  # noqa: B023
    return name


def _leaf(name):
    return name.rpartition(".")[2]


def _our_leaf(name):
    stem, dot, leaf = name.rpartition(".")
    return stem + dot + {**_LEAVES, **_MINDSPORE_LEAVES}.get(leaf, leaf)


def _torch_leaf(name):
    stem, dot, leaf = name.rpartition(".")
    return stem + dot + {ours: theirs for theirs, ours in _LEAVES.items()}.get(leaf, leaf)


def _transposed(name, array):
    """torch's layout -> ours: Linear weights, which are the two-dimensional ones, and RegNet's 1x1 convolutions."""
    if ".se_block." in name and array.ndim == 4:
        return array[:, :, 0, 0].T
    return array.T if array.ndim == 2 else array


def _transposed_back(name, array):
    if ".se_block." in name and array.ndim == 2:
        return array.T[:, :, None, None]
    return array.T if array.ndim == 2 else array


def _with_joined_qkv(named):
    """Class attention's q, k and v of timm and mmpretrain as the rows of one `qkv`."""
    joined = {}
    for name, array in named.items():
        match = _SPLIT_QKV.fullmatch(name)
        parts = [named.get(f"{match[1]}{letter}.{match[3]}") for letter in "qkv"] if match else [None]
        if any(
            part is None or not part.ndim or part.ndim != array.ndim or part.shape[1:] != array.shape[1:]
            for part in parts
        ):
            joined[name] = array
        elif match[2] == "q":
            joined[f"{match[1]}qkv.{match[3]}"] = np.concatenate(parts)
    return joined


def _with_split_qkv(named):
    split = {}
    for name, array in named.items():
        if name.startswith("cls_attn_blocks.") and ".attn.qkv." in name and array.ndim and len(array) % 3 == 0:
            for letter, rows in zip("qkv", np.split(array, 3)):
                split[name.replace(".qkv.", f".{letter}.")] = rows
        else:
            split[name] = array
    return split


def _without_conv_biases(named):
    """PASSL's RegNet has a bias before each BatchNorm, which is the same as a smaller running mean."""
    biases = {name: array for name, array in named.items() if name.endswith("._conv.bias")}
    kept = {name: array for name, array in named.items() if name not in biases}
    for name, bias in biases.items():
        mean = name.replace("._conv.bias", "._batch_norm._mean")
        if mean in kept and kept[mean].shape == bias.shape:
            kept[mean] = kept[mean] - bias
    return kept


def _all_counters(recognised):
    """Every BatchNorm's counter; 0 where the file that it came from had none."""
    names = [name[: -len("._mean")] + _COUNTER for name in recognised.weights if name.endswith("._mean")]
    return _unprefixed({name: recognised.counters.get(name, np.array(0, "int64")) for name in names})
