"""The embedded suite: rendered 32 px RGB tasks and scikit-learn's digits; nothing is downloaded.

Four source domains of different kind, a generic `mixture` of all kinds with other classes (it plays
ImageNet's part) and target tasks. `mini.toml` has a line per class: a renderer of this module and
its parameters. A renderer draws n intensity images [n, 32, 32] in [0, 1], jittered in place, size,
turn and form; `paint` adds colours, light and noise at random. Each class and split has its own
generator: the same numpy, Pillow and FreeType give the same bytes.
"""

import hashlib
import json
import tomllib
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits

SIZE = 32
SUITE = tomllib.loads(Path(__file__).with_name("mini.toml").read_text("utf-8"))
TABLES = SUITE["classes"]  # task -> class name -> [renderer, parameters …]
Y, X = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j].astype(np.float32)
# pixels as complex numbers: turning and zooming is a product; rows, so y, grow downwards
PLANE = X + 1j * Y


def counts(name: str) -> dict[str, int]:
    """Numbers of images and classes of an embedded task."""
    sizes = SUITE["images"]
    classes = len(TABLES[name])
    train = sizes["target_train_per_class"]
    if name in SUITE["sources"]:
        train = sizes["source_train"] // classes
    test = sizes["test"] // classes
    return {"train": train * classes, "test": test * classes, "classes": classes}


def digest(name: str) -> str:
    """SHA-256 of the parameters that an embedded task is drawn with."""
    parameters = json.dumps([TABLES[name], counts(name), SUITE["fonts"]])
    return hashlib.sha256(parameters.encode()).hexdigest()


