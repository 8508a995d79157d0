"""A suite: which experts, tasks, regimes and hyper-parameters; read from `suites/<name>.toml` and
expanded into jobs.
"""

import fnmatch
import tomllib
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mzlib.benchmark.data import CARDS, fingerprints, load_task, not_found, paper, store
from mzlib.benchmark.jobs import Job
from mzlib.dataset import Task
from mzlib.errors import MzlibError
from mzlib.provenance import home
from mzlib.reference import REFERENCE_ARCHITECTURE
from mzlib.selectors import SELECTORS
from mzlib.training import Recipe
from mzlib.zoo import VARIANTS
from mzlib.zoo.architectures import is_known

UNTRAINED = Recipe(lr=0.0, epochs=0, batch_size=128)
BORROWED = ("image_size", "generic", "sources", "families", "multi_domain_images", "collection")

Name = Annotated[str, Meta(pattern=r"^\w[\w.-]*\Z")]  # becomes the name of a file
Prefix = Annotated[str, Meta(pattern=r"^\w[\w.]*\Z")]  # ends at the first hyphen of an expert
Count = Annotated[int, Meta(gt=0)]
Natural = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0, lt=1e9)]
NotNegative = Annotated[float, Meta(ge=0, lt=1e9)]
Shots = Count | Literal["full"]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the file; a key that it does not have is a mistake."""


class Settings(Table):
    """A `Recipe`, with what its numbers may be."""

    lr: Positive
    epochs: Count
    batch_size: Count
    min_steps: Natural = Recipe.min_steps
    milestones: tuple[NotNegative, ...] = Recipe.milestones
    momentum: Positive = Recipe.momentum
    weight_decay: NotNegative = Recipe.weight_decay


class Recipes(Table):
    """Of single-domain experts and of fine-tuning; of the others where they are not an expert's."""

    expert: Settings
    finetune: Settings
    generic: Settings | None = None
    multi_domain: Settings | None = None


class Family(Table):
    """Experts of one architecture: `resnet-<generic>`, `resnet-<source>-scratch`,
    `resnet-<source>-generic`, and the multi-domain `resnet-<variant>`, whose domains are
    `resnet-<variant>:<source>`.

    multi_domain_repeats: so many further trainings of every multi-domain expert, with the seeds 1,
    2, …: `resnet-<variant>-seed1`, whose domains are `resnet-<variant>-seed1:<source>`. They say
    how much of an accuracy is the seed, and are in no zoo.

    beside: no member of the zoo but what the zoo is compared with (Fig. 1): its generic expert
    only. random: beside the zoo stands `resnet-random` too, which is not pre-trained.
    generic_weights: the generic expert as timm has it (`timm:resnet101.a1_in1k`) instead of a
    trained one.
    """

    architecture: str
    pretraining: tuple[Literal["scratch", "generic"], ...] = ("scratch", "generic")
    multi_domain: tuple[Literal[VARIANTS], ...] = ()
    multi_domain_repeats: Natural = 0
    beside: bool = False
    random: bool = False
    generic_weights: Annotated[str, Meta(pattern=r"^(timm:.+)?\Z")] = ""


class Grid(Table):
    """A block of jobs: all combinations; `experts` and `targets` are patterns over names."""

    shots: tuple[Shots, ...]
    seeds: tuple[Natural, ...] = (0,)
    experts: tuple[str, ...] = ("*",)
    targets: tuple[str, ...] = ("*",)


class FinetuneGrid(Grid, kw_only=True):
    """beside: for comparison with the zoo (Fig. 1), in no ranking; only such a block has experts
    that stand beside the zoo, and repeated trainings.
    """

    learning_rates: tuple[Positive, ...]
    beside: bool = False


class ScoreGrid(Grid, kw_only=True):
    """One pass of evidence serves the selectors of a block."""

    selectors: tuple[str, ...]
    images_per_class: tuple[Count | Literal["all"], ...] = (25,)


