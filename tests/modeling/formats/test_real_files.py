"""Files of the real programs: read as they were saved.

The files were made by `tests/golden/make_format_goldens.py`.
"""

from pathlib import Path

import numpy as np
import pytest
from formula_arrays import formula
from weight_file_checks import same

from passl_xcit.modeling.checkpoint_formats import read_file

FOLDER = Path(__file__).parents[2] / "golden/formats"
CODES = {"float64": "f8", "float32": "f4", "float16": "f2", "int64": "i8", "int32": "i4", "int16": "i2", "int8": "i1"}
CODES.update(uint8="u1", bool="b1")
TYPES = {name: formula([2, 3], code) for name, code in CODES.items()}
BITS = (formula([2, 3]).view("u4") >> 16).astype("u2")  # what bfloat16 keeps of a float32


def types(**more):
    return {**TYPES, **more}


def layer():
    """torch's Sequential(Linear(3, 2), BatchNorm1d(2))."""
    shapes = {"0.weight": [2, 3], "0.bias": [2], "1.weight": [2], "1.bias": [2], "1.running_mean": [2]}
    state = {name: formula(shape) for name, shape in shapes.items()}
    return {**state, "1.running_var": formula([2]), "1.num_batches_tracked": formula([], "i8")}


def torch_views():
    base = formula([4, 6])
    return {
        "base": base,
        "transposed": base.T.copy(),
        "part": base[1:3, ::2].copy(),
        "row": base[2],
        "turned": formula([2, 3, 4]).transpose(2, 0, 1).copy(),
        "transposed_bfloat16": base.T.copy(),
        "parameter": base,
        "marked": formula([2], "f4", 9),
        "same": base,
    }


def torch_training():
    shapes = [[2, 3], [2], [2], [2]]
    moments = [{"step": np.array(3, "f4"), "exp_avg": formula(shape, "f4", 5)} for shape in shapes]
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "amsgrad": False, "maximize": False}
    group.update(foreach=None, capturable=False, differentiable=False, fused=None, decoupled_weight_decay=True)
    group.update(initial_lr=1e-3, params=[0, 1, 2, 3])
    schedule = {"milestones": {2: 1, 4: 2}, "gamma": 0.1, "base_lrs": [1e-3], "last_epoch": 0, "_step_count": 1}
    schedule.update(_is_initial=False, _get_lr_called_within_step=False, _last_lr=[1e-3])
    options = {"model": "xcit", "lr": 1e-3, "device": "cuda:0", "dtype": "torch.bfloat16", "clip": None}
    return {
        "model": layer(),
        "optimizer": {"state": dict(enumerate(moments)), "param_groups": [group]},
        "lr_scheduler": schedule,
        "epoch": 3,
        "scaler": {},
        "args": options,
        "size": (2, 3),
    }


def mmengine():
    methods = {name: name for name in ("min", "max", "current", "mean")}
    history = {"max_length": 1_000_000, "_log_history": np.array([1.5, 0.5, -0.5]), "_count_history": np.ones(3, int)}
    scalars = {"train/loss": {**history, "statistics_methods": methods}}
    keys = {"train/loss": True, "epoch": True}
    meta = {"epoch": 2, "seed": 7, "experiment_name": "golden", "dataset_meta": {"classes": ("cat", "dog")}}
    hub = {"log_scalars": scalars, "runtime_info": {"epoch": 2}, "resumed_keys": keys}
    return {"meta": meta, "state_dict": layer(), "message_hub": hub}


def paddle_layer():
    names = {"weight": "linear_0.w_0", "bias": "linear_0.b_0"}
    return {"weight": formula([3, 2]), "bias": formula([2], "f4", 9), "StructuredToParameterName@@": names}


def paddle_training():
    state = {"weight": ("linear_0.w_0", formula([3, 2])), "bias": ("linear_0.b_0", formula([2], "f4", 9))}
    moments = [("moment_0", formula([2])), ("moment_1", formula([2], "f4", 9))]
    schedule = {"last_lr": 1e-3, "milestones": [1, 2]}
    return {
        "epoch": 3,
        "state_dict": state,
        "lr_scheduler": schedule,
        "optimizer": {"moments": moments, "beta1_pow": 0.9},
    }


PADDLE_TYPES = types(bfloat16=BITS, zero_d=formula([]), empty=np.zeros((0, 3), "f4"))
PADDLE_TYPES["StructuredToParameterName@@"] = {name: f"{name}.w_0" for name in PADDLE_TYPES}
TORCH_TYPES = types(bfloat16=formula([2, 3]), zero_d=formula([]), empty=np.zeros((0, 3), "f4"))
NUMBERS = {
    "epoch_num": np.array(3),
    "learning_rate": np.array(0.5, "f4"),
    "frozen": np.array(True),
    "note": "h\u00e9llo",
}
REAL_FILES = {
    **{f"paddle_types_protocol{protocol}.pdparams": PADDLE_TYPES for protocol in (2, 3, 4)},
    "paddle_layer.pdparams": paddle_layer(),
    "paddle_training.pdparams": paddle_training(),
    "torch_types.pth": TORCH_TYPES,
    "torch_types_protocol4.bin": TORCH_TYPES,
    "torch_types_legacy.pth": TORCH_TYPES,
    "torch_views.pth": torch_views(),
    "torch_views_legacy.pth": torch_views(),
    "torch_training.pth": torch_training(),
    "torch_training_legacy.pth": torch_training(),
    "mmengine.pth": mmengine(),
    "types.safetensors": TORCH_TYPES,
    "mindspore_types.ckpt": types(bfloat16=formula([2, 3]), zero_d=formula([])),
    "mindspore_training.ckpt": {"conv.weight": formula([2, 3, 1, 1]), **NUMBERS},
    "mindspore_split.ckpt": {"before": formula([2]), "large": formula([20, 30]), "after": formula([2], "f4", 9)},
}


def test_every_real_file_is_tried():
    assert {path.name for path in FOLDER.iterdir()} == set(REAL_FILES)


@pytest.mark.parametrize("file", REAL_FILES)
def test_a_real_file_is_read_as_it_was_saved_bit_for_bit(file):
    tree, expected = read_file(FOLDER / file), REAL_FILES[file]
    # The header of a safetensors file has an order of its own.
    assert same({name: tree[name] for name in expected} if file.endswith(".safetensors") else tree, expected)
    assert len(tree) == len(expected)


@pytest.mark.parametrize("file", REAL_FILES)
def test_the_arrays_of_a_real_file_are_aligned_writable_and_in_order(file):
    def check(value):
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
            check(item)
        if isinstance(value, np.ndarray):
            assert value.flags.writeable and value.flags.aligned and value.flags.c_contiguous

    check(read_file(FOLDER / file))
