"""The smallest run that is a whole one: 24 small images of 3 classes, and an XCiT of one block."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from passl_xcit.engine import builder, launch
from passl_xcit.hooks.hook import Hook
from passl_xcit.utils.config import load_config, parse_override
from passl_xcit.utils.logger import setup_logger

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ROOT / "tools" / "train.py"
CLASSES, SIZE = 3, 8


def write_images(folder, per_class, classes=CLASSES):
    """Make `folder` hold `per_class` images of each class; the class is the channel that shines."""
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for index in range(per_class):
            pixels = np.random.default_rng([label, index]).integers(0, 160, (SIZE, SIZE, 3), dtype="uint8")
            pixels[:, :, label % 3] += 60 + label // 3
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{index}.png")
    return folder


def tiny_dict(folder):
    """A config, 6 iterations an epoch, whose data lies in `folder`: made there unless it is there."""
    for split, per_class in (("train", 8), ("val", 5)):
        if not (folder / split).exists():
            write_images(folder / split, per_class)
    as_array = [{"name": "Transpose"}, {"name": "Normalize", "mean": [110.0] * 3, "std": [50.0] * 3}]
    mixup = {"name": "Mixup", "mixup_alpha": 0.2, "cutmix_alpha": 1.0, "prob": 0.5, "mode": "batch"}
    backbone = {"name": "XCiT", "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "cls_attn_layers": 1}
    cosine = {"name": "CosineAnnealingDecay", "learning_rate": 0.02, "T_max": 3}
    return {
        "epochs": 2,
        "output_dir": str(folder / "out"),
        "seed": 5,
        "device": "cpu",
        "model": {
            "name": "SwinWrapper",
            "architecture": {**backbone, "drop_path_rate": 0.2, "drop_rate": 0.1},
            "head": {"name": "SwinTransformerClsHead", "in_channels": 8, "num_classes": CLASSES},
        },
        "dataloader": {
            "train": {
                "sampler": {"batch_size": 4, "shuffle": True, "drop_last": True},
                "dataset": {
                    "name": "ImageNet",
                    "dataroot": str(folder / "train"),
                    "transforms": [{"name": "RandomHorizontalFlip"}, *as_array],
                    "batch_transforms": [mixup],
                },
            },
            "val": {
                "sampler": {"batch_size": 4},
                "dataset": {"name": "ImageNet", "dataroot": str(folder / "val"), "transforms": as_array},
            },
        },
        "lr_scheduler": {
            "name": "LinearWarmup",
            "learning_rate": cosine,
            "warmup_steps": 1,
            "start_lr": 1e-3,
            "end_lr": 0.02,
        },
        "optimizer": {"name": "AdamW", "weight_decay": 0.05},
        "log_config": {"name": "LogHook", "interval": 1},
        "checkpoint": {"name": "CheckpointHook"},
        "custom_config": [{"name": "EvaluateHook"}],
    }


def tiny_file(folder):
    """Path of the tiny config as a file, with its data beside it."""
    path = folder / "tiny.yaml"
    if not path.exists():
        path.write_text(yaml.safe_dump(tiny_dict(folder), sort_keys=False))
    return path


def tiny_config(folder, *overrides):
    return load_config(tiny_file(folder), [parse_override(text) for text in overrides])


def tiny_trainer(folder, *overrides, hooks=()):
    """A Trainer as `tools/train.py` builds it; `hooks` come on top."""
    setup_logger()
    cfg = tiny_config(folder, *overrides)
    builder.check_config(cfg, training=True)
    trainer = builder.build_trainer(cfg, builder.build_model(cfg))
    trainer.hooks = sorted([*trainer.hooks, *hooks], key=lambda hook: hook.priority)
    trainer.output_dir.mkdir(parents=True, exist_ok=True)
    return trainer


def tiny_run(folder, *overrides, **options):
    """What `tools/train.py` runs, in this process."""
    return launch.run(tiny_file(folder), [parse_override(text) for text in overrides], **options)


class Stop(Hook):
    """Stops a run, as Ctrl-C does, when `iterations` are finished and every other hook of the stage has run."""

    def __init__(self, iterations, stage="train_iter_end"):
        super().__init__(priority=99)
        self.iterations = iterations
        setattr(self, stage, self.stop)

    def stop(self, trainer):
        if trainer.state.iter == self.iterations:
            raise KeyboardInterrupt


VARYING = ("elapsed", "time", "data_time", "images_per_sec", "data_wait", "memory")  # from run to run


def json_lines(folder):
    """The lines of training and evaluation in log.jsonl, without times and memory."""
    lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["mode"] not in ("begin", "end")]
    return [{key: value for key, value in line.items() if key not in VARYING} for line in lines]


def start(*arguments, before=(TRAIN,), **options):
    """`python <before> <arguments>` as a process of its own, its output as text in pipes."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *map(str, (*before, *arguments))], env=environment, **pipes)
