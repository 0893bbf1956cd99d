"""The teacher's logits of every training image, computed once and kept in a file."""

import copy
import hashlib
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
from passl_xcit.utils.new_file import replace_file
from passl_xcit.utils.registry import HOOKS

logger = get_logger(TRAINER)

LOSS_KEYS = ("distillation_type", "alpha", "tau", "dml_loss_weight", "head_loss_weight")


class TeacherCacheHook(Hook):
    """Spares a distillation the teacher's forward passes, where the teacher sees an image the same way every time.

    That is so only where no transform draws at random and nothing is mixed: in fine-tuning on features of few images,
    not in the recipes that XCiT was trained with, whose crops and mixtures are new in every epoch. There this hook
    refuses the run. The file is written before the first epoch and used again as long as teacher, data and transforms
    are the same; it takes 4 bytes a class and image (5.1 GB for ImageNet).

    Args:
        file: its name, into which a digest of what the logits depend on is put, so that runs can share a folder;
            `teacher_logits.npy` in the output folder by default.

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
        path = cache_path(Path(self.file or trainer.output_dir / "teacher_logits.npy"), json.loads(trainer.settings))
        shape = (len(trainer.train_loader.dataset), trainer.model.num_classes)
        if is_main() and _opened(path, shape) is None:
            write_logits(path, shape, trainer)
        wait_for_all()
        self.logits = _opened(path, shape)

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


def cache_path(path, settings):
    """`path` with a digest of the settings of a run that its teacher's logits depend on."""
    model = {key: value for key, value in (settings.get("model") or {}).items() if key not in LOSS_KEYS}
    decisive = [model, *(settings.get(name) for name in ("teacher", "data", "transforms", "batch_transforms"))]
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    return path.with_name(f"{path.stem}-{digest[:16]}.npy")


def write_logits(path, shape, trainer):
    """Write the teacher's logits, float32 of `shape` [samples, K], to `path`: whole, or not at all."""
    _require_space(path, 4 * shape[0] * shape[1])
    loader, batch = copy.copy(trainer.train_loader), trainer.train_loader.batch_sampler.batch_size
    indices = range(shape[0])
    loader.batch_sampler = [[(0, i) for i in indices[start : start + batch]] for start in indices[::batch]]

    def write(file):
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for images, _ in tqdm(loader, desc="teacher", disable=None):
            if trainer.stop.number:
                trainer.stop_run()
            with paddle.no_grad():
                rows = trainer.model.teacher(trainer.model.teacher_images(images))
            file.write(rows.numpy().astype("<f4").tobytes())

    replace_file(path, write)
    logger.info(f"the teacher's logits of {shape[0]} images are in {path}")


def _opened(path, shape):
    """The logits in the file `path`; None where there is none, or not one of ours."""
    try:
        logits = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return logits if logits.shape == shape and logits.dtype == np.float32 else None


def _require_space(path, size):
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise DataError(f"{path}: the teacher's logits take {size / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free")


HOOKS.register(TeacherCacheHook)
