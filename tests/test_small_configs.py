"""The configs that a CPU can train, of every folder but those for ImageNet: each takes a step on tiny data.

A config that is new in one of the folders is found by itself.
"""

from pathlib import Path

import numpy as np
import pytest
from cifar10_files import members, write_archive

from passl_xcit.engine import builder
from passl_xcit.modeling import factory
from passl_xcit.modeling.checkpoint_formats import write_file
from passl_xcit.utils.config import load_config, parse_override

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path for folder in ("cifar10", "demo") for path in (ROOT / "configs" / folder).glob("*.yaml"))
DISTILLED = [path for path in CONFIGS if path.stem.endswith("_dist")]


def overrides_for(path, folder):
    """What makes the config `path` small: four images a batch, no workers, tiny CIFAR-10, and the teacher's weights."""
    texts = [f"output_dir={folder}/out", "dataloader.train.loader.num_workers=0"]
    texts += [f"dataloader.{split}.sampler.batch_size=4" for split in ("train", "val")]
    node = load_config(path).to_dict()
    if node["dataloader"]["train"]["dataset"]["name"] == "CIFAR10":
        archive = write_archive(folder / "tiny.tar.gz", members())
        texts += [f"dataloader.{split}.dataset.dataroot={archive}" for split in ("train", "val")]
    if path in DISTILLED:
        weights = folder / "teacher.pdparams"
        write_file(weights, weights_of(teacher_config(path)))
        texts.append(f"model.pretrained_list.0={weights}")
    return [parse_override(text) for text in texts]


def teacher_config(path):
    (found,) = path.parent.glob("regnet_*.yaml")
    return found


def weights_of(path):
    return {name: tensor.numpy() for name, tensor in factory.build(load_config(path)["model"]).state_dict().items()}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_trains_a_step_and_evaluates(path, tmp_path):
    cfg = load_config(path, overrides_for(path, tmp_path))
    builder.check_config(cfg, training=True)
    trainer = builder.build_trainer(cfg, builder.build_model(cfg))
    trainer.model.train()
    before = {name: tensor.numpy().copy() for name, tensor in trainer.model.state_dict().items()}
    images, targets = next(iter(trainer.train_loader))
    outputs = trainer.train_step(images, targets)
    assert np.isfinite(outputs["loss"].item())
    unchanged = [name for name, tensor in trainer.model.state_dict().items() if (tensor.numpy() == before[name]).all()]
    assert len(unchanged) < len(before) / 2
    batch, _ = next(iter(trainer.evaluator.loader))
    trainer.model.eval()
    assert trainer.model(batch).shape == [4, 10]


@pytest.mark.parametrize("path", DISTILLED, ids=lambda path: path.stem)
def test_a_distillation_has_the_student_and_the_teacher_of_the_configs_beside_it(path):
    cfg = load_config(path)
    teacher, student = cfg["model"]["models"]
    alone = load_config(path.with_name(path.name.replace("_dist", "")))
    assert student["Student"] == alone["model"]
    assert teacher["Teacher"] == load_config(teacher_config(path))["model"]
    different = {key for key in cfg.to_dict() if cfg[key] != alone.get(key)}
    assert different == {"model", "output_dir"}
    assert Path(cfg["model"]["pretrained_list"][0]).parent == Path(load_config(teacher_config(path))["output_dir"])


def test_the_configs_are_found():
    assert len(DISTILLED) >= 2 and len(CONFIGS) >= 7
