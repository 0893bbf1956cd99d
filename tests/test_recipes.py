"""The numbers of every recipe in configs/, against a table of what the sources say.

Sources: facebookresearch/xcit (main.py, README, issue 19), PASSL v1.x (configs/xcit), IBM/CrossViT (main.py), MindCV
0.3.0 (configs, and the numbers that its create_scheduler makes). What is compared is what is built.
"""

import dataclasses
import fnmatch
import math
from pathlib import Path
from typing import Any

import paddle
import pytest
import recipe_table
from tiny_run import write_images

import passl_xcit
from passl_xcit.engine import builder, launch
from passl_xcit.modeling import factory
from passl_xcit.modeling.checkpoint_formats import read_file, write_file
from passl_xcit.modeling.distillation import student_node, unused_keys
from passl_xcit.modeling.layers import DropPath
from passl_xcit.utils.config import load_config, parse_override
from passl_xcit.utils.registry import OPTIMIZERS

ROOT = Path(__file__).resolve().parents[1] / "configs"
OTHERS = ("_base_", "demo", "cifar10")  # have no source to be compared with
NAMES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.yaml") if path.parent.name not in OTHERS)

IMAGENET = 1_281_167  # training images
PASSL_UNDECAYED = ["temperature", "pos_embed", "cls_token", "dist_token"]
PASSL_BATCHES = {
    "nano_12": 128,
    "tiny_12": 128,
    "tiny_24": 64,
    "small_12": 64,
    "small_24": 32,
    "medium_24": 16,
    "large_24": 16,
}
DROP_PATHS = {
    "nano_12": 0.0,
    "tiny_12": 0.0,
    "tiny_24": 0.05,
    "small_12": 0.05,
    "small_24": 0.1,
    "medium_24": 0.15,
    "large_24": 0.25,
}
PARAMETERS = {
    "nano_12": {16: 3_053_224, 8: 3_049_016},
    "tiny_12": {16: 6_716_272, 8: 6_706_504},
    "tiny_24": {16: 12_116_896, 8: 12_107_128},
    "small_12": {16: 26_253_304, 8: 26_213_032},
    "small_24": {16: 47_671_384, 8: 47_631_112},
    "medium_24": {16: 84_395_752, 8: 84_323_624},
    "large_24": {16: 189_096_136, 8: 188_932_648},
}
CROSSVIT_PARAMETERS = {
    "tiny_240": 7_014_800,
    "small_240": 26_856_272,
    "base_240": 105_025_232,
    "9_240": 8_553_296,
    "15_240": 27_528_464,
    "18_240": 43_271_408,
    "9_dagger_240": 8_776_592,
    "15_dagger_240": 28_209_008,
    "18_dagger_240": 44_266_976,
    "15_dagger_408": 28_500_080,
    "18_dagger_408": 44_606_560,
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a config is to build; `rates` {epoch: learning rate of its first iteration}, on `processes` processes."""

    epochs: int
    rates: dict
    batch_size: int
    parameters: int
    size: int = 224
    resize: int = 224
    repeats: bool = False
    rule: str = "passl"
    undecayed: tuple = ()
    weight_decay: float = 0.05
    epsilon: float = 1e-8
    drop_path: float = 0.0
    ema: Any = None  # (decay, warmup_updates)
    precision: Any = None  # (level, first loss scale, whether it changes)
    processes: int = 8
    device: Any = "gpu"


def late_cosine(epoch, peak, epochs):
    """The official rule, in epochs: lr 1e-6 to `peak` in 5, unshifted cosine to 1e-5, one epoch late."""
    time = max(0, epoch - 1)
    if time < 5:
        return 1e-6 + time * (peak - 1e-6) / 5
    return 1e-5 + (peak - 1e-5) * (1 + math.cos(math.pi * time / epochs)) / 2


PASSL_RATES = {0: 1e-6, 5: 5e-4, 200: 2.646187e-4}
OFFICIAL_RATES = {0: 1e-6, 1: 1e-6, 2: 2.008e-4, 5: 8.002e-4, 6: 9.99618e-4, 200: 5.08888e-4, 399: 1.00611e-5}
FLOAT16 = ("O1", 65536.0, True)
OFFICIAL = {"repeats": True, "rule": "official", "precision": FLOAT16}
MINDCV = {"device": "npu", "batch_size": 256, "epochs": 300, "drop_path": 0.1}


def passl(name, size, patch):
    batch_size = 128 if name.endswith("_dist") else PASSL_BATCHES[size]
    parameters, undecayed = PARAMETERS[size][patch], tuple(PASSL_UNDECAYED)
    return Recipe(400, PASSL_RATES, batch_size, parameters, undecayed=undecayed)


def official(name, size, patch):
    common = {"parameters": PARAMETERS[size][patch], "drop_path": DROP_PATHS[size], "ema": (0.99996, 0), **OFFICIAL}
    if name.endswith("_384_dist"):
        rates = {0: 1e-6, 5: 5e-6, 29: 5e-6}
        return Recipe(30, rates, 64, size=384, resize=384, weight_decay=1e-8, **common)
    return Recipe(400, OFFICIAL_RATES, 128, **common)


def ibm(name, epochs=300):
    side = int(name[-3:])
    batch_size, resize = {240: (256, 274), 408: (64, 408)}[side]
    peak = 5e-4 * batch_size * 8 / 512
    rates = {epoch: late_cosine(epoch, peak, epochs) for epoch in (0, 1, 2, 6, 150, 299)}
    parameters = CROSSVIT_PARAMETERS[name[len("crossvit_") :]]
    return Recipe(epochs, rates, batch_size, parameters, side, resize, drop_path=0.1, **OFFICIAL)


ALONE = {
    "regnet/regnety_160.yaml": Recipe(
        300,
        {0: 1e-6, 5: 5e-4, 155: 2.55e-4},
        64,
        83_590_140,
        resize=235,
        rule="official",
    ),
    "xcit/xcit_tiny_12_p16_ascend.yaml": Recipe(
        500,
        {0: 0.0, 20: 2.5e-4, 40: 5e-4, 270: 2.55e-4},
        128,
        PARAMETERS["tiny_12"][16],
        resize=256,
        epsilon=1e-10,
        ema=(0.99996, 2000),
        precision=("O2", 1024.0, False),
        device="npu",
    ),
    "crossvit/crossvit_9_ascend.yaml": Recipe(
        rates={0: 0.0, 1: 3.6666666666666666e-05, 30: 1.1e-3, 165: 5.55e-4, 299: 1.0036892137949599e-05},
        parameters=CROSSVIT_PARAMETERS["9_240"],
        size=240,
        resize=256,
        precision=("O2", 65536.0, True),
        **MINDCV,
    ),
    "crossvit/crossvit_15_ascend.yaml": Recipe(
        rates={0: 0.0, 1: 3e-5, 30: 9e-4, 165: 4.55e-4, 299: 1.003012293832582e-05, 300: 9e-4, 570: 1e-5, 599: 1e-5},
        parameters=CROSSVIT_PARAMETERS["15_240"],
        resize=239,
        ema=(0.9999, 2000),
        precision=("O2", 512.0, False),
        **{**MINDCV, "batch_size": 320, "epochs": 600},
    ),
    "crossvit/crossvit_18_ascend.yaml": Recipe(
        rates={0: 0.0, 1: 5e-5, 30: 1.5e-3, 165: 7.55e-4, 299: 1.0050430537197158e-05},
        parameters=CROSSVIT_PARAMETERS["18_240"],
        resize=239,
        ema=(0.9999, 2000),
        precision=("O2", 1024.0, True),
        **MINDCV,
    ),
    "finetune/own_folder.yaml": Recipe(
        30,
        {0: 1e-7, 3: 1e-7 + (5e-5 - 1e-7) * (1 + math.cos(math.pi / 10)) / 2},
        32,
        PARAMETERS["nano_12"][16],
        rule="official",
        processes=1,
        device=None,
    ),
}
ALONE["finetune/linear_probe.yaml"] = dataclasses.replace(
    ALONE["finetune/own_folder.yaml"],
    rates={0: 1e-7, 3: 1e-7 + (5e-4 - 1e-7) * (1 + math.cos(math.pi / 10)) / 2},
    parameters=128 * 1000 + 1000,
    weight_decay=0.0,
)


def recipe_of(name):
    stem = Path(name).stem
    if name in ALONE:
        return ALONE[name]
    if name.startswith("crossvit/"):
        return ibm(stem)
    size, patch = "_".join(stem.split("_")[1:3]), int(stem.split("_")[3][1:])
    return (official if name.startswith("xcit/official/") else passl)(stem, size, patch)


def config_of(name, *overrides):
    return load_config(ROOT / name, [parse_override(text) for text in overrides])


every_config = pytest.mark.parametrize("name", NAMES)


def test_there_are_the_configs_that_there_should_be():
    counts = {"xcit/xcit_*_224.yaml": 14, "xcit/xcit_*_224_dist.yaml": 7, "xcit/official/xcit_*_224.yaml": 14}
    counts.update({"xcit/official/xcit_*_384_dist.yaml": 14, "crossvit/crossvit_*_[24]*.yaml": 11, "*_ascend.yaml": 4})
    assert {pattern: len(fnmatch.filter(NAMES, pattern)) for pattern in counts} == counts
    assert len(NAMES) == sum(counts.values()) + 3


@every_config
def test_a_recipe_has_the_learning_rates_of_its_source(name):
    recipe, cfg = recipe_of(name), config_of(name)
    builder.check_config(cfg, training=True)
    images = cfg["dataloader"]["train"]["sampler"]["batch_size"] * recipe.processes
    iters = IMAGENET // images
    schedule = builder.schedule_of(cfg, iters, images)
    for epoch, rate in recipe.rates.items():
        schedule.step(epoch * iters)
        assert schedule() == pytest.approx(rate, rel=5e-6, abs=1e-18), epoch


@every_config
def test_a_recipe_has_the_optimizer_of_its_source(name, tiny_model, monkeypatch):
    recipe, node, made = recipe_of(name), config_of(name)["optimizer"], {}
    monkeypatch.setattr(paddle.optimizer.AdamW, "__init__", lambda self, **arguments: made.update(arguments))
    model = tiny_model()
    OPTIMIZERS.build(node, "optimizer", learning_rate=0.1, model=model)
    numbers = {key: made[key] for key in ("beta1", "beta2", "epsilon", "weight_decay", "grad_clip")}
    assert numbers == {
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": recipe.epsilon,
        "weight_decay": recipe.weight_decay,
        "grad_clip": None,
    }
    undecayed = {n for n, parameter in model.named_parameters() if not made["apply_decay_param_fun"](parameter.name)}
    assert ("backbone.norm.weight" in undecayed, "backbone.cls_token" in undecayed) == (
        recipe.rule == "official",
        recipe.rule == "official" or bool(recipe.undecayed),
    )
    assert ("backbone.blocks.0.attn.temperature" in undecayed) == ("temperature" in recipe.undecayed)
    assert ("backbone.pos_embeder.token_projection.weight" in undecayed) == ("pos_embed" in recipe.undecayed)


@every_config
def test_a_recipes_images_have_the_size_of_its_source(name, write_image, tmp_path):
    """With two images for ImageNet, in a list file, which does not ask for all classes."""
    recipe = recipe_of(name)
    write_image("a.png", 420, 500)
    (tmp_path / "list.txt").write_text("a.png 0\na.png 999\n")
    data = [f"dataloader.{split}.dataset.{key}" for split in ("train", "val") for key in ("dataroot", "list_file")]
    values = [str(tmp_path), "list.txt"] * 2
    cfg = config_of(name, *(f"{key}={value}" for key, value in zip(data, values)))
    train, val = (builder.build_loader(cfg, split, 1000) for split in ("train", "val"))
    assert type(train.batch_sampler).__name__ == f"Distributed{'RepeatedAug' if recipe.repeats else 'Batch'}Sampler"
    assert train.batch_sampler.batch_size == recipe.batch_size and train.batch_sampler.shuffle
    assert train.batch_sampler.drop_last == (not name.startswith("finetune/"))
    for loader, key in ((train, (0, 0, 1) if recipe.repeats else (0, 0)), (val, (0, 0))):
        image, _ = loader.dataset[key]
        assert (image.shape, str(image.dtype)) == ((3, recipe.size, recipe.size), "float32")
    resize = cfg["dataloader"]["val"]["dataset"]["transforms"][0]
    assert resize == {"name": "Resize", "size": recipe.resize, "interpolation": "bicubic"}


PLAIN = [
    {"name": "RandomResizedCrop", "scale": [0.08, 1.0], "interpolation": "bicubic"},
    {"name": "RandomHorizontalFlip"},
    {"name": "AutoAugment", "config_str": "rand-m9-mstd0.5-inc1", "interpolation": "bicubic"},
    {"name": "Transpose"},
    {"name": "Normalize", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]},
    {"name": "RandomErasing", "prob": 0.25, "mode": "pixel", "max_count": 1},
]
MINDCVS = [
    {**PLAIN[0], "ratio": [0.75, 1.333]},
    *PLAIN[1:5],
    {"name": "RandomErasing", "prob": 0.25, "mode": "const", "max_area": 0.33, "max_aspect": 3.3},
]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("finetune/")])
def test_a_recipe_augments_as_its_source(name):
    dataset = config_of(name)["dataloader"]["train"]["dataset"]
    sizes = {"RandomResizedCrop": "size", "AutoAugment": "img_size"}
    transforms = [{k: v for k, v in node.items() if k != sizes.get(node["name"])} for node in dataset["transforms"]]
    assert transforms == (MINDCVS if name.endswith("_ascend.yaml") else PLAIN)
    given = [node[sizes[node["name"]]] for node in dataset["transforms"] if node["name"] in sizes]
    assert given == [recipe_of(name).size] * 2
    (mixup,) = dataset["batch_transforms"]
    expected = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "prob": 1.0, "switch_prob": 0.5, "mode": "batch"}
    assert {**mixup, "label_smoothing": 0.1} == {"name": "Mixup", **expected, "label_smoothing": 0.1}
    assert mixup.get("label_smoothing", 0.1) == 0.1  # PASSL's constructor has it, too


@every_config
def test_a_recipe_has_the_epochs_average_and_precision_of_its_source(name):
    recipe, cfg = recipe_of(name), config_of(name)
    assert (cfg["epochs"], cfg["seed"], cfg["device"]) == (recipe.epochs, 0, recipe.device)
    averages = [hook for hook in builder.build_hooks(cfg) if type(hook).__name__ == "EMAHook"]
    assert [(hook.decay, hook.warmup_updates) for hook in averages] == ([recipe.ema] if recipe.ema else [])
    amp, defaults = cfg.get("AMP"), {"scale_loss": 65536.0, "use_dynamic_loss_scaling": True}
    level, scale, dynamic = recipe.precision or (None, None, None)
    expected = {"level": level, "dtype": "float16", "scale_loss": scale, "use_dynamic_loss_scaling": dynamic}
    assert bool(cfg.get("use_amp")) == bool(recipe.precision)
    assert {**defaults, **amp} == expected if recipe.precision else amp is None


@every_config
def test_a_recipes_model_has_the_size_and_the_drop_path_of_its_source(name):
    recipe, node = recipe_of(name), builder.with_class_count(config_of(name), 1000)["model"]
    with paddle.LazyGuard():
        model = factory.build(node, training=False)
    assert sum(parameter.size for parameter in model.parameters() if not parameter.stop_gradient) == recipe.parameters
    rates = [layer.rate for layer in model.backbone.sublayers() if isinstance(layer, DropPath)]
    assert max(rates, default=0.0) == pytest.approx(recipe.drop_path)
    if name.startswith("xcit/official/"):
        assert set(rates) == {recipe.drop_path}


@pytest.mark.parametrize("name", fnmatch.filter(NAMES, "*_dist.yaml"))
def test_a_distillations_student_has_a_regnet_as_teacher(name):
    cfg = config_of(name)
    teacher, student = cfg["model"]["models"]
    assert teacher["Teacher"]["backbone"] == {"name": "regnety_160"}
    assert student["Student"]["architecture"]["name"] in name
    assert cfg["model"]["pretrained_list"] == ["regnety_160.deit_in1k", None]
    assert cfg["model"].get("distillation_type", "dml") == ("hard" if "official" in name else "dml")


@pytest.mark.parametrize("name", fnmatch.filter(NAMES, "xcit/xcit_*_224_dist.yaml"))
def test_passls_distillations_differ_from_the_plain_recipe_in_model_and_batch_only(name):
    """PASSL's own lack CenterCrop, and two of them are of another model."""
    plain, distilled = config_of(name.replace("_dist", "")).to_dict(), config_of(name).to_dict()
    plain["dataloader"]["train"]["sampler"]["batch_size"] = 128
    student, _ = student_node(distilled.pop("model"), "model")
    model = plain.pop("model")
    assert distilled == plain
    with paddle.LazyGuard():
        shapes = [{n: p.shape for n, p in factory.build(m).named_parameters()} for m in (student, model)]
    assert shapes[0] == shapes[1]


@every_config
def test_a_recipes_header_says_who_trained_it(name):
    lines = (ROOT / name).read_text().splitlines()
    header = " ".join(line[2:] for line in lines if line.startswith("#"))
    assert lines[0].startswith("# ")
    assert "Not trained by us" in header or "no accuracy was measured with it" in header


def test_the_table_of_recipes_in_the_documents_is_that_of_the_configs():
    """Else: python tests/recipe_table.py"""
    page = recipe_table.PAGE.read_text()
    assert page == recipe_table.written(page)
    shown = [path for pattern, *_ in recipe_table.GROUPS for path in ROOT.glob(pattern)]
    assert len(shown) == len(set(shown)) and {str(path.relative_to(ROOT)) for path in shown} >= set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "trains_backbone"), [("own_folder", True), ("linear_probe", False)])
