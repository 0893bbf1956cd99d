"""The workers of timm's contenders, in any Python that has timm, torch and safetensors; see `ours`.

"compile" is `torch.compile`, for inference with the weights frozen into the program: the most that timm gives without
another program.
"""

import numpy as np
import timm
import torch
import torch._inductor.config as inductor
import torch.nn.functional as F
from safetensors.torch import load_file

from passl_xcit.engine.benchmark.protocol import serve

MATRIX, LEARNING_RATE = 2048, 1e-6  # as in cases.py and ours.py, which need Paddle
SIZES = ("", "_224", "_240")  # that timm's names end with where ours do not


def build(task):
    """See `protocol.serve`."""
    torch.set_num_threads(task["threads"])
    return {"matmul": matmul, "inference": inference, "train": train}[task["mode"]](task)


def matmul(task):
    """A product of two square matrices."""
    torch.manual_seed(0)
    left, right = torch.rand([2, MATRIX, MATRIX]).to(getattr(torch, task["precision"]))

    def step():
        left @ right
        return np.ones([1, 1])

    return step


def inference(task):
    """Logits [B, K]."""
    model, images = _model(task).eval(), load_file(task["inputs"])["images"]
    if task["engine"] == "compile":
        inductor.freezing = True
        model = torch.compile(model)

    @torch.no_grad()
    def step():
        with _precision(task):
            return model(images).float().numpy()

    return step


def train(task):
    """A step of training with AdamW: [loss, norm of all gradients] the first time, later [loss]."""
    model = _model(task).train()
    images, targets = (load_file(task["inputs"])[name] for name in ("images", "targets"))
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    forward, told = torch.compile(model) if task["engine"] == "compile" else model, []

    def step():
        with _precision(task):
            loss = F.cross_entropy(forward(images).float(), targets)
        loss.backward()
        answer = [loss.item()]
        if not told:
            told.append(sum((p.grad.double() ** 2).sum().item() for p in model.parameters()) ** 0.5)
            answer += told
        optimizer.step()
        optimizer.zero_grad()
        return np.array(answer)

    return step


def _precision(task):
    dtype = getattr(torch, task["precision"])
    return torch.autocast("cpu", dtype, enabled=dtype is not torch.float32)


def _model(task):
    name = next(name for name in (task["model"] + size for size in SIZES) if timm.is_model(name))
    model = timm.create_model(name)
    model.load_state_dict(load_file(task["timm"]))
    return model


if __name__ == "__main__":
    serve(build)