class Suite(Table):
    """multi_domain_images: images drawn of every source in an epoch of a multi-domain expert;
    `as single`: so many that it has seen as many images of a source, at its end, as the expert of
    that source alone. zoo: the suite whose experts these are, by default its own. collection:
    `paper` takes the tasks from the files of the paper's data sets (`mzlib.benchmark.data.paper`).
    reference_net: RSA's, another than the default.
    """

    name: str
    zoo: str
    title: str
    image_size: Count
    generic: str
    sources: tuple[Name, ...]
    targets: tuple[Name, ...]
    families: Annotated[dict[Prefix, Family], Meta(min_length=1)]
    recipes: Recipes
    finetune: tuple[FinetuneGrid, ...] = ()
    score: tuple[ScoreGrid, ...] = ()
    multi_domain_images: Count | Literal["as single"] = 1000
    collection: Literal["", "paper"] = ""
    reference_net: str = ""

    def __hash__(self) -> int:
        return hash(self.name)

    def task(self, name: str) -> Task:
        """A source or target of the suite, at its image size."""
        if self.collection:
            return paper.load(name, self.image_size, paper.root())
        return load_task(name, self.image_size)

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

    @property
    def reference_architecture(self) -> str:
        """Of the net that RSA and DDS train on a target."""
        return self.reference_net or REFERENCE_ARCHITECTURE

    def architecture(self, expert: str) -> str:
        """Of the expert of that name."""
        return self.families[expert.partition("-")[0]].architecture

    def recipe(self, kind: str) -> Recipe:
        """`expert`, `finetune`, `generic` or `multi_domain`; where there is none an expert's."""
        settings = getattr(self.recipes, kind) or self.recipes.expert
        return Recipe(**msgspec.structs.asdict(settings))

    def _changed(self, suite: str, names: Iterable[str], *parts: str) -> dict[str, dict]:
        """`fingerprints.changed`; the paper's files are too many to be read for it."""
        return {} if self.collection else fingerprints.changed(suite, names, (*parts, "flip"))

    def zoo_jobs(self) -> list[Job]:
        """In an order that trains every generic expert before those that start from it."""
        first = []
        then = []
        repeats = []
        changed = self._changed(self.zoo, self.sources, "train", "test")
        recipe = self.recipe("expert")
        multi_domain = self.recipe("multi_domain")
        for prefix, family in self.families.items():
            job = partial(self._expert_job, prefix, changed)
            weights = {"weights": family.generic_weights} if family.generic_weights else {}
            own = {
                "source": self.generic,
                "pretraining": "scratch",
                **weights,
            }
            generic = job(self.generic, self.recipe("generic"), **own)
            first.append(generic)
            if family.random:
                own = {"source": self.generic, "pretraining": "random"}
                then.append(job("random", UNTRAINED, **own))
            if family.beside:
                continue
            for variant in family.multi_domain:
                own = {"variant": variant, "sources": self.sources, **self._multi_domain_images()}
                then.append(job(variant, multi_domain, **own))
                for seed in range(1, family.multi_domain_repeats + 1):
                    repeats.append(job(f"{variant}-seed{seed}", multi_domain, seed=seed, **own))
            starts = {"scratch": {}, "generic": {"start": generic.expert, "start_key": generic.key}}
            for source in self.sources:
                for how in family.pretraining if source != self.generic else ():
                    own = {
                        "source": source,
                        "pretraining": how,
                        **starts[how],
                    }
                    then.append(job(f"{source}-{how}", recipe, **own))
        return first + then + repeats

    def _multi_domain_images(self) -> dict[str, Any]:
        """What the job of a multi-domain expert says of them: a number, or the recipes of the
        sources' own experts, from which `mzlib.benchmark.stages.images_per_epoch` has it.
        """
        if self.multi_domain_images != "as single":
            return {"images": self.multi_domain_images}
        recipes = dict.fromkeys(self.sources, self.recipe("expert"))
        recipes[self.generic] = self.recipe("generic")
        return {"images_as": recipes}

    def _expert_job(
        self,
        prefix: str,
        changed: dict[str, dict],
        name: str,
        recipe: Recipe,
        **settings: Any,
    ) -> Job:
        sources = settings.get("sources") or [settings["source"]]
        data = {source: changed[source] for source in sources if source in changed}
        settings |= {"data": data} if data else {}
        settings |= {"architecture": self.families[prefix].architecture}
        settings |= {"image_size": self.image_size, "recipe": recipe}
        return Job.of("zoo", self.zoo, f"{prefix}-{name}", **settings)

    def starting_points(self, *kinds: str) -> dict[str, str]:
        """Name of every network that fine-tuning can start from -> key of the zoo job that trains
        it. kinds: `single` or `multi`, the zoo of single-domain experts or of the multi-domain
        expert's domains (multi-BN's only, as in the paper); `beside`, what stands beside the zoo;
        `repeat`, the domains of repeated trainings; default: both zoos.
        """
        kinds = kinds or ("single", "multi")
        points = {}
        for job in self.zoo_jobs():
            family, _, what = job.expert.partition("-")
            names = [job.expert]
            its_kind = "single"
            if what == "random" or self.families[family].beside:
                its_kind = "beside"
            elif "variant" in job.settings:
                its_kind = "repeat" if job.seed else "multi"
                domains = self.sources if job.settings["variant"] == "multi_bn" else ()
                names = [f"{job.expert}:{source}" for source in domains]
            if its_kind in kinds:
                points |= dict.fromkeys(names, job.key)
        return points

    def experts_for(self, grid: Grid) -> dict[str, str]:
        """The `starting_points` that a block may name."""
        points = self.starting_points()
        if isinstance(grid, FinetuneGrid) and grid.beside:
            points |= self.starting_points("beside", "repeat")
        return points

    def _cells(self, grid: Grid, *parts: str) -> Iterator[dict]:
        """The settings that all jobs of a block have; parts: of a target, what they depend on."""
        points = self.experts_for(grid)
        targets = _matching(self.targets, grid.targets)
        experts = _matching(points, grid.experts)
        changed = self._changed(self.name, targets, *parts)
        for target, expert, shots, seed in product(targets, experts, grid.shots, grid.seeds):
            yield {
                "suite": self.name,
                "expert": expert,
                "task": target,
                "shots": str(shots),
                "seed": seed,
                "expert_key": points[expert],
                "image_size": self.image_size,
                **({"data": changed[target]} if target in changed else {}),
            }

    def finetune_jobs(self, beside: bool | None = None) -> list[Job]:
        """Of all blocks, or only of those (not) beside the zoo."""
        recipe = self.recipe("finetune")
        jobs = [
            Job.of("finetune", **cell, recipe=recipe, lr=lr)
            for grid in self.finetune
            if beside in (None, grid.beside)
            for cell in self._cells(grid, "train", "test")
            for lr in grid.learning_rates
        ]
        return list(dict.fromkeys(jobs))

    def score_jobs(self) -> list[Job]:
        """Of all blocks."""
        common: dict[str, Any] = {"recipe": self.recipe("finetune")}
        common |= {"reference_net": self.reference_net} if self.reference_net else {}
        jobs = [
            Job.of("score", **cell, selectors=grid.selectors, images_per_class=str(n), **common)
            for grid in self.score
            for cell in self._cells(grid, "train")
            for n in grid.images_per_class
        ]
        return list(dict.fromkeys(jobs))

    def jobs(self, stage: str) -> list[Job]:
        """Of a stage; those that make experts are another suite's where the zoo is."""
        if stage == "zoo":
            return self.zoo_jobs() if self.zoo == self.name else []
        return self.finetune_jobs() if stage == "finetune" else self.score_jobs()


