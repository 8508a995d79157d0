"""A suite: which experts, tasks, regimes and hyper-parameters; read from `suites/<name>.toml` and
expanded into jobs.
"""

import fnmatch
import re
import tomllib
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import get_args, get_origin

from mzlib.benchmark.data import CARDS, load_task, not_found, paper, store
from mzlib.benchmark.jobs import Job
from mzlib.dataset import Task
from mzlib.errors import MzlibError
from mzlib.provenance import home
from mzlib.reference import REFERENCE_ARCHITECTURE
from mzlib.selectors import SELECTORS
from mzlib.training import Recipe
from mzlib.zoo import VARIANTS
from mzlib.zoo.architectures import is_known

PRETRAINING = ("scratch", "generic")
UNTRAINED = Recipe(lr=0.0, epochs=0, batch_size=128)
POSITIVE = (
    "image_size",
    "multi_domain_images",
    "lr",
    "learning_rates",
    "epochs",
    "batch_size",
    "momentum",
    "shots",
    "images_per_class",
)  # other numbers may be 0
WORDS = {"shots": "full", "images_per_class": "all"}  # in place of a number


@dataclass(frozen=True)
class Family:
    """Experts of one architecture: `resnet-<generic>`, `resnet-<source>-scratch`,
    `resnet-<source>-generic`, and the
    multi-domain `resnet-<variant>`, whose domains are `resnet-<variant>:<source>`.

    beside: no member of the zoo but what the zoo is compared with (Fig. 1): its generic expert
    only. random: beside the zoo
    stands `resnet-random` too, which is not pre-trained.
    generic_weights: the generic expert as timm has it (`timm:resnet101.a1_in1k`) instead of a
    trained one.
    """

    architecture: str
    pretraining: tuple[str, ...] = PRETRAINING
    multi_domain: tuple[str, ...] = ()
    beside: bool = False
    random: bool = False
    generic_weights: str = ""


@dataclass(frozen=True)
class FinetuneGrid:
    """A block of fine-tunes: all combinations; `experts` and `targets` are patterns over names.
    beside: for comparison with the
    zoo (Fig. 1), in no ranking; only such a block has experts that stand beside the zoo.
    """

    shots: tuple[int | str, ...]
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...] = (0,)
    experts: tuple[str, ...] = ("*",)
    targets: tuple[str, ...] = ("*",)
    beside: bool = False


@dataclass(frozen=True)
class ScoreGrid:
    """A block of scores: all combinations; one pass of evidence serves the selectors of a block."""

    selectors: tuple[str, ...]
    shots: tuple[int | str, ...]
    images_per_class: tuple[int | str, ...] = (25,)
    seeds: tuple[int, ...] = (0,)
    experts: tuple[str, ...] = ("*",)
    targets: tuple[str, ...] = ("*",)


