"""Pages that show what a model does with one image: where its class token looks, which channels it mixes, features.

Letters: h heads, d channels of a head, N tokens, H x W token grid, C channels.
"""

import math
from pathlib import Path

import numpy as np
import paddle
from PIL import Image

from passl_xcit.datasets.imagenet import open_image
from passl_xcit.datasets.transforms import Normalize, Transpose
from passl_xcit.engine.cost import CostWatch
from passl_xcit.engine.pictures import new_figure, save_figure
from passl_xcit.modeling.attention import channel_maps, class_maps
from passl_xcit.modeling.backbones.xcit import XCiT
from passl_xcit.ops.library import portable
from passl_xcit.utils.errors import ConfigError

HEAT = "inferno"
PANEL = 2.1  # inches
LAYERS_SHOWN = 4
PAGES = ("class_attention", "channel_attention", "features")


def fitted(image, patch_size, short_side=None):
    """The image with both sides whole multiples of a model's patches; its proportions are kept as far as may be.

    Args:
        short_side: pixels to which the shorter side is scaled; None keeps the size.
    """
    scale = 1.0 if short_side is None else short_side / min(image.size)
    sides = [max(1, round(length * scale / patch_size)) * patch_size for length in image.size]
    return image if list(image.size) == sides else image.resize(sides, Image.Resampling.BICUBIC)


def as_batch(image, mean, std):
    """A PIL image -> float32 tensor [1, C, height, width], normalised as an evaluation does it."""
    return paddle.to_tensor(Normalize(mean, std)(Transpose()(image, None), None)[None])


def whole_image(model, preprocess, image, short_side=None):
    """(PIL image, float32 tensor [1, C, height, width]): the whole of an image, uncropped, and as a model takes it.

    Args:
        model: an XCiT or CrossViT; of the former the sides become whole multiples of its patches.
        preprocess: a Preprocess, whose mode, mean and std are taken.
        image: a PIL image of any mode.
        short_side: see `fitted`.
    """
    patch_size = model.backbone.patch_size if isinstance(model.backbone, XCiT) else 1
    picture, said = fitted(image.convert(preprocess.mode), patch_size, short_side), preprocess.summary()
    return picture, as_batch(picture, said["mean"], said["std"])


def draw_pages(model, preprocess, path, folder, short_side=None):
    """Draw what there is to see of an image into `folder`: the paths of the pages.

    Args:
        model: an XCiT or CrossViT with its head.
        preprocess: a Preprocess, whose mode, mean and std are taken; the image is not cropped.
        path: of the image.
        short_side: see `fitted`.

    Raises:
        BadImage: the image cannot be used.
        ConfigError: the model has nothing to show, or the folder cannot be written.
    """
    is_xcit, folder = isinstance(model.backbone, XCiT), Path(folder)
    picture, batch = whole_image(model, preprocess, open_image(path), short_side)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output_dir {folder}: cannot be made: {error.strerror}") from error
    pages = [folder / f"{Path(path).stem}_{page}.png" for page in PAGES[: 3 if is_xcit else 1]]
    draw_class_attention(model, picture, batch, pages[0])
    if is_xcit:
        draw_channel_attention(model, batch, pages[1])
        draw_features(model, picture, batch, pages[2])
    return pages


def check_stems(paths):
    """Raise ConfigError if two images would have pages of the same names."""
    taken = {}
    for path in paths:
        other = taken.setdefault(Path(path).stem, path)
        if other != path:
            raise ConfigError(
                f"{other} and {path}: their pages would have the same names, {Path(path).stem}_*.png; draw them into "
                "two folders"
            )


def draw_class_attention(model, image, batch, output):
    """Where the class token looks: a row for each layer, its heads over the image, and their mean.

    A patch has the colour of its share of the attention, as a multiple of the share that each would have if all had
    the same. What the class token keeps for itself stands above each panel.
    """
    model.eval()
    with portable(), CostWatch(model).watched(batch.shape):  # as whatever is looked into computes
        maps = class_maps(model, batch)
    heads = maps[0].patches.shape[1]
    figure, axes = new_figure(len(maps), heads + 2, PANEL, PANEL * image.height / image.width + 0.45)
    for row, found in zip(axes, maps):
        patches, itself = found.patches[0], found.itself[0]  # [h, H, W], [h]
        panels = [*zip(patches, itself, (f"head {head}" for head in range(heads)))]
        panels.append((patches.mean(axis=0), itself.mean(), "mean of the heads"))
        most = max(share.max() * share.size for share, _, _ in panels)
        _show_image(row[0], image, found.layer)
        for axis, (share, kept, name) in zip(row[1:], panels):
            heat = _overlay(axis, image, share * share.size, most)
            axis.set_title(f"{name}\nclass token itself {100 * kept:.0f} %", fontsize=7)
        figure.colorbar(heat, ax=list(row), shrink=0.8, label="times the mean patch")
    save_figure(figure, output)


