"""Small photographs in the modes that files have."""

import numpy as np
from PIL import Image


def photo(mode="RGB", size=(40, 30)):
    """Smooth colours with some noise."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    pixels = np.stack([x, y, 200 - x], -1) + np.random.default_rng(0).integers(0, 50, (height, width, 3))
    image = Image.fromarray(pixels.astype("uint8"))
    if mode == "I;16":
        return Image.fromarray((np.asarray(image)[..., 0].astype("uint16")) * 257)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(x.astype("uint8")))
        return image
    return image.convert(mode)


def turned():
    """EXIF data that ask for a rotation by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


FILES = {
    "RGB.jpg": (photo(), {}),
    "L.png": (photo("L"), {}),
    "P.png": (photo("P"), {}),
    "RGBA.png": (photo("RGBA"), {}),
    "CMYK.jpg": (photo("CMYK"), {}),
    "16.png": (photo("I;16"), {}),
    "turned.jpg": (photo(), {"exif": turned()}),
}
