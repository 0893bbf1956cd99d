"""Run exports in a process that builds no model: `run_exports.py TASK.json`.

The task is {"folders": [...], "images": {folder's name: [.npy, ...]}, "precision": ..., "out": .npz}; the file `out`
gets each engine's outputs as "folder's name/engine/number of the images". Prints which modules were loaded.
"""

import json
import sys
from pathlib import Path

from passl_xcit.utils.startup import prepare_paddle

prepare_paddle()

import numpy as np  # noqa: E402

from passl_xcit.engine.exported import ExportedModel  # noqa: E402
from passl_xcit.engine.runtimes import ENGINES, why_not  # noqa: E402

task = json.loads(Path(sys.argv[1]).read_text())
found = {}
for folder in map(Path, task["folders"]):
    for engine in ENGINES:
        if why_not(engine, task["precision"]) is None:
            model = ExportedModel(folder, engine, task["precision"])
            for number, path in enumerate(task["images"][folder.name]):
                found[f"{folder.name}/{engine}/{number}"] = model(np.load(path))
np.savez(task["out"], **found)
print(json.dumps(sorted(name for name in sys.modules if name.startswith("passl_xcit."))))
