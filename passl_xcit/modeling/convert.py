"""Weight files rewritten for another program: the same numbers under its names, in its layout and format."""

from pathlib import Path
from typing import NamedTuple, Optional

from passl_xcit.modeling.checkpoint_formats import write_weights
from passl_xcit.modeling.identify import looks_like
from passl_xcit.modeling.name_maps import Recognised, written_as
from passl_xcit.modeling.state_dict import CLASS_NAMES, COUNTERS, MATHS, MODEL_CONFIG, PREPROCESS
from passl_xcit.modeling.weights import maths_of, read_weights, require_output
from passl_xcit.utils.errors import CheckpointError
from passl_xcit.utils.refusals import short

PADDLE_SUFFIXES = (".pdparams",)
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
# How a project's own program expects the state dict inside a torch file: facebookresearch's and DeiT's under `model`,
# IBM's and timm's bare.
WRAPPERS = {("xcit", "official"): "model", ("regnet", "official"): "model", ("xcit", "mmpretrain"): "state_dict"}


class Converted(NamedTuple):
    """What was converted: the model, the dialect it came in, and the number of arrays written."""

    model: Optional[str]
    dialect: str
    arrays: int


def convert_weights(source, output, to, ema=False):
    """Write the weights in `source`, of any format and dialect, to `output` as `to` names and lays them out.

    Args:
        to: "paddle" (a .pdparams file with our names, which are PASSL's), "official" (facebookresearch's XCiT, IBM's
            CrossViT, DeiT's RegNetY), "timm" or "mmpretrain" (.pth or .safetensors).
        ema: take the moving averages that the file has beside the weights.

    Raises:
        CheckpointError: a file cannot be read or written, holds no model that is known here, or one that the other
            program does not have or would compute otherwise; nothing is written then.
    """
    found = read_weights(source, ema)
    require_output(output, source)
    _check_suffix(output, to)
    if found.dialect is None:
        first = short(next(iter(found.arrays)))
        raise CheckpointError(f"{source}: holds no XCiT, CrossViT or RegNet; the first name in it is {first}")
    maths = maths_of(found)
    if to == "paddle":
        said = {MATHS: maths, COUNTERS: found.counters, CLASS_NAMES: found.class_names}
        said.update({PREPROCESS: found.preprocess, MODEL_CONFIG: found.model_config})
        beside = {key: value for key, value in said.items() if value}
        write_weights(output, {**found.arrays, **beside})
        return Converted(looks_like(found.arrays), found.dialect, len(found.arrays))
    if maths:
        raise CheckpointError(f"{source}: its weights need {maths}, which {to} cannot compute; convert it to paddle")
    try:
        arrays = written_as(Recognised(found.family, found.dialect, found.arrays, found.counters), to)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    bare = Path(output).suffix == ".safetensors"
    write_weights(output, arrays, wrapper=None if bare else WRAPPERS.get((found.family, to)))
    return Converted(looks_like(found.arrays), found.dialect, len(arrays))


def _check_suffix(output, to):
    allowed = PADDLE_SUFFIXES if to == "paddle" else TORCH_SUFFIXES
    if Path(output).suffix not in allowed:
        raise CheckpointError(f"{output}: a file for {to} ends in {' or '.join(allowed)}")