def test_published_weights_are_trained_on_a_folder_of_ones_own(name, trains_backbone, tmp_path):
    """As documented; with 2 x 3 images, and weights of 1,000 classes that nobody trained."""
    for split in ("train", "val"):
        write_images(tmp_path / "own" / split, per_class=2)
    published = {n: tensor.numpy() for n, tensor in passl_xcit.create_model("xcit_nano_12_p16").state_dict().items()}
    write_file(tmp_path / "published.pdparams", published)
    data = {f"dataloader.{split}.dataset.dataroot": tmp_path / "own" / split for split in ("train", "val")}
    small = {"epochs": 1, "output_dir": tmp_path, "lr_scheduler.warmup_epoch": 0}
    overrides = [parse_override(f"{key}={value}") for key, value in {**data, **small}.items()]
    launch.run(ROOT / "finetune" / f"{name}.yaml", overrides, load=tmp_path / "published.pdparams")
    trained = read_file(tmp_path / "latest.pdparams")["state_dict"]
    assert trained["head.fc_cls.weight"].shape == (128, 3)
    changed = {n for n, array in trained.items() if n.startswith("backbone.") and (array != published[n]).any()}
    assert bool(changed) == trains_backbone


@pytest.mark.parametrize("path", sorted(ROOT.glob("[!_]*/**/*.yaml")), ids=lambda path: path.stem)
def test_no_recipe_says_what_has_no_effect(path):
    cfg = load_config(path)
    assert cfg.get("use_amp") or "AMP" not in cfg
    assert cfg["model"]["name"] != "DistillationWrapper" or unused_keys(cfg["model"]) == []
