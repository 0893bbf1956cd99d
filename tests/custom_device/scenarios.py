"""What tests do on the test device, each in a process of its own: `python scenarios.py NAME ARGUMENTS...`.

The last line of the output is what the function NAME returns, as JSON.
"""

import ctypes
import json
import sys
from collections import defaultdict
from pathlib import Path

from passl_xcit.utils.startup import prepare_paddle

prepare_paddle()

import numpy as np  # noqa: E402
import paddle  # noqa: E402
from copy_log import recording  # noqa: E402
from plugin import ROOT, copy, counters  # noqa: E402
from tiny_ascend import tiny_overrides, write_data  # noqa: E402
from tiny_run import json_lines, tiny_config, tiny_run, tiny_trainer  # noqa: E402

from passl_xcit.engine import builder, preflight  # noqa: E402
from passl_xcit.hooks.hook import Hook  # noqa: E402
from passl_xcit.modeling.checkpoint_formats import read_file  # noqa: E402
from passl_xcit.modeling.weights import load_weights  # noqa: E402
from passl_xcit.utils.config import load_config, parse_override  # noqa: E402
from passl_xcit.utils.device import select_device  # noqa: E402
from passl_xcit.utils.dist import init_parallel  # noqa: E402
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
    cfg = tiny_config(folder, *overrides)
    foreseen = preflight.calls_of(cfg, preflight.kernels_for(device))
    missing = [row for row in preflight.preflight(cfg, device) if row.verdict == preflight.MISSING]
    trainer = tiny_trainer_on_device(folder, device, *overrides)
    batch = next(iter(trainer.train_loader))
    with recorded_calls() as calls:
        trainer.train_step(*batch)
        with trainer.precision.evaluation():
            trainer.evaluator.evaluate()
    return {
        "foreseen": sorted(foreseen["training"] | foreseen["evaluation"]),
        "run": sorted({(call.operator, call.dtype) for call in calls}),
        "missing": missing,
    }


def collectives(folder):
    """What each collective operation makes of 300,000 numbers (more than a slot holds) of each process.

    A file of arrays for each process; `refused` names the sums and so on that the device does not make.
    """
    import paddle.distributed as dist

    dist.init_parallel_env()
    rank, found, refused = dist.get_rank(), {}, []
    for dtype in ("float32", "float64", "float16", "bfloat16", "int32", "int64", "uint8"):
        mine = paddle.to_tensor(np.arange(300_000) % 7 + 10 * rank + 1).astype(dtype)
        for name in ("SUM", "MAX", "MIN", "PROD"):
            tensor = mine.clone()
            try:
                dist.all_reduce(tensor, op=getattr(dist.ReduceOp, name))
                found[f"{dtype} all_reduce {name}"] = tensor
            except OSError:
                refused.append(f"{dtype} {name}")
        found[f"{dtype} broadcast"] = mine.clone()
        dist.broadcast(found[f"{dtype} broadcast"], src=1)
        # Into one tensor: for a list of them, Paddle 3.3.1 takes the result apart before it is there.
        found[f"{dtype} all_gather"] = paddle.zeros([600_000], dtype=dtype)
        dist.stream.all_gather(found[f"{dtype} all_gather"], mine)
    part = paddle.zeros([150_000])
    mine = mine.astype("float32")
    dist.reduce_scatter(part, [mine[:150_000], mine[150_000:]])
    dist.barrier()
    arrays = {name: tensor.astype("float64").numpy() for name, tensor in found.items()}
    np.savez(Path(folder) / f"rank{rank}.npz", **arrays, **{"float32 reduce_scatter": part.numpy()}, refused=refused)


def copies_of_operators(device):
    """The kernels and copies of single operators."""
    select_device(device)
    image, matrix = paddle.ones([2, 4, 4, 4]), paddle.ones([4, 4])
    convolution, norm = paddle.nn.Conv2D(4, 2, 1, bias_attr=False), paddle.nn.LayerNorm(4)
    calls = {
        "matmul": lambda: paddle.matmul(matrix, matrix),
        "conv2d": lambda: convolution(image),
        "layer_norm": lambda: norm(matrix),  # scale and bias; mean and variance
        "concat": lambda: paddle.concat([matrix, matrix, matrix]),
        "split": lambda: paddle.split(matrix, [1, 3]),
        "uniform": lambda: paddle.rand([2]),
        "add": lambda: matrix + matrix,
        "full": lambda: paddle.full([3], 2.0),
        "reshape": lambda: matrix.reshape([16]),
        "item": lambda: matrix.sum().item(),
        "to_tensor": lambda: paddle.to_tensor(np.ones(5, "float32")),
    }
    with recording() as since_last:
        return {name: [call(), since_last().as_dict()][1] for name, call in calls.items()}


