"""What a Paddle program would do, read from its text before Paddle loads it.

Paddle runs whatever operators a program names, and some write files (`save_combine`). Only those pass that the exported
models here compute with; all of them turn tensors into tensors.
"""

import json

from passl_xcit.utils.errors import CheckpointError
from passl_xcit.utils.refusals import short

# "0" is Paddle's dialect `builtin`, "1" is `pd_op`, "p" a parameter. The same in Paddle 3.0.0 and 3.3.1.
_NAMES = """
    p 0.combine 0.split 1.add 1.arange 1.assign_value_ 1.batch_norm_ 1.cast 1.clip 1.concat 1.conv2d 1.cos 1.data
    1.depthwise_conv2d 1.divide 1.dropout 1.elementwise_pow 1.expand 1.fetch 1.flatten 1.full 1.full_int_array 1.gelu
    1.layer_norm 1.matmul 1.mean 1.multiply 1.relu 1.reshape 1.scale 1.shape64 1.sigmoid 1.sin 1.slice 1.softmax
    1.split 1.split_with_num 1.sqrt 1.stack 1.sum 1.tanh 1.transpose 1.unsqueeze
"""
OPERATORS = frozenset(_NAMES.split())


def program_shapes(path):
    """([B, C, H, W] of the images, [B, K] of the outputs) of the program in the file `path`; -1 stands for any length.

    Raises:
        CheckpointError: it is no program of one input and one output, or would do anything but compute.
    """
    try:
        tree = json.loads(path.read_bytes(), object_pairs_hook=_without_repeats)
        ((block,),) = (region["blocks"] for region in tree["program"]["regions"])
        operators = block["ops"]
        strange = next((kind for kind in (_kind(operator) for operator in operators) if kind not in OPERATORS), None)
        (images,), (outputs,) = ([o for o in operators if o["#"] == kind] for kind in ("1.data", "1.fetch"))
        shapes = [operator["O"][0]["TT"]["D"][1] for operator in (images, outputs)]
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise CheckpointError(f"{path}: is no program of Paddle 3 with one input and one output") from error
    if strange is not None:
        raise CheckpointError(f"{path}: has the operator {short(strange)}, which no model here computes with")
    return shapes


def _kind(operator):
    """Its name; one that holds operators of its own has none that is known."""
    return "with a block" if "regions" in operator else operator["#"]


def _without_repeats(pairs):
    """Parsers differ in which of two equal keys they take."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)
