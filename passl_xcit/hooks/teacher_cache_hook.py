"""The teacher's logits of every training image, computed once and kept in a file."""

import copy
import json
import shutil
from pathlib import Path
from typing import Optional

import numpy as np
import paddle
from tqdm import tqdm

from passl_xcit.hooks.hook import Hook
from passl_xcit.utils.dist import is_main, wait_for_all
from passl_xcit.utils.errors import ConfigError, DataError
from passl_xcit.utils.logger import TRAINER, get_logger
from passl_xcit.utils.registry import HOOKS

logger = get_logger(TRAINER)

DECISIVE = ("teacher", "data", "transforms", "model")  # the settings of a run that its teacher's logits depend on


class TeacherCacheHook(Hook):
    """Spares a distillation the teacher's forward passes, where the teacher sees an image the same way every time.

    That is so only where no transform draws at random and nothing is mixed: in fine-tuning on features of few images,
    not in the recipes that XCiT was trained with, whose crops and mixtures are new in every epoch. There this hook
    refuses the run. The file is written before the first epoch and used again as long as teacher, data and transforms
    are the same; it takes 4 bytes a class and image (5.1 GB for ImageNet).

    Args:
        file: where it lies; `teacher_logits.npy` in the output folder by default.

    Raises:
        ConfigError: the model is no distillation, or a transform draws at random; at the start of the run.
    """

    priority = 20

    def __init__(self, file: Optional[str] = None, priority: Optional[int] = None):
        super().__init__(priority)
        if file is not None and not file.endswith(".npy"):
            raise ValueError(f"file is a name like 'teacher_logits.npy', not '{file}'")
        self.file, self.logits = file, None

    def run_begin(self, trainer):
        if not hasattr(trainer.model, "teacher"):
            raise ConfigError("TeacherCacheHook: the model has no teacher: it is for a DistillationWrapper")
        require_no_draws(trainer.train_loader.dataset)
        path = Path(self.file or trainer.output_dir / "teacher_logits.npy")
        settings = json.loads(trainer.settings)
        description = json.dumps([settings.get(name) for name in DECISIVE])
        if is_main() and not _is_of(path, description):
            write_logits(path, trainer, description)
        wait_for_all()
        self.logits = np.lib.format.open_memmap(path, mode="r")

    def train_epoch_begin(self, trainer):
        self.batches = trainer.coming_batches()

    def train_iter_begin(self, trainer):
        trainer.model.give_teacher_logits(paddle.to_tensor(self.logits[next(self.batches)]))


def require_no_draws(dataset):
    """Raise ConfigError if a transform of `dataset`, an ImageDataset, draws at random."""
    image, label = dataset.load(0), np.array([dataset.labels[0]], "int64")
    for transform in dataset.transforms:
        image = transform(image, _NoDraws(transform))
    for transform in dataset.batch_transforms:
        transform(image[None], label, _NoDraws(transform))


class _NoDraws:
    """In the place of a random generator: whoever asks it for anything draws."""

    def __init__(self, transform):
        self._name = type(transform).__name__

    def __getattr__(self, _):
        raise ConfigError(
            f"TeacherCacheHook: {self._name} draws at random, so that the teacher sees an image differently every "
            "time; leave out the transform or the hook"
        )


def write_logits(path, trainer, description):
    """Write the teacher's logits [samples, K], float32, to `path`, and beside it what they are of."""
    dataset, batch = trainer.train_loader.dataset, trainer.train_loader.batch_sampler.batch_size
    shape = (len(dataset), trainer.model.num_classes)
    _require_space(path, 4 * shape[0] * shape[1])
    loader = copy.copy(trainer.train_loader)
    indices = range(len(dataset))
    loader.batch_sampler = [[(0, i) for i in indices[start : start + batch]] for start in indices[::batch]]
    temporary = path.with_name(f".{path.name}.tmp")
    logits = np.lib.format.open_memmap(temporary, mode="w+", dtype="float32", shape=shape)
    done = 0
    for images, _ in tqdm(loader, desc="teacher", disable=None):
        with paddle.no_grad():
            rows = trainer.model.teacher(trainer.model.teacher_images(images)).astype("float32").numpy()
        logits[done : done + len(rows)] = rows
        done += len(rows)
    logits.flush()
    temporary.replace(path)
    path.with_suffix(".json").write_text(description, encoding="utf-8")
    logger.info(f"the teacher's logits of {len(dataset)} images are in {path}")


def _is_of(path, description):
    try:
        return path.exists() and path.with_suffix(".json").read_text(encoding="utf-8") == description
    except (OSError, UnicodeDecodeError):
        return False


def _require_space(path, size):
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise DataError(f"{path}: the teacher's logits take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")


HOOKS.register(TeacherCacheHook)
