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
from numpy import ndarray
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits

SIZE = 32
NOISE = 0.08  # at most, of the range of intensities
SUITE = tomllib.loads(Path(__file__).with_name("mini.toml").read_text("utf-8"))
FONTS = Path(get_data_path(), "fonts", "ttf")
TABLES = SUITE["classes"]  # task -> class name -> [renderer, parameters …]
SIDE = slice(-1, 1, SIZE * 1j)
Y, X = np.mgrid[SIDE, SIDE].astype(np.float32)
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
    return {
        "train": train * classes,
        "test": test * classes,
        "classes": classes,
    }


def digest(name: str) -> str:
    """SHA-256 of the parameters that an embedded task is drawn with."""
    parameters = [TABLES[name], counts(name), SUITE["fonts"]]
    text = json.dumps(parameters)
    return hashlib.sha256(text.encode()).hexdigest()


def render(name: str, split: str) -> tuple[ndarray, ndarray]:
    """uint8 images [N, 32, 32, 3] and int64 labels [N] of an embedded task's split, ordered by
    class; takes 1 s.
    """
    count = counts(name)[split] // len(TABLES[name])
    images = []
    part = slice(count) if split == "train" else slice(-count, None)
    # "/1": drawn anew after the classes were designed on other images, so no choice was made on
    # these
    seed = zlib.crc32(f"{name}/{split}/1".encode())
    for row, (renderer, *parameters) in enumerate(TABLES[name].values()):
        if renderer == "digit":
            images.append(_digits(*parameters, part))
        else:
            rng = np.random.default_rng([seed, row])
            mask = RENDERERS[renderer](count, rng, *parameters)
            images.append(paint(mask, rng))
    labels = np.repeat(np.arange(len(images)), count)
    return np.concatenate(images), labels


def _digits(digit: int, part: slice) -> ndarray:
    """Some of scikit-learn's handwritten digits, resized from 8 to 32 px."""
    data = load_digits()
    images = []
    for pixels in data.images[data.target == digit][part]:
        light = pixels * 15.9375
        small = Image.fromarray(light.astype(np.uint8))
        grey = small.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        images.append(grey.convert("RGB"))
    return np.stack(images)


def paint(mask: ndarray, rng: Generator) -> ndarray:
    """Intensity [n, 32, 32] -> uint8 [n, 32, 32, 3]: light on darker ground in random colours, a
    gradient and noise.
    """
    n = len(mask)
    background = rng.uniform(0, 0.5, (n, 1, 1, 3))
    contrast = rng.uniform(0.35, 0.65, (n, 1, 1, 1))
    colours = rng.uniform(0.4, 1, (n, 1, 1, 3))
    contrast = contrast * colours
    along_x, along_y = rng.uniform(-0.15, 0.15, (2, n, 1, 1, 1))
    light = contrast * mask[..., None]
    image = background + light
    image = image + along_x * X[..., None]
    image += along_y * Y[..., None]
    grey = rng.standard_normal((n, SIZE, SIZE, 1))
    colour = rng.standard_normal((n, SIZE, SIZE, 3))
    noise = NOISE * rng.uniform(0.2, 1, (n, 1, 1, 1))
    image += noise * (grey + 0.5 * colour)
    pixels = image.clip(0, 1) * 255
    return pixels.round().astype(np.uint8)


def _each(n: int, rng: Generator, low: float, high: float) -> ndarray:
    """A number for each image, [n, 1, 1]."""
    return rng.uniform(low, high, (n, 1, 1))


def _turn(degrees: ndarray | float) -> ndarray:
    """Complex numbers that turn a plane."""
    return np.exp(1j * np.deg2rad(degrees))


def _factor(n: int, rng: Generator, zoom: tuple[float, float], turn: float) -> ndarray:
    """Complex [n, 1, 1] that zoom by a factor between two limits and turn by up to ± degrees."""
    size = _each(n, rng, *zoom)
    angle = _each(n, rng, -turn, turn)
    return size * _turn(angle)


def _shift(n: int, rng: Generator, limit: float, k: int = 1) -> ndarray:
    """Complex [n, k, 1] in a square of half side `limit`."""
    pairs = rng.uniform(-limit, limit, (n, k, 2))
    return pairs @ [[1], [1j]]