@dataclass(frozen=True)
class Suite:
    """recipes: `expert`, `finetune`, and optionally `generic` and `multi_domain` (default: as
    `expert`);
    multi_domain_images: images drawn of every source in an epoch of a multi-domain expert.
    collection: `paper` takes the tasks
    from the files of the paper's data sets (`mzlib.benchmark.data.paper`). reference_net: RSA's,
    another than the default.
    """

    name: str
    title: str
    image_size: int
    generic: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    families: dict[str, Family]
    recipes: dict[str, Recipe]
    finetune: tuple[FinetuneGrid, ...]
    score: tuple[ScoreGrid, ...]
    multi_domain_images: int = 1000
    collection: str = ""
    reference_net: str = ""

    def __hash__(self) -> int:
        return hash(self.name)

    def task(self, name: str) -> Task:
        """A source or target of the suite, at its image size."""
        if not self.collection:
            return load_task(name, self.image_size)
        return paper.load(name, self.image_size, paper.root())

    @property
    def reference(self) -> str:
        """The expert that gains are measured against: the first family's generic one (ImageNet
        ResNet in the paper).
        """
        return f"{next(iter(self.families))}-{self.generic}"

    @property
    def multi_domain_reference(self) -> str:
        """The same for the multi-domain expert: its generic domain."""
        return f"{next(iter(self.families))}-multi_bn:{self.generic}"

    def recipe(self, kind: str) -> Recipe:
        """Of a kind; an expert's where the suite has no other."""
        return self.recipes.get(kind, self.recipes["expert"])

    @property
    def reference_architecture(self) -> str:
        """Of the net that RSA and DDS train on a target."""
        return self.reference_net or REFERENCE_ARCHITECTURE

    def architecture(self, expert: str) -> str:
        """Of the expert of that name."""
        return self.families[expert.partition("-")[0]].architecture

    def zoo_jobs(self) -> list[Job]:
        """In an order that trains every generic expert before those that start from it."""
        first, then = [], []
        for prefix, family in self.families.items():
            weights = {"weights": family.generic_weights} if family.generic_weights else {}
            generic = self._expert_job(
                f"{prefix}-{self.generic}",
                family,
                self.generic,
                "scratch",
                self.recipe("generic"),
                **weights,
            )
            first.append(generic)
            if family.random:
                then.append(
                    self._expert_job(f"{prefix}-random", family, self.generic, "random", UNTRAINED)
                )
            if family.beside:
                continue
            for variant in family.multi_domain:
                then.append(
                    Job.of(
                        "zoo",
                        self.name,
                        f"{prefix}-{variant}",
                        architecture=family.architecture,
                        variant=variant,
                        sources=self.sources,
                        images=self.multi_domain_images,
                        image_size=self.image_size,
                        recipe=self.recipe("multi_domain"),
                    )
                )
            for source in self.sources:
                for pretraining in family.pretraining if source != self.generic else ():
                    start = (
                        {"start": generic.expert, "start_key": generic.key}
                        if pretraining == "generic"
                        else {}
                    )
                    then.append(
                        self._expert_job(
                            f"{prefix}-{source}-{pretraining}",
                            family,
                            source,
                            pretraining,
                            self.recipe("expert"),
                            **start,
                        )
                    )
        return first + then

    def _expert_job(self, name, family, source, pretraining, recipe, **start) -> Job:
        return Job.of(
            "zoo",
            self.name,
            name,
            architecture=family.architecture,
            source=source,
            pretraining=pretraining,
            image_size=self.image_size,
            recipe=recipe,
            **start,
        )

    def starting_points(self, kind: str = "") -> dict[str, str]:
        """Name of every network that fine-tuning can start from -> key of the zoo job that trains
        it. kind: `single` or
        `multi`, the zoo of single-domain experts or of the multi-domain expert's domains
        (multi-BN's only, as in the paper);
        `beside`, what stands beside the zoo; default: both zoos.
        """
        points = []
        for job in self.zoo_jobs():
            family, _, what = job.expert.partition("-")
            if what == "random" or self.families[family].beside:
                points.append(("beside", job.expert, job.key))
            elif "variant" not in job.settings:
                points.append(("single", job.expert, job.key))
            elif job.settings["variant"] == "multi_bn":
                points += [("multi", f"{job.expert}:{source}", job.key) for source in self.sources]
        return {
            name: key for what, name, key in points if what == kind or not kind and what != "beside"
        }

    def _cells(self, grid, beside=False):
        points = self.starting_points() | (self.starting_points("beside") if beside else {})
        for target in _matching(self.targets, grid.targets):
            for expert, key in points.items():
                if _matching([expert], grid.experts):
                    for shots in grid.shots:
                        for seed in grid.seeds:
                            yield dict(
                                suite=self.name,
                                expert=expert,
                                task=target,
                                shots=str(shots),
                                seed=seed,
                                expert_key=key,
                                image_size=self.image_size,
                            )

    def finetune_jobs(self, beside: bool | None = None) -> list[Job]:
        """Of all blocks, or only of those (not) beside the zoo."""
        jobs = (
            Job.of("finetune", **cell, recipe=self.recipe("finetune"), lr=lr)
            for grid in self.finetune
            if beside in (None, grid.beside)
            for cell in self._cells(grid, grid.beside)
            for lr in grid.learning_rates
        )
        return list(dict.fromkeys(jobs))

    def score_jobs(self) -> list[Job]:
        """Of all blocks."""
        net = {"reference_net": self.reference_net} if self.reference_net else {}
        jobs = (
            Job.of(
                "score",
                **cell,
                selectors=grid.selectors,
                images_per_class=str(images),
                recipe=self.recipe("finetune"),
                **net,
            )
            for grid in self.score
            for cell in self._cells(grid)
            for images in grid.images_per_class
        )
        return list(dict.fromkeys(jobs))

    def jobs(self, stage: str) -> list[Job]:
        """Of a stage."""
        return {"zoo": self.zoo_jobs, "finetune": self.finetune_jobs, "score": self.score_jobs}[
            stage
        ]()


def _matching(names, patterns) -> list[str]:
    return [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in patterns)]