def draw_channel_attention(model, batch, output):
    """XCA's [d, d] maps of a few layers, head by head, and the temperatures of all layers."""
    maps = channel_maps(model, batch)
    shown = [maps[index] for index in _spread(len(maps))]
    heads = len(shown[0].temperature)
    figure, axes = new_figure(len(shown) + 1, heads, PANEL, PANEL + 0.2)
    for row, found in zip(axes, shown):
        for head, axis in enumerate(row):
            heat = axis.imshow(found.attention[0, head], cmap=HEAT, vmin=0)
            axis.set_title(f"{found.layer}, head {head}\ntemperature {found.temperature[head]:.2f}", fontsize=7)
            axis.set_xlabel("channel of k", fontsize=7)
            axis.set_ylabel("channel of q", fontsize=7)
            axis.tick_params(labelsize=6)
            figure.colorbar(heat, ax=axis, shrink=0.7).ax.tick_params(labelsize=6)
    _draw_temperatures(figure, axes[-1], maps)
    save_figure(figure, output)


def _draw_temperatures(figure, row, maps):
    whole = row[0].get_gridspec()[-1, :]
    for axis in row:
        axis.remove()
    axis = figure.add_subplot(whole)
    values = np.stack([found.temperature for found in maps])  # [layers, h]
    for head in range(values.shape[1]):
        axis.plot(values[:, head], marker=".", label=f"head {head}")
    axis.set_xlabel("XCA layer")
    axis.set_ylabel("temperature")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, ncols=2)


def draw_features(model, image, batch, output, stages=None):
    """The patch features of some stages in colours: their first three principal components as red, green and blue.

    Raises:
        ConfigError: for a stage that does not have one feature a patch.
    """
    stages = stages or _block_stages(model.backbone)
    figure, axes = new_figure(1, len(stages) + 1, PANEL, PANEL * image.height / image.width + 0.45)
    _show_image(axes[0][0], image, "image")
    for axis, stage in zip(axes[0][1:], stages):
        colours, explained = principal_colours(_patches(model, batch, stage, image))
        axis.imshow(colours, interpolation="nearest", extent=_edges(image))
        axis.set_title(f"{stage}\n{100 * explained:.0f} % of the variance", fontsize=7)
        axis.set_axis_off()
    save_figure(figure, output)


def _block_stages(backbone):
    blocks = [stage for stage in backbone.stages if stage.startswith("block_")]
    return [blocks[index] for index in _spread(len(blocks))]


def _spread(count, shown=LAYERS_SHOWN):
    """Up to `shown` of the numbers below `count`, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(shown, count))})


def _patches(model, batch, stage, image):
    """float32 [H, W, C]"""
    model.eval()
    with paddle.no_grad():
        features = model.extract_feat(batch, stage)
    if isinstance(features, tuple) or features.ndim != 3:
        raise ConfigError(f"{stage} of {type(model.backbone).__name__} has not one feature a patch; try patch_tokens")
    patch = math.isqrt(image.width * image.height // features.shape[1])
    return features[0].numpy().reshape(image.height // patch, image.width // patch, -1)


def principal_colours(features):
    """features [H, W, C] -> (their first three principal components [H, W, 3], each from 0 to 1; share of the variance)

    Jolliffe 2002, Principal Component Analysis. A component's sign is that of its largest loading, so that the same
    features always have the same colours.
    """
    flat = features.reshape(-1, features.shape[2]).astype("float64")
    centred = flat - flat.mean(axis=0)
    _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:3] * np.sign(axes[:3][np.arange(len(axes[:3])), np.abs(axes[:3]).argmax(axis=1)])[:, None]
    parts = centred @ axes.T  # [N, up to 3]
    low, high = parts.min(axis=0), parts.max(axis=0)
    scaled = (parts - low) / np.maximum(high - low, 1e-12)
    colours = np.zeros([len(flat), 3])
    colours[:, : scaled.shape[1]] = scaled
    total = (lengths**2).sum()
    explained = (lengths[:3] ** 2).sum() / total if total else 1.0
    return colours.reshape(*features.shape[:2], 3), explained


def _edges(image):
    """Left, right, bottom and top of a panel in pixels of the image, so that patches lie where they belong."""
    return 0, image.width, image.height, 0


def _show_image(axis, image, title):
    axis.imshow(image, cmap="gray" if image.mode == "L" else None)
    axis.set_title(title, fontsize=7)
    axis.set_axis_off()


def _overlay(axis, image, heat, most):
    """`heat` [H, W] over a grey image; 0 to `most` are the ends of the colours."""
    axis.imshow(image.convert("L"), cmap="gray", vmin=0, vmax=255, extent=_edges(image))
    shown = axis.imshow(heat, cmap=HEAT, vmin=0, vmax=most, alpha=0.6, extent=_edges(image), interpolation="nearest")
    axis.set_axis_off()
    return shown
