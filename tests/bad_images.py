"""Files that a folder of images may hold, and what has to be said of each."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype="uint8"))
OTHERS = [NOISE.rotate(90), NOISE.rotate(180)]
UNKNOWN = "the image cannot be read: not an image of a known format"
TRUNCATED = "the image cannot be read: image file is truncated"
UNREADABLE = "the image cannot be read: "


def encoded(image, kind, **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def animated(kind, **options):
    return encoded(NOISE, kind, save_all=True, append_images=OTHERS, **options)


KINDS = {
    "jpeg": encoded(NOISE, "JPEG"),
    "progressive": encoded(NOISE, "JPEG", progressive=True),
    "png": encoded(NOISE, "PNG"),
    "bmp": encoded(NOISE, "BMP"),
    "ppm": encoded(NOISE, "PPM"),
    "tiff": encoded(NOISE, "TIFF"),
    "lzw": encoded(NOISE, "TIFF", compression="tiff_lzw"),
    "webp": encoded(NOISE, "WEBP", lossless=True),
    "palette": encoded(NOISE.convert("P"), "PNG"),
}


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *chunks):
    """A PNG that says it has these many pixels of 3 bytes, whatever its chunks hold."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *chunks, chunk(b"IEND", b"")])


def pixels(data):
    return chunk(b"IDAT", zlib.compress(data))


def deflated_zeros(count):
    packer = zlib.compressobj()
    return b"".join(packer.compress(bytes(2**20)) for _ in range(count >> 20)) + packer.flush()


def webp_canvas(width, height):
    """An animated WebP without frames: its first 44 bytes."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<IB3x", 10, 2) + size + b"ANIM" + struct.pack("<I6x", 6)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif(frames):
    head = b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0x80, 0, 0) + bytes(6)
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 10, 10, 0) + b"\x02\x02\x44\x01\x00"
    return head + frame * frames + b"\x3b"


def half(kind):
    return KINDS[kind][: len(KINDS[kind]) // 2]


def scribbled(data, start, count):
    """`data` with so many bytes changed from `start` on; none becomes a JPEG marker."""
    changed = bytearray(data)
    for place in range(start, start + count):
        changed[place] = (changed[place] + 1) % 255
    return bytes(changed)


def looping_tiff():
    """A TIFF whose second page is its first one again, for ever."""
    data = bytearray(encoded(NOISE, "TIFF"))
    (first,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * entries, first)
    return bytes(data)


SCAN = KINDS["jpeg"].index(b"\xff\xda") + 40  # inside the JPEG's coded pixels
ROW = bytes(61)  # of a PNG of 20 pixels a line: its filter and its pixels

# {name: (content, verdict)}; a verdict other than "ok" is how the verdict begins.
FILES = {
    "nothing": (b"", "the file is empty"),
    "one byte": (b"\xff", UNKNOWN),
    "text": (b"this is no image\n" * 9, UNKNOWN),
    "html": (b"<!DOCTYPE html><title>404</title>", UNKNOWN),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", UNKNOWN),
    "zeros": (bytes(4096), UNKNOWN),
    "zip": (b"PK\x03\x04" + KINDS["jpeg"], UNKNOWN),
    "pdf": (b"%PDF-1.4\n%%EOF\n", UNKNOWN),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', UNKNOWN),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), UNKNOWN),
    "gif": (encoded(NOISE, "GIF"), UNKNOWN),
    "animated gif": (animated("GIF"), UNKNOWN),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", UNKNOWN),
    "jpeg's start": (KINDS["jpeg"][:2], UNKNOWN),
    "jpeg without its start": (KINDS["jpeg"][2:], UNKNOWN),
    "half a jpeg's header": (KINDS["jpeg"][:300], UNREADABLE),
    "most of a jpeg": (KINDS["jpeg"][:-300], TRUNCATED),
    "jpeg without its end": (KINDS["jpeg"][:-2], TRUNCATED),
    "half a progressive jpeg": (half("progressive"), TRUNCATED),
    "half a png": (half("png"), TRUNCATED),
    "half a palette png": (half("palette"), UNREADABLE),
    "half a bmp": (half("bmp"), TRUNCATED),
    "half a ppm": (half("ppm"), UNREADABLE),
    "half a webp": (half("webp"), UNREADABLE),
    "half a tiff": (half("tiff"), UNREADABLE),
    "half a tiff of lzw": (half("lzw"), UNREADABLE),
    "png of a wrong checksum": (KINDS["png"].replace(b"IDAT", b"IDAT\x01", 1), UNREADABLE),
    "png without pixels": (png(20, 24, pixels(b"")), TRUNCATED),
    "png of width 0": (png(0, 24, pixels(bytes(24))), UNREADABLE),
    "png whose pixels are no deflate": (png(20, 24, chunk(b"IDAT", b"x" * 500)), UNREADABLE),
    "ppm of letters": (b"P3\n2 2\n255\na b c d\n", UNREADABLE),
    "a bomb of 90 million pixels": (png(10_000, 9_000, pixels(b"")), "10000 x 9000 pixels; more than 64 million"),
    "a bomb of 400 million pixels": (png(20_000, 20_000, pixels(b"")), UNREADABLE),
    "a bomb of 2**62 pixels": (png(2**31 - 1, 2**31 - 1, pixels(b"")), UNREADABLE),
    "a ppm bomb": (b"P6 30000 30000 255\n", UNREADABLE),
    "a webp bomb": (webp_canvas(16383, 16383), UNREADABLE),
    "a text bomb": (png(20, 24, chunk(b"zTXt", b"k\0\0" + deflated_zeros(2**21)), pixels(ROW * 24)), UNREADABLE),
    "a colour profile bomb": (
        png(20, 24, chunk(b"iCCP", b"k\0\0" + deflated_zeros(2**21)), pixels(ROW * 24)),
        UNREADABLE,
    ),
    # What every decoder takes; nothing in these files says what was changed.
    "jpeg with 20 other bytes": (scribbled(KINDS["jpeg"], SCAN, 20), "ok"),
    "jpeg with more behind it": (KINDS["jpeg"] + b"more" * 99, "ok"),
    "png with too few rows": (png(20, 24, pixels(ROW * 23)), "ok"),
    "png with more pixels than it says": (png(20, 24, pixels(ROW * 999)), "ok"),
    "png without its end": (KINDS["png"][:-12], "ok"),
    # The first frame is the image.
    "animated png": (animated("PNG"), "ok"),
    "animated webp": (animated("WEBP", lossless=True), "ok"),
    "tiff of three pages": (animated("TIFF"), "ok"),
    "tiff that never ends": (looping_tiff(), "ok"),
    "jpeg of several pictures": (animated("MPO"), "ok"),
}
