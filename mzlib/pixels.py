"""Any image file as 8-bit RGB pixels: the one place that says how a file becomes pixels."""

import io
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from mzlib.errors import MzlibError


@contextmanager
def whole(file: Path | str):
    try:
        yield
    except (
        OSError,
        SyntaxError,
        ValueError,
        pa.ArrowException,
        Image.DecompressionBombError,
    ) as error:  # Pillow: any
        raise MzlibError(
            f"{file}: expected a whole file, got {error}; fetch it again, replace or remove it"
        ) from error


def rgb(image: Image.Image) -> Image.Image:
    """Any image as 8-bit RGB: upright by EXIF; an animation's first frame; transparency over white; whole numbers up to 65535
    as 16 bits (x / 257), other wide integers and floats stretched from least to greatest; the rest (grey, palette, 1-bit,
    CMYK, YCbCr, HSV) by Pillow."""
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        x = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)
        sixteen = image.mode != "F" and x.min() >= 0 and x.max() <= 65535
        low, high = (0, 65535) if sixteen else (x.min(), max(x.max(), x.min() + 1e-9))
        image = Image.fromarray(((x - low) * (255 / (high - low))).round().astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def square(image: Image.Image, size: int) -> Image.Image:
    """RGB, upright, centre square of `size` pixels a side: the conversion of the project's data cards."""
    return ImageOps.fit(rgb(image), (size, size), Image.Resampling.LANCZOS)


def decode(file: Path | io.BytesIO, name: str, size: int | None = None) -> np.ndarray:
    """An image file as uint8 [H, W, 3], as stored or as `square`."""
    with whole(name), Image.open(file) as image:
        return np.asarray(square(image, size) if size else image.convert("RGB"))
