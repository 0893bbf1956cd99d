"""The table of recipes in docs/training.md, made from the configs: `python tests/recipe_table.py` writes it anew."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from passl_xcit.engine import builder  # noqa: E402
from passl_xcit.utils.config import load_config  # noqa: E402

PAGE = ROOT / "docs" / "training.md"
BEGIN, END = "<!-- recipes:begin -->\n", "<!-- recipes:end -->"
GROUPS = [  # configs, where their numbers come from, cards they are meant for
    ("xcit/xcit_*_224.yaml", "PASSL v1.x", 8),
    ("xcit/xcit_*_224_dist.yaml", "PASSL v1.x, distilled", 8),
    ("xcit/official/xcit_*_224.yaml", "facebookresearch/xcit", 8),
    ("xcit/official/xcit_*_384_dist.yaml", "our proposal, after DeiT's", 8),
    ("xcit/xcit_tiny_12_p16_ascend.yaml", "MindCV", 8),
    ("crossvit/crossvit_*_240.yaml", "IBM/CrossViT", 8),
    ("crossvit/crossvit_*_408.yaml", "IBM/CrossViT, for 240 pixels", 8),
    ("crossvit/crossvit_9_ascend.yaml", "MindCV", 8),
    ("crossvit/crossvit_15_ascend.yaml", "MindCV", 8),
    ("crossvit/crossvit_18_ascend.yaml", "MindCV", 8),
    ("regnet/regnety_160.yaml", "DeiT's student", 8),
    ("finetune/own_folder.yaml", "ours, not tuned", 1),
    ("finetune/linear_probe.yaml", "ours, not tuned", 1),
    ("demo/xcit_demo_p4_fashion_mnist.yaml", "ours, [trained](../weights/README.md)", 1),
]
COLUMNS = ["configs", "after", "epochs", "images a step", "learning rate", "warm-up", "decay", "repeats", "EMA", "type"]


def table():
    """The lines of the table, as one text."""
    rows = [COLUMNS, ["---"] * len(COLUMNS)] + [_row(*group) for group in GROUPS]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(pattern, source, cards):
    paths = sorted((ROOT / "configs").glob(pattern))
    cells = [_cells(load_config(path), cards) for path in paths]
    name = f"`{pattern}`" + (f" ({len(paths)})" if len(paths) > 1 else "")
    return [name, source, *(_span(values) for values in zip(*cells))]


def _cells(cfg, cards):
    train, schedule, optimizer = cfg["dataloader"]["train"], cfg["lr_scheduler"], cfg["optimizer"]
    images = train["sampler"]["batch_size"] * cards
    rates = builder.schedule_of(cfg, 1, images)
    peak = getattr(rates, "end_lr", rates.base_lr)
    warm_up = [schedule[key] for key in ("warmup_steps", "warmup_epoch", "warmup_epochs") if key in schedule]
    rule = "official" if optimizer.get("weight_decay_rule") == "official" else "PASSL"
    if rule == "PASSL" and not optimizer["exclude_from_weight_decay"]:
        rule = "all"
    averages = [hook["decay"] for hook in cfg.get("custom_config") or [] if hook["name"] == "EMAHook"]
    repeats = 3 if train["sampler"].get("name") == "DistributedRepeatedAugSampler" else 1
    numbers = [cfg["epochs"], images, peak, *warm_up]
    precision = f"float16 {cfg['AMP']['level']}" if cfg.get("use_amp") else "float32"
    return [*numbers, f"{optimizer['weight_decay']:g}, {rule}", repeats, *(averages or ["-"]), precision]


def _span(values):
    """One cell for what several configs have: their value, or the least and the greatest."""
    low, high = min(values), max(values)
    return _text(low) if low == high else f"{_text(low)} to {_text(high)}"


def _text(value):
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else value


def written(page):
    """`page` with the table of today in it."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
