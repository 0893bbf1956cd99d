"""log.jsonl is what docs/training.md says: every line, its keys and their types."""

import json
import re

import pytest
from tiny_run import ROOT, tiny_run

TYPES = {"str": str, "int": int, "float": float}
DISTILLATION = """model={name: DistillationWrapper, distillation_type: KIND, models: [
    {Teacher: {name: SwinWrapper, architecture: BACKBONE, head: HEAD}},
    {Student: {name: SwinWrapper, architecture: BACKBONE, head: HEAD}}]}"""
BACKBONE = "{name: XCiT, patch_size: 4, embed_dim: 8, depth: 1, num_heads: 2, cls_attn_layers: 1}"
HEAD = "{name: SwinTransformerClsHead, in_channels: 8, num_classes: 3}"


def schema():
    """{mode: ({key: type} of every line, {key: type} of some lines)} of the table in docs/training.md."""
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").partition("### log.jsonl")[2].partition("###")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    modes = re.findall("`(\\w+)`", rows[0][4])
    always, sometimes = ({mode: {} for mode in modes} for _ in range(2))
    for keys, where, kind, *_ in rows:
        for mode in modes if where == "all" else where.replace(" ", "").split(","):
            table = sometimes if mode.endswith("*") else always
            table[mode.rstrip("*")].update(dict.fromkeys(re.findall("`(\\w+)`", keys), TYPES[kind]))
    return {mode: (always[mode], sometimes[mode]) for mode in modes}


def distillation(kind):
    return DISTILLATION.replace("BACKBONE", BACKBONE).replace("HEAD", HEAD).replace("KIND", kind)


EMA = "custom_config=[{name: EvaluateHook}, {name: EMAHook, decay: 0.9}]"


@pytest.mark.parametrize(
    "overrides, evaluations",
    [
        ((), ["val"]),
        ((EMA,), ["val", "val_ema"]),
        ((distillation("dml"),), ["val"]),
        ((distillation("soft"),), ["val"]),
    ],
    ids=["plain", "ema", "dml", "soft"],
)
def test_every_line_has_the_documented_keys_and_types(overrides, evaluations, tmp_path):
    tiny_run(tmp_path, "log_config.interval=2", "epochs=1", *overrides)
    tiny_run(tmp_path, "log_config.interval=2", *overrides, resume_from="auto")
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["mode"] for line in lines] == 2 * ["begin", "train", "train", "train", *evaluations, "end"]
    for line in lines:
        always, sometimes = schema()[line["mode"]]
        assert set(always) <= set(line) <= set(always) | set(sometimes)
        assert {key: type(value) for key, value in line.items()} == {
            key: kind for key, kind in {**sometimes, **always}.items() if key in line
        }


def test_the_units_are_the_documented_ones(tmp_path):
    tiny_run(tmp_path, "epochs=1")
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    elapsed = [line["elapsed"] for line in lines]
    assert elapsed == sorted(elapsed) and elapsed[0] < 1
    assert [line["samples"] for line in lines] == [4 * line["iter"] for line in lines]
    for line in lines:
        if line["mode"] == "train":
            assert line["data_wait"] == pytest.approx(line["data_time"] / line["time"]) and 0 < line["data_wait"] < 1
            assert line["images_per_sec"] == pytest.approx(4 / line["time"])
            assert 50e6 < line["memory"] < 50e9  # Paddle alone takes 200 MB
