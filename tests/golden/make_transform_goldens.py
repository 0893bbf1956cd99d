"""Write transforms_*.{json,npz} and auto_augment_*.{json,npz}: what timm and torchvision do with an image or a batch.

Random numbers are stored with the results, as [kind, argument, ..., value], in the order in which a
numpy.random.Generator would be asked for them: 'random', 'uniform' low high, 'integers' low high (excluded),
'normal' mean deviation, 'beta' a a. Draws with one possible answer are left out.

Needs torch, torchvision, timm (made with 1.0.31) and Pillow < 12: timm asks for 0 bits at level 10 of
PosterizeIncreasing, which newer ones refuse. Run: python tests/golden/make_transform_goldens.py
"""

import contextlib
import json
import random
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform, mixup, random_erasing
from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS, _RAND_TRANSFORMS, AugmentOp, rand_augment_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

HERE = Path(__file__).resolve().parent


def formula_image(height, width):
    """[H, W, 3] uint8 with values from 20 to 229, rough enough to show every misplaced pixel."""
    y, x = np.mgrid[:height, :width]
    channels = [7 * x + 3 * y * y, x * x + 11 * y, 13 * x * y + 5 * y]
    return (np.stack(channels, axis=-1) % 210 + 20).astype(np.uint8)


class Recorder:
    """Answers for `random` and `numpy.random`, and remembers what it was asked."""

    def __init__(self, seed):
        self.source, self.draws = random.Random(seed), []

    def _record(self, value, kind, *arguments):
        value = round(value, 6)  # keeps the files small
        self.draws.append([kind, *arguments, value])
        return value

    def random(self):
        return self._record(self.source.random(), "random")

    def uniform(self, low, high):
        return self._record(self.source.uniform(low, high), "uniform", low, high)

    def randint(self, low, high):
        if low == high:
            return low
        return self._record(self.source.randint(low, high), "integers", low, high + 1)

    def gauss(self, mean, std):
        return self._record(self.source.gauss(mean, std), "normal", mean, std)

    def numpy_choice(self, items, count, replace, p):
        return [items[self.randint(0, len(items) - 1)] for _ in range(count)]

    def numpy_randint(self, low, high, size):
        return self.randint(low, high - 1)

    def numpy_beta(self, a, b):
        return self._record(self.source.betavariate(a, b), "beta", a, b)


@contextlib.contextmanager
def recorded(seed):
    recorder = Recorder(seed)
    python = {name: getattr(recorder, name) for name in ("random", "uniform", "randint", "gauss")}
    numpy = {name: getattr(recorder, f"numpy_{name}") for name in ("choice", "randint", "beta")}
    with mock.patch.multiple("random", **python), mock.patch.multiple("numpy.random", rand=recorder.random, **numpy):
        yield recorder


def write_json(name, cases):
    lines = ",\n".join(json.dumps(case) for case in cases)
    (HERE / name).write_text(f"[\n{lines}\n]\n")


# Images of odd sizes


def resized(image):
    for name in ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"):
        yield f"15 {name}", Resize(15, InterpolationMode(name))(image)
    yield "[13, 20] bicubic", Resize([13, 20], InterpolationMode.BICUBIC)(image)
    yield "27 bicubic", Resize(27, InterpolationMode.BICUBIC)(image)


def write_resized():
    image = Image.fromarray(formula_image(25, 37))
    arrays = {name: np.asarray(result) for name, result in resized(image)}
    arrays["tall 15 box"] = np.asarray(Resize(15, InterpolationMode.BOX)(image.transpose(Image.Transpose.TRANSPOSE)))
    evaluate = create_transform((3, 15, 15), interpolation="bicubic", crop_pct=1.0)
    arrays["evaluation 15"] = evaluate(image).numpy()
    np.savez_compressed(HERE / "transforms_resize.npz", image=np.asarray(image), **arrays)


def write_center_crops():
    cases = []
    for height, width in [(7, 10), (8, 11), (9, 8), (5, 12), (6, 5), (4, 4)]:
        for size in ([4, 4], [5, 5], [6, 7], [7, 4], [8, 8], [9, 3]):
            rows, columns = np.mgrid[1 : height + 1, 1 : width + 1]
            coordinates = Image.fromarray(np.stack([rows, columns, rows], axis=-1).astype(np.uint8))
            crop = np.asarray(CenterCrop(size)(coordinates)).astype(int)
            y, x = np.argwhere(crop[..., 0])[0]
            top, left = (crop[y, x, :2] - 1 - [y, x]).tolist()
            cases.append({"image": [height, width], "size": size, "top": top, "left": left})
    write_json("transforms_center_crop.json", cases)