def render(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images [N, 32, 32, 3] and int64 labels [N] of an embedded task's split, ordered by
    class; takes 1 s.
    """
    count = counts(name)[split] // len(TABLES[name])
    images = []
    for row, (renderer, *parameters) in enumerate(TABLES[name].values()):
        if renderer == "digit":
            part = slice(count) if split == "train" else slice(-count, None)
            images.append(_digits(*parameters, part))
        else:
            # "/1": drawn anew after the classes were designed on other images, so no choice was
            # made on these
            rng = np.random.default_rng([zlib.crc32(f"{name}/{split}/1".encode()), row])
            images.append(paint(RENDERERS[renderer](count, rng, *parameters), rng))
    return np.concatenate(images), np.repeat(np.arange(len(images)), count)


def _digits(digit: int, part: slice) -> np.ndarray:
    """Some of scikit-learn's handwritten digits, resized from 8 to 32 px."""
    data = load_digits()
    images = []
    for pixels in data.images[data.target == digit][part]:
        grey = Image.fromarray((pixels * 15.9375).astype(np.uint8))
        images.append(grey.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB"))
    return np.stack(images)


def paint(mask: np.ndarray, rng: np.random.Generator, noise: float = 0.08) -> np.ndarray:
    """Intensity [n, 32, 32] -> uint8 [n, 32, 32, 3]: light on darker ground in random colours, a
    gradient and noise.
    """
    n = len(mask)
    background = rng.uniform(0, 0.5, (n, 1, 1, 3))
    contrast = rng.uniform(0.35, 0.65, (n, 1, 1, 1)) * rng.uniform(0.4, 1, (n, 1, 1, 3))
    slope = rng.uniform(-0.15, 0.15, (2, n, 1, 1, 1))
    image = background + contrast * mask[..., None]
    image = image + slope[0] * X[..., None] + slope[1] * Y[..., None]
    grey = rng.standard_normal((n, SIZE, SIZE, 1))
    colour = rng.standard_normal((n, SIZE, SIZE, 3))
    image += noise * rng.uniform(0.2, 1, (n, 1, 1, 1)) * (grey + 0.5 * colour)
    return (image.clip(0, 1) * 255).round().astype(np.uint8)


def _each(n: int, rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    """A number for each image, [n, 1, 1]."""
    return rng.uniform(low, high, (n, 1, 1))


def _turn(degrees: np.ndarray | float) -> np.ndarray:
    """Complex numbers that turn a plane."""
    return np.exp(1j * np.deg2rad(degrees))


def _factor(n: int, rng: np.random.Generator, zoom: tuple[float, float], turn: float) -> np.ndarray:
    """Complex [n, 1, 1] that zoom by a factor between two limits and turn by up to ± degrees."""
    return _each(n, rng, *zoom) * _turn(_each(n, rng, -turn, turn))


def _shift(n: int, rng: np.random.Generator, limit: float, k: int = 1) -> np.ndarray:
    """Complex [n, k, 1] in a square of half side `limit`."""
    return rng.uniform(-limit, limit, (n, k, 2)) @ [[1], [1j]]


def band(
    n: int, rng: np.random.Generator, angle: float, cycles: float, spread: float, octaves: float
) -> np.ndarray:
    """White noise through a Gaussian band around an angle (± spread, degrees) and a frequency
    (cycles per image).
    """
    frequency = np.fft.rfftfreq(SIZE, 1 / SIZE) + 1j * np.fft.fftfreq(SIZE, 1 / SIZE)[:, None]
    away = np.angle(frequency, deg=True) - angle - _each(n, rng, -12, 12)
    away = (away + 90) % 180 - 90
    octave = np.log2((np.abs(frequency) + 1e-3) / cycles) - _each(n, rng, -0.3, 0.3)
    weight = np.exp(-0.5 * (away / spread) ** 2 - 0.5 * (octave / octaves) ** 2)
    noise = np.fft.rfft2(rng.standard_normal((n, SIZE, SIZE)))
    texture = np.fft.irfft2(noise * weight, s=(SIZE, SIZE))
    texture = texture / texture.std((1, 2), keepdims=True)
    return 0.5 + 0.5 * np.tanh(texture * _each(n, rng, 0.5, 2))


def weave(
    n: int,
    rng: np.random.Generator,
    warp: float,
    weft: float,
    threads: float,
    picks: float,
    how: str,
) -> np.ndarray:
    """Two sets of threads at two angles (degrees) in two counts that meet by "sum", "over" (and
    under) or "top".
    """
    turned = PLANE * _factor(n, rng, (0.88, 1.12), 6)
    directions = [_turn(-(angle + _each(n, rng, -4, 4))) for angle in (warp, weft)]
    phases = []
    for count, direction in zip((threads, picks), directions):
        wave = np.pi * count * (turned * direction).real
        phases.append(wave + 4 * np.pi * rng.random((n, 1, 1)))
    a, b = np.cos(phases)
    if how == "sum":
        cloth = (a + b) / 2
    elif how == "over":
        is_over = np.cos(phases[0] / 2) * np.cos(phases[1] / 2) > 0
        cloth = np.where(is_over, a, b)
    else:
        cloth = np.maximum(a, b)
    return 0.5 + 0.5 * cloth * _each(n, rng, 0.15, 0.6)


def scene(
    n: int, rng: np.random.Generator, corners: int, star: float, hollow: int, number: int
) -> np.ndarray:
    """`number` equal soft figures in cells of a 3 x 3 grid; a single one is larger and nearer to
    the middle.

    corners: 0 is a disc; star: pulls the middles of the edges in; hollow: 1 is an outline.
    """
    spacing, size = (0.42, 0.45) if number == 1 else (0.6, 0.29)
    cell = rng.random((n, 9)).argsort(1)[:, :number, None]
    centre = (cell % 3 - 1 + 1j * (cell // 3 - 1)) * spacing + _shift(n, rng, 0.12, number)
    size = size * rng.uniform(0.75, 1.35, centre.shape)
    place = (PLANE - centre[..., None]) / size[..., None]  # [n, number, 32, 32]
    tilt = np.pi / 2 + rng.uniform(-0.35, 0.35, (n, number, 1, 1))
    edge = 1
    if corners:
        sector = 2 * np.pi / corners
        off = np.abs((np.angle(place) + tilt) % sector - sector / 2)  # from an edge's middle
        edge = np.cos(sector / 2) / np.cos(off) * (1 - star * (1 - 2 * off / sector))
    distance = np.abs(place) - edge
    if hollow:
        distance = np.abs(np.abs(place) - 0.8 * edge) - 0.2
    return (1 / (1 + np.exp((distance * 12).clip(-30, 30)))).max(1)


def julia(n: int, rng: np.random.Generator, real: float, imaginary: float) -> np.ndarray:
    """Escape time of z -> z² + c for a c that is jittered a little."""
    z = ((PLANE - _shift(n, rng, 0.3)) * _factor(n, rng, (1.1, 1.8), 180)).astype(np.complex64)
    c = (complex(real, imaginary) + _shift(n, rng, 0.014)).astype(np.complex64)
    time = np.zeros(z.shape, np.float32)
    for _ in range(24):
        inside = np.abs(z) < 4
        time += inside
        z = np.where(inside, z * z + c, z)
    return (time / 24) ** _each(n, rng, 0.5, 1.2)


def _attractor(
    fixed: np.ndarray, factor: np.ndarray, share: list[float], rng: np.random.Generator
) -> np.ndarray:
    """Chaos game of K maps z -> fixed + factor (z - fixed), complex [n, K], taken in these shares:
    [n, 32, 32].
    """
    n = len(fixed)
    image = np.arange(n)[:, None]
    z = fixed[:, :1].repeat(80, 1)
    count = np.zeros(n * SIZE * SIZE)
    for step in range(36):
        which = np.searchsorted(np.cumsum(share)[:-1], rng.random(z.shape))
        z = fixed[image, which] + factor[image, which] * (z - fixed[image, which])
        if step >= 8:  # the first steps are still on their way to the attractor
            row = ((z.imag + 1) * SIZE / 2).astype(int).clip(0, SIZE - 1)
            column = ((z.real + 1) * SIZE / 2).astype(int).clip(0, SIZE - 1)
            pixel = (image * SIZE + row) * SIZE + column
            count += np.bincount(pixel.ravel(), minlength=count.size)
    return np.tanh(count.reshape(n, SIZE, SIZE) / 4)


def gasket(
    n: int, rng: np.random.Generator, corners: int, contraction: float, turn: float
) -> np.ndarray:
    """Attractor of equal maps (contraction, turn in degrees) toward the corners of a polygon in any
    position.
    """
    polygon = np.exp(2j * np.pi * np.arange(corners) / corners)
    fixed = polygon * _factor(n, rng, (0.55, 0.85), 180)[..., 0] + _shift(n, rng, 0.15)[..., 0]
    factor = contraction * _factor(n, rng, (0.95, 1.05), 6)[..., 0] * _turn(turn)
    return _attractor(fixed, factor.repeat(corners, 1), [1 / corners] * corners, rng)


def fern(
    n: int,
    rng: np.random.Generator,
    curl: float,
    left: float,
    right: float,
    leaf: float,
    frond: float,
) -> np.ndarray:
    """Fern of four similarities: foot, frond (curl in degrees) and two leaflets (angles in degrees,
    scale).
    """
    jitter = rng.uniform(-1, 1, (n, 5)) * (3, 8, 8, 0.03, 0.015)
    curl, left, right, leaf, frond = ((curl, left, right, leaf, frond) + jitter).T
    angle = np.stack([0 * curl, curl, left, -right], 1)
    factor = np.stack([0 * leaf + 0.18, frond, leaf, leaf], 1) * _turn(angle)
    # z -> factor z + step has the fixed point step / (1 - factor); a straight frond grows from 0 up
    # to -1.7j
    step = -1.7j * (1 - frond[:, None]) * [0, 1, 0.9, 0.6]
    fixed = step / (1 - factor) * _factor(n, rng, (0.75, 1), 20)[..., 0]
    fixed = fixed + _shift(n, rng, 0.2)[..., 0] + 0.75j
    return _attractor(fixed, factor, [0.06, 0.64, 0.15, 0.15], rng)


_font = cache(ImageFont.truetype)


def printed(
    n: int, rng: np.random.Generator, character: str, fonts: str, strokes: int
) -> np.ndarray:
    """A character in a random font, size, place and turn, crossed by `strokes` thin lines."""
    masks = []
    for _ in range(n):
        canvas = Image.new("L", (SIZE, SIZE))
        place = tuple(SIZE / 2 + rng.uniform(-3.5, 3.5, 2))
        file = Path(get_data_path(), "fonts", "ttf", rng.choice(SUITE["fonts"][fonts]) + ".ttf")
        font = _font(file, int(rng.integers(18, 29)))
        ImageDraw.Draw(canvas).text(place, character, 255, font, anchor="mm")
        canvas = canvas.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR)
        for _ in range(strokes):
            ends = tuple(rng.uniform(-4, SIZE + 4, 4))
            ImageDraw.Draw(canvas).line(ends, int(rng.integers(80, 255)))
        masks.append(np.asarray(canvas) / 255)
    return np.stack(masks)


RENDERERS = {f.__name__: f for f in (band, weave, scene, julia, gasket, fern, printed)}