def _build(cls, table: dict, where: str, **more):
    """The dataclass `cls` from a TOML table; MzlibError naming a key that is unknown or missing or
    has no such values.
    """
    if not isinstance(table, dict):
        raise MzlibError(f"{where}: expected a table, got {table!r}")
    known = {f.name: f for f in fields(cls) if f.name not in more}
    for key, value in table.items():
        if key not in known:
            raise MzlibError(f"{where}: unknown key {key!r}, expected some of {', '.join(known)}")
        kind = (
            get_args(known[key].type)[0]
            if (several := get_origin(known[key].type) is tuple)
            else known[key].type
        )
        if several and not isinstance(value, list):
            raise MzlibError(f"{where}: expected a list for {key!r}, got {value!r}")
        kind = float | int if kind is float else kind
        for v in value if several else [value]:
            wanted = ""
            if not isinstance(v, kind) or isinstance(v, bool) and kind is not bool:
                wanted = kind.__name__ if isinstance(kind, type) else kind
            elif (
                v != WORDS.get(key, v)
                if isinstance(v, str)
                else not 0 <= v < 2**63 or v == 0 and key in POSITIVE
            ):
                wanted = ("positive numbers" if key in POSITIVE else "numbers of at least 0") + (
                    f' or "{WORDS[key]}"' if key in WORDS else ""
                )
            if wanted:
                raise MzlibError(f"{where}: expected {wanted} for {key!r}, got {value!r}")
    if absent := [key for key, f in known.items() if f.default is MISSING and key not in table]:
        raise MzlibError(f"{where}: expected key {absent[0]!r}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}, **more)


def suite_files() -> dict[str, Path]:
    """Suites by name: those that came with the package (wheel or checkout), then those in `suites/`
    under `home()`.
    """
    package = Path(__file__).parents[1]
    folders = (package / "suites", package.parent / "suites", home() / "suites")
    return {p.stem: p for folder in folders for p in sorted(folder.glob("*.toml"))}


@lru_cache
def load_suite(name: str) -> Suite:
    """The suite of that name, or in the TOML file of that path. Raises MzlibError naming what is
    wrong in the file.
    """
    path = Path(name) if name.endswith(".toml") else suite_files().get(name)
    if path is None or not path.is_file():
        raise MzlibError(
            f"expected a suite of {', '.join(suite_files()) or 'none here'} or a TOML file, got "
            f"{name!r}"
        )
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise MzlibError(f"{path}: {error}") from None

    def take(key, kind, shown):
        if not isinstance(value := table.pop(key, kind()), kind):
            raise MzlibError(f"{path}: expected {shown}, got {key} = {value!r}")
        return value

    parts = {
        key: {
            k: _build(cls, v, f"{path} [{key}.{k}]")
            for k, v in take(key, dict, f"[{key}.NAME]").items()
        }
        for key, cls in (("families", Family), ("recipes", Recipe))
    }
    grids = {
        key: tuple(_build(cls, v, f"{path} [[{key}]]") for v in take(key, list, f"[[{key}]]"))
        for key, cls in (("finetune", FinetuneGrid), ("score", ScoreGrid))
    }
    suite = _build(Suite, table, str(path), name=path.stem, **parts, **grids)
    _check(suite, path)
    return suite


def _check(suite: Suite, path: Path) -> None:
    def require(good, message):
        if not good:
            raise MzlibError(f"{path}: {message}")

    require(suite.families, "expected at least one [families.NAME]")
    require(
        {"expert", "finetune"}
        <= set(suite.recipes)
        <= {"expert", "finetune", "generic", "multi_domain"},
        f"expected [recipes.expert] and finetune, perhaps generic and multi_domain, got "
        f"{', '.join(suite.recipes)}",
    )
    separator = (
        "." if any(family.multi_domain for family in suite.families.values()) else "/"
    )  # in names of their parameters
    for name in (*suite.families, *suite.sources, *suite.targets):  # they become names of files
        bad = "-" if name in suite.families else separator if name in suite.sources else "/"
        require(
            re.fullmatch(r"\w[\w.-]*", name) and bad not in name,
            f"expected a plain name without {bad!r}, got {name!r}",
        )
    require(suite.generic in suite.sources, f"expected generic {suite.generic!r} among the sources")
    require(
        suite.collection in ("", "paper"),
        f"expected collection 'paper', got {suite.collection!r}",
    )
    for name in dict.fromkeys((*suite.sources, *suite.targets)):
        if suite.collection:
            require(name in paper.SETS, f"expected tasks of {', '.join(paper.SETS)}, got {name!r}")
        elif not (name in CARDS or store.exists(store.root() / name) or Path(name).is_dir()):
            require(False, not_found(name, store.root()))
    for net in {family.architecture for family in suite.families.values()} | {
        suite.reference_net
    } - {""}:
        require(is_known(net), f"expected an architecture of timm, got {net!r}")
    for family in suite.families.values():
        require(
            family.generic_weights.startswith("timm:") or not family.generic_weights,
            f"expected generic_weights of timm:NAME, got {family.generic_weights!r}",
        )
        require(
            set(family.pretraining) <= set(PRETRAINING),
            f"expected pretraining of {PRETRAINING}, got {family.pretraining}",
        )
        require(
            set(family.multi_domain) <= set(VARIANTS),
            f"expected multi_domain of {VARIANTS}, got {family.multi_domain}",
        )
    zoo, beside = suite.starting_points(), suite.starting_points("beside")
    for grid in (*suite.finetune, *suite.score):
        experts = (*zoo, *beside) if getattr(grid, "beside", False) else zoo
        for key, names, patterns in (
            ("experts", experts, grid.experts),
            ("targets", suite.targets, grid.targets),
        ):
            idle = [pattern for pattern in patterns if not _matching(names, [pattern])]
            require(not idle, f"expected {key} to match some of {', '.join(names)}, got {idle}")
    for grid in suite.score:
        unknown = [s for s in grid.selectors if s not in SELECTORS]
        require(not unknown, f"expected selectors of {', '.join(SELECTORS)}, got {unknown}")
