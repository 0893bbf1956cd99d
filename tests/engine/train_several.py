"""As one of several processes: train and evaluate tiny models in several ways, and write what this process found.

Arguments: a folder and JSON text, {"train": {name: overrides}, "evaluate": {name: overrides}}.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_xcit.utils.startup import prepare_paddle

prepare_paddle()

import paddle  # noqa: E402
from tiny_run import tiny_config, tiny_trainer  # noqa: E402

from passl_xcit.engine import builder  # noqa: E402
from passl_xcit.engine.checkpoint import optimizer_arrays  # noqa: E402
from passl_xcit.modeling.checkpoint_formats import write_file  # noqa: E402
from passl_xcit.utils.dist import init_parallel, rank  # noqa: E402


def train(overrides):
    trainer = tiny_trainer(folder, *overrides)
    trainer.train()
    weights = {key: tensor.numpy() for key, tensor in trainer.model.state_dict().items()}
    return {"weights": weights, "moments": optimizer_arrays(trainer.optimizer, trainer.model)}


def evaluate(overrides):
    cfg = tiny_config(folder, *overrides)
    evaluator = builder.build_evaluator(cfg, builder.build_model(cfg))
    metrics = evaluator.evaluate()
    return {"metrics": metrics, "seen": [key[1] for keys in evaluator.loader.batch_sampler for key in keys]}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    paddle.set_device("cpu")
    init_parallel()
    for action in (train, evaluate):
        for name, overrides in json.loads(sys.argv[2])[action.__name__].items():
            write_file(folder / f"{name}.rank{rank()}", action([*overrides, f"output_dir={folder / name}"]))
