"""Print, as JSON, the bytes that a forward pass is estimated to take and those that it takes: MODEL PIXELS COUNT."""

import json
import re
import sys
from pathlib import Path

from passl_xcit.utils.startup import prepare_paddle

prepare_paddle(own_process=False)  # memory that the allocator kept would not be seen to be taken

import paddle  # noqa: E402

from passl_xcit.engine.cost import CostEstimate  # noqa: E402
from passl_xcit.modeling.factory import create_model  # noqa: E402


def status(key):
    """Bytes that Linux tells of this process: VmRSS, or the most that it was, VmHWM."""
    return 1024 * int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


if __name__ == "__main__":
    name, pixels, count = sys.argv[1], *map(int, sys.argv[2:])
    model = create_model(name)
    model.eval()
    estimate = CostEstimate(model, pixels, pixels)
    before = status("VmRSS")
    with paddle.no_grad():
        model(paddle.randn([count, 3, pixels, pixels])).numpy()
    print(json.dumps({"estimate": estimate.memory(count, pixels, pixels), "measured": status("VmHWM") - before}))