# Random boxes


def write_random_resized_crops():
    cases, images = [], {}
    narrow = {"scale": [0.5, 0.9], "ratio": [0.5, 2.0]}
    default = {"scale": [0.08, 1.0], "ratio": [3 / 4, 4 / 3]}
    for seed, (height, width) in enumerate([(29, 43), (43, 29), (200, 10), (9, 200), (5, 5), (500, 375)] * 2):
        limits = narrow if seed >= 6 else default
        image = Image.fromarray(formula_image(height, width))
        with recorded(seed) as recorder:
            box = RandomResizedCropAndInterpolation.get_params(image, **limits)
        cases.append({"image": [height, width], **limits, "draws": recorder.draws, "box": box})
    for interpolation in ("bilinear", "bicubic"):
        with recorded(7) as recorder:
            crop = RandomResizedCropAndInterpolation(16, interpolation=interpolation)
            images[interpolation] = np.asarray(crop(Image.fromarray(formula_image(21, 27))))
    write_json("transforms_random_resized_crop.json", cases)
    arrays = {"image": formula_image(21, 27), "draws": json.dumps(recorder.draws), **images}
    np.savez_compressed(HERE / "transforms_random_resized_crop.npz", **arrays)


def write_erased_boxes():
    cases = []
    settings = [
        {"probability": 1.0},
        {"probability": 0.5},
        {"probability": 1.0, "min_area": 0.3, "max_area": 0.9, "min_aspect": 0.1},
        {"probability": 1.0, "min_count": 1, "max_count": 4},
        {"probability": 1.0, "min_count": 3, "max_aspect": 1.5},
    ]
    for seed, (height, width) in enumerate([(32, 32), (9, 30), (224, 160)] * 5):
        arguments = settings[seed // 3]
        image, sizes = torch.ones(2, height, width), []

        def pixels(per_pixel, rand_color, patch_size, dtype, device, sizes=sizes):
            sizes.append(patch_size[1:])
            return torch.zeros(patch_size)

        with recorded(seed) as recorder, mock.patch.object(random_erasing, "_get_pixels", pixels):
            random_erasing.RandomErasing(**arguments, device="cpu")(image)
        places = [draw[-1] for draw in recorder.draws if draw[0] == "integers" and draw[1] == 0]
        boxes = [[top, left, *size] for top, left, size in zip(places[::2], places[1::2], sizes)]
        arguments = {"prob" if key == "probability" else key: value for key, value in arguments.items()}
        case = {"image": [height, width], "arguments": arguments, "draws": recorder.draws, "boxes": boxes}
        cases.append({**case, "erased_pixels": int((image[0] == 0).sum())})
    write_json("transforms_random_erasing.json", cases)


# RandAugment


def op_results(image, fill):
    """(set, operation, signed level, result) of every operation at every level and both signs."""
    hparams = {"img_mean": fill, "interpolation": Image.BICUBIC}
    for kind, names in (("plain", _RAND_TRANSFORMS), ("increasing", _RAND_INCREASING_TRANSFORMS)):
        for name in names:
            for level in (0, 5, 9, 10):
                for sign, answer in ((1, 0.0), (-1, 0.9)):
                    with mock.patch("random.random", return_value=answer) as asked:
                        result = AugmentOp(name, prob=1.0, magnitude=level, hparams=hparams)(image)
                    if sign == 1 or (asked.called and level):
                        yield kind, name.replace("Increasing", ""), sign * level, np.asarray(result)


def write_ops():
    colour = Image.fromarray(formula_image(11, 12))
    arrays = {"RGB image": np.asarray(colour), "L image": np.asarray(colour)[..., 1]}
    for mode, image, fill in (("RGB", colour, (124, 116, 104)), ("L", colour.getchannel(1), 117)):
        kinds, names, levels, results = zip(*op_results(image, fill))
        labels = [f"{kind} {name} {level}" for kind, name, level in zip(kinds, names, levels)]
        # The two sets share operations: the same pixels need no second copy.
        unique, where = np.unique(np.stack(results), axis=0, return_inverse=True)
        arrays |= {f"{mode} labels": labels, f"{mode} where": where.ravel(), f"{mode} results": unique}
    np.savez_compressed(HERE / "auto_augment_ops.npz", **arrays)


def write_policies():
    image, cases, results = Image.fromarray(formula_image(11, 12)), [], []
    texts = ["rand-m9-mstd0.5-inc1"] * 12
    texts += [
        "rand-m7-n3-mstd101-p0.8",
        "rand-m14-n9-mmax15-p0.4",
        "rand-m5-mstd1-inc0-n5",
        "rand-m15-p0.9-n3",
    ] * 3
    for seed, text in enumerate(texts):
        hparams = {"img_mean": (124, 116, 104), "interpolation": Image.BICUBIC}
        with recorded(seed) as recorder:
            results.append(np.asarray(rand_augment_transform(text, hparams)(image)))
        cases.append({"config_str": text, "draws": recorder.draws})
    write_json("auto_augment_policies.json", cases)
    np.savez_compressed(HERE / "auto_augment_policies.npz", image=np.asarray(image), results=np.stack(results))


# Mixup


BOTH = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}


