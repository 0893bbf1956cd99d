"""Write tests/golden/formats/*: small files of the real programs, with values by `formula_arrays.formula`.

Run one part in an environment that has the program; no download is needed:
    python tests/golden/make_format_goldens.py paddle        paddlepaddle 3.3.1
    python tests/golden/make_format_goldens.py torch         torch 2.13.0, safetensors 0.8.0, mmengine 0.10.7
    python tests/golden/make_format_goldens.py mindspore     mindspore 2.10.0
What is in each file, `tests/modeling/formats/test_real_files.py` says again, without these programs.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from formula_arrays import formula

FOLDER = Path(__file__).with_name("formats")
CODES = {"float64": "f8", "float32": "f4", "float16": "f2", "int64": "i8", "int32": "i4", "int16": "i2", "int8": "i1"}
CODES.update(uint8="u1", bool="b1")


def make_paddle():
    import paddle

    def tensor(*arguments):
        return paddle.to_tensor(formula(*arguments))

    state = {name: tensor([2, 3], code) for name, code in CODES.items()}
    state["bfloat16"] = tensor([2, 3]).astype("bfloat16")
    state.update(zero_d=tensor([]), empty=tensor([0, 3]))
    for name, value in state.items():
        value.name = f"{name}.w_0"
    for protocol in (2, 3, 4):
        paddle.save(state, str(FOLDER / f"paddle_types_protocol{protocol}.pdparams"), protocol=protocol)

    layer = paddle.nn.Linear(3, 2)
    layer.weight.set_value(tensor([3, 2]))
    layer.bias.set_value(tensor([2], "f4", 9))
    paddle.save(layer.state_dict(), str(FOLDER / "paddle_layer.pdparams"))
    training = {"epoch": 3, "state_dict": layer.state_dict(), "lr_scheduler": {"last_lr": 1e-3, "milestones": [1, 2]}}
    moments = [tensor([2]), tensor([2], "f4", 9)]
    for number, value in enumerate(moments):
        value.name = f"moment_{number}"
    training["optimizer"] = {"moments": moments, "beta1_pow": 0.9}
    paddle.save(training, str(FOLDER / "paddle_training.pdparams"))


def make_torch():
    import torch
    from mmengine.logging import MessageHub
    from safetensors.torch import save_file

    def tensor(*arguments):
        return torch.from_numpy(formula(*arguments))

    types = {name: tensor([2, 3], code) for name, code in CODES.items()}
    types.update(bfloat16=tensor([2, 3]).bfloat16(), zero_d=tensor([]), empty=torch.zeros(0, 3))
    torch.save(types, FOLDER / "torch_types.pth")
    torch.save(types, FOLDER / "torch_types_protocol4.bin", pickle_protocol=4)
    torch.save(types, FOLDER / "torch_types_legacy.pth", _use_new_zipfile_serialization=False)
    save_file(types, FOLDER / "types.safetensors", metadata={"format": "pt"})
    (FOLDER / "types.safetensors").chmod(0o644)

    base = tensor([4, 6])
    marked = torch.nn.Parameter(tensor([2], "f4", 9))
    marked.no_weight_decay = True
    views = {
        "base": base,
        "transposed": base.t(),
        "part": base[1:3, ::2],
        "row": base[2],
        "turned": tensor([2, 3, 4]).permute(2, 0, 1),
        "transposed_bfloat16": base.bfloat16().t(),
        "parameter": torch.nn.Parameter(base),
        "marked": marked,
        "same": base,
    }
    torch.save(views, FOLDER / "torch_views.pth")
    torch.save(views, FOLDER / "torch_views_legacy.pth", _use_new_zipfile_serialization=False)

    layer = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    layer.load_state_dict(
        {
            name: tensor(list(v.shape), "i8" if v.dtype == torch.int64 else "f4")
            for name, v in layer.state_dict().items()
        }
    )
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    for parameter in layer.parameters():
        optimizer.state[parameter] = {"step": torch.tensor(3.0), "exp_avg": tensor(list(parameter.shape), "f4", 5)}
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4, 4])
    options = argparse.Namespace(model="xcit", lr=1e-3, device=torch.device("cuda", 0), dtype=torch.bfloat16, clip=None)
    training = {"model": layer.state_dict(), "optimizer": optimizer.state_dict(), "lr_scheduler": schedule.state_dict()}
    training.update(epoch=3, scaler={}, args=options, size=torch.Size([2, 3]))
    torch.save(training, FOLDER / "torch_training.pth")
    torch.save(training, FOLDER / "torch_training_legacy.pth", _use_new_zipfile_serialization=False)

    hub = MessageHub.get_instance("golden")
    for step in range(3):
        hub.update_scalar("train/loss", 1.5 - step)
    hub.update_info("epoch", 2)
    meta = {"epoch": 2, "seed": 7, "experiment_name": "golden", "dataset_meta": {"classes": ("cat", "dog")}}
    torch.save(
        {"meta": meta, "state_dict": layer.state_dict(), "message_hub": hub.state_dict()}, FOLDER / "mmengine.pth"
    )


def make_mindspore():
    import mindspore
    from mindspore.train import serialization

    def save(name, arrays, **options):
        (FOLDER / name).unlink(missing_ok=True)
        tensors = [{"name": key, "data": mindspore.Tensor(array)} for key, array in arrays.items()]
        mindspore.save_checkpoint(tensors, str(FOLDER / name), **options)
        (FOLDER / name).chmod(0o644)

    types = {name: mindspore.Tensor(formula([2, 3], code)) for name, code in CODES.items()}
    types.update(bfloat16=types["float32"].astype(mindspore.bfloat16), zero_d=mindspore.Tensor(formula([])))
    save("mindspore_types.ckpt", types)
    numbers = {"epoch_num": 3, "learning_rate": 0.5, "frozen": True, "note": "h\u00e9llo"}
    save("mindspore_training.ckpt", {"conv.weight": formula([2, 3, 1, 1])}, append_dict=numbers, crc_check=True)
    serialization.SLICE_SIZE = 1  # in KB: a tensor larger than this is split
    save("mindspore_split.ckpt", {"before": formula([2]), "large": formula([20, 30]), "after": formula([2], "f4", 9)})


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    {"paddle": make_paddle, "torch": make_torch, "mindspore": make_mindspore}[sys.argv[1]]()
