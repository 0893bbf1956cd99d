"""Write ../golden/peer_names.json: {peer: {model: {name of an entry of its files: shape}}}.

Needs all three peers, see README.md. Run: python tests/peers/make_peer_names.py
"""

import json
import tempfile
from pathlib import Path

from peer import HERE, run

MODELS = {
    "timm": [
        "xcit_nano_12_p16_224",
        "xcit_tiny_12_p8_224",
        "crossvit_9_240",
        "crossvit_9_dagger_240",
        "regnety_160",
        "regnety_002",
    ],
    "mmpretrain": ["xcit-nano-12-p16_3rdparty_in1k", "xcit-tiny-12-p8_3rdparty_in1k"],
    "mindcv": ["crossvit_9", "xcit_tiny_12_p16_224"],
}
TARGET = HERE.parent / "golden" / "peer_names.json"


def names_of(peer, models):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "names.json"
        run(peer, f"run_{peer}.py", *models, "--names", path)
        return json.loads(path.read_text())


def main():
    """One model a line, so that a difference can be read."""
    peers = []
    for peer, models in MODELS.items():
        lines = [
            f"{json.dumps(model)}:{json.dumps(names, separators=(',', ':'))}"
            for model, names in names_of(peer, models).items()
        ]
        peers.append(f'"{peer}":{{\n' + ",\n".join(lines) + "\n}")
    TARGET.write_text("{\n" + ",\n".join(peers) + "\n}\n")


if __name__ == "__main__":
    main()
