"""What an expert's card and other people's configuration must say, checked by msgspec."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from mzlib.errors import MzlibError, expecting
from mzlib.zoo.architectures import is_known

LARGEST_INPUT = 2048  # pixels a side; timm's largest is 1024

Side = Annotated[int, Meta(gt=0, le=LARGEST_INPUT)]
Number = Annotated[float, Meta(gt=-1e6, lt=1e6)]
Positive = Annotated[float, Meta(gt=0, lt=1e6)]
Checked = TypeVar("Checked", bound=msgspec.Struct)


class Input(msgspec.Struct):
    """An expert's preprocessing, in timm's words."""

    input_size: tuple[Literal[3], Side, Side]
    mean: tuple[Number, Number, Number]
    std: tuple[Positive, Positive, Positive]
    crop_pct: Positive
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
    crop_mode: Literal["center", "squash", "border"]


class Domain(msgspec.Struct):
    """What a multi-domain expert's card says of one source."""

    class_names: list[str]


class Stored(msgspec.Struct):
    """What is read of a card before its weights are."""

    sha256: str
    domains: dict[str, Domain] = {}


class _Architecture(msgspec.Struct):
    architecture: str

    def __post_init__(self) -> None:
        if not is_known(self.architecture):
            raise ValueError(f"expected an architecture of timm, got {self.architecture!r}")


class Card(_Architecture, kw_only=True):
    """An expert of our own; mean and std are there when its input has others than the zoo's."""

    source: str
    pretraining: str
    class_names: list[str]
    image_size: Side
    accuracy: float | None
    mean: tuple[Number, Number, Number] | None = None
    std: tuple[Positive, Positive, Positive] | None = None
    input: Input | None = None


class TimmConfig(_Architecture, kw_only=True):
    """timm's config.json."""

    num_classes: Annotated[int, Meta(ge=0)] = 0
    pretrained_cfg: dict[str, Any] = {}
    model_args: dict[str, Any] = {}


def checked(table: object, kind: type[Checked], where: Path) -> Checked:
    """`table` as the structure; MzlibError that names the file and the key that is wrong."""
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise MzlibError(f"{where}: {error}") from None


def read_json(path: Path) -> dict:
    """The table in a file; OSError where there is none, MzlibError for anything else."""
    content = path.read_bytes()
    with expecting(path, "a JSON table"):
        return msgspec.json.decode(content, type=dict[str, Any])