def _matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    return [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in patterns)]


def suite_files() -> dict[str, Path]:
    """Suites by name: those that came with the package (wheel or checkout), then those in `suites/`
    under `home()`.
    """
    package = Path(__file__).parents[1]
    folders = (package / "suites", package.parent / "suites", home() / "suites")
    return {p.stem: p for folder in folders for p in sorted(folder.glob("*.toml"))}


def load_suite(name: str) -> Suite:
    """The suite of that name, or in the TOML file of that path. Raises MzlibError naming what is
    wrong in the file.
    """
    path, table = _read(name)
    if "zoo" in table:
        table = _with_zoo(table, path)
    try:
        suite = msgspec.convert(
            {
                "zoo": path.stem,
                **table,
                "name": path.stem,
            },
            Suite,
        )
    except msgspec.ValidationError as error:
        raise MzlibError(f"{path}: {error}") from None
    mistake = next(chain(_mistakes_in_zoo(suite), _mistakes_in_grids(suite)), "")
    if mistake:
        raise MzlibError(f"{path}: {mistake}")
    return suite


def _read(name: str) -> tuple[Path, dict]:
    path = Path(name) if name.endswith(".toml") else suite_files().get(name)
    if path is None or not path.is_file():
        there = ", ".join(suite_files()) or "none here"
        raise MzlibError(f"expected a suite of {there} or a TOML file, got {name!r}")
    try:
        return path, tomllib.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise MzlibError(f"{path}: {error}") from None


