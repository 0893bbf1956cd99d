"""The `_ascend` configs so small that a training of theirs takes seconds: a model of one block, images of 32 pixels."""

from pathlib import Path

from plugin import ROOT
from tiny_run import write_images

CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").glob("*/*_ascend.yaml"))
MODELS = {
    "xcit": ["depth=1", "embed_dim=16", "num_heads=2", "cls_attn_layers=1"],
    "crossvit": ["img_size=[24, 32]", "embed_dim=[8, 16]", "depth=[[1, 1]]", "num_heads=[2, 2]"],
}
WIDTHS = {"xcit": "16", "crossvit": "[8, 16]"}
TRAIN, VAL = "dataloader.train", "dataloader.val"


def tiny_overrides(config):
    """The KEY=VALUE that make `config` small, for a process or two; its learning rate is that of 8 images a step."""
    family = Path(config).parent.name
    keys = [f"model.architecture.{key}" for key in MODELS[family]]
    keys += [f"model.head.in_channels={WIDTHS[family]}", "model.head.num_classes=3", "epochs=1"]
    keys += [f"{TRAIN}.dataset.transforms.0.size=32", f"{TRAIN}.dataset.transforms.2.img_size=32"]
    keys += [f"{VAL}.dataset.transforms.0.size=36", f"{VAL}.dataset.transforms.1.size=32"]
    keys += [f"{split}.{key}" for split in (TRAIN, VAL) for key in ("sampler.batch_size=4", "loader.num_workers=0")]
    return [*keys, "lr_scheduler.base_batch_size=8", "lr_scheduler.warmup_epochs=0"]


def write_data(folder):
    """Make `folder` hold what --data_dir names: 24 images to train on and 15 to evaluate, of 3 classes."""
    for split, per_class in (("train", 8), ("val", 5)):
        write_images(folder / split, per_class)
    return folder
