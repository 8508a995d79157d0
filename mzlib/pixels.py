"""Any image file as 8-bit RGB pixels: the one place that says how a file becomes pixels, and at what price in memory."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, JpegImagePlugin

from mzlib.errors import MzlibError

# Raster formats that Pillow decodes by itself: an EPS named .jpg would start Ghostscript. TGA, without a magic number, is last.
FORMATS = (
    "JPEG MPO PNG WEBP GIF BMP DIB TIFF PPM AVIF HEIF JPEG2000 PCX ICO TGA".split()  # noqa: SIM905
)
BUDGET = 2**30  # bytes that images being decoded may take together, and the most that one may
LARGE = 2**24  # pixels of an image above which it is converted strip by strip
STRIP = 2**22  # pixels of a strip
ELONGATED = 20  # images longer than this times their short side are cropped to it, or resizing would fill the memory
DEPTHS = (
    8,
    10,
    12,
    16,
)  # bits of whole numbers in a 16-bit file: the least that holds its brightest pixel
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextmanager
def whole(file: Path | str) -> Iterator[None]:
    """Turn what parsers raise on a damaged file, and that is anything, into a MzlibError that names it."""
    try:
        yield
    except MzlibError:
        raise
    except Exception as error:
        raise MzlibError(
            f"{file}: expected a whole file, got {error}; fetch it again, replace or remove it"
        ) from error


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


def opened(content: bytes) -> Image.Image:
    """An image whose header is read, by content and not by name; a JPEG of any size, for it can be decoded at an eighth."""
    try:
        return Image.open(io.BytesIO(content), formats=formats())
    except Image.DecompressionBombError:
        if not content.startswith(b"\xff\xd8"):
            raise
        return JpegImagePlugin.jpeg_factory(io.BytesIO(content))


def drafted(content: bytes, side: int) -> Image.Image:
    """As `opened`; a JPEG is set to be decoded at the smallest of its own scales with at least `side` pixels a side."""
    image = opened(content)
    image.draft(None, (side, side))
    return image


def cost(content: bytes, side: int) -> int:
    """Bytes that `small` takes at most, from the header: raises what Pillow raises when there is none.

    The raster is counted twice, for the decoder's own copy; conversion takes up to 16 bytes a pixel of an image or, of a large
    one, of a strip, and twice as much for numbers wider than 8 bits. A progressive JPEG is held as coefficients.
    """
    image = opened(content)
    stored = image.width * image.height
    progressive = 3 * stored if image.info.get("progressive") else 0
    image.draft(None, (side, side))
    number = image.width * image.height
    wide = image.mode[0] in "IF"
    depth = 1 if image.mode in ("1", "L", "P") else 4
    at_once = number if number <= LARGE else STRIP
    raster = number * depth * (3 if wide else 2)
    return len(content) + progressive + raster + at_once * (32 if wide else 16)


def small(image: Image.Image, side: int) -> Image.Image:
    """An open image by `rgb`, its length cropped to 20 times its short side; a large one reduced by the whole factor that leaves
    `side` pixels of the short side, so that memory holds its raster and a strip."""
    image.load()
    turn, levels = _turn(image), _levels(image)
    image = _cropped(image)
    if image.width * image.height <= LARGE:
        image = _rgb(image, levels)
    else:
        image = _reduced(image, levels, max(1, min(image.size) // side))
    return image.transpose(turn) if turn is not None else image


def _cropped(image: Image.Image) -> Image.Image:
    longest = ELONGATED * min(image.size)
    width, height = min(image.width, longest), min(image.height, longest)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _reduced(image: Image.Image, levels: tuple[float, float] | None, factor: int) -> Image.Image:
    width, height = image.size
    reduced = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    rows = factor * max(1, STRIP // (width * factor))
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        reduced.paste(_rgb(strip, levels).reduce(factor), (0, top // factor))
    return reduced


def rgb(image: Image.Image) -> Image.Image:
    """Any image as 8-bit RGB: upright by EXIF; an animation's first frame; transparency over white; whole numbers up to 65535
    by the depth that holds the greatest of them (`DEPTHS`: x / 257 at 16 bits), other wide integers and floats stretched from
    least to greatest; the rest (grey, palette, 1-bit, CMYK, YCbCr, HSV) by Pillow."""
    image.load()
    turn = _turn(image)
    converted = _rgb(image, _levels(image))
    return converted.transpose(turn) if turn is not None else converted


def _rgb(image: Image.Image, levels: tuple[float, float] | None) -> Image.Image:
    """Not turned; levels: the numbers that become 0 and 255, of an image of wide numbers."""
    if levels is not None:
        low, high = levels
        x = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)
        image = Image.fromarray(((x - low) * (255 / (high - low))).round().astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What turns a loaded image upright. Only the tag of the orientation is read: others may be damaged."""
    try:
        return TURNS.get(image.getexif().get(0x0112))
    except Exception:  # noqa: BLE001  (EXIF of any kind of damage: the image counts)
        return None


def _levels(image: Image.Image) -> tuple[float, float] | None:
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
    """Whether a loaded image has 16-bit numbers of which it uses a sixteenth or less: they are stretched."""
    levels = _levels(image)
    return image.mode != "F" and levels in [(0, 2**bits - 1) for bits in DEPTHS[:-1]]


def square(image: Image.Image, size: int) -> Image.Image:
    """RGB, upright, centre square of `size` pixels a side: the conversion of the project's data cards."""
    return ImageOps.fit(rgb(image), (size, size), Image.Resampling.LANCZOS)


def decode(file: Path | io.BytesIO, name: str, size: int | None = None) -> np.ndarray:
    """An image file as uint8 [H, W, 3], as stored or as `square`."""
    with whole(name), Image.open(file, formats=formats()) as image:
        return np.asarray(square(image, size) if size else image.convert("RGB"))
