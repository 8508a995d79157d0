"""Any image file as 8-bit RGB pixels: the one place that says how a file becomes pixels, and at
what price in memory.
"""

import io
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, JpegImagePlugin

from mzlib.errors import expecting

# Raster formats that Pillow decodes by itself: an EPS named .jpg would start Ghostscript. TGA comes
# last, for it has no magic number.
FORMATS = "JPEG MPO PNG WEBP GIF BMP DIB TIFF PPM AVIF HEIF JPEG2000 PCX ICO TGA".split()
BUDGET = 2**30  # bytes that images being decoded may take together, and the most that one may
ELONGATED = 20  # times the short side: longer images are cropped, for resizing would fill memory
DEPTHS = (8, 10, 12, 16)  # bits: the least that holds the brightest pixel of a 16-bit file
DARK = 15  # of 255: what 12 bits come to in the 16 bits of a colour, of which Pillow reads eight
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def whole(file: Path | str) -> AbstractContextManager:
    """Whatever is raised on a damaged file becomes a MzlibError that names it."""
    return expecting(file, "a whole file", "; fetch it again, replace or remove it")


@cache
def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that can be read here: HEIC where the package pillow-heif is installed."""
    try:
        import pillow_heif
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def extensions() -> frozenset[str]:
    """Of files of those formats: ".jpg", ".png" …"""
    readable = formats()
    return frozenset(
        extension for extension, name in Image.registered_extensions().items() if name in readable
    )


def opened(content: bytes, side: int) -> tuple[Image.Image, int]:
    """An image whose header is read, by content and not by name, and the bytes it may take.

    A JPEG of any size is set to be decoded at the smallest of its own scales (an eighth at least)
    with `side` pixels a side or more. The raster is counted twice, for the decoder's own copy;
    converting takes 4 bytes a pixel, 16 where there may be transparency, and twice as much for
    numbers wider than 8 bits; a progressive JPEG is held as coefficients, too.
    Raises what Pillow raises: DecompressionBombError above the budget, else anything.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=formats())
    except Image.DecompressionBombError:
        if not content.startswith(b"\xff\xd8"):
            raise
        image = JpegImagePlugin.jpeg_factory(io.BytesIO(content))
    progressive = 3 * image.width * image.height if image.info.get("progressive") else 0
    image.draft(None, (side, side))
    stored = 1 if image.mode in ("1", "L", "P") else 4
    opaque = image.mode in ("1", "L", "RGB") and not image.has_transparency_data
    wide = 2 if image.mode[0] in "IF" else 1
    pixel = wide * (2 * stored + (4 if opaque else 16))
    price = len(content) + progressive + pixel * image.width * image.height
    if price > BUDGET:
        raise Image.DecompressionBombError(f"{price} bytes")
    return image, price


def rgb(image: Image.Image) -> Image.Image:
    """Any image as 8-bit RGB: upright by EXIF; an animation's first frame; transparency over white;
    whole numbers up to 65535 by the depth that holds the greatest of them (`DEPTHS`: x / 257 at 16
    bits), other wide integers and floats stretched from least to greatest; the rest (grey, palette,
    1-bit, CMYK, YCbCr, HSV) by Pillow; cropped to 20 times its short side.
    """
    image.load()
    turn = _turn(image)
    levels = _levels(image)
    longest = ELONGATED * min(image.size)
    if max(image.size) > longest:
        left, top = ((side - min(side, longest)) // 2 for side in image.size)
        image = image.crop((left, top, image.width - left, image.height - top))
    if levels is not None:
        low, high = levels
        x = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)
        image = Image.fromarray(((x - low) * (255 / (high - low))).round().astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image if image.mode == "RGB" else image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What turns a loaded image upright. Only the tag of the orientation is read: others may be
    damaged.
    """
    try:
        return TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # noqa: BLE001  (EXIF of any kind of damage: the image counts)
        return None


def _levels(image: Image.Image) -> tuple[float, float] | None:
    """The numbers that become 0 and 255, of a loaded image of wide numbers."""
    if image.mode[0] not in "IF":
        return None
    x = np.asarray(image)
    if image.mode == "F":
        x = np.nan_to_num(x, posinf=0, neginf=0)
    low, high = float(x.min()), float(x.max())
    if image.mode == "F" or low < 0 or high > 65535:
        return low, max(high, low + 1e-9)
    depth = next(bits for bits in DEPTHS if high < 2**bits) if high else 16
    return 0, 2**depth - 1


def is_shallow(image: Image.Image) -> bool:
    """Whether a loaded image has 16-bit numbers of which it uses a sixteenth or less: they are
    stretched.
    """
    levels = _levels(image)
    return image.mode != "F" and levels in [(0, 2**bits - 1) for bits in DEPTHS[:-1]]


def square(image: Image.Image, size: int) -> Image.Image:
    """RGB, upright, centre square of `size` pixels a side: the conversion of the project's data
    cards.
    """
    return ImageOps.fit(rgb(image), (size, size), Image.Resampling.LANCZOS)


def decode(file: Path | io.BytesIO, name: str, size: int | None = None) -> np.ndarray:
    """An image file as uint8 [H, W, 3], as stored or as `square`."""
    with whole(name), Image.open(file, formats=formats()) as image:
        return np.asarray(square(image, size) if size else image.convert("RGB"))


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """Square images uint8 [N, S, S, 3] at `size` pixels a side, as `square` resizes a file."""
    if images.shape[1] == size:
        return images
    converted = [Image.fromarray(i).resize((size, size), Image.Resampling.LANCZOS) for i in images]
    return np.stack([np.asarray(image) for image in converted])
