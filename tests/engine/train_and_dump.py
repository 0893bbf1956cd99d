"""Run `tools/train.py` with all arguments but the first, and then write this process's model to the first, a folder."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import train

from passl_xcit.engine import builder
from passl_xcit.modeling.checkpoint_formats import write_file
from passl_xcit.utils.dist import rank

folder, *arguments = sys.argv[1:]
models = []
build_model = builder.build_model
builder.build_model = lambda *arguments, **options: models.append(build_model(*arguments, **options)) or models[0]
train.main(arguments)
weights = {name: tensor.numpy() for name, tensor in models[0].state_dict().items()}
write_file(Path(folder) / f"rank{rank()}.pdparams", {**weights, "pid": os.getpid()})