class CopiesOfIterations(Hook):
    """Notes the copies of each iteration: what comes after the last hook of the one before, up to its own last hook."""

    priority = 100

    def __init__(self, since_last):
        super().__init__()
        self.since_last, self.found = since_last, []

    def train_iter_end(self, trainer):
        self.found.append(self.since_last())


def iterations(folder, device, *overrides):
    """The kernels and copies of each iteration of a training, and of an evaluation after it."""
    with recording() as since_last:
        hook = CopiesOfIterations(since_last)
        trainer = tiny_trainer_on_device(folder, device, *overrides, hooks=[hook])
        trainer.train()
        since_last()
        trainer.evaluate()
        return [copies.as_dict() for copies in [*hook.found, since_last()]]


def calls_of_step(folder, device, *overrides):
    """The kernels of the third training step, as the project's own record has them: lists of the values of a Call."""
    trainer = tiny_trainer_on_device(folder, device, *overrides)
    batches = iter(trainer.train_loader)
    for _ in range(2):
        trainer.train_step(*next(batches))
    batch = next(batches)
    with recorded_calls() as calls:
        trainer.train_step(*batch)
    return calls


def bfloat16_error(folder, device):
    """The message of a training that asks for bfloat16."""
    try:
        tiny_run(Path(folder), f"device={device}", "use_amp=true", "AMP={dtype: bfloat16}")
    except ConfigError as error:
        return str(error)


def tiny_trainer_on_device(folder, device, *overrides, **options):
    select_device(device)
    init_parallel()
    return tiny_trainer(Path(folder), f"device={device}", *overrides, **options)


def touch_device_memory(device):
    """Read a device pointer on the host."""
    select_device(device)
    tensor = paddle.ones([4])
    ctypes.string_at(tensor.data_ptr(), 4)


def copies_by_pointer(device):
    """{copy: [whether the device makes it, how many it has refused so far]}, and what the good one brings."""
    select_device(device)
    tensor, here = paddle.full([4], 7.0), np.zeros(4, "float32")
    there, host, number, size = tensor.data_ptr(), here.ctypes.data, int(device.partition(":")[2]), 16
    copies = {
        "device to host": (-1, host, number, there, size),
        "host pointer as the device's source": (-1, host, number, host, size),
        "host pointer as the device's target": (number, host, -1, host, size),
        "device pointer as the host's source": (number, there, -1, there, size),
        "device pointer as the host's target": (-1, there, number, there, size),
        "pointer of the other device": (-1, host, 1 - number, there, size),
        "beyond the end": (-1, host, number, there, 10**6),
    }
    found = {name: [copy(*arguments) == 0, counters()["refused"]] for name, arguments in copies.items()}
    return {"copies": found, "brought": here.tolist()}


def waiting_for_an_event(device):
    """Three streams: the first has three events to record, the second waits for the last of them, the third does not.

    Then both record an event: what is seen of [the last of the first, the second's, the third's], each state once.
    """
    from paddle.base.core import CustomDeviceEvent, CustomDeviceStream

    select_device(device)
    place = device.partition(":")[0], int(device.partition(":")[2])
    first, second, third = (CustomDeviceStream(*place) for _ in range(3))
    events = [CustomDeviceEvent(*place) for _ in range(5)]
    for event in events[:3]:
        event.record(first)
    second.wait_event(events[2])
    events[3].record(second)
    events[4].record(third)
    states = []
    while not states or not all(states[-1]):
        state = [event.query() for event in (events[4], events[3], events[2])][::-1]  # the first stream's last of all
        if state not in states:
            states.append(state)
    return states


def memory(device):
    """What Paddle says of the device's memory: allocated while 4 MiB are held, after, at most, and reserved at last."""
    select_device(device)
    held = paddle.ones([1024, 1024])
    before = paddle.device.memory_allocated()
    del held
    after, peak = paddle.device.memory_allocated(), paddle.device.max_memory_allocated()
    paddle.device.empty_cache()
    return [before, after, peak, paddle.device.memory_reserved()]


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    print(json.dumps(globals()[name](*arguments)))