def band(
    n: int,
    rng: Generator,
    angle: float,
    cycles: float,
    spread: float,
    octaves: float,
) -> ndarray:
    """White noise through a Gaussian band around an angle (± spread, degrees) and a frequency
    (cycles per image).
    """
    across = np.fft.rfftfreq(SIZE, 1 / SIZE)
    down = np.fft.fftfreq(SIZE, 1 / SIZE)
    frequency = across + 1j * down[:, None]
    away = np.angle(frequency, deg=True) - angle
    away = away - _each(n, rng, -12, 12)
    away = (away + 90) % 180 - 90
    per_image = np.abs(frequency) + 1e-3
    octave = np.log2(per_image / cycles)
    octave = octave - _each(n, rng, -0.3, 0.3)
    around = (away / spread) ** 2
    along = (octave / octaves) ** 2
    weight = np.exp(-0.5 * around - 0.5 * along)
    white = rng.standard_normal((n, SIZE, SIZE))
    spectrum = np.fft.rfft2(white)
    coloured = spectrum * weight
    texture = np.fft.irfft2(coloured, s=(SIZE, SIZE))
    texture = texture / texture.std((1, 2), keepdims=True)
    contrast = _each(n, rng, 0.5, 2)
    return 0.5 + 0.5 * np.tanh(texture * contrast)


def weave(
    n: int,
    rng: Generator,
    warp: float,
    weft: float,
    threads: float,
    picks: float,
    how: str,
) -> ndarray:
    """Two sets of threads at two angles (degrees) in two counts that meet by "sum", "over" (and
    under) or "top".
    """
    turned = PLANE * _factor(n, rng, (0.88, 1.12), 6)
    angles = [angle + _each(n, rng, -4, 4) for angle in (warp, weft)]
    phases = []
    for count, angle in zip((threads, picks), angles):
        place = (turned * _turn(-angle)).real
        start = 4 * np.pi * rng.random((n, 1, 1))
        phases.append(np.pi * count * place + start)
    a, b = np.cos(phases)
    if how == "sum":
        cloth = (a + b) / 2
    elif how == "over":
        half_a, half_b = (np.cos(phase / 2) for phase in phases)
        is_over = half_a * half_b > 0
        cloth = np.where(is_over, a, b)
    else:
        cloth = np.maximum(a, b)
    contrast = _each(n, rng, 0.15, 0.6)
    return 0.5 + 0.5 * cloth * contrast


def scene(n: int, rng: Generator, corners: int, star: float, hollow: int, number: int) -> ndarray:
    """`number` equal soft figures in cells of a 3 x 3 grid; a single one is larger and nearer to
    the middle.

    corners: 0 is a disc; star: pulls the middles of the edges in; hollow: 1 is an outline.
    """
    spacing, size = (0.42, 0.45) if number == 1 else (0.6, 0.29)
    cell = rng.random((n, 9)).argsort(1)[:, :number, None]
    column = cell % 3 - 1
    row = cell // 3 - 1
    centre = (column + 1j * row) * spacing
    centre = centre + _shift(n, rng, 0.12, number)
    size = size * rng.uniform(0.75, 1.35, centre.shape)
    place = (PLANE - centre[..., None]) / size[..., None]  # [n, number, 32, 32]
    tilt = rng.uniform(-0.35, 0.35, (n, number, 1, 1))
    tilt = np.pi / 2 + tilt
    radius = np.abs(place)
    edge = 1
    if corners:
        sector = 2 * np.pi / corners
        angle = np.angle(place) + tilt
        off = np.abs(angle % sector - sector / 2)  # from an edge's middle
        edge = np.cos(sector / 2) / np.cos(off)
        from_corner = 1 - 2 * off / sector
        edge = edge * (1 - star * from_corner)
    distance = radius - edge
    if hollow:
        distance = np.abs(radius - 0.8 * edge) - 0.2
    steepness = (distance * 12).clip(-30, 30)
    soft = 1 / (1 + np.exp(steepness))
    return soft.max(1)


def julia(n: int, rng: Generator, real: float, imaginary: float) -> ndarray:
    """Escape time of z -> z² + c for a c that is jittered a little."""
    centred = PLANE - _shift(n, rng, 0.3)
    window = _factor(n, rng, (1.1, 1.8), 180)
    z = centred * window
    z = z.astype(np.complex64)
    c = complex(real, imaginary) + _shift(n, rng, 0.014)
    c = c.astype(np.complex64)
    time = np.zeros(z.shape, np.float32)
    for _ in range(24):
        inside = np.abs(z) < 4
        time += inside
        grown = z * z + c
        z = np.where(inside, grown, z)
    gamma = _each(n, rng, 0.5, 1.2)
    return (time / 24) ** gamma


