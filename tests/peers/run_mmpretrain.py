"""mmpretrain's side of the parity tests: random weights to a file as mmengine saves it, logits, gradients."""

from inputs import parse_args
from mmengine.runner.checkpoint import save_checkpoint
from mmpretrain import get_model
from torch_peer import run


def save(name, state, folder, stem):
    """What the CheckpointHook writes: the weights and a `meta`."""
    save_checkpoint({"meta": {"epoch": 1, "iter": 1}, "state_dict": state}, str(folder / f"{stem}.pth"))


def main():
    run(parse_args(__doc__), get_model, save)


if __name__ == "__main__":
    main()
