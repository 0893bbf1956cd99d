"""Say how two torch or safetensors files of weights differ, and exit with 1 if they do; run by a peer's interpreter.

Usage: compare_torch_files.py ORIGINAL CONVERTED
"""

import sys

import torch
from safetensors.torch import load_file


def read(path):
    """(key that wraps the weights or None, {name: tensor})"""
    if path.endswith(".safetensors"):
        return None, load_file(path)
    content = torch.load(path, weights_only=True)
    wrapper = next((key for key in ("model", "state_dict") if key in content), None)
    return wrapper, content[wrapper] if wrapper else content


def differences(original, converted):
    (wrapper, have), (their_wrapper, want) = read(converted), read(original)
    if wrapper != their_wrapper:
        yield f"the weights are under {wrapper!r}, not {their_wrapper!r}"
    for name in have.keys() ^ want.keys():
        yield f"{name}: in one of the files only"
    for name in have.keys() & want.keys():
        if have[name].dtype != want[name].dtype or have[name].shape != want[name].shape:
            yield f"{name}: {have[name].dtype} {have[name].shape}, not {want[name].dtype} {want[name].shape}"
        elif not torch.equal(have[name].reshape(-1).view(torch.uint8), want[name].reshape(-1).view(torch.uint8)):
            yield f"{name}: other bytes"


def main():
    found = list(differences(*sys.argv[1:]))
    print(*found[:10], sep="\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