def _attractor(fixed: ndarray, factor: ndarray, share: list[float], rng: Generator) -> ndarray:
    """Chaos game of K maps z -> fixed + factor (z - fixed), complex [n, K], taken in these shares:
    [n, 32, 32].
    """
    n = len(fixed)
    image = np.arange(n)[:, None]
    z = fixed[:, :1].repeat(80, 1)
    pixels = n * SIZE * SIZE
    count = np.zeros(pixels)
    limits = np.cumsum(share)[:-1]
    for step in range(36):
        which = np.searchsorted(limits, rng.random(z.shape))
        point = fixed[image, which]
        shrink = factor[image, which]
        z = point + shrink * (z - point)
        if step >= 8:  # the first steps are still on their way to the attractor
            place = np.stack([z.imag, z.real])
            place = ((place + 1) * SIZE / 2).astype(int)
            row, column = place.clip(0, SIZE - 1)
            pixel = (image * SIZE + row) * SIZE + column
            count += np.bincount(pixel.ravel(), minlength=pixels)
    counts = count.reshape(n, SIZE, SIZE)
    return np.tanh(counts / 4)


def gasket(n: int, rng: Generator, corners: int, contraction: float, turn: float) -> ndarray:
    """Attractor of equal maps (contraction, turn in degrees) toward the corners of a polygon in any
    position.
    """
    turns = np.arange(corners) / corners
    polygon = np.exp(2j * np.pi * turns)
    size = _factor(n, rng, (0.55, 0.85), 180)
    centre = _shift(n, rng, 0.15)
    fixed = polygon * size[..., 0] + centre[..., 0]
    jitter = _factor(n, rng, (0.95, 1.05), 6)
    factor = contraction * jitter[..., 0]
    factor = factor * _turn(turn)
    factor = factor.repeat(corners, 1)
    share = [1 / corners] * corners
    return _attractor(fixed, factor, share, rng)


def fern(
    n: int,
    rng: Generator,
    curl: float,
    left: float,
    right: float,
    leaf: float,
    frond: float,
) -> ndarray:
    """Fern of four similarities: foot, frond (curl in degrees) and two leaflets (angles in degrees,
    scale).
    """
    jitter = rng.uniform(-1, 1, (n, 5)) * (3, 8, 8, 0.03, 0.015)
    given = (curl, left, right, leaf, frond)
    curl, left, right, leaf, frond = (given + jitter).T
    angle = np.stack([0 * curl, curl, left, -right], 1)
    scale = np.stack([0 * leaf + 0.18, frond, leaf, leaf], 1)
    factor = scale * _turn(angle)
    # z -> factor z + step has the fixed point step / (1 - factor); a straight frond grows from 0 up
    # to -1.7j
    step = -1.7j * (1 - frond[:, None])
    step = step * [0, 1, 0.9, 0.6]
    fixed = step / (1 - factor)
    size = _factor(n, rng, (0.75, 1), 20)
    fixed = fixed * size[..., 0]
    centre = _shift(n, rng, 0.2)
    fixed = fixed + centre[..., 0]
    fixed = fixed + 0.75j
    return _attractor(fixed, factor, [0.06, 0.64, 0.15, 0.15], rng)


_font = cache(ImageFont.truetype)


def printed(n: int, rng: Generator, character: str, fonts: str, strokes: int) -> ndarray:
    """A character in a random font, size, place and turn, crossed by `strokes` thin lines."""
    masks = []
    for _ in range(n):
        canvas = Image.new("L", (SIZE, SIZE))
        place = tuple(SIZE / 2 + rng.uniform(-3.5, 3.5, 2))
        name = rng.choice(SUITE["fonts"][fonts])
        size = int(rng.integers(18, 29))
        font = _font(FONTS / f"{name}.ttf", size)
        draw = ImageDraw.Draw(canvas)
        draw.text(place, character, 255, font, anchor="mm")
        angle = rng.uniform(-15, 15)
        canvas = canvas.rotate(angle, Image.Resampling.BILINEAR)
        draw = ImageDraw.Draw(canvas)
        for _ in range(strokes):
            ends = tuple(rng.uniform(-4, SIZE + 4, 4))
            light = int(rng.integers(80, 255))
            draw.line(ends, light)
        masks.append(np.asarray(canvas) / 255)
    return np.stack(masks)


RENDERERS = {f.__name__: f for f in (band, weave, scene, julia, gasket, fern, printed)}
