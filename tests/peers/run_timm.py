"""timm's side of the parity tests: random weights to files in every dialect of timm's models, logits, gradients.

Files: `.safetensors` and `.pth` as timm has them; `.official.pth` as the papers' authors release them
(facebookresearch/xcit and DeiT: {"model": ...}; IBM CrossViT: bare), where their names differ from timm's.
"""

import re

import timm
import torch
from inputs import parse_args
from safetensors.torch import save_file
from torch_peer import run

SPLIT = re.compile(r"(cls_attn_blocks\.\d+\.attn\.)(q|k|v)\.(weight|bias)")


def official(name, state):
    """timm's names -> the names in the authors' release of the same architecture, in their wrapper."""
    if name.startswith("crossvit"):
        return {re.sub(r"^(cls_token|pos_embed)_", r"\1.", key): value for key, value in state.items()}
    released = {}
    for key, value in state.items():
        match = SPLIT.fullmatch(key)
        if match is None:
            released[key.replace("pos_embed.", "pos_embeder.")] = value
        elif match[2] == "q":
            parts = [state[f"{match[1]}{letter}.{match[3]}"] for letter in "qkv"]
            released[f"{match[1]}qkv.{match[3]}"] = torch.cat(parts)
    return {"model": released}


def save(name, state, folder, stem):
    save_file(state, folder / f"{stem}.safetensors")
    torch.save(state, folder / f"{stem}.pth")
    torch.save(official(name, state), folder / f"{stem}.official.pth")


def main():
    args = parse_args(__doc__)
    options = {"img_size": args.img_size} if args.img_size else {}
    run(args, lambda name: timm.create_model(name, **options), save)


if __name__ == "__main__":
    main()