def _with_zoo(table: dict, path: Path) -> dict:
    """The table of a suite that uses another's experts, with all that makes these."""
    try:
        owner, theirs = _read(str(table["zoo"]))
    except MzlibError as error:
        raise MzlibError(f"{path}: zoo: {error}") from None
    own = [key for key in BORROWED if key in table]
    recipes = table.get("recipes", {})
    if own or "zoo" in theirs or {*recipes} - {"finetune"}:
        raise MzlibError(
            f"{path}: expected the zoo of {owner.stem} as it is there, got another for its "
            f"{', '.join(own) or 'recipes'}: leave these out, and take a suite with its own zoo"
        )
    borrowed = {key: theirs[key] for key in BORROWED if key in theirs}
    return borrowed | table | {"zoo": owner.stem, "recipes": theirs["recipes"] | recipes}


def _mistakes_in_zoo(suite: Suite) -> Iterator[str]:
    """What is wrong with tasks and experts beyond the form of the file."""
    if suite.generic not in suite.sources:
        yield f"expected generic {suite.generic!r} among the sources"
    for family in suite.families.values():
        dotted = [source for source in suite.sources if family.multi_domain and "." in source]
        for source in dotted:  # it becomes part of the names of parameters
            yield f"expected a plain name without '.', got {source!r}"
    for name in dict.fromkeys((*suite.sources, *suite.targets)):
        if suite.collection:
            if name not in paper.SETS:
                yield f"expected tasks of {', '.join(paper.SETS)}, got {name!r}"
        elif name not in CARDS and not store.exists(store.root() / name):
            yield not_found(name, store.root())
    nets = [family.architecture for family in suite.families.values()]
    for net in (*nets, suite.reference_architecture):
        if not is_known(net):
            yield f"expected an architecture of timm, got {net!r}"


def _mistakes_in_grids(suite: Suite) -> Iterator[str]:
    for grid in (*suite.finetune, *suite.score):
        experts = suite.experts_for(grid)
        for key, names in (("experts", experts), ("targets", suite.targets)):
            idle = [p for p in getattr(grid, key) if not _matching(names, [p])]
            if idle:
                yield f"expected {key} to match some of {', '.join(names)}, got {idle}"
    for grid in suite.score:
        unknown = [name for name in grid.selectors if name not in SELECTORS]
        if unknown:
            yield f"expected selectors of {', '.join(SELECTORS)}, got {unknown}"
