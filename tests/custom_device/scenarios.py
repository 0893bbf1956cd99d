"""What tests do on the test device, each in a process of its own: `python scenarios.py NAME ARGUMENTS...`.

The last line of the output is what the function NAME returns, as JSON.
"""

import contextlib
import io
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

from passl_xcit.utils.startup import prepare_paddle

prepare_paddle()

import numpy as np  # noqa: E402
import paddle  # noqa: E402
from plugin import ROOT, counters  # noqa: E402
from tiny_ascend import tiny_overrides, write_data  # noqa: E402
from tiny_run import json_lines, tiny_config, tiny_run, tiny_trainer  # noqa: E402

from passl_xcit.engine import builder, preflight  # noqa: E402
from passl_xcit.modeling.checkpoint_formats import read_file  # noqa: E402
from passl_xcit.modeling.weights import load_weights  # noqa: E402
from passl_xcit.utils.config import load_config, parse_override  # noqa: E402
from passl_xcit.utils.device import select_device  # noqa: E402
from passl_xcit.utils.errors import ConfigError  # noqa: E402
from passl_xcit.utils.kernels import recorded_calls  # noqa: E402

DEMO = ROOT / "configs" / "demo" / "xcit_demo_p4_fashion_mnist.yaml"
DEMO_WEIGHTS = ROOT / "weights" / "xcit_demo_p4_fashion_mnist.pdparams"


def demo_logits(*devices):
    """The demo's logits of 200 test images, and how many are right, on each of `devices`."""
    cfg = load_config(DEMO)
    found = {}
    for device in devices:
        select_device(device)
        model = builder.build_model(cfg, training=False)
        load_weights(model, DEMO_WEIGHTS)
        model.eval()
        batches = iter(builder.build_evaluator(cfg, model).loader)
        logits, labels = [], []
        with paddle.no_grad():
            for _ in range(2):
                images, targets = next(batches)
                logits.append(model(images).numpy())
                labels.append(targets.numpy())
        logits, labels = np.concatenate(logits), np.concatenate(labels)
        right = int((logits.argmax(axis=1) == labels).sum())
        found[device] = {"logits": logits.tolist(), "right": right, "place": str(images.place)}
    return {**found, "counters": counters()}


def train(folder, *overrides, **options):
    """A tiny training in `folder`: the lines of its log."""
    tiny_run(Path(folder), *overrides, **options)
    return json_lines(Path(folder) / "out")


def resume(folder, *overrides):
    """Go on with the training in `folder`: the lines of its log."""
    return train(folder, *overrides, resume_from="auto")


def whole_and_resumed(folder, *overrides):
    """A training at one go and the same one in two parts: what both wrote, and what is in the last checkpoint."""
    whole, parts = (Path(folder) / name for name in ("whole", "parts"))
    tiny_run(Path(folder), *overrides, f"output_dir={whole}")
    tiny_run(Path(folder), *overrides, f"output_dir={parts}", "epochs=1")
    tiny_run(Path(folder), *overrides, f"output_dir={parts}", resume_from="auto")
    files = [read_file(path / "latest.pdparams") for path in (whole, parts)]
    states = ("state_dict", "optimizer", "state_dict_ema")
    differences = [
        f"{state} {name}"
        for state in states
        for name, array in files[0][state].items()
        if not np.array_equal(array, files[1][state][name])
    ]
    masters = {name: array for name, array in files[0]["optimizer"].items() if name.endswith("/master_weight")}
    return {
        "lines": [json_lines(path) for path in (whole, parts)],
        "differences": differences,
        "types": sorted({str(array.dtype) for state in states for array in files[0][state].values()}),
        "masters": len(masters),
        "masters_saved": all(
            np.array_equal(array.ravel(), files[0]["state_dict"][name.rpartition("/")[0]].ravel())
            for name, array in masters.items()
        ),
        "scalers": [file["scaler"] for file in files],
    }


def operators(folder, *overrides):
    """{operator: how often the third training step called it in [float16, bfloat16, float32, other types]}."""
    trainer = tiny_trainer_on_device(folder, *overrides)
    batches = iter(trainer.train_loader)
    for _ in range(2):
        trainer.train_step(*next(batches))
    table = io.StringIO()
    with contextlib.redirect_stdout(table), paddle.amp.debugging.collect_operator_stats():
        trainer.train_step(*next(batches))
    rows = re.findall(r"^ +(\w+) +\| +(\d+) +\| +(\d+) +\| +(\d+) +\| +(\d+)", table.getvalue(), re.MULTILINE)
    return {name: [int(count) for count in counts] for name, *counts in rows}


