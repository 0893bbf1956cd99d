"""What has to be the same for a run to be resumed, besides seed and batches: the settings in its checkpoints."""

import json

from passl_xcit.engine.mixed_precision import PRECISION
from passl_xcit.modeling import factory
from passl_xcit.utils.registry import (
    BATCH_TRANSFORMS,
    HOOKS,
    LR_SCHEDULERS,
    MODELS,
    OPTIMIZERS,
    SAMPLERS,
    TRANSFORMS,
    join,
)

KINDS = {
    "lr_scheduler": LR_SCHEDULERS,
    "optimizer": OPTIMIZERS,
    "model": MODELS,
    "transforms": TRANSFORMS,
    "batch_transforms": BATCH_TRANSFORMS,
    "sampler": SAMPLERS,
    "AMP": PRECISION,
    "EMA": HOOKS,
}
# Keys of theirs that change no weight: memory, weights that a checkpoint replaces, and what a batch is without the
# number of processes.
IGNORED = ("use_recompute", "pretrained_list", "batch_size")


def run_settings(cfg, model, dataset):
    """JSON text: all that would make a resumed run differ from one that was not interrupted, defaults written out."""
    train, sampler = (cfg["dataloader"]["train"][key] for key in ("dataset", "sampler"))
    tree = {
        "lr_scheduler": _with_length(cfg["lr_scheduler"], cfg["epochs"]),
        "optimizer": cfg["optimizer"],
        "model": cfg["model"],
        "transforms": train.get("transforms"),
        "batch_transforms": train.get("batch_transforms"),
        "sampler": sampler,
        "accum_steps": cfg.get("accum_steps", 1),
        "AMP": cfg.get("AMP") or {} if cfg.get("use_amp") else None,
        "EMA": [node for node in cfg.get("custom_config") or [] if node["name"] == "EMAHook"],
        "data": dataset.fingerprint(),
        "teacher": factory.teacher_digest(model),
    }
    return json.dumps(_comparable(tree), sort_keys=True)


def _with_length(schedule, epochs):
    """The node of a schedule, in which TimmCosine's default length is written out: with `epochs` its curve changes."""
    if not isinstance(schedule, dict):
        return schedule
    schedule = {**schedule, "learning_rate": _with_length(schedule["learning_rate"], epochs)}
    if schedule["name"] == "TimmCosine" and schedule.get("T_max") is None:
        schedule["T_max"] = epochs
    return schedule


def transforms_difference(old, new):
    """(dotted path, old value, new value) of the first argument in which two lists of transforms differ; else None."""
    old, new = (_comparable({"transforms": nodes}) for nodes in (old, new))
    return None if old == new else _first_difference(old, new)


def first_difference(old, new):
    """(dotted path, old value, new value) of the first place where two texts of `run_settings` differ; else None.

    What the old one does not know counts as today's default. It may be any text: files may be damaged.
    """
    new = json.loads(new)
    try:
        old = _comparable(json.loads(old))
        return None if old == new else _first_difference(old, new)
    except (TypeError, ValueError, AttributeError, RecursionError):
        return "settings", None, new


def _comparable(tree):
    """`tree` with every default written out, but without what may differ."""
    return _without_ignored({key: _filled(KINDS[key], node) if key in KINDS else node for key, node in tree.items()})


def _filled(kind, node):
    return [kind.filled(item) for item in node] if isinstance(node, list) else kind.filled(node)


def _without_ignored(tree):
    if isinstance(tree, dict):
        return {key: _without_ignored(value) for key, value in tree.items() if key not in IGNORED}
    return [_without_ignored(item) for item in tree] if isinstance(tree, (list, tuple)) else tree


def _first_difference(old, new, path=""):
    if isinstance(old, list) and isinstance(new, list):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            if old.get(key) != new.get(key):
                return _first_difference(old.get(key), new.get(key), join(path, key))
    return path or "settings", old, new