def mix_by_batch(seed, arguments, images, targets):
    with recorded(seed) as recorder:
        mixed = mixup.Mixup(**arguments)(images, targets)
    # With cutmix_minmax timm draws a lambda that it does not use.
    unused = "beta" if "cutmix_minmax" in arguments else None
    return mixed, [draw for draw in recorder.draws if draw[0] != unused]


def mix_by_sample(seed, arguments, images, targets):
    """timm draws the numbers of all samples in three arrays; here they are chosen, sample by sample."""
    source, draws = random.Random(seed), []
    lams, switches = np.ones(len(images), np.float32), np.zeros(len(images), bool)
    for i in range(len(images) if arguments["mode"] == "elem" else len(images) // 2):
        gate, switch = source.random(), source.random()
        draws.append(["random", gate])
        if gate < arguments["prob"]:
            lams[i], switches[i] = source.betavariate(1, 1), switch < 0.5
            alpha = arguments["cutmix_alpha" if switches[i] else "mixup_alpha"]
            draws += [["random", switch], ["beta", alpha, alpha, float(lams[i])]]
    chosen = mock.patch.object(mixup.Mixup, "_params_per_elem", lambda self, count: (lams[:count], switches[:count]))
    with chosen, recorded(seed) as recorder:
        mixed = mixup.Mixup(**arguments)(images, targets)
    return mixed, draws + recorder.draws


def write_mixed_batches():
    settings = [{**BOTH, "mode": "batch"}] * 4
    settings += [{**BOTH, "mode": "batch", "correct_lam": False, "prob": 0.7}] * 4
    settings += [{**BOTH, "mode": "batch", "switch_prob": 1.0, "cutmix_minmax": [0.2, 0.8]}] * 2
    settings += [{**BOTH, "mode": mode, "prob": 0.8, "label_smoothing": 0.2} for mode in ("elem", "pair")] * 3
    generator = np.random.default_rng(0)
    batch = {"images": generator.standard_normal((6, 1, 5, 6), np.float32), "targets": np.array([0, 4, 2, 1, 4, 3])}
    cases, results = [], []
    for seed, arguments in enumerate(settings, start=4):
        arguments = {"num_classes": 5, **arguments}
        run = mix_by_batch if arguments["mode"] == "batch" else mix_by_sample
        tensors = (torch.tensor(batch["images"]), torch.tensor(batch["targets"]))
        (images, targets), draws = run(seed, arguments, *tensors)
        results.append((images.numpy(), targets.numpy()))
        cases.append({"arguments": arguments, "draws": draws})
    write_json("transforms_mixup.json", cases)
    mixed, soft_targets = (np.stack(arrays) for arrays in zip(*results))
    np.savez_compressed(HERE / "transforms_mixup.npz", **batch, mixed=mixed, soft_targets=soft_targets)


if __name__ == "__main__":
    write_resized()
    write_center_crops()
    write_random_resized_crops()
    write_erased_boxes()
    write_ops()
    write_policies()
    write_mixed_batches()