def calls_of_config(config, folder):
    """What a training of an `_ascend` config ran, with its evaluations and moving averages: {operator: its types}."""
    overrides = [*tiny_overrides(config), f"output_dir={folder}/out"]
    data = write_data(Path(folder))
    overrides += [f"dataloader.{split}.dataset.dataroot={data / split}" for split in ("train", "val")]
    cfg = load_config(ROOT / config, [parse_override(text) for text in overrides])
    select_device("npu:0")
    trainer = builder.build_trainer(cfg, builder.build_model(cfg))
    trainer.output_dir.mkdir()
    with recorded_calls() as calls:
        trainer.train()
    types = defaultdict(set)
    for call in calls:
        types[call.operator].add(call.dtype)
    return {operator: sorted(types[operator]) for operator in types}


def foreseen_and_run(folder, device, *overrides):
    """[operator, type] of a training step and its update: what the pre-flight foresees, and what the device ran."""
    folder = Path(folder)
    foreseen = preflight.calls_of(tiny_config(folder, *overrides), preflight.kernels_for(device))
    trainer = tiny_trainer_on_device(folder, device, *overrides)
    batch = next(iter(trainer.train_loader))
    with recorded_calls() as calls:
        trainer.train_step(*batch)
        with trainer.precision.evaluation():
            trainer.evaluator.evaluate()
    return {
        "foreseen": sorted(foreseen["training"] | foreseen["evaluation"]),
        "run": sorted({(call.operator, call.dtype) for call in calls}),
    }


def collectives(folder):
    """What each collective operation makes of 300,000 numbers (more than a slot holds) of each process."""
    import paddle.distributed as dist

    dist.init_parallel_env()
    rank, found = dist.get_rank(), {}
    for dtype in ("float32", "float64", "float16", "bfloat16", "int32", "int64"):
        mine = paddle.to_tensor(np.arange(300_000) % 7 + 10 * rank + 1).astype(dtype)
        for name in ("SUM", "MAX", "MIN", "PROD"):
            tensor = mine.clone()
            dist.all_reduce(tensor, op=getattr(dist.ReduceOp, name))
            found[f"{dtype} all_reduce {name}"] = tensor
        tensor = mine.clone()
        dist.broadcast(tensor, src=1)
        found[f"{dtype} broadcast"] = tensor
        # Into one tensor: for a list of them, Paddle 3.3.1 takes the result apart before it is there.
        gathered = paddle.zeros([600_000], dtype=dtype)
        dist.stream.all_gather(gathered, mine)
        found[f"{dtype} all_gather"] = gathered
        part = paddle.zeros([150_000], dtype=dtype)
        dist.reduce_scatter(part, [mine[:150_000], mine[150_000:]])
        found[f"{dtype} reduce_scatter"] = part
    dist.barrier()
    arrays = {name: tensor.astype("float64").numpy() for name, tensor in found.items()}
    np.savez(Path(folder) / f"rank{rank}.npz", **arrays)


def steady_steps(folder, device, *overrides):
    """What the device counted in the third and in the fourth training step, and how often Python read a tensor."""
    trainer = tiny_trainer_on_device(folder, device, *overrides)
    batches = [next(iter(trainer.train_loader)) for _ in range(4)]
    reads = []
    for name in ("item", "numpy", "tolist", "__float__", "__int__", "__bool__"):
        _note_calls(paddle.Tensor, name, reads)
    found = []
    for images, targets in batches:
        before, read = counters(), len(reads)
        trainer.train_step(images, targets)
        found.append({name: count - before[name] for name, count in counters().items()})
        found[-1]["reads"] = reads[read:]
    return found[2:]


def _note_calls(owner, name, calls):
    original = getattr(owner, name)

    def noting(*arguments, **options):
        calls.append(name)
        return original(*arguments, **options)

    setattr(owner, name, noting)


def bfloat16_error(folder, device):
    """The message of a training that asks for bfloat16."""
    try:
        tiny_run(Path(folder), f"device={device}", "use_amp=true", "AMP={dtype: bfloat16}")
    except ConfigError as error:
        return str(error)


def tiny_trainer_on_device(folder, device, *overrides):
    select_device(device)
    return tiny_trainer(Path(folder), f"device={device}", *overrides)


def touch_device_memory(device):
    """Read a device pointer on the host."""
    import ctypes

    select_device(device)
    tensor = paddle.ones([4])
    ctypes.string_at(tensor.data_ptr(), 4)


def memory(device):
    """What Paddle says of the device's memory while 4 MiB are held, and after."""
    select_device(device)
    held = paddle.ones([1024, 1024])
    before = paddle.device.memory_allocated()
    del held
    return [before, paddle.device.memory_allocated(), paddle.device.max_memory_allocated()]


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    print(json.dumps(globals()[name](*arguments)))
